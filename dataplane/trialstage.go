package dataplane

import (
	"errors"
	"fmt"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
)

// stage is the workers of a Trial.
type stage struct {
	dp   *Dataplane
	taps []*Tap
}

// stageFrames is how many frames each worker has: a burst to receive into, and what a
// packet that leaves in fragments, with errors about it, can take.
const stageFrames = 4 * BurstSize

// stageFlows is the room in a flow table, beside what has been lent.
const stageFlows = 8

// stage makes the workers out of what has been lent.
func (t *Trial) stage() (*stage, error) {
	o := t.dp.opt
	o.UMEM = make([]byte, o.Workers*stageFrames*o.FrameSize)
	o.Flows, o.Unpopulated = o.Workers*stageFlows, true
	if t.refused == nil {
		t.refused = make(refused, refusedLines)
	}
	o.refused = t.refused
	dp, err := New(o)
	if err != nil {
		return nil, fmt.Errorf("trial: %w", err)
	}
	s := &stage{dp: dp}
	snap := t.lent[0].snap.apart(len(dp.Workers))
	for i, w := range dp.Workers {
		s.taps = append(s.taps, NewTap(TapOptions{Points: TapRX | TapTX, SnapLen: o.FrameSize, Frames: stageFrames}))
		w.Tap(s.taps[i])
		if err := t.put(w, snap); err != nil {
			return nil, errors.Join(fmt.Errorf("trial: %w", err), dp.Close())
		}
	}
	return s, nil
}

// put makes a worker what the real one is.
func (t *Trial) put(w *Worker, snap *Snapshot) error {
	l := &t.lent[w.id]
	l.fill(snap, &snap.Locality[w.id])
	w.snap, w.here = snap, &snap.Locality[w.id]
	w.ways, w.heads, w.locals = w.here.ways, w.here.heads, snap.Locals
	if len(w.locals) == 0 {
		w.locals = noLocals[:]
	}
	w.nextSnap.Store(snap)
	w.routes, w.hops = l.routes, l.routes.Hops
	w.routesSeen++
	w.nextRoutes.Store(l.routes)
	if snap.localPorts != nil {
		w.ports.SetRanges(snap.localPorts)
	}
	w.errors, w.resets, w.serverResets, w.tooBigs, w.farewells = l.buckets[0], l.buckets[1], l.buckets[2], l.buckets[3], l.buckets[4]
	w.ipID, w.learned = l.ipID, l.learned
	w.nanos, w.tick = t.now, l.tick
	w.pace = pace{tick: l.tick}
	if l.evictable {
		w.pace.room = handshakeTime
	}
	if err := t.fillTable(w, l); err != nil {
		return err
	}
	t.offerPorts(w)
	for nic, ready := range l.ready {
		receives := w.id == t.at && nic == int(t.nic)
		if !ready && !receives {
			continue
		}
		p := &trialPort{umem: w.umem}
		if receives {
			p.frame = t.frame
		}
		if err := w.Attach(uint8(nic), l.macs[nic], p); err != nil {
			return err
		}
	}
	return nil
}

// fillTable gives a worker the flows, in a table that is as full as the real one.
func (t *Trial) fillTable(w *Worker, l *lent) error {
	half, room := 0, stageFlows
	for i := range l.flows {
		if l.flows[i].entry.Flags&conntrack.HalfOpen != 0 {
			half++
		}
	}
	if l.full {
		room = 0
	}
	o := conntrack.Options{
		Flows: max(1, len(l.flows)+room), HalfOpen: half + stageFlows, Secret: tableSecret(t.dp.opt.Secret), Now: l.tick, Lazy: true,
	}
	if l.crowded {
		o.HalfOpen = half
	}
	o.HalfOpen = max(1, min(o.HalfOpen, o.Flows))
	table, err := conntrack.New(o)
	if err != nil {
		return err
	}
	w.table, table = table, w.table
	if err := table.Close(); err != nil {
		return err
	}
	for i := range l.flows {
		f := &l.flows[i]
		w.table.Adopt(&f.entry, f.clock, &w.snap.Directory, l.tick)
	}
	if l.begins { // the others' lines would be in the same place
		*w.refusedLine(w.table.Hash(&t.parsed.Tuple), uint64(l.tick/refusedTime)) = l.refused
	}
	return nil
}

// offerPorts has the worker find the local ports that the real one does.
func (t *Trial) offerPorts(w *Worker) {
	for i := range t.asks {
		switch a := &t.asks[i]; {
		case a.worker != w.id || !a.asked:
		case a.found:
			w.ports.Offer(&w.snap.Directory, w.snap.Services[a.service].Locals, a.backend, a.local, a.port)
		default:
			none := make([]nat.PortRange, len(w.snap.Locals))
			for k := range none {
				none[k] = nat.PortRange{First: 2, Last: 1}
			}
			w.ports.SetRanges(none)
			return
		}
	}
}

