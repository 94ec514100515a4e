package conntrack

import (
	"testing"

	"github.com/l4fwd/l4fwd/packet"
)

const (
	fSYN    = packet.SYN
	fSYNACK = packet.SYN | packet.ACK
	fACK    = packet.ACK
	fFIN    = packet.FIN | packet.ACK
	fRST    = packet.RST
	fRSTACK = packet.RST | packet.ACK
)

// step is one segment and what is expected after it. Sequence numbers count
// from the sender's ISN, acknowledgements from the receiver's.
type step struct {
	d        Dir
	flags    uint8
	seq, ack uint32
	length   uint16
	state    State
	out      Outcome // 0 means Pass
	wait     uint32  // ticks before it
}

// peers is one flow and the numbers its ends chose; both are about to wrap.
type peers struct {
	t      *Table
	r      Ref
	pol    Policy
	now    uint32
	cISN   uint32
	sISN   uint32
	window uint16
}

func newPeers(tb testing.TB, mode Mode) *peers {
	t := newTest(tb, Options{Flows: 10, HalfOpen: 10})
	e := Entry{Client: addr4(0xc6336401), ClientPort: 1024, Proto: packet.ProtoTCP, Mode: mode, SeqDelta: 0x9000_0000}
	if mode == FullNAT {
		e.LocalPort = 2048
	}
	r := mustInsert(tb, t, &e, testDirectory(), 0)
	return &peers{t: t, r: r, pol: Policy{Timeouts: DefaultTimeouts()}, cISN: 0xffff_ff00, sISN: 0xffff_fff0, window: 0x8000}
}

// send tracks a segment given as in step, with TCP options opts.
func (c *peers) send(d Dir, flags uint8, seq, ack uint32, length uint16, opts ...byte) Outcome {
	p := packet.Packet{Kind: packet.KindTCP, L3: 14, L4: 34, TCPFlags: flags, Window: c.window}
	p.Payload = 54 + uint16(len(opts))
	p.End = p.Payload + length
	if d == Forward {
		p.Seq, p.Ack = c.cISN+seq, c.sISN+ack
	} else {
		p.Seq, p.Ack = c.sISN+seq, c.cISN+ack+c.t.Entry(c.r).SeqDelta
	}
	frame := make([]byte, p.End)
	copy(frame[54:], opts)
	return c.t.Track(c.r, d, &p, packet.ScanSYN(frame, &p).Scale, c.now, &c.pol)
}

func (c *peers) run(tb testing.TB, steps []step) {
	tb.Helper()
	for i, s := range steps {
		want := s.out
		if want == 0 {
			want = Pass
		}
		c.now += s.wait
		if got := c.send(s.d, s.flags, s.seq, s.ack, s.length); got != want {
			tb.Fatalf("step %d: %v, want %v", i, got, want)
		}
		if got := c.t.Entry(c.r).State; got != s.state {
			tb.Fatalf("step %d: state %v, want %v", i, got, s.state)
		}
	}
}

// handshake, then 100 bytes each way, all acknowledged.
var handshake = []step{
	{d: Forward, flags: fSYN, seq: 0, state: SynSent},
	{d: Reply, flags: fSYNACK, seq: 0, ack: 1, state: SynRecv},
	{d: Forward, flags: fACK, seq: 1, ack: 1, state: Established},
}

var talk = append(append([]step{}, handshake...),
	step{d: Forward, flags: fACK, seq: 1, ack: 1, length: 100, state: Established},
	step{d: Reply, flags: fACK, seq: 1, ack: 101, length: 100, state: Established},
	step{d: Forward, flags: fACK, seq: 101, ack: 101, state: Established},
)

// newTalk is a whole connection on the tuple of one that the table takes to be
// in state old, but the server has forgotten.
func newTalk(old State) []step {
	const c, s = 0x20000000, 0x30000000
	return []step{
		{d: Forward, flags: fSYN, seq: c, state: old},
		{d: Reply, flags: fSYNACK, seq: s, ack: c + 1, state: old},
		{d: Reply, flags: fSYNACK, seq: s, ack: c + 1, state: old},
		{d: Forward, flags: fACK, seq: c + 1, ack: s + 1, state: Established},
		{d: Forward, flags: fACK, seq: c + 1, ack: s + 1, length: 100, state: Established},
		{d: Reply, flags: fACK, seq: s + 1, ack: c + 101, length: 1000, state: Established},
		{d: Reply, flags: fRST, seq: 101, state: Established, out: DropBadRST},
		{d: Reply, flags: fFIN, seq: s + 1001, ack: c + 101, state: CloseWait},
		{d: Forward, flags: fFIN, seq: c + 101, ack: s + 1002, state: LastAck},
		{d: Reply, flags: fACK, seq: s + 1002, ack: c + 102, state: TimeWait},
	}
}

