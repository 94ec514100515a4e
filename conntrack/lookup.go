package conntrack

import (
	"math/bits"

	"github.com/l4fwd/l4fwd/packet"
)

// Cand is a flow as a lookup finds it, Ref<<1|Dir, or 0 for none. It is valid
// within one burst, until a flow is inserted or removed.
type Cand uint32

func cand(r Ref, d Dir) Cand { return Cand(r)<<1 | Cand(d&1) }

// Ref is the flow's entry.
func (c Cand) Ref() Ref { return Ref(c >> 1) }

// Dir is the direction the packet travels in the flow.
func (c Cand) Dir() Dir { return Dir(c & 1) }

// Find returns the flow of tuple tu, whose hash is h, and the direction tu
// travels in it, or 0. It tries c first, which Candidates may have found, then
// whatever else may hold the tuple; c may be stale or 0.
func (t *Table) Find(c Cand, h uint32, tu *packet.Tuple, dir *Directory) Cand {
	if c != 0 && t.is(c, tu, dir) {
		return c
	}
	return t.search(h, tu, dir)
}

// Lookup is Hash and Find in one, for single packets.
func (t *Table) Lookup(tu *packet.Tuple, dir *Directory) (Ref, Dir, bool) {
	c := t.search(t.keys.hash(tu), tu, dir)
	return c.Ref(), c.Dir(), c != 0
}

// Holds reports whether r is still the flow of tuple tu in direction d. A
// Remove, or an Insert that evicts, may free an entry and take it for another
// flow at once, so what was found earlier in the burst must be asked again.
func (t *Table) Holds(r Ref, d Dir, tu *packet.Tuple, dir *Directory) bool {
	return t.is(cand(r, d), tu, dir)
}

// Has reports whether any flow has tu, whose hash is h, in either direction. The
// allocator of local ports asks it for a free reply tuple.
func (t *Table) Has(h uint32, tu *packet.Tuple, dir *Directory) bool {
	return t.search(h, tu, dir) != 0
}

// Prefetch asks the processor for the home bucket of tu, which somebody will look up.
func (t *Table) Prefetch(tu *packet.Tuple) {
	h := t.keys.hash(tu)
	prefetchBuckets(&t.buckets[0], &h, 1, uint64(len(t.buckets)))
}

// search compares every item that may be tu. A miss costs one cache line
// unless something at home in that bucket had to move on.
func (t *Table) search(h uint32, tu *packet.Tuple, dir *Directory) Cand {
	i := t.home(h)
	pattern := tagOf(h) * lanes
	reach := t.buckets[i].reach
	for {
		b := &t.buckets[i]
		for w := range b.tags {
			for m := equalLanes(b.tags[w], pattern); m != 0; m &= m - 1 {
				c := Cand(b.slots[w*4+bits.TrailingZeros64(m)>>4&3])
				if t.is(c, tu, dir) {
					return c
				}
			}
		}
		if reach == 0 {
			return 0
		}
		reach--
		i = t.next(i)
	}
}

// is compares candidate c with the whole tuple.
func (t *Table) is(c Cand, tu *packet.Tuple, dir *Directory) bool {
	r := c.Ref()
	if int(r) >= len(t.entries) {
		return false
	}
	if c.Dir() == Forward {
		return t.entries[r].isForward(tu, dir) && t.entries[r].linkedForward()
	}
	return t.entries[r].isReply(tu, dir)
}

// isForward reports whether tu is the tuple of e's client's packets. A free
// entry has protocol 0 and is nobody's: Parse gives no tuple that protocol.
func (e *Entry) isForward(tu *packet.Tuple, dir *Directory) bool {
	if e.Client != tu.Src || e.ClientPort != tu.SrcPort || e.Proto != tu.Proto || e.Proto == 0 {
		return false
	}
	return uint64(e.Service) < uint64(len(dir.Services)) && dir.Services[e.Service].is(tu.Dst, tu.DstPort, tu.Proto)
}

// isReply reports whether tu is the tuple of the packets e's server sends.
func (e *Entry) isReply(tu *packet.Tuple, dir *Directory) bool {
	return e.isFromServer(tu, dir) && e.isToClient(tu, dir)
}

// isFromServer is the half of isReply that looks at the source. Apart, both are
// short enough to be inlined.
func (e *Entry) isFromServer(tu *packet.Tuple, dir *Directory) bool {
	return e.Proto == tu.Proto && e.Proto != 0 && uint64(e.Backend) < uint64(len(dir.Backends)) && dir.Backends[e.Backend].is(tu.Src, tu.SrcPort, tu.Proto)
}

// isToClient is the other half.
func (e *Entry) isToClient(tu *packet.Tuple, dir *Directory) bool {
	if e.Mode == FullNAT {
		return e.LocalPort == tu.DstPort && int(e.Local) < len(dir.Locals) && dir.Locals[e.Local] == tu.Dst
	}
	return e.Mode == DNAT && e.ClientPort == tu.DstPort && e.Client == tu.Dst
}

func (p *Endpoint) is(a packet.Addr, port uint16, proto uint8) bool {
	return p.Addr == a && p.Port == port && p.Proto == proto
}