// apart is the snapshot for workers that share nothing with those of s that is changed.
// What a worker of them writes is made, but empty.
func (s *Snapshot) apart(workers int) *Snapshot {
	c := *s
	c.loads = s.loads.Copy()
	c.leases = nil
	for _, l := range s.leases {
		if l.from != nil {
			q := &quota{limit: l.from.limit}
			q.left.Store(l.from.left.Load())
			l.from = q
		}
		c.leases = append(c.leases, l)
	}
	c.Locality = make([]Locality, workers)
	for w := range c.Locality {
		l := &c.Locality[w]
		*l = c.locality()
		l.handshakes = make([]*Handshakes, len(s.Services))
		if s.Locality[w].heads != nil {
			l.heads = make([]directHead, len(l.ways))
		}
		if s.Locality[w].templates != nil {
			l.templates = newTemplates(bucketTemplates)
		}
	}
	return &c
}

// fill writes what has been lent.
func (l *lent) fill(s *Snapshot, to *Locality) {
	for i := range l.services {
		one := &l.services[i]
		to.Schedulers[one.id] = one.state.Copy(s.loads)
	}
	for i := range l.backends {
		one := &l.backends[i]
		to.ways[one.id], to.Backends[one.id] = one.way, one.count
		to.ways[one.id].count = &to.Backends[one.id]
		if int(one.id) < len(to.held) {
			to.held[one.id] = one.held
		}
	}
	if l.templates != nil {
		copy(to.templates.slots, l.templates)
	}
}

// run lets the workers forward until nothing moves, first the one that receives: a flow
// whose time is over goes after the packet, as it does where the timer has yet to come.
// A panic is an error: nobody who asks a question shall end the daemon.
func (s *stage) run(first int, now int64) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("trial: panic: %v\n%s", r, debug.Stack())
		}
	}()
	for moved := true; moved; {
		moved = false
		for i := range s.dp.Workers {
			moved = s.dp.Workers[(first+i)%len(s.dp.Workers)].Poll(now) > 0 || moved
		}
	}
	return nil
}

// read is what the workers have seen and sent.
func (s *stage) read(o *Outcome) {
	for i, t := range s.taps {
		for f := t.Peek(); f != nil; f = t.Peek() {
			if f.Point == TapRX {
				o.Decided, o.Verdict, o.Worker, o.Service = true, f.Verdict, i, f.Service
			} else {
				o.Sent = append(o.Sent, SentFrame{NIC: f.NIC, Own: f.Own || f.Verdict.IsDrop(), Data: append([]byte(nil), f.Data...)})
			}
			t.Next()
		}
	}
}

// trialPort is a Port that receives one frame, and sends nothing anywhere.
type trialPort struct {
	umem   []byte
	frame  []byte // nil once it has been received
	filled []uint64
	sent   []uint64
}

// Receive is the frame, once.
func (p *trialPort) Receive(d []unix.XDPDesc) int {
	if p.frame == nil || len(p.filled) == 0 || len(d) == 0 {
		return 0
	}
	at := p.filled[0] + trialHeadroom
	d[0] = unix.XDPDesc{Addr: at, Len: uint32(copy(p.umem[at:], p.frame))}
	p.frame, p.filled = nil, p.filled[1:]
	return 1
}

// Fill takes frames.
func (p *trialPort) Fill(addrs []uint64) int {
	p.filled = append(p.filled, addrs...)
	return len(addrs)
}

// FillFree is room for a burst before the frame is received.
func (p *trialPort) FillFree() int {
	if p.frame == nil || len(p.filled) > 0 {
		return 0
	}
	return BurstSize
}

// Transmit sends at once.
func (p *trialPort) Transmit(d []unix.XDPDesc) int {
	for i := range d {
		p.sent = append(p.sent, d[i].Addr)
	}
	return len(d)
}

// Reclaim gives frames back.
func (p *trialPort) Reclaim(addrs []uint64) int {
	n := copy(addrs, p.sent)
	p.sent = p.sent[n:]
	return n
}

// Kick has nothing to wake.
func (*trialPort) Kick() error { return nil }

// FD has nothing to wait for.
func (*trialPort) FD() int { return -1 }

// Held lists what it holds.
func (p *trialPort) Held(dst []uint64) []uint64 { return append(append(dst, p.filled...), p.sent...) }
