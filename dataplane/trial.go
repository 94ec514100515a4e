package dataplane

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

// Trial finds out what the workers would do with a packet, without their doing it. It
// makes workers of its own over memory of its own, which have copies of all that the
// answer depends on, the flow among it, and has these do it: the same code decides, so
// that the answer is what would happen. The real workers lend what is copied between two
// bursts, see Look; nothing of theirs is changed.
//
// It answers for a moment: a flow that another packet opens meanwhile makes another
// turn of the scheduler's. What it does not copy are fragments that wait for others,
// and how far servers' sequence numbers went on a local port that is used again.
type Trial struct {
	dp     *Dataplane
	frame  []byte
	nic    uint8
	at     int   // the worker that receives the frame
	now    int64 // nanoseconds of the workers' clock
	parsed packet.Packet
	tuples []packet.Tuple // whose flows are asked for
	asks   []portAsk
	lent   []lent // by worker
	// refused is the memory that all its workers share.
	refused refused
}

// portAsk asks a worker for the local port that a flow to a backend would get.
type portAsk struct {
	worker           int
	service, backend uint32
	asked, found     bool
	local, port      uint16
}

// Outcome is what a Trial has found.
type Outcome struct {
	Decided bool    // false: a fragment that waits for the first one of its datagram
	Verdict Verdict // of the packet
	Worker  int     // who decides
	Err     packet.Err
	Kind    packet.Kind
	Tuple   packet.Tuple
	Service string // "" for none

	Before *Flow         // the packet's flow as it is; nil without one
	After  *Flow         // as it would be then; nil without one, or if it is forgotten
	Opened bool          // After is a new one
	Dir    conntrack.Dir // the packet's in its flow
	// Stays is the backend to which persistence holds the client's prefix, for so long
	// yet; its port is 0 without.
	Stays    conntrack.Endpoint
	StaysFor time.Duration
	// Crowded is whether half-open flows are as many as there may be where this one
	// would be, Flows how many the worker has.
	Crowded bool
	// NoPort says that no local port was found towards the first backend; whether there
	// is one towards those that are tried next has not been asked.
	NoPort bool

	Sent   []SentFrame
	Routes *route.Table // by which it goes
}

// SentFrame is a frame that would be sent.
type SentFrame struct {
	NIC  uint8
	Own  bool // not the packet itself, but an answer to it, or about it
	Data []byte
}

// Errors of NewTrial.
var (
	ErrTrialFrame = errors.New("frame does not fit")
	ErrTrialNIC   = errors.New("no such interface")
)

// trialHeadroom is where a received frame begins in its chunk: XDP_PACKET_HEADROOM of
// linux/bpf.h.
const trialHeadroom = 256

// NewTrial is about a frame, as a NIC has received it, that comes to a worker at nanos of
// the workers' clock. The frame is not copied.
func (dp *Dataplane) NewTrial(frame []byte, nic uint8, worker int, nanos int64) (*Trial, error) {
	switch {
	case len(frame) < packet.EthLen || uint64(len(frame)) > dp.frame-trialHeadroom:
		return nil, fmt.Errorf("%w: %d bytes, expected %d to %d", ErrTrialFrame, len(frame), packet.EthLen, dp.frame-trialHeadroom)
	case nic >= MaxNICs || worker < 0 || worker >= len(dp.Workers):
		return nil, fmt.Errorf("%w: NIC %d, worker %d", ErrTrialNIC, nic, worker)
	}
	t := &Trial{dp: dp, frame: frame, nic: nic, at: worker, now: nanos, lent: make([]lent, len(dp.Workers))}
	p := &t.parsed
	if packet.Parse(frame, p) != packet.ErrNone {
		return t, nil
	}
	if p.Kind == packet.KindFragment && p.Fragment(frame).Offset == 0 {
		first := *p
		if first.FirstFragment(frame) == packet.ErrNone {
			p.SrcPort, p.DstPort = first.SrcPort, first.DstPort
		}
	}
	switch p.Kind {
	case packet.KindTCP, packet.KindUDP, packet.KindICMPError, packet.KindFragment:
		t.tuples = []packet.Tuple{p.Tuple}
	}
	return t, nil
}