func after(head []step, tail ...step) []step { return append(append([]step{}, head...), tail...) }

func TestTCPScenarios(tt *testing.T) {
	closed := after(talk, step{d: Reply, flags: fRST, seq: 101, state: Closed})
	timeWait := after(talk,
		step{d: Forward, flags: fFIN, seq: 101, ack: 101, state: FinWait},
		step{d: Reply, flags: fFIN, seq: 101, ack: 102, state: LastAck},
		step{d: Forward, flags: fACK, seq: 102, ack: 102, state: TimeWait})
	lastAck := after(talk,
		step{d: Reply, flags: fFIN, seq: 101, ack: 101, state: CloseWait},
		step{d: Forward, flags: fFIN, seq: 101, ack: 102, state: LastAck})
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"talk", talk},
		{"client closes first", timeWait},
		{"server closes first", after(lastAck,
			step{d: Reply, flags: fACK, seq: 102, ack: 102, state: TimeWait})},
		{"server closes first, client lingers", after(talk,
			step{d: Reply, flags: fFIN, seq: 101, ack: 101, state: CloseWait},
			step{d: Forward, flags: fACK, seq: 101, ack: 102, state: CloseWait},
			step{d: Forward, flags: fACK, seq: 101, ack: 102, length: 50, state: CloseWait},
			step{d: Reply, flags: fACK, seq: 102, ack: 151, state: CloseWait},
			step{d: Forward, flags: fFIN, seq: 151, ack: 102, state: LastAck},
			step{d: Reply, flags: fACK, seq: 102, ack: 152, state: TimeWait})},
		{"client half-closes, server goes on", after(talk,
			step{d: Forward, flags: fFIN, seq: 101, ack: 101, state: FinWait},
			step{d: Reply, flags: fACK, seq: 101, ack: 102, length: 1000, state: FinWait},
			step{d: Forward, flags: fACK, seq: 102, ack: 1101, state: FinWait},
			step{d: Reply, flags: fFIN, seq: 1101, ack: 102, state: LastAck},
			step{d: Forward, flags: fACK, seq: 102, ack: 1102, state: TimeWait})},
		{"simultaneous close", after(talk,
			step{d: Forward, flags: fFIN, seq: 101, ack: 101, state: FinWait},
			step{d: Reply, flags: fFIN, seq: 101, ack: 101, state: LastAck},
			step{d: Forward, flags: fACK, seq: 102, ack: 102, state: LastAck},
			step{d: Reply, flags: fACK, seq: 102, ack: 102, state: TimeWait})},
		{"FIN again and again", after(talk,
			step{d: Forward, flags: fFIN, seq: 101, ack: 101, state: FinWait},
			step{d: Forward, flags: fFIN, seq: 101, ack: 101, state: FinWait},
			step{d: Reply, flags: fFIN, seq: 101, ack: 102, state: LastAck},
			step{d: Reply, flags: fFIN, seq: 101, ack: 102, state: LastAck},
			step{d: Forward, flags: fACK, seq: 102, ack: 102, state: TimeWait},
			step{d: Reply, flags: fFIN, seq: 101, ack: 102, state: TimeWait},
			step{d: Forward, flags: fACK, seq: 102, ack: 102, state: TimeWait})},
		{"FIN before lost data", after(talk,
			step{d: Forward, flags: fFIN, seq: 201, ack: 101, state: FinWait},
			step{d: Reply, flags: fACK, seq: 101, ack: 101, state: FinWait},
			step{d: Forward, flags: fACK, seq: 101, ack: 101, length: 100, state: FinWait},
			step{d: Reply, flags: fFIN, seq: 101, ack: 202, state: LastAck},
			step{d: Forward, flags: fACK, seq: 202, ack: 102, state: TimeWait})},
		{"FIN in the handshake's ACK", after(handshake[:2],
			step{d: Forward, flags: fFIN, seq: 1, ack: 1, state: FinWait})},
		{"implausible FIN", after(talk,
			step{d: Forward, flags: fFIN, seq: 0x100000, ack: 101, state: Established},
			step{d: Forward, flags: fFIN, seq: 101, ack: 0x100000, state: Established},
			step{d: Reply, flags: fFIN, seq: 0x80000000, ack: 101, state: Established})},
		{"SYN again", after(nil,
			step{d: Forward, flags: fSYN, seq: 0, state: SynSent},
			step{d: Forward, flags: fSYN, seq: 0, state: SynSent},
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 1, state: SynRecv},
			step{d: Forward, flags: fSYN, seq: 0, state: SynRecv},
			step{d: Forward, flags: fSYN, seq: 70000, state: SynRecv},
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 1, state: SynRecv},
			step{d: Forward, flags: fACK, seq: 1, ack: 1, state: Established},
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 1, state: Established})},
		{"SYN of another ISN before any answer, at once and later", after(handshake[:1],
			step{d: Forward, flags: fSYN, seq: 5000, state: SynSent},
			step{d: Forward, flags: fSYN, seq: 0, state: SynSent},
			step{d: Forward, flags: fSYN, seq: 5000, state: SynSent, out: Reopen, wait: synPatience})},
		{"SYN of another ISN, which is answered", after(handshake[:1],
			step{d: Forward, flags: fSYN, seq: 5000, length: 10, state: SynSent},
			step{d: Forward, flags: fSYN, seq: 5000, state: SynSent},
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 5012, state: SynSent},
			step{d: Forward, flags: fSYN, seq: 5000, length: 10, state: SynSent},
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 5011, state: SynRecv},
			step{d: Forward, flags: fACK, seq: 5011, ack: 1, state: Established},
			step{d: Reply, flags: fRST, seq: 1, state: Closed})},
		{"SYNs of other ISNs, of which the first is answered", after(handshake[:1],
			step{d: Forward, flags: fSYN, seq: 5000, state: SynSent},
			step{d: Forward, flags: fSYN, seq: 9000, state: SynSent},
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 1, state: SynRecv},
			step{d: Reply, flags: fACK, seq: 1, ack: 1, state: SynRecv}, // to the others
			step{d: Forward, flags: fACK, seq: 1, ack: 1, state: Established})},
		{"SYN of another ISN to a server that has answered, unheard, the first", after(handshake[:1],
			step{d: Forward, flags: fSYN, seq: 5000, state: SynSent},
			step{d: Reply, flags: fACK, seq: 1, ack: 1, state: SynSent},
			step{d: Forward, flags: fRST, seq: 1, state: Closed},
			step{d: Forward, flags: fSYN, seq: 5000, state: Closed, out: Reopen})},
		{"SYN of another ISN, then its server's challenge", after(handshake[:1],
			step{d: Forward, flags: fSYN, seq: 5000, state: SynSent},
			step{d: Reply, flags: fACK, seq: 1, ack: 5001, state: SynSent},
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 5001, state: SynRecv})},
		{"SYN of another ISN, to an older connection", after(handshake[:1],
			step{d: Forward, flags: fSYN, seq: 5000, state: SynSent},
			step{d: Reply, flags: fACK, seq: 900, ack: 123456, state: SynSent},
			step{d: Forward, flags: fRST, seq: 123456, state: SynSent},
			step{d: Forward, flags: fSYN, seq: 5000, state: SynSent},
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 5001, state: SynRecv})},
		{"SYN of another ISN, then the end of both", after(handshake[:1],
			step{d: Forward, flags: fSYN, seq: 5000, state: SynSent},
			step{d: Reply, flags: fRSTACK, ack: 1, state: Closed},
			step{d: Forward, flags: fRST, seq: 0xfe000000, state: Closed, out: DropBadRST},
			step{d: Forward, flags: fSYN, seq: 5000, state: Closed, out: Reopen})},
		{"RSTs about a SYN of another ISN end nothing", after(handshake[:1],
			step{d: Forward, flags: fSYN, seq: 5000, state: SynSent},
			step{d: Forward, flags: fRST, seq: 5000, state: SynSent},
			step{d: Forward, flags: fRST, seq: 5001, state: SynSent},
			step{d: Forward, flags: fRST, seq: 5002, state: SynSent, out: DropBadRST},
			step{d: Reply, flags: fRSTACK, ack: 5001, state: SynSent},
			step{d: Reply, flags: fRSTACK, ack: 5002, state: SynSent, out: DropBadRST},
			step{d: Reply, flags: fRST, state: SynSent, out: DropBadRST},
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 1, state: SynRecv})},
		{"SYN with data, acknowledged or not", after(nil,
			step{d: Forward, flags: fSYN, seq: 0, length: 10, state: SynSent},
			step{d: Forward, flags: fSYN, seq: 0, state: SynSent},
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 11, state: SynRecv},
			step{d: Reply, flags: fACK, seq: 1, ack: 11, length: 100, state: SynRecv},
			step{d: Reply, flags: fFIN, seq: 101, ack: 11, state: CloseWait},
			step{d: Forward, flags: fACK, seq: 11, ack: 1, state: CloseWait})},
		{"SYN-ACK for another SYN", after(handshake[:1],
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 4711, state: SynSent},
			step{d: Forward, flags: fRST, seq: 4711, state: SynSent},
			step{d: Forward, flags: fRST, seq: 4712, state: SynSent, out: DropBadRST},
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 1, state: SynRecv})},
		{"challenge ACK from an older connection", after(handshake[:1],
			step{d: Reply, flags: fACK, seq: 900, ack: 123456, state: SynSent},
			step{d: Forward, flags: fRST, seq: 123456, state: SynSent},
			step{d: Forward, flags: fSYN, seq: 0, state: SynSent},
			step{d: Reply, flags: fSYNACK, seq: 0, ack: 1, state: SynRecv})},
		{"ACK that fits no SYN-ACK", after(handshake[:2],
			step{d: Forward, flags: fACK, seq: 1, ack: 0, state: SynRecv},
			step{d: Forward, flags: fACK, seq: 1, ack: 2, state: SynRecv})},
		{"ACK before any answer", after(handshake[:1],
			step{d: Forward, flags: fACK, seq: 1, ack: 1, state: SynSent},
			step{d: Forward, flags: fFIN, seq: 1, ack: 1, state: SynSent})},
		{"no SYN at all", []step{
			{d: Forward, flags: fACK, seq: 1, ack: 1, state: None},
			{d: Reply, flags: fSYNACK, ack: 1, state: None},
			{d: Forward, flags: fRST, seq: 0, state: None, out: DropBadRST}}},
		{"refused", after(handshake[:1],
			step{d: Reply, flags: fRSTACK, seq: 0x10, ack: 1, state: Closed},
			step{d: Forward, flags: fSYN, seq: 0, state: Closed, out: Reopen})},
		{"refused without being asked", after(handshake[:1],
			step{d: Reply, flags: fRSTACK, seq: 0, ack: 0, state: SynSent, out: DropBadRST},
			step{d: Reply, flags: fRSTACK, seq: 0, ack: 2, state: SynSent, out: DropBadRST},
			step{d: Reply, flags: fRST, seq: 0, ack: 1, state: SynSent, out: DropBadRST})},
		{"client gives up early", after(handshake[:1],
			step{d: Forward, flags: fRST, seq: 1, state: Closed})},
		{"client resets the SYN-ACK", after(handshake[:2],
			step{d: Forward, flags: fRST, seq: 1, state: Closed})},
		{"server aborts on overflow", after(handshake[:2],
			step{d: Reply, flags: fRST, seq: 1, state: Closed})},
		{"RST exact", closed},
		{"RST of the client exact", after(talk,
			step{d: Forward, flags: fRSTACK, seq: 101, ack: 101, state: Closed},
			step{d: Reply, flags: fACK, seq: 101, ack: 101, length: 100, state: Closed})},
		{"RST in the window", after(talk,
			step{d: Reply, flags: fRST, seq: 102, state: Established},
			step{d: Reply, flags: fRST, seq: 100 + 0x8000, state: Established},
			step{d: Forward, flags: fRST, seq: 50, state: Established})},
		{"RST that answers an ACK, with data lost that came after", after(talk,
			step{d: Reply, flags: fACK, seq: 101, ack: 101, length: 1000, state: Established},
			step{d: Reply, flags: fRST, seq: 101, state: Closed})},
		{"RST blind", after(talk,
			step{d: Reply, flags: fRST, seq: 200 + 0x8000, state: Established, out: DropBadRST},
			step{d: Reply, flags: fRST, seq: 0x80000000, state: Established, out: DropBadRST},
			step{d: Forward, flags: fRST, seq: 0x90000000, state: Established, out: DropBadRST})},
		{"RST after lost segments", after(talk,
			step{d: Forward, flags: fRSTACK, seq: 9101, ack: 101, state: Established},
			step{d: Reply, flags: fACK, seq: 101, ack: 101, state: Established},
			step{d: Forward, flags: fRST, seq: 101, state: Closed})},
		{"server forgot, refuses the new SYN", after(talk,
			step{d: Forward, flags: fSYN, seq: 777777, state: Established},
			step{d: Reply, flags: fRSTACK, seq: 0x10, ack: 777778, state: Established})},
		{"server forgot, resets data", after(talk,
			step{d: Forward, flags: fACK, seq: 101, ack: 101, length: 10, state: Established},
			step{d: Reply, flags: fRST, seq: 101, state: Closed})},
		{"client forgot, calls again", after(talk,
			step{d: Forward, flags: fSYN, seq: 777777, state: Established},
			step{d: Reply, flags: fACK, seq: 101, ack: 101, state: Established},
			step{d: Forward, flags: fRST, seq: 101, state: Closed},
			step{d: Forward, flags: fSYN, seq: 777777, state: Closed, out: Reopen})},
		{"server forgot, takes the new SYN", after(talk, newTalk(Established)...)},
		{"server forgot while closing", after(talk, after([]step{
			{d: Reply, flags: fFIN, seq: 101, ack: 101, state: CloseWait},
			{d: Forward, flags: fACK, seq: 101, ack: 102, state: CloseWait}}, newTalk(CloseWait)...)...)},
		{"SYN-ACK that nobody answers", after(talk,
			step{d: Reply, flags: fSYNACK, seq: 0x30000000, ack: 0x20000001, state: Established},
			step{d: Forward, flags: fRST, seq: 0x20000001, state: Established, out: DropBadRST},
			step{d: Forward, flags: fACK, seq: 0x20000001, ack: 0x30000002, state: Established},
			step{d: Forward, flags: fACK, seq: 101, ack: 101, length: 10, state: Established},
			step{d: Reply, flags: fFIN, seq: 101, ack: 111, state: CloseWait},
			step{d: Forward, flags: fRST, seq: 111, state: Closed})},
		{"SYN-ACK and its acknowledgement forged", after(talk,
			step{d: Reply, flags: fSYNACK, seq: 0x30000000, ack: 0x20000001, state: Established},
			step{d: Forward, flags: fACK, seq: 0x20000002, ack: 0x30000001, state: Established},
			step{d: Forward, flags: fRST, seq: 0x20000002, state: Established, out: DropBadRST},
			step{d: Reply, flags: fRST, seq: 0x30000001, state: Established, out: DropBadRST},
			step{d: Forward, flags: fACK, seq: 101, ack: 101, length: 10, state: Established},
			step{d: Reply, flags: fFIN, seq: 101, ack: 111, state: CloseWait})},
		{"server chose another ISN for the SYN again", after(handshake[:2],
			step{d: Forward, flags: fSYN, seq: 0, state: SynRecv},
			step{d: Reply, flags: fSYNACK, seq: 0x30000000, ack: 5, state: SynRecv},
			step{d: Forward, flags: fACK, seq: 1, ack: 0x30000001, state: SynRecv},
			step{d: Reply, flags: fSYNACK, seq: 0x30000000, ack: 1, state: SynRecv},
			step{d: Forward, flags: fACK, seq: 1, ack: 0x30000001, state: Established},
			step{d: Reply, flags: fRST, seq: 0x30000001, state: Closed})},
		{"SYN in TIME_WAIT", after(timeWait,
			step{d: Forward, flags: fSYN, seq: 3, state: TimeWait, out: Reopen})},
		{"RST in TIME_WAIT", after(timeWait, // RFC 1337
			step{d: Reply, flags: fRST, seq: 102, state: TimeWait},
			step{d: Reply, flags: fRST, seq: 0x80000000, state: TimeWait, out: DropBadRST})},
		{"SYN in LAST_ACK, old and new", after(lastAck,
			step{d: Forward, flags: fSYN, seq: 0, state: LastAck},
			step{d: Forward, flags: fSYN, seq: 103, state: LastAck},
			step{d: Forward, flags: fRST, seq: 102, state: Closed},
			step{d: Forward, flags: fSYN, seq: 103, state: Closed, out: Reopen})},
		{"SYN while closing", after(talk,
			step{d: Forward, flags: fFIN, seq: 101, ack: 101, state: FinWait},
			step{d: Forward, flags: fSYN, seq: 777777, state: FinWait})},
		{"SYN of the server, SYN-ACK of the client", after(talk,
			step{d: Reply, flags: fSYN, seq: 0, state: Established, out: DropBadSYN},
			step{d: Forward, flags: fSYNACK, seq: 0, state: Established, out: DropBadSYN})},
		{"flags nobody sends", after(talk,
			step{d: Forward, flags: 0, seq: 101, state: Established, out: DropBadFlags},
			step{d: Forward, flags: packet.FIN, seq: 101, state: Established, out: DropBadFlags},
			step{d: Forward, flags: packet.FIN | packet.SYN, seq: 101, state: Established, out: DropBadFlags})},
		{"keep-alive", after(talk,
			step{d: Forward, flags: fACK, seq: 100, ack: 101, state: Established},
			step{d: Reply, flags: fACK, seq: 101, ack: 101, state: Established})},
		{"first segment lost before us", after(handshake[:2],
			step{d: Forward, flags: fACK, seq: 1461, ack: 1, length: 100, state: Established})},
		{"server's data passed us, then RST", after(talk,
			step{d: Forward, flags: fACK, seq: 101, ack: 5000, state: Established},
			step{d: Reply, flags: fRST, seq: 5000, state: Closed})},
		{"server's data passed us", after(talk,
			step{d: Forward, flags: fACK, seq: 101, ack: 5000, state: Established},
			step{d: Reply, flags: fACK, seq: 5000, ack: 101, length: 10, state: Established},
			step{d: Reply, flags: fRST, seq: 5010, state: Closed})},
	} {
		tt.Run(c.name, func(tt *testing.T) { newPeers(tt, FullNAT).run(tt, c.steps) })
	}
}

