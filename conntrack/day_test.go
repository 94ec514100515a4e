package conntrack

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/l4fwd/l4fwd/packet"
)

// effect is what a packet does to its flow's deadline.
type effect uint8

const (
	renews  effect = iota // the state's whole timeout from now on
	nothing               // what is still in flight does not prolong the end
)

// dayStep is a packet of a life: the state after it and what it does to the
// deadline. Sequence numbers count from the sender's ISN, ack from the other's.
type dayStep struct {
	d        Dir
	flags    uint8
	seq, ack uint32
	state    State
	effect   effect
}

// life is what a flow goes through; the packets from step again on come over
// and over, for as long as the flow lives.
type life struct {
	name  string
	udp   bool
	one   bool // a flow of one packet
	steps []dayStep
	again int
}

// talksForHours is the place in lives of the one that lives longest.
const talksForHours = 4

// lives lead to every state there is; see transitions for the first packets.
func lives() []life {
	syn := dayStep{d: Forward, flags: fSYN, state: SynSent}
	synack := dayStep{d: Reply, flags: fSYNACK, ack: 1, state: SynRecv}
	ack := dayStep{d: Forward, flags: fACK, seq: 1, ack: 1, state: Established}
	open := []dayStep{syn, synack, ack}
	and := func(steps ...dayStep) []dayStep { return append(append([]dayStep(nil), open...), steps...) }
	clientFIN := dayStep{d: Forward, flags: fFIN, seq: 1, ack: 1, state: FinWait}
	serverFIN := dayStep{d: Reply, flags: fFIN, seq: 1, ack: 1, state: LastAck}
	out := []life{
		{name: "nothing after insert"},
		{name: "unanswered SYN, sent again", steps: []dayStep{syn, syn}, again: 1},
		{name: "SYN-ACK, never acknowledged", steps: []dayStep{syn, synack}, again: 2},
		{name: "SYN again after the SYN-ACK", steps: []dayStep{syn, synack, {d: Forward, flags: fSYN, state: SynRecv}}, again: 2},
		{name: "talks for hours", steps: and(ack, dayStep{d: Reply, flags: fACK, seq: 1, ack: 1, state: Established}), again: 3},
		{name: "client closes half", steps: and(clientFIN, dayStep{d: Reply, flags: fACK, seq: 1, ack: 2, state: FinWait}), again: 4},
		{name: "server closes half", steps: and(
			dayStep{d: Reply, flags: fFIN, seq: 1, ack: 1, state: CloseWait},
			dayStep{d: Forward, flags: fACK, seq: 1, ack: 2, state: CloseWait}), again: 4},
		{name: "both close, not acknowledged", steps: and(clientFIN, serverFIN, serverFIN), again: 5},
		{name: "closes", steps: and(clientFIN, serverFIN,
			dayStep{d: Reply, flags: fACK, seq: 2, ack: 2, state: LastAck},
			dayStep{d: Forward, flags: fACK, seq: 2, ack: 2, state: TimeWait},
			dayStep{d: Forward, flags: fACK, seq: 2, ack: 2, state: TimeWait, effect: nothing}), again: 7},
		{name: "exact RST", steps: and(
			dayStep{d: Reply, flags: fRST, seq: 1, state: Closed},
			dayStep{d: Forward, flags: fACK, seq: 1, ack: 1, state: Closed, effect: nothing}), again: 4},
		{name: "RST in the window", steps: and(
			dayStep{d: Forward, flags: fRST, seq: 3, state: Established, effect: nothing}, ack), again: 3},
		{name: "one-way UDP", udp: true, steps: []dayStep{{d: Forward, state: UDPOneWay}}},
		{name: "two-way UDP", udp: true, again: 1, steps: []dayStep{{d: Forward, state: UDPOneWay},
			{d: Reply, state: UDPTwoWay}, {d: Forward, state: UDPTwoWay}}},
		{name: "one datagram, perhaps a second", udp: true, one: true,
			steps: []dayStep{{d: Forward, state: UDPOnePacket}, {d: Forward, state: UDPOnePacket}}, again: 2},
	}
	return out
}

// dayFlow is what the test knows of a flow, by Ref.
type dayFlow struct {
	alive    bool
	life     uint8
	step     uint8
	state    State
	deadline uint32
}

// day drives one table and keeps the prediction: a list of all ticks and how
// many flows end at each.
type day struct {
	tb       testing.TB
	t        *Table
	dir      *Directory
	rnd      *rand.Rand
	lives    []life
	pol      Policy
	start    uint32 // tick
	now      uint32
	flows    []dayFlow
	due      []uint32 // flows that end at tick start+i
	next     uint32   // flows opened
	crowded  uint32   // clients for which there was no bucket
	expired  int
	ends     [NumStates]int // by the state a flow ended in
	effects  [2]int
	straight int // deadlines set outright, sooner or later than they were
}

