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
