package bench

import (
	"context"
	"fmt"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/packet"
)

// opener opens the flows of a synth: all workers take turns in one thread, and
// what l4fwd makes of a flow's first packet tells how it is translated.
type opener struct {
	s      *synth
	lists  [][][]byte // by queue
	ids    [][]int32  // the flows of them
	origin []int32    // by chunk: the flow of the frame it received last
	buf    []byte
	first  bool // what leaves is the first packet of its flow
	pupil  *pupil
	err    error
}

// open opens all flows and sorts their packets by the queues they arrive at.
func (s *synth) open(ctx context.Context) error {
	o := newOpener(s)
	for first := 0; first < s.o.Flows; first += handshakeGroup {
		last := min(first+handshakeGroup, s.o.Flows)
		for step := range 3 {
			o.step(first, last, step)
		}
		if o.err != nil {
			return o.err
		}
		for k := first; k < last; k++ {
			if !s.flows[k].open {
				return s.notOpened(k)
			}
		}
		if first%(1<<16) == 0 {
			if s.o.Progress != nil {
				s.o.Progress(float64(first) / float64(s.o.Flows) / 2)
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	if s.r.flows() != s.o.Flows {
		return s.notOpened(s.r.flows())
	}
	for _, p := range s.r.ports {
		p.OnReceive, p.OnSend = nil, nil
	}
	if s.o.Workers > 1 {
		return s.sort()
	}
	return nil
}

func (s *synth) notOpened(k int) error {
	counts := s.r.counts()
	var rep Report
	rep.count(&counts)
	return fmt.Errorf("flow %d of %d could not be opened, dropped %v", k+1, s.o.Flows, rep.Dropped)
}

func newOpener(s *synth) *opener {
	o := &opener{
		s: s, lists: make([][][]byte, s.o.Workers), ids: make([][]int32, s.o.Workers),
		origin: make([]int32, len(s.r.umem.used)/s.r.chunk), buf: make([]byte, handshakeGroup*handshakeRoom),
		pupil: newPupil(s),
	}
	for q, p := range s.r.ports {
		p.OnReceive = func(i int, f []byte) { o.origin[s.r.chunkOf(f)] = o.ids[q][i] }
		p.OnSend = func(f []byte) { o.sent(q, f) }
	}
	return o
}

// handshakeRoom is more than the longest packet of a handshake.
const handshakeRoom = 128

// step feeds one packet of each flow from first up to last.
func (o *opener) step(first, last, step int) {
	s := o.s
	for q := range o.lists {
		o.lists[q], o.ids[q] = o.lists[q][:0], o.ids[q][:0]
	}
	n := 0
	for k := first; k < last; k++ {
		g, ok := s.handshake(k, step)
		if !ok {
			continue
		}
		f := g.build(o.buf[n*handshakeRoom : (n+1)*handshakeRoom])
		q := s.r.queue(f)
		o.lists[q], o.ids[q] = append(o.lists[q], f), append(o.ids[q], int32(k))
		n++
	}
	for q, p := range s.r.ports {
		p.Feed(o.lists[q], 1)
	}
	o.first = step == 0
	s.fed += uint64(n)
	s.time += int64(n) * packetGap
	for moving := true; moving; {
		moving = false
		for q, w := range s.r.dp.Workers {
			n := w.Poll(s.time)
			moving = moving || n > 0 && s.o.Workers > 1 || !s.r.ports[q].Idle()
		}
	}
}

// sent sees a frame leave by worker q.
func (o *opener) sent(q int, f []byte) {
	if !o.first {
		return
	}
	k := o.origin[o.s.r.chunkOf(f)]
	if err := o.pupil.learn(&o.s.flows[k], f, int(k), q); o.err == nil {
		o.err = err
	}
}

// pupil knows by their addresses what a synth knows by numbers.
type pupil struct {
	s        *synth
	locals   map[packet.Addr]uint16
	backends []map[conntrack.Endpoint]uint16 // by place in services
}

func newPupil(s *synth) *pupil {
	u := &pupil{s: s, locals: map[packet.Addr]uint16{}}
	for i, a := range s.o.Spec.Locals {
		u.locals[a] = uint16(i)
	}
	for _, svc := range s.services {
		m := map[conntrack.Endpoint]uint16{}
		for i, b := range svc.Backends {
			m[b.Endpoint] = uint16(i)
		}
		u.backends = append(u.backends, m)
	}
	return u
}

// learn takes note of what worker q made of the first packet of flow w, of the
// client numbered k.
func (u *pupil) learn(w *synthFlow, f []byte, k, q int) error {
	svc := u.s.service(k)
	if oneWay(svc) { // which backend's MAC address it has does not matter
		w.owner, w.open = uint8(q), true
		return nil
	}
	var p packet.Packet
	if e := packet.Parse(f, &p); e != packet.ErrNone {
		return fmt.Errorf("flow %d: what left is malformed: %v", k+1, e)
	}
	backend, ok := u.backends[k%len(u.s.services)][conntrack.Endpoint{Addr: p.Dst, Port: p.DstPort, Proto: p.Proto}]
	if !ok {
		return fmt.Errorf("flow %d: sent to %v, which is no backend of %s", k+1, p.Dst, svc.Name)
	}
	w.backend, w.owner, w.open = backend, uint8(q), true
	if svc.Mode == conntrack.FullNAT {
		w.local, w.port = u.locals[p.Src], p.SrcPort
		w.delta = p.Seq - (w.client - 1) // of the SYN; w.client is what comes after
	}
	return nil
}

// sort makes the lanes.
func (s *synth) sort() error {
	s.lanes = make([][]uint32, s.o.Workers)
	var buf [MaxSize]byte
	for k := range s.flows {
		for reply := range 2 {
			if reply == 1 && oneWay(s.service(k)) {
				break
			}
			owner := int(s.flows[k].owner)
			q := owner
			switch {
			case s.o.Arrival == ArriveAway && reply == 1:
				q = (owner + 1) % s.o.Workers
			case s.o.Arrival == ArriveSpread:
				g := s.segment(k, reply == 1)
				q = s.r.queue(g.build(buf[:]))
			}
			s.lanes[q] = append(s.lanes[q], uint32(k)<<1|uint32(reply))
		}
	}
	for q := range s.lanes {
		if len(s.lanes[q]) == 0 {
			return fmt.Errorf("%w: none of %d flows has packets for worker %d", ErrOptions, s.o.Flows, q)
		}
	}
	return nil
}

// burstsPerBatch is how many bursts are made, then fed: few enough for all their
// packets to lie in the cache, as they do where a NIC puts them there, and for all
// of them to find room in a hand-off ring.
const burstsPerBatch = 16

// batch is packets made for one worker, their room used again and again. With
// several workers it is their threads' own.
type batch struct {
	random random
	buf    []byte
	frames [][]byte
	_      [2 * cacheLine]byte
}

func newBatch(seed uint64, q int) batch {
	return batch{
		random: random{mix(seed + uint64(q))},
		frames: make([][]byte, 0, burstsPerBatch*dataplane.BurstSize),
	}
}

// cacheLine is where a packet begins, so that each takes as few lines as it can.
const cacheLine = 64

// make fills the batch for worker q with at most n packets of flows drawn at
// random, and returns how many bytes they have.
func (b *batch) make(s *synth, q, n int) (bytes uint64) {
	b.frames = b.frames[:0]
	n = min(n, cap(b.frames))
	at := 0
	for range n {
		var k int
		var reply bool
		if s.lanes == nil {
			k, reply = b.random.below(len(s.flows)), b.random.next()>>63 != 0
		} else {
			v := s.lanes[q][b.random.below(len(s.lanes[q]))]
			k, reply = int(v>>1), v&1 != 0
		}
		g := s.data(k, reply)
		room := (max(g.headerLen()+g.payload, minCaptured) + cacheLine - 1) &^ (cacheLine - 1)
		if len(b.buf) < at+room {
			// Frames made so far keep the old memory.
			b.buf, at = make([]byte, max(cap(b.frames)*room, 2*len(b.buf))), 0
		}
		f := g.build(b.buf[at : at+room])
		b.frames = append(b.frames, f)
		bytes += uint64(len(f))
		at += room
	}
	return bytes
}