// TestTCPMode: DNAT translates no numbers, direct return shows one side only.
func TestTCPMode(tt *testing.T) {
	tt.Run("dnat", func(tt *testing.T) {
		c := newPeers(tt, DNAT)
		c.t.Entry(c.r).SeqDelta = 0
		c.run(tt, talk)
	})
	tt.Run("direct return", func(tt *testing.T) {
		c := newPeers(tt, DirectReturn)
		c.run(tt, []step{
			{d: Forward, flags: fACK, seq: 1, state: None},
			{d: Forward, flags: fSYN, seq: 0, state: SynSent},
			{d: Forward, flags: fACK, seq: 0x1000000, ack: 1, state: SynSent},
			{d: Forward, flags: fACK, seq: 1, ack: 1, state: Established},
			{d: Forward, flags: fACK, seq: 1, ack: 1, length: 100, state: Established},
			{d: Forward, flags: fRST, seq: 0x1000000, state: Established, out: DropBadRST},
			{d: Forward, flags: fRST, seq: 300, state: Established},
			{d: Forward, flags: fFIN, seq: 101, ack: 1, state: FinWait},
			{d: Forward, flags: fACK, seq: 102, ack: 1000, state: FinWait},
			{d: Forward, flags: fRST, seq: 102, state: Closed},
		})
	})
	tt.Run("direct return, RST before the ACK", func(tt *testing.T) {
		newPeers(tt, DirectReturn).run(tt, []step{
			{d: Forward, flags: fSYN, seq: 0, state: SynSent},
			{d: Forward, flags: fRST, seq: 1, state: Closed},
		})
	})
}

