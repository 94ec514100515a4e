package route

import (
	"net/netip"
	"slices"

	"github.com/l4fwd/l4fwd/packet"
)

// Table is one immutable snapshot of routes and next hops.
//
// The routes are kept as what they mean: the address space of each family cut
// into ranges that go to one hop, sorted by first address, so that a lookup is
// a binary search over a flat array. It takes 6 bytes a range for IPv4 and 18
// for IPv6, and neighbouring ranges with the same hop are one.
type Table struct {
	// Gen is the generation of the mapping from addresses to hop ids. It
	// changes exactly when that mapping changes.
	Gen uint32
	// Hops by HopID; read only. Hops[0] is "no route".
	Hops []Hop

	peers []Peer // by HopID; those beyond its end are zero

	start4 []uint32      // first address of each range; start4[0] is 0
	hop4   []HopID       // its hop
	index4 []uint32      // range of the first address of each /16, if there are many ranges
	start6 []packet.Addr // as start4; start6[0] is ::
	hop6   []HopID
	index6 []uint32 // range of the first address of each /21 of 2000::/3, if there are many
}

// Prefix routes a network to a hop.
type Prefix struct {
	netip.Prefix
	Hop HopID
}

// Where an array of ranges is larger than this an index narrows the search.
const indexAbove = 4096

const (
	index4Shift = 16                  // IPv4: by the first 16 bits
	index6Bits  = 18                  // IPv6: by bits 3 to 20, below 2000::/3,
	index6Shift = 64 - 3 - index6Bits // the space that is routed at all
)

// New builds a table; gen must not be 0. hops[0] is overwritten with the "no
// route" hop, and the table keeps hops: the caller must not touch it again.
// A prefix with host bits set is masked; where one prefix is given twice the
// later one counts. A prefix whose hop is not in hops, is invalid, or lies in
// the IPv4-mapped space ::ffff:0:0/96 leads to no route or nowhere at all:
// nothing makes New fail.
func New(gen uint32, hops []Hop, prefixes []Prefix) *Table {
	if len(hops) == 0 {
		hops = make([]Hop, 1)
	}
	hops[0] = Hop{}
	t := &Table{Gen: gen, Hops: hops}
	spans4, spans6 := spansOf(prefixes, len(hops))

	ranges := cut(spans4, packet.Addr4([]byte{0, 0, 0, 0}))
	t.start4, t.hop4 = make([]uint32, len(ranges)), make([]HopID, len(ranges))
	for i, r := range ranges {
		t.start4[i], t.hop4[i] = r.first.V4(), r.hop
	}
	ranges = cut(spans6, packet.Addr{})
	t.start6, t.hop6 = make([]packet.Addr, len(ranges)), make([]HopID, len(ranges))
	for i, r := range ranges {
		t.start6[i], t.hop6[i] = r.first, r.hop
	}
	t.index()
	return t
}

// index fills index4 and index6. An entry is the range that holds the first
// address of its slice of the space, so the range of any address in slice i
// lies between entries i and i+1, both included.
func (t *Table) index() {
	if len(t.start4) > indexAbove {
		t.index4 = make([]uint32, 1<<index4Shift+1)
		r := 0
		for i := range uint32(1 << index4Shift) {
			for r+1 < len(t.start4) && t.start4[r+1] <= i<<index4Shift {
				r++
			}
			t.index4[i] = uint32(r)
		}
		t.index4[1<<index4Shift] = uint32(len(t.start4) - 1)
	}
	if len(t.start6) > indexAbove {
		t.index6 = make([]uint32, 1<<index6Bits+1)
		r := 0
		for i := range uint64(1<<index6Bits + 1) {
			first := packet.Addr{Hi: 1<<61 + i<<index6Shift}
			for r+1 < len(t.start6) && compare(t.start6[r+1], first) <= 0 {
				r++
			}
			t.index6[i] = uint32(r)
		}
	}
}

