package conntrack

import (
	"testing"

	"github.com/l4fwd/l4fwd/packet"
)

// sequence plays what a fuzzer wrote: four bytes for each segment, see step.
// As long as all segments are those of two correct ends, or so far from every
// window that nobody may believe them, the twin says what state the flow is in;
// once something came that lies near, only what must hold of any traffic is
// checked.
type sequence struct {
	*peers
	tb    testing.TB
	twin  tcpTwin
	exact bool // the twin still knows
}

const segmentBytes = 4

// segment is one step of a sequence.
type segment struct {
	d        Dir
	flags    uint8
	seq, ack uint32 // from the ISN
	length   uint16
	known    bool // correct: ack is taken note of
	blind    bool // far outside every window
}

// decode makes a segment of four bytes: what is sent, in which direction, how
// much is acknowledged or how far off it is, how much time passes. ok is false
// if a correct end would not send such a thing now.
func (q *sequence) decode(b []byte) (s segment, ok bool) {
	w := &q.twin
	d := Dir(b[0] >> 7)
	s = segment{d: d, flags: fACK, seq: w.sent[d], ack: w.known[d], known: true}
	if room := w.sent[d^1] - w.known[d]; room > 0 {
		s.ack += uint32(b[1]) * room / 255
	}
	switch what := b[0] & 7; what {
	case 0:
		s = segment{d: Forward, flags: fSYN}
		return s, !w.synack && !w.rst
	case 1:
		s = segment{d: Reply, flags: fSYNACK, ack: 1}
		return s, w.syn && !w.fin[0] && !w.rst && !w.acked
	case 2, 3:
		s.length = uint16(b[2]) * 5
		if w.fin[d] || w.sent[d]+uint32(s.length)-w.known[d^1] > 0x8000 {
			s.length = 0
		}
		if what == 3 {
			s.flags = fFIN
			if w.fin[d] {
				s.seq--
				s.length = 0
			}
		}
		return s, w.synack && (d == Forward || w.acked) && !w.rst
	case 4:
		s.flags, s.ack, s.known = fRSTACK, 0, false
		return s, w.synack && !w.rst && b[3] > 200
	case 5: // somebody far outside every window
		off := 1<<28 + uint32(b[2])<<23
		s.flags, s.blind, s.known = [4]uint8{fACK, fFIN, fRST, fRSTACK}[b[1]&3], true, false
		s.seq, s.ack = w.sent[d]+off, w.sent[d^1]+off
		return s, w.synack
	}
	// Anything, near the numbers in use.
	q.exact = false
	s.known = false
	s.flags = b[1] & 0x3f
	s.seq += uint32(int32(int8(b[2]))) * (1 + uint32(b[0]>>3&3)*1000)
	s.ack = w.sent[d^1] + uint32(int32(int8(b[3])))*(1+uint32(b[0]>>5&3)*1000)
	s.length = uint16(b[0]>>3&3) * 100
	return s, true
}

// learn tells the twin of a correct segment.
func (q *sequence) learn(s *segment) {
	w := &q.twin
	if s.blind || !q.exact {
		return
	}
	switch s.flags {
	case fSYN:
		w.syn, w.sent[0] = true, 1
		return
	case fSYNACK:
		w.synack, w.sent[1], w.known[0], w.known[1] = true, 1, 1, 1
		return
	case fRSTACK:
		w.rst = true
		return
	}
	w.known[s.d] = s.ack
	if w.fin[s.d^1] && s.ack == w.sent[s.d^1] {
		w.finAcked[s.d^1] = true
	}
	w.acked = true
	if s.flags == fFIN && !w.fin[s.d] {
		w.fin[s.d] = true
		w.sent[s.d]++
	}
	w.sent[s.d] += uint32(s.length)
}