func TestTCPWindowScale(tt *testing.T) {
	for _, c := range []struct {
		name           string
		client, server []byte
		scaled         bool
		maxWin         uint32
	}{
		{"both", []byte{1, 3, 3, 7}, []byte{1, 3, 3, 14}, true, 0x8000 << 14},
		{"client only", []byte{1, 3, 3, 7}, nil, false, 0x8000},
		{"server only", nil, []byte{1, 3, 3, 7}, false, 0x8000},
		{"above the limit", []byte{3, 3, 99, 1}, []byte{3, 3, 99, 1}, true, 0x8000 << 14},
		{"cut short", []byte{1, 3, 3, 7}, []byte{1, 1, 1, 3}, false, 0x8000},
	} {
		tt.Run(c.name, func(tt *testing.T) {
			p := newPeers(tt, FullNAT)
			p.send(Forward, fSYN, 0, 0, 0, c.client...)
			p.send(Reply, fSYNACK, 0, 1, 0, c.server...)
			e := p.t.Entry(p.r)
			if e.Win[Reply].MaxWin != 0x8000 {
				tt.Error("the SYN-ACK's own window was scaled")
			}
			p.send(Forward, fACK, 1, 1, 0)
			p.send(Reply, fACK, 1, 1, 10)
			if e.Flags&WindowScaled != 0 != c.scaled || e.Win[Reply].MaxWin != c.maxWin {
				tt.Errorf("flags %#x, window %d", e.Flags, e.Win[Reply].MaxWin)
			}
			if e.State != Established {
				tt.Error(e.State)
			}
		})
	}
}