// WithHops returns a table with the same mapping and generation but other
// contents of the hops: a neighbour changed, no route did. len(hops) must be
// at least len(t.Hops), which holds as long as ids are stable; otherwise ids
// beyond it read as "no route" through Hop.
func (t *Table) WithHops(hops []Hop) *Table {
	n := *t
	if len(hops) == 0 {
		hops = make([]Hop, 1)
	}
	hops[0] = Hop{}
	n.Hops = hops
	return &n
}

// WithPeers returns the same table with what is known of its hops' other ends, by
// HopID. The table keeps peers.
func (t *Table) WithPeers(peers []Peer) *Table {
	n := *t
	n.peers = peers
	return &n
}

// SamePeers reports whether t and o know the same of their hops' other ends.
func (t *Table) SamePeers(o *Table) bool { return slices.Equal(t.peers, o.peers) }

// OnLink reports whether hop id, to which Lookup leads from a, is the neighbour with
// that address, so that nothing but a's host will get what is sent there. A hop of
// which nothing is known is taken for that.
func (t *Table) OnLink(id HopID, a packet.Addr) bool {
	if int(id) >= len(t.peers) {
		return true
	}
	n := t.peers[id].Addr
	return n.IsZero() || n == a
}

// Gateway returns the neighbour that is next on the way of hop id; zero if that is the
// packet's destination itself, or nothing is known of the hop.
func (t *Table) Gateway(id HopID) packet.Addr {
	if int(id) >= len(t.peers) {
		return packet.Addr{}
	}
	return t.peers[id].Addr
}

// Source returns the host's own address, of one family, on the link of hop id; zero if
// it has none, or nothing is known of the hop.
func (t *Table) Source(id HopID, v4 bool) packet.Addr {
	if int(id) >= len(t.peers) {
		return packet.Addr{}
	}
	if v4 {
		return t.peers[id].Own[0]
	}
	return t.peers[id].Own[1]
}

// SameRoutes reports whether t and o map every address to the same hop id,
// that is, whether they may share a generation.
func (t *Table) SameRoutes(o *Table) bool {
	return slices.Equal(t.start4, o.start4) && slices.Equal(t.hop4, o.hop4) &&
		slices.Equal(t.start6, o.start6) && slices.Equal(t.hop6, o.hop6)
}

// Size returns how many address ranges the table distinguishes and how many
// bytes they occupy, the hops not counted.
func (t *Table) Size() (ranges, bytes int) {
	ranges = len(t.start4) + len(t.start6)
	bytes = 6*len(t.start4) + 18*len(t.start6) + 4*(len(t.index4)+len(t.index6))
	return ranges, bytes
}

// Hop returns the hop behind id, "no route" for an id the table lacks. The
// hop belongs to the table and must not be written.
func (t *Table) Hop(id HopID) *Hop {
	if int(id) >= len(t.Hops) {
		id = 0
	}
	return &t.Hops[id]
}

// Lookup returns the hop of the longest prefix that holds a, or 0.
func (t *Table) Lookup(a packet.Addr) HopID {
	if a.Is4() {
		return t.lookup4(a.V4())
	}
	return t.lookup6(a)
}

// The searches keep start[lo] <= a < start[hi], with start[len] = infinity.

func (t *Table) lookup4(a uint32) HopID {
	lo, hi := 0, len(t.start4)
	if len(t.index4) != 0 {
		i := a >> index4Shift
		lo, hi = int(t.index4[i]), int(t.index4[i+1])+1
	}
	for hi-lo > 1 {
		mid := int(uint(lo+hi) >> 1)
		if t.start4[mid] <= a {
			lo = mid
		} else {
			hi = mid
		}
	}
	return t.hop4[lo]
}

func (t *Table) lookup6(a packet.Addr) HopID {
	lo, hi := 0, len(t.start6)
	if len(t.index6) != 0 && a.Hi>>61 == 1 {
		i := a.Hi << 3 >> (3 + index6Shift)
		lo, hi = int(t.index6[i]), int(t.index6[i+1])+1
	}
	for hi-lo > 1 {
		mid := int(uint(lo+hi) >> 1)
		s := &t.start6[mid]
		if s.Hi < a.Hi || s.Hi == a.Hi && s.Lo <= a.Lo {
			lo = mid
		} else {
			hi = mid
		}
	}
	return t.hop6[lo]
}
