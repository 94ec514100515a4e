package steer

import "fmt"

// Counter is one outcome of the program. The order is that of the outcomes in
// steer.c.
type Counter uint8

// The outcomes. Those named Pass left the frame to the kernel, those named
// Take redirected it to a socket.
const (
	PassOther      Counter = iota // nothing of ours
	PassForeignMAC                // unicast to another MAC (promiscuous mode)
	PassMalformed                 // headers cut short or contradictory
	PassFragment                  // to an address of the host, its first fragment not seen
	TakeAddress                   // to an address in Rules.Addrs
	TakeService                   // to an endpoint in Rules.Services
	TakeRange                     // to a port in Rules.LocalRanges
	TakeReturn                    // from an endpoint in Rules.Backends
	TakeICMPError                 // ICMP error about one of the last three
	TakeNeighbour                 // ARP request or neighbour solicitation
	DropNoSocket                  // ours, but the queue has no socket

	// NumCounters is the number of outcomes.
	NumCounters = int(iota)
)

var counterNames = [NumCounters]string{
	PassOther:      "pass_other",
	PassForeignMAC: "pass_foreign_mac",
	PassMalformed:  "pass_malformed",
	PassFragment:   "pass_fragment",
	TakeAddress:    "take_address",
	TakeService:    "take_service",
	TakeRange:      "take_range",
	TakeReturn:     "take_return",
	TakeICMPError:  "take_icmp_error",
	TakeNeighbour:  "take_neighbour",
	DropNoSocket:   "drop_no_socket",
}

// String is the outcome's name, fit for a metric label.
func (c Counter) String() string {
	if int(c) >= NumCounters {
		return fmt.Sprintf("counter(%d)", uint8(c))
	}
	return counterNames[c]
}

// Stats are frames by outcome since Attach, indexed by Counter.
type Stats [NumCounters]uint64