// TestTCPWindows follows the numbers themselves, across the wrap.
func TestTCPWindows(tt *testing.T) {
	c := newPeers(tt, FullNAT)
	c.run(tt, talk)
	e := c.t.Entry(c.r)
	want := [2]Window{
		{End: c.cISN + 101, Acked: c.cISN + 101, MaxWin: 0x8000},
		{End: c.sISN + 101, Acked: c.sISN + 101, MaxWin: 0x8000},
	}
	if e.Win != want {
		tt.Errorf("%+v, want %+v", e.Win, want)
	}
	if e.ServerNext != c.sISN+1 || e.Flags&HasServerISN == 0 {
		tt.Errorf("server ISN+1 is %#x, flags %#x", e.ServerNext, e.Flags)
	}
	if e.Packets != [2]uint32{4, 2} || e.Bytes != [2]uint64{4*40 + 100, 2*40 + 100} {
		tt.Errorf("packets %v, bytes %v", e.Packets, e.Bytes)
	}
}

func TestServerAcked(tt *testing.T) {
	c := newPeers(tt, FullNAT)
	e := c.t.Entry(c.r)
	acked := func() bool { return e.Flags&ServerAcked != 0 }
	c.run(tt, handshake)
	c.send(Forward, fACK, 1, 1, 100)
	c.send(Reply, fACK, 1, 101, 100)
	if acked() {
		tt.Error("before the client acknowledged anything")
	}
	c.send(Forward, fACK, 101, 0x200000, 0)
	if acked() {
		tt.Error("by an acknowledgement of what was never sent")
	}
	c.send(Forward, fACK, 101, 2, 0)
	if !acked() {
		tt.Error("not after the first byte")
	}
}

