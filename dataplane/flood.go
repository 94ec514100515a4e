package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// In a flood of SYNs from invented addresses the oldest half-open flow makes
// room for the newest, be it in the table or for its port. That is right while
// the oldest had time for its handshake. Were it younger, the flood would turn
// out every client before its ACK is here, and since that one has had its
// SYN-ACK it never tries again. So then the new SYN is refused, and remembered:
// a client sends it again after a second, invented addresses mostly do not, and
// the one that comes again gets the place of the oldest.
//
// As long as fewer come again than half-open flows find room for in a
// handshakeTime, every flow keeps its place that long. Beyond it, be it that a
// flood sends its SYNs twice or that there are too many to remember, the oldest
// goes however young it is, but still only for those that came again: never
// sooner than if all were let in.

// handshakeTime is how long a half-open flow keeps its place, and its port,
// against SYNs that come for the first time: at least a quarter of a second. Most
// handshakes are over by then. Less would let in more at their first SYN, and
// turn out more after their SYN-ACK, which is worse than a second's wait.
const handshakeTime = conntrack.TicksPerSecond/4 + 1

// refusedTime is how long, in ticks, SYNs are remembered together: each is known
// for one to two of it. TCP sends the first SYN again after 1 s (RFC 6298
// section 2.1), by clocks that may be late.
const refusedTime = conntrack.TicksPerSecond * 5 / 4

// refusedLines of 64 bytes make 4 MiB a worker, of which nothing is touched
// without a flood. Two million SYNs a second refused, one stranger in ten is
// taken for known, and is let in; with five million it is two in five.
const refusedLines = 1 << 16

// refused is what is remembered of SYNs: two bits each, in one cache line.
// Nothing is taken out but by time.
type refused []refusedLine

// refusedLine is a filter on its own. A word of cells holds the bits of this
// period in its lower half and those of the last in its upper half.
type refusedLine struct {
	period uint64 // refusedTime since start when it was last written
	cells  [7]uint64
}

// refusedBits is how many bits a period has in a line.
const refusedBits = 7 * 32

// refusedAt is where a SYN is remembered, now that the line knows the time.
type refusedAt struct {
	line       *refusedLine
	one, other uint32 // bits, below refusedBits
}

// refusedOf finds a SYN's place by its tuple. The hash is keyed: nobody can aim
// at somebody else's.
func (w *Worker) refusedOf(tu *packet.Tuple) refusedAt {
	h := w.table.Hash(tu)
	mixed := uint64(h) * 0x9e3779b97f4a7c15
	return refusedAt{w.refusedLine(h, w.refusedPeriod()), uint32(mixed>>32&0xffff) * refusedBits >> 16, uint32(mixed>>16&0xffff) * refusedBits >> 16}
}

// refusedPeriod is the number of the period that it is now.
func (w *Worker) refusedPeriod() uint64 { return uint64(w.tick / refusedTime) }

// refusedLine is the line for SYNs of hash h; it knows that it is period now.
func (w *Worker) refusedLine(h uint32, now uint64) *refusedLine {
	l := &w.refused[h/(1<<32/refusedLines)]
	if l.period != now {
		l.age(now)
	}
	return l
}

// fetchRefused has the lines of all among the first n of b.look that belong to no
// flow read together: one after the other each would wait for memory.
func (w *Worker) fetchRefused(n int) {
	now := w.refusedPeriod()
	for k := range n {
		if w.b.look.Found[k] == 0 {
			w.refusedLine(w.b.look.Hash[k], now)
		}
	}
}

// age lets l know that it is period now.
func (l *refusedLine) age(now uint64) {
	if now-l.period == 1 {
		for i := range l.cells {
			l.cells[i] <<= 32
		}
	} else {
		l.cells = [7]uint64{}
	}
	l.period = now
}

// known reports whether both bits are set in this period, or both in the last.
func (a refusedAt) known() bool {
	const periods = 1<<32 | 1
	return a.line.cells[a.one/32]>>(a.one%32)&(a.line.cells[a.other/32]>>(a.other%32))&periods != 0
}

// remember notes p as refused, if it is a SYN.
func (w *Worker) remember(p *packet.Packet) {
	if p.Kind == packet.KindTCP {
		a := w.refusedOf(&p.Tuple)
		a.line.cells[a.one/32] |= 1 << (a.one % 32)
		a.line.cells[a.other/32] |= 1 << (a.other % 32)
	}
}

// pace keeps evictions even, tick by tick. Without it all flows of a flood's first
// moment would make room at once when they are old, and those after them be too
// young when SYNs come again.
type pace struct {
	tick    uint32 // when room was last reckoned
	evicted uint64 // Counts.Evicted then
	room    int64  // evictions that are due, in units of 1/handshakeTime
}

// evictable reports whether fewer flows have been evicted than may be if each is
// to have its handshakeTime. What is not used in a tick is lost.
func (w *Worker) evictable() bool {
	p, all := &w.pace, int64(w.table.HalfOpenLen())
	p.room += int64(min(w.tick-p.tick, handshakeTime)) * all
	p.room -= int64(min(w.count.Evicted-p.evicted, uint64(all))) * handshakeTime
	p.room = max(min(p.room, all+handshakeTime), -all*handshakeTime)
	p.tick, p.evicted = w.tick, w.count.Evicted
	return p.room >= handshakeTime
}

// makeWay reports whether p, which would open a flow, may have the place of the
// oldest half-open flow: that one has had time for its handshake, or p is a SYN
// that has been refused before.
func (w *Worker) makeWay(p *packet.Packet) bool {
	r := w.table.OldestHalfOpen()
	if r == 0 {
		return false
	}
	age := w.tick - w.table.Entry(r).Created
	return age >= 2*handshakeTime || age >= handshakeTime && w.evictable() ||
		p.Kind == packet.KindTCP && w.refusedOf(&p.Tuple).known()
}

// crowdedOut reports whether p, which would open a flow, has to wait since all
// of the half-open flows there may be are in the middle of their handshakes.
// Datagrams do not wait: their flows leave the list with the server's answer.
func (w *Worker) crowdedOut(p *packet.Packet) bool {
	return w.crowded() && p.Kind == packet.KindTCP && !w.makeWay(p)
}

// crowded reports whether there are as many half-open flows as there may be.
func (w *Worker) crowded() bool { return w.table.HalfOpenLen() >= w.table.HalfOpenCap() }