// mayMove is the state machine told by flags alone: whether any segment of side
// d with these flags may take a flow from one state to another.
func mayMove(from, to State, d Dir, flags uint8) bool {
	has := func(list ...State) bool {
		for _, s := range list {
			if s == from {
				return true
			}
		}
		return false
	}
	switch {
	case from == to:
		return true
	case flags&packet.RST != 0:
		return to == Closed && from != None && from < TimeWait
	case flags&packet.SYN != 0 && flags&packet.ACK != 0:
		return d == Reply && from == SynSent && to == SynRecv
	case flags&packet.SYN != 0:
		return d == Forward && from == None && to == SynSent
	case flags&packet.ACK == 0:
		return false
	case to == TimeWait:
		return from == LastAck
	case flags&packet.FIN == 0:
		// From the later ones: the handshake of a new connection on the tuple.
		return d == Forward && to == Established && has(SynRecv, FinWait, CloseWait, LastAck)
	case d == Forward:
		return to == FinWait && has(SynRecv, Established, CloseWait, LastAck) || to == LastAck && from == CloseWait
	}
	return to == CloseWait && has(SynRecv, Established) || to == LastAck && from == FinWait
}

// step tracks one segment and checks what must hold after it. It reports false
// when the flow is over.
func (q *sequence) step(b []byte) bool {
	s, ok := q.decode(b)
	if !ok {
		return true
	}
	e := q.t.Entry(q.r)
	was := *e
	out := q.send(s.d, s.flags, s.seq, s.ack, s.length)
	now := *e
	if now.Packets[s.d] != was.Packets[s.d]+1 {
		q.tb.Fatalf("%d packets, had %d", now.Packets[s.d], was.Packets[s.d])
	}
	now.Packets, now.Bytes = was.Packets, was.Bytes
	q.checkOutcome(&s, out, &was, &now)
	if !mayMove(was.State, now.State, s.d, s.flags) {
		q.tb.Fatalf("%#x from side %d: %v to %v", s.flags, s.d, was.State, now.State)
	}
	q.checkDeadline(&s, &was, &now)
	if q.learn(&s); q.exact {
		q.compare()
	}
	if out == Reopen {
		return false
	}
	return q.pass(uint32(b[3]))
}

// checkOutcome: what is dropped or opens anew has changed nothing, and nothing
// blind has.
func (q *sequence) checkOutcome(s *segment, out Outcome, was, now *Entry) {
	switch {
	case out < Pass || out >= NumOutcomes || out == DropNoFlow:
		q.tb.Fatalf("%v", out)
	case out != Pass && *now != *was:
		q.tb.Fatalf("%v, but %+v became %+v", out, *was, *now)
	case out == Reopen && (s.d != Forward || s.flags&(packet.SYN|packet.ACK|packet.RST|packet.FIN) != packet.SYN):
		q.tb.Fatalf("%#x from side %d reopens %v", s.flags, s.d, was.State)
	case out == Reopen && was.State != SynSent && was.State != TimeWait && was.State != Closed:
		q.tb.Fatalf("reopens %v", was.State)
	case s.flags&packet.RST != 0 && now.State != was.State && was.State != SynSent && q.seqOf(s) != was.Win[s.d].End && q.seqOf(s) != was.Win[s.d].Acked:
		q.tb.Fatalf("RST %d off closes", q.seqOf(s)-was.Win[s.d].End)
	case s.blind && now.State != was.State, s.blind && s.flags&packet.RST != 0 && *now != *was:
		q.tb.Fatalf("blind %#x: %+v became %+v", s.flags, *was, *now)
	}
}

// seqOf is the sequence number of s as it was sent.
func (q *sequence) seqOf(s *segment) uint32 {
	if s.d == Forward {
		return q.cISN + s.seq
	}
	return q.sISN + s.seq
}

// checkDeadline: a deadline stays or is the state's timeout from now on; a RST
// may bring it nearer.
func (q *sequence) checkDeadline(s *segment, was, now *Entry) {
	switch {
	case now.Expires == was.Expires && now.State == was.State:
	case now.Expires == q.now+q.pol.Timeouts[now.State]:
	case s.flags&packet.RST != 0 && now.Expires == q.now+q.pol.Timeouts[Closed] && before(now.Expires, was.Expires):
	default:
		q.tb.Fatalf("%v, now %d: expires at %d, was %d", now.State, q.now, now.Expires, was.Expires)
	}
}