// TestTCPDeadlines: which segments prolong, shorten, or leave the deadline.
func TestTCPDeadlines(tt *testing.T) {
	left := func(c *peers) uint32 { return c.t.Entry(c.r).Expires - c.now }
	c := newPeers(tt, FullNAT)
	to := &c.pol.Timeouts
	check := func(what string, want uint32) {
		tt.Helper()
		if got := left(c); got != want {
			tt.Errorf("%s: %d ticks left, want %d", what, got, want)
		}
		c.now += 16
	}
	check("inserted", insertTicks)
	c.send(Forward, fSYN, 0, 0, 0)
	check("SYN", to[SynSent])
	c.send(Reply, fSYNACK, 0, 1, 0)
	check("SYN-ACK", to[SynRecv])
	c.send(Reply, fSYNACK, 0, 1, 0)
	check("SYN-ACK again", to[SynRecv]-16)
	c.send(Forward, fACK, 1, 1, 0)
	check("ACK", to[Established])
	c.send(Forward, fSYN, 99999, 0, 0)
	check("SYN out of place", to[Established]-16)
	c.send(Reply, fRST, 0x80000000, 0, 0)
	check("RST blind", to[Established]-32)
	c.send(Reply, fRST, 100, 0, 0)
	check("RST in window", to[Established]-48)
	c.send(Forward, fRST, 0x80000000-0x8000, 0, 0)
	c.send(Reply, fRST, 0, 0, 0)
	check("RST below the window", to[Established]-64)
	c.send(Forward, fACK, 1, 1, 0)
	check("challenge ACK", to[Established])
	c.send(Forward, fACK, 0x40000000, 1, 10)
	check("beyond the window", to[Established])
	c.send(Forward, fFIN, 1, 1, 0)
	check("FIN", to[FinWait])
	c.send(Forward, fACK, 0x40000000, 1, 10)
	check("beyond the window while closing", to[FinWait]-16)
	c.send(Reply, fACK, 1, 2, 500)
	check("data while closing", to[FinWait])
	c.send(Reply, fFIN, 501, 2, 0)
	check("both FIN", to[LastAck])
	c.send(Forward, fACK, 2, 502, 0)
	check("time wait", to[TimeWait])
	c.send(Reply, fFIN, 501, 2, 0)
	check("FIN again", to[TimeWait]-16)
	c.t.Entry(c.r).State = Established
	c.send(Forward, fRST, 2, 0, 0)
	check("RST", to[Closed])
	c.send(Reply, fACK, 502, 2, 10)
	check("data after the RST", to[Closed]-16)
	if got := drain(c.t, c.now+to[TimeWait]); len(got) != 1 {
		tt.Errorf("%d expired", len(got))
	}
}