func newDay(tb testing.TB, flows int, start, ticks uint32) *day {
	d := &day{
		tb: tb, dir: testDirectory(), rnd: rand.New(rand.NewPCG(uint64(flows), uint64(start))), lives: lives(),
		pol: Policy{Timeouts: DefaultTimeouts()}, start: start, now: start,
		flows: make([]dayFlow, flows+1), due: make([]uint32, ticks+dayTail),
	}
	d.t = newTest(tb, Options{Flows: flows, HalfOpen: flows, Now: start})
	return d
}

// dayTail is by how much a deadline may lie behind the end of the day.
const dayTail = 4 * 3600 * TicksPerSecond

// plan moves a flow's predicted end.
func (d *day) plan(f *dayFlow, deadline uint32) {
	d.due[f.deadline-d.start]--
	d.due[deadline-d.start]++
	f.deadline = deadline
}

// open begins a life drawn at random, every other one a long one, and lets some
// of its packets come at once.
func (d *day) open() {
	l := talksForHours
	if d.rnd.IntN(2) == 0 {
		l = d.rnd.IntN(len(d.lives))
	}
	e := Entry{Client: addr4(0x0b000000 + d.next + d.crowded), ClientPort: 7, Mode: DNAT, Proto: packet.ProtoTCP}
	if d.lives[l].udp {
		e.Proto, e.Service, e.Backend = packet.ProtoUDP, 1, 1
	}
	if d.lives[l].one {
		e.State = UDPOnePacket
	}
	fwd, rev := tuples(&e, d.dir)
	r, st, gone := d.t.Insert(&e, &fwd, rev, d.dir, d.now, nil)
	if st == BucketFull { // in a table this full it may happen, see newLayout
		d.crowded++
		return
	}
	d.next++
	if st != Inserted || gone {
		d.tb.Fatalf("insert: %v, evicted %v", st, gone)
	}
	f := &d.flows[r]
	*f = dayFlow{alive: true, life: uint8(l), deadline: d.now + insertTicks}
	d.due[f.deadline-d.start]++
	for range d.rnd.IntN(len(d.lives[l].steps) + 1) {
		d.packet(r)
	}
}

// packet sends the flow's next one.
func (d *day) packet(r Ref) {
	f := &d.flows[r]
	l := &d.lives[f.life]
	if int(f.step) == len(l.steps) {
		if f.step = uint8(l.again); int(f.step) == len(l.steps) {
			return // has nothing more to say
		}
	}
	s := &l.steps[f.step]
	f.step++
	p := packet.Packet{Kind: packet.KindUDP, L3: 14, L4: 34, Payload: 54, End: 54}
	if !l.udp {
		p.Kind, p.TCPFlags, p.Window = packet.KindTCP, s.flags, 65000
		p.Seq, p.Ack = 1000+s.seq, 9000+s.ack
		if s.d == Reply {
			p.Seq, p.Ack = 9000+s.seq, 1000+s.ack
		}
	}
	if out := d.t.Track(r, s.d, &p, packet.NoScale, d.now, &d.pol); out != Pass {
		d.tb.Fatalf("%s, step %d: %v", l.name, f.step-1, out)
	}
	if got := d.t.Entry(r).State; got != s.state {
		d.tb.Fatalf("%s, step %d: state %v, want %v", l.name, f.step-1, got, s.state)
	}
	f.state = s.state
	d.effects[s.effect]++
	if s.effect == renews {
		d.plan(f, d.now+d.pol.Timeouts[s.state])
	}
}

// event lets something happen to a flow drawn at random, if there is one.
func (d *day) event() {
	r := Ref(1 + d.rnd.IntN(len(d.flows)-1))
	f := &d.flows[r]
	switch {
	case !f.alive:
	case d.rnd.IntN(16) == 0:
		deadline := d.now + 1 + d.rnd.Uint32N(dayTail-1)>>d.rnd.IntN(14)
		d.t.SetExpires(r, deadline)
		d.plan(f, deadline)
		d.straight++
	default:
		d.packet(r)
	}
}