// compare asks the twin.
func (q *sequence) compare() {
	e, w := q.t.Entry(q.r), &q.twin
	if e.State != w.state() || (e.Flags&HalfOpen != 0) == w.acked {
		q.tb.Fatalf("state %v, flags %#x; want %v, acknowledged %v", e.State, e.Flags, w.state(), w.acked)
	}
	if w.synack && (e.Win[0].End != q.cISN+w.sent[0] || e.Win[1].End != q.sISN+w.sent[1]) {
		q.tb.Fatalf("ends %#x %#x, want %#x %#x", e.Win[0].End, e.Win[1].End, q.cISN+w.sent[0], q.sISN+w.sent[1])
	}
	if acked := e.Flags&ServerAcked != 0; acked != (w.known[0] > 1) {
		q.tb.Fatalf("server acked %v, client knows %d", acked, w.known[0])
	}
}

// pass lets time go by, a day at most, and reports whether the flow still lives;
// it must end on its tick.
func (q *sequence) pass(b uint32) bool {
	q.now += b * b * b / 16
	e := q.t.Entry(q.r)
	due := !before(q.now, e.Expires)
	var out [1]Ref
	for {
		n := q.t.Advance(q.now, out[:])
		if n == 1 != due && !(n == 0 && q.t.Behind(q.now)) {
			q.tb.Fatalf("%d flows end at %d, due %v at %d", n, q.now, due, e.Expires)
		}
		if n == 1 {
			return false
		}
		if !q.t.Behind(q.now) {
			return true
		}
	}
}

// FuzzSequence has a fuzzer write whole connections, see sequence.
func FuzzSequence(f *testing.F) {
	t := newTest(f, Options{Flows: 4, HalfOpen: 4}) // one table for all: making one takes long
	const now = ^uint32(0) - 1000                   // the tick counter is about to wrap
	f.Fuzz(func(tt *testing.T, b []byte) {
		for r := range t.entries {
			t.Remove(Ref(r))
		}
		e := Entry{Client: addr4(0xc6336401), ClientPort: 1024, LocalPort: 2048, Proto: packet.ProtoTCP, SeqDelta: 0x9000_0000}
		q := &sequence{tb: tt, exact: true, peers: &peers{t: t, r: mustInsert(tt, t, &e, testDirectory(), now),
			pol: Policy{Timeouts: DefaultTimeouts()}, now: now, cISN: 0xffff_ff00, sISN: 0xffff_fff0, window: 0x8000}}
		for ; len(b) >= segmentBytes && q.step(b); b = b[segmentBytes:] {
		}
		if err := t.Audit(); err != nil {
			tt.Fatal(err)
		}
	})
}

// TestSecondSYNOptions: of two SYNs the window and its scale are those of the one that is
// answered.
func TestSecondSYNOptions(t *testing.T) {
	scale := func(shift byte) []byte { return []byte{3, 3, shift, 1} }
	for name, want := range map[string]struct {
		ack    uint32
		window uint32
		shift  uint8
	}{"first": {1, 0x1000, 5}, "second": {5001, 0x2000, 9}} {
		c := newPeers(t, DNAT)
		c.t.Entry(c.r).SeqDelta = 0
		c.window = 0x1000
		c.send(Forward, fSYN, 0, 0, 0, scale(5)...)
		c.window = 0x2000
		c.send(Forward, fSYN, 5000, 0, 0, scale(9)...)
		c.window = 0x3000
		c.send(Reply, fSYNACK, 0, want.ack, 0, scale(7)...)
		e := c.t.Entry(c.r)
		if w := e.Win[Forward]; e.State != SynRecv || w.End != c.cISN+want.ack || w.Acked != w.End || w.MaxWin != want.window ||
			e.WScale != [2]uint8{want.shift, 7} || e.Flags&WindowScaled == 0 || e.Win[Reply].MaxWin != 0x3000 {
			t.Errorf("%s: %+v", name, *e)
		}
	}
}