// Home is the worker by whose queue a packet arrives, as far as it is known how the NICs
// spread packets; else 0.
func (dp *Dataplane) Home(frame []byte) int {
	var p packet.Packet
	if dp.opt.Spread == nil || packet.Parse(frame, &p) != packet.ErrNone {
		return 0
	}
	tuple := p.Tuple
	switch p.Kind {
	case packet.KindTCP, packet.KindUDP:
	case packet.KindARP:
		return 0
	default: // by addresses alone
		tuple.Src, tuple.Dst = p.OuterAddrs(frame)
		tuple.SrcPort, tuple.DstPort = 0, 0
	}
	return dp.opt.Spread.Worker(&tuple)
}

// maxTries bounds how often Run asks for another look: a look for the flow, one for each
// backend that is tried and its local port, and some to spare.
const maxTries = 4 * conflictTries

// Run tries the packet out and returns what has become of it. look has to have each real
// worker call Look, between two bursts, and is called as often as something more turns
// out to matter.
func (t *Trial) Run(look func(func(*Worker)) error) (*Outcome, error) {
	for try := 0; ; try++ {
		if err := look(t.Look); err != nil {
			return nil, err
		}
		o, more, err := t.try()
		if err != nil || !more {
			return o, err
		}
		if try == maxTries {
			return nil, errors.New("trial: the flows change too fast")
		}
	}
}

// want notes that the flow of a tuple matters; false if that is known.
func (t *Trial) want(tu packet.Tuple) bool {
	if slices.Contains(t.tuples, tu) {
		return false
	}
	t.tuples = append(t.tuples, tu)
	return true
}

// wantPort asks for the local port of a new flow; false if that has been done.
func (t *Trial) wantPort(worker int, e *conntrack.Entry) bool {
	same := func(a portAsk) bool { return a.worker == worker && a.service == e.Service && a.backend == e.Backend }
	if e.Mode != conntrack.FullNAT || slices.ContainsFunc(t.asks, same) {
		return false
	}
	t.asks = append(t.asks, portAsk{worker: worker, service: e.Service, backend: e.Backend})
	return true
}

// try runs the packet through workers made of what has been lent. more is set if
// something else has to be lent first.
func (t *Trial) try() (o *Outcome, more bool, err error) {
	s, err := t.stage()
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if e := s.dp.Close(); err == nil {
			err = e
		}
	}()
	if err := s.run(t.at, t.now); err != nil {
		return nil, false, err
	}
	o = &Outcome{
		Err: t.parsed.Err, Kind: t.parsed.Kind, Tuple: t.parsed.Tuple, Routes: t.lent[0].routes, Worker: t.at,
	}
	s.read(o)
	t.flowBefore(o)
	for i, w := range s.dp.Workers {
		if t.flowAfter(o, i, w) {
			more = true
		}
	}
	for i := range t.asks {
		o.NoPort = o.NoPort || t.asks[i].asked && !t.asks[i].found
	}
	o.Crowded = t.lent[o.Worker].crowded
	return o, more, nil
}

// flowBefore says what flow the packet has, and who keeps the client.
func (t *Trial) flowBefore(o *Outcome) {
	for i := range t.lent {
		l := &t.lent[i]
		for k := range l.flows {
			if f := &l.flows[k]; f.of == 0 {
				one := l.snap.flow(&f.entry, l.tick)
				o.Before, o.Dir = &one, f.dir
			}
		}
		if x := l.template(); x != nil && o.Before == nil {
			o.Stays = l.snap.Directory.Backends[x.backend]
			o.StaysFor = ticks(x.expires - l.tick)
		}
	}
}

// flowAfter says what the flow is then in the table of worker i, and asks for what is to
// be known of a new one.
func (t *Trial) flowAfter(o *Outcome, i int, w *Worker) (more bool) {
	var refs [maxLent]conntrack.Ref
	var entries [maxLent]conntrack.Entry
	n, _ := w.table.CopyFrom(1, refs[:], entries[:])
	for k := range entries[:n] {
		e := &entries[k]
		fwd, rev := e.Tuples(&w.snap.Directory)
		ours := len(t.tuples) > 0 && (fwd == t.tuples[0] || rev == t.tuples[0])
		if ours {
			one := w.snap.flow(e, w.tick)
			o.After = &one
		}
		if slices.ContainsFunc(t.lent[i].flows, func(f lentFlow) bool { return sameFlow(e, &f.entry) }) {
			continue
		}
		o.Opened = o.Opened || ours
		more = t.wantPort(i, e) || more
		more = e.Mode == conntrack.DNAT && t.want(rev) || more
	}
	return more
}