// tick ends the flows whose time has come and compares.
func (d *day) tick() {
	var out [64]Ref
	n := uint32(0)
	for {
		k := d.t.Advance(d.now, out[:])
		for _, r := range out[:k] {
			f := &d.flows[r]
			if !f.alive || f.deadline != d.now {
				d.tb.Fatalf("tick %d: flow %d (%s, %v) ends, predicted for %d", d.now-d.start, r, d.lives[f.life].name, f.state, f.deadline-d.start)
			}
			d.ends[f.state]++
			f.alive = false
			d.t.Remove(r)
		}
		n += uint32(k)
		if !d.t.Behind(d.now) {
			break
		}
	}
	if want := d.due[d.now-d.start]; n != want {
		d.tb.Fatalf("tick %d: %d flows end, predicted %d", d.now-d.start, n, want)
	}
	d.expired += int(n)
	d.now++
}

// TestDay lets the clock run for a day over a table that is kept full: at every
// tick just those flows must end whose last packet, or whoever set their
// deadline, said so. In one variant the tick counter wraps at noon.
func TestDay(tt *testing.T) {
	const ticks = 24 * 3600 * TicksPerSecond
	flows, perTick := 1_000_000, 24
	if testing.Short() {
		flows, perTick = 20_000, 2
	}
	for _, v := range []struct {
		name  string
		start uint32
	}{{"from the start", 12345}, {"wraps at noon", ^uint32(0) - ticks/2}} {
		tt.Run(v.name, func(tt *testing.T) {
			d := newDay(tt, flows, v.start, ticks)
			for range ticks {
				// Full within the first two hours, and kept so until the evening.
				if room := flows - d.t.Len(); d.now-d.start < ticks*5/6 {
					for range min(room, 2*perTick) {
						d.open()
					}
				}
				for range perTick {
					d.event()
				}
				d.tick()
			}
			if d.t.HalfOpenLen() > flows*3/4 {
				tt.Fatal("half-open timeouts would shrink")
			}
			if err := d.t.Audit(); err != nil {
				tt.Error(err)
			}
			left := d.t.Len()
			for d.t.Len() > 0 { // the night
				d.tick()
			}
			for e, n := range d.effects {
				if n == 0 {
					tt.Errorf("no packet had effect %d", e)
				}
			}
			for s, n := range d.ends {
				if n == 0 {
					tt.Errorf("no flow ended in %v", State(s))
				}
			}
			if d.crowded > 2 {
				tt.Errorf("no bucket for %d of %d flows", d.crowded, d.next)
			}
			if s := d.t.Stats(); s.Expired != uint64(d.next) || s.Inserted != uint64(d.next) || s.Removed != uint64(d.next) {
				tt.Errorf("%d flows; %+v", d.next, s)
			}
			if err := d.t.Audit(); err != nil {
				tt.Error(err)
			}
			tt.Logf("%d flows, %d of them past midnight; packets that renew, that do nothing: %d; %d deadlines set outright; ended in %v",
				d.next, left, d.effects, d.straight, d.ends)
		})
	}
}

// TestDayLateness: Advance does a bounded amount of work, so when all flows end
// at one tick some are late, but by no more calls than the bound says: every
// call until then either fills out or looks at advanceWork flows and ticks, and
// a flow is looked at once on each level of the wheel.
func TestDayLateness(tt *testing.T) {
	flows := 1_000_000
	if testing.Short() {
		flows = 50_000
	}
	for _, room := range []int{1, 32, 1000} {
		for _, ahead := range []uint32{1, 255, 256, 70_000, 1 << 25} {
			tt.Run(fmt.Sprintf("%d a call, %d ticks ahead", room, ahead), func(tt *testing.T) {
				n := flows
				if room == 1 {
					n /= 20
				}
				d := newDay(tt, n, 0xffff_fff0, 0)
				for range n {
					e := Entry{Client: addr4(0x0b000000 + d.next), ClientPort: 7, Mode: DNAT, Proto: packet.ProtoTCP}
					d.next++
					d.t.SetExpires(mustInsert(tt, d.t, &e, d.dir, d.now), d.now+ahead)
				}
				out := make([]Ref, room)
				end := d.now + ahead
				if k := d.t.Advance(end-1, out); k != 0 {
					tt.Fatalf("%d flows a tick early", k)
				}
				calls, quiet := 0, 0
				for left := n; left > 0; calls++ {
					k := d.t.Advance(end, out)
					for _, r := range out[:k] {
						d.t.Remove(r)
					}
					if left -= k; k == 0 {
						quiet++
					}
				}
				const looks = wheelLevels // at a flow, and ticks to pass on the way
				bound := n/min(room, advanceWork/2) + (looks*n+int(ahead))/advanceWork + 2
				if calls > bound {
					tt.Errorf("%d calls, of which %d brought nothing; bound %d", calls, quiet, bound)
				}
				if err := d.t.Audit(); err != nil {
					tt.Error(err)
				}
			})
		}
	}
}
