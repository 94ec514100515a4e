package rs

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// TOACounter is something that TOA counts. The order is that of the outcomes in
// toa.c.
type TOACounter uint8

// What TOA counts: connections, but for TOAGiven and TOAUnshowable.
const (
	TOAHandshake  TOACounter = iota // client known from the segment that completed the handshake
	TOALate                         // client known from a later segment
	TOAWithout                      // from a balancer, no TOA in the handshake
	TOAMalformed                    // from a balancer, an option of the kind with another length
	TOARefused                      // TOA from elsewhere
	TOAGiven                        // answers of accept and getpeername with a client's address
	TOAUnshowable                   // such answers left alone: IPv6 client, IPv4 socket
	TOAFailed                       // the kernel had no memory to keep a client

	// NumTOACounters is the number of counters.
	NumTOACounters = int(iota)
)

var toaCounterNames = [NumTOACounters]string{
	TOAHandshake:  "handshake",
	TOALate:       "late",
	TOAWithout:    "without",
	TOAMalformed:  "malformed",
	TOARefused:    "refused",
	TOAGiven:      "given",
	TOAUnshowable: "unshowable",
	TOAFailed:     "failed",
}

// String is the counter's name in `l4fwd rs status`.
func (c TOACounter) String() string { return nameOf(toaCounterNames[:], int(c)) }

// DecapCounter is an outcome of Decap's program. The order is that of the outcomes
// in decap.c.
type DecapCounter uint8

// The outcomes. All but the first four and DecapDropECN left the frame as it was.
const (
	DecapIPIP        DecapCounter = iota // taken out of IP in IP, any mix of versions
	DecapGRE                             // out of GRE
	DecapGUE                             // out of GUE
	DecapFOU                             // out of FOU
	DecapRefused                         // for a VIP, but the tunnel comes from elsewhere
	DecapFragment                        // a tunnel's packet in fragments
	DecapUnsupported                     // GRE or GUE with what is not looked behind
	DecapMalformed                       // the packet inside is cut short or is none
	DecapDropECN                         // dropped: congestion in the tunnel, inside no ECN (RFC 6040)
	DecapFailed                          // the kernel could not take the headers away
	DecapMarked                          // beside one of the first four: ECN field brought inside

	// NumDecapCounters is the number of counters.
	NumDecapCounters = int(iota)
)

var decapCounterNames = [NumDecapCounters]string{
	DecapIPIP:        "ipip",
	DecapGRE:         "gre",
	DecapGUE:         "gue",
	DecapFOU:         "fou",
	DecapRefused:     "refused",
	DecapFragment:    "fragment",
	DecapUnsupported: "unsupported",
	DecapMalformed:   "malformed",
	DecapDropECN:     "drop_ecn",
	DecapFailed:      "failed",
	DecapMarked:      "marked",
}

// String is the counter's name in `l4fwd rs status`.
func (c DecapCounter) String() string { return nameOf(decapCounterNames[:], int(c)) }

// UOACounter is an outcome of UOA's programs. The order is that of the outcomes in
// uoa.c.
type UOACounter uint8

// The outcomes: what datagrams came with, from UOARefused on what was left as it was, and
// from UOAGiven on what became of servers' calls.
const (
	UOAProtocol   UOACounter = iota // with a header of IP protocol 248, which was taken out
	UOAOption                       // with the IPv4 option
	UOASeparate                     // beside one of these: of the balancer's own making, and kept from servers
	UOARefused                      // UOA from elsewhere
	UOAMalformed                    // from a balancer, but not as it should be
	UOAFragment                     // a fragment with IP protocol 248
	UOAGiven                        // datagrams and peers that servers saw under the client's address
	UOASent                         // datagrams and connections to a client, sent to the balancer
	UOAUnshowable                   // a client of IPv6 by way of IPv4, left under the balancer's address
	UOAAmbiguous                    // the same, of one of several clients that a socket without an address may mean
	UOAShared                       // the same, of a client that has come by another way since
	UOAFailed                       // the kernel could not keep a client or take the header out

	// NumUOACounters is the number of counters.
	NumUOACounters = int(iota)
)

var uoaCounterNames = [NumUOACounters]string{
	UOAProtocol:   "protocol",
	UOAOption:     "option",
	UOASeparate:   "separate",
	UOARefused:    "refused",
	UOAMalformed:  "malformed",
	UOAFragment:   "fragment",
	UOAGiven:      "given",
	UOASent:       "sent",
	UOAUnshowable: "unshowable",
	UOAAmbiguous:  "ambiguous",
	UOAShared:     "shared",
	UOAFailed:     "failed",
}

// String is the counter's name in `l4fwd rs status`.
func (c UOACounter) String() string { return nameOf(uoaCounterNames[:], int(c)) }

// counterNames are the counters of a program, by its name.
func counterNames(program string) []string {
	switch program {
	case "decap":
		return decapCounterNames[:]
	case "uoa":
		return uoaCounterNames[:]
	}
	return toaCounterNames[:]
}

func nameOf(names []string, c int) string {
	if c >= len(names) {
		return fmt.Sprintf("counter(%d)", c)
	}
	return names[c]
}

// Count is a counter by name.
type Count struct {
	Name  string
	Value uint64
}

// readCounts reads a map of counters, summed over the CPUs.
func readCounts(m *ebpf.Map, names []string) ([]Count, error) {
	out := make([]Count, len(names))
	for i, name := range names {
		var cpus []uint64
		if err := m.Lookup(uint32(i), &cpus); err != nil {
			return nil, fmt.Errorf("counter %s: %w", name, err)
		}
		out[i].Name = name
		for _, v := range cpus {
			out[i].Value += v
		}
	}
	return out, nil
}