// TestHalfOpenBudget: proven flows leave it, the oldest goes, time gets short.
func TestHalfOpenBudget(tt *testing.T) {
	dir := testDirectory()
	t := newTest(tt, Options{Flows: 100, HalfOpen: 8})
	pol := Policy{Timeouts: DefaultTimeouts()}
	to := &pol.Timeouts
	syn := packet.Packet{Kind: packet.KindTCP, TCPFlags: packet.SYN, L3: 14, L4: 34, Payload: 54, End: 54}
	var refs []Ref
	for i := range 8 {
		e := numbered(i)
		r := mustInsert(tt, t, &e, dir, 0)
		t.Track(r, Forward, &syn, packet.NoScale, 0, &pol)
		refs = append(refs, r)
		want := to[SynSent]
		if i >= 6 { // more than three quarters used
			want /= 4
		}
		if got := t.Entry(r).Expires; got != want {
			tt.Errorf("flow %d expires at %d, want %d", i, got, want)
		}
	}
	c := &peers{t: t, r: refs[0], pol: pol, window: 1000}
	c.run(tt, handshake[1:])
	if t.HalfOpenLen() != 7 || t.Entry(refs[0]).Flags&HalfOpen != 0 {
		tt.Errorf("%d half-open", t.HalfOpenLen())
	}
	for i := 8; i < 30; i++ {
		e := numbered(i)
		fwd, rev := tuples(&e, dir)
		if _, st, gone := t.Insert(&e, &fwd, rev, dir, 0, nil); st != Inserted || gone != (i > 8) {
			tt.Errorf("flow %d: %v, evicted %v", i, st, gone)
		}
	}
	if t.Len() != 9 || t.HalfOpenLen() != 8 || t.Stats().EvictedHalfOpen != 21 {
		tt.Errorf("%d flows, %d half-open, %+v", t.Len(), t.HalfOpenLen(), t.Stats())
	}
	if t.Entry(refs[0]).State != Established {
		tt.Error("the established flow is gone")
	}
}

