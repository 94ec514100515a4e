package conntrack

import "math/bits"

// The timer wheel has four levels of 256 slots. A slot of level k stands for
// 256^k ticks: level 0 is one tick a slot, level 3 the rest of the counter.
// When the clock reaches the first tick of a slot on a higher level, the
// entries in it move down.
//
// A packet only writes Expires. The entry stays where it is linked, which is
// never later than its deadline, and is linked anew when the wheel comes by.
//
// A slot is sixteen lists. Along one list the next entry is known only once the one
// before it has come from memory; of sixteen, each is asked for while the wheel is
// with those of the others.
const (
	wheelLevels = 4
	wheelBits   = 8
	wheelSlots  = 1 << wheelBits
	wheelChains = 16

	// advanceWork bounds one Advance: entries looked at plus ticks passed.
	advanceWork = 256

	// retryTicks later an expired flow is reported again if nobody removed it.
	retryTicks = TicksPerSecond
)

// slotFor is where a deadline belongs while the wheel stands at tick base. A
// deadline that has passed is due at once.
func slotFor(base, deadline uint32) uint32 {
	if before(deadline, base) {
		deadline = base
	}
	level := uint32(0)
	if d := deadline - base; d >= wheelSlots {
		level = uint32(bits.Len32(d)-1) / wheelBits
	}
	return level*wheelSlots + deadline>>(level*wheelBits)&(wheelSlots-1)
}

// slotDue is the tick at which the wheel comes to a slot with an entry in it.
func slotDue(base, slot uint32) uint32 {
	shift := slot / wheelSlots * wheelBits
	turns := (slot - base>>shift) & (wheelSlots - 1)
	start := base >> shift << shift
	if turns == 0 && start != base {
		turns = wheelSlots // this slot's turn has begun before the entry came
	}
	return start + turns<<shift
}

// chainOf is the list of a slot that r is in. Neighbours in memory, which often are
// neighbours in time too, share one: the processor sees by itself where that leads.
func chainOf(r Ref) uint32 { return uint32(r) >> 8 % wheelChains }

// linkWheel links an entry that is not linked. wheelPrev of the first in a list
// means nothing.
func (t *Table) linkWheel(r Ref, e *Entry, deadline uint32) {
	slot := slotFor(t.hdr.wheelNow, deadline)
	head := &t.hdr.wheelHead[slot][chainOf(r)]
	e.wheelSlot = uint16(slot + 1)
	e.wheelNext = *head
	if *head != 0 {
		t.entries[*head].wheelPrev = uint32(r)
	}
	*head = uint32(r)
}

// unlinkWheel takes an entry out of its slot. Every flow is in one.
func (t *Table) unlinkWheel(r Ref, e *Entry) {
	head := &t.hdr.wheelHead[e.wheelSlot-1][chainOf(r)]
	e.wheelSlot = 0
	if *head == uint32(r) {
		*head = e.wheelNext // which is not written to: it may not be in the cache yet
		return
	}
	t.entries[e.wheelPrev].wheelNext = e.wheelNext
	if e.wheelNext != 0 {
		t.entries[e.wheelNext].wheelPrev = e.wheelPrev
	}
}

// SetExpires moves a flow's deadline, as Track does. It must lie less than
// MaxTimeout ahead. A Ref that is no flow is ignored.
func (t *Table) SetExpires(r Ref, deadline uint32) {
	if e := &t.entries[r]; e.Proto != 0 {
		t.setExpires(r, e, deadline)
	}
}

// setExpires links anew only if the wheel would come too late.
func (t *Table) setExpires(r Ref, e *Entry, deadline uint32) {
	sooner := before(deadline, e.Expires)
	e.Expires = deadline
	if sooner && before(deadline, slotDue(t.hdr.wheelNow, uint32(e.wheelSlot-1))) {
		t.unlinkWheel(r, e)
		t.linkWheel(r, e, deadline)
	}
}

// Advance turns the wheel to tick now, does a bounded amount of work, and
// writes to out the flows whose deadline is now or before; it returns how
// many. They are still in the table, for the caller to look at and Remove;
// their deadline has been put off by a second, after which they are reported
// again. What did not fit in out or in the bound comes with the next call, so
// call it once a burst.
func (t *Table) Advance(now uint32, out []Ref) int {
	h := t.hdr
	if h.used == 0 && before(h.wheelNow, now) {
		h.wheelNow = now
	}
	n := 0
	for work := advanceWork; work > 0 && !before(now, h.wheelNow); work-- {
		tick := h.wheelNow
		level := min(uint32(bits.TrailingZeros32(tick))/wheelBits, wheelLevels-1)
		for {
			slot := level*wheelSlots + tick>>(level*wheelBits)&(wheelSlots-1)
			var all bool
			if n, work, all = t.visitSlot(slot, now, out, n, work); !all {
				return t.expired(n)
			}
			if level == 0 {
				break
			}
			level--
		}
		h.wheelNow++
	}
	return t.expired(n)
}

// Behind reports whether the last Advance, to tick now, has left something undone:
// another has work at once.
func (t *Table) Behind(now uint32) bool { return !before(now, t.hdr.wheelNow) }

func (t *Table) expired(n int) int {
	t.hdr.stats.Expired += uint64(n)
	return n
}

// visitSlot visits the flows in a slot, from each list one in turn, until there are
// none left, n is all that out holds, or there is no work left to be done. It returns
// the new n and what is left of work, and whether all have been visited.
func (t *Table) visitSlot(slot, now uint32, out []Ref, n, work int) (int, int, bool) {
	heads := &t.hdr.wheelHead[slot]
	if *heads == [wheelChains]uint32{} {
		return n, work, true
	}
	for _, r := range heads {
		t.prefetchFlow(r)
	}
	for more := true; more; {
		more = false
		for c := range heads {
			r := heads[c]
			if r == 0 {
				continue
			}
			if work == 0 || n == len(out) {
				return n, work, false
			}
			work--
			n = t.visit(&heads[c], now, out, n)
			t.prefetchFlow(heads[c])
			more = true
		}
	}
	return n, work, true
}

// prefetchFlow asks the processor for both lines of an entry.
func (t *Table) prefetchFlow(r uint32) {
	c := cand(Ref(r), Forward)
	prefetchEntries(&t.entries[0], &c, 1)
}

// visit links the first flow of a list to where it belongs now, and adds it to the n
// in out if its time is up.
func (t *Table) visit(head *uint32, now uint32, out []Ref, n int) int {
	r := Ref(*head)
	e := &t.entries[r]
	*head = e.wheelNext // which is not written to: it may not be in the cache yet
	if !before(now, e.Expires) {
		out[n] = r
		n++
		e.Expires = now + retryTicks
	}
	t.linkWheel(r, e, e.Expires)
	return n
}