func TestUDP(tt *testing.T) {
	t := newTest(tt, Options{Flows: 10})
	e := Entry{Client: addr4(0xc6336401), ClientPort: 1024, Service: 1, Backend: 1, Proto: packet.ProtoUDP, Mode: DNAT}
	r := mustInsert(tt, t, &e, testDirectory(), 0)
	pol := Policy{Timeouts: DefaultTimeouts()}
	to := &pol.Timeouts
	p := packet.Packet{L3: 14, L4: 34, Payload: 42, End: 142}
	now := uint32(0)
	for _, s := range []struct {
		name  string
		d     Dir
		kind  packet.Kind
		state State
		left  uint32
		half  int
	}{
		{"first", Forward, packet.KindUDP, UDPOneWay, to[UDPOneWay], 1},
		{"second", Forward, packet.KindUDP, UDPOneWay, to[UDPOneWay], 1},
		{"a TCP segment by mistake", Reply, packet.KindTCP, UDPOneWay, to[UDPOneWay] - 1, 1},
		{"answer", Reply, packet.KindUDP, UDPTwoWay, to[UDPTwoWay], 0},
		{"third", Forward, packet.KindUDP, UDPTwoWay, to[UDPTwoWay], 0},
		{"ICMP error", Reply, packet.KindICMPError, UDPTwoWay, to[UDPTwoWay] - 1, 0},
		{"later fragment", Reply, packet.KindFragment, UDPTwoWay, to[UDPTwoWay] - 2, 0},
	} {
		now++
		p.Kind = s.kind
		if out := t.Track(r, s.d, &p, packet.NoScale, now, &pol); out != Pass {
			tt.Errorf("%s: %v", s.name, out)
		}
		if got := t.Entry(r).Expires - now; got != s.left {
			tt.Errorf("%s: %d ticks left, want %d", s.name, got, s.left)
		}
		if got := t.Entry(r); got.State != s.state || t.HalfOpenLen() != s.half {
			tt.Errorf("%s: %v, %d half-open", s.name, got.State, t.HalfOpenLen())
		}
	}
	if got := t.Entry(r).Packets; got != [2]uint32{3, 4} {
		tt.Errorf("packets %v", got)
	}
}
