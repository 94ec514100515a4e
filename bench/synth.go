package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/l4fwd/l4fwd/bench/cpu"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// Arrival is on which worker's queue the packets of a flow arrive.
type Arrival uint8

// The arrivals. With one worker they are the same.
const (
	ArriveSpread Arrival = iota // as the NIC's RSS spreads them
	ArriveHome                  // at the flow's owner, in both directions
	ArriveAway                  // replies at another worker than the owner, all of them
)

// SynthOptions say what Synthesize measures.
type SynthOptions struct {
	Spec       dataplane.Spec // whose services the clients talk to, in turn
	LocalPorts []nat.PortRange
	FrameSize  int // UMEM chunk in bytes, a power of two; 0 is 2048
	// MaxFlows is the capacity of the flow table, all workers together; less than
	// Flows need counts as just enough.
	MaxFlows int
	Workers  int // 0 is 1
	Seed     uint64
	RSSKnown bool // as in Options

	Flows    int   // open all the time
	Packets  int   // measured in a round; 0 is 500,000
	Rounds   int   // 0 is 5
	Size     int   // as in GenOptions
	Protocol uint8 // the same
	Family   int   // the same
	Arrival  Arrival
	// Fresh has only clients send data, which servers acknowledge, so that every packet
	// of theirs is one of a new flow, which bears TOA.
	Fresh bool
	// Limit measures the limit (see the package comment) after each round, with
	// packets drawn in the same way; of several workers, as many limits side by side.
	Limit bool
	// Profile measures the stages of every burst in a round more. One worker only.
	Profile bool
	// CPUProfile, if set, gets a pprof profile of the rounds.
	CPUProfile io.Writer
	Progress   func(done float64) // as in Options
}

// Synthesize measures the forwarding of packets that no capture holds: it opens
// the flows, then makes packets of both directions, of flows drawn at random, a
// batch at a time, and feeds them. Only feeding is timed: one worker by the
// processor time of its thread, so that what else the machine does weighs little,
// several, each in a thread bound to a CPU of its own, by the wall. It needs 20 bytes
// of memory a flow beside the flow table, and 8 more with several workers.
func Synthesize(ctx context.Context, o SynthOptions) (*Report, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s, err := newSynth(o)
	if err != nil {
		return nil, fmt.Errorf("synthesize: %w", err)
	}
	rep, err := s.measure(ctx)
	if err = errors.Join(err, s.close()); err != nil {
		return nil, fmt.Errorf("synthesize: %w", err)
	}
	return rep, nil
}

// synth is a data plane with flows open, and what is needed to make packets of
// them.
type synth struct {
	o        SynthOptions
	services []*dataplane.ServiceSpec
	clients  clients
	random   random
	clock    *cpu.Clock  // of the wall
	busy     *cpu.Thread // of the calling thread
	r        *rig
	flows    []synthFlow
	saved    []synthFlow // of limitRound
	lanes    [][]uint32  // by worker: flow<<1, plus one for replies; nil with one worker
	batches  []batch     // by worker
	time     int64       // of the workers
	limits   []*limit    // by worker; nil if not asked for
	sampler  *stageSampler

	opening Part
	warm    uint64 // packets fed before it counted
	fed     uint64
	bytes   uint64
	total   int64 // nanoseconds of all rounds
	// Nanoseconds a packet of the last round: by the clock, and of processor time,
	// all workers together.
	wall, cores float64
}

// synthFlow is what packets of a flow are made from. Sequence numbers are those
// each side sends next, as the client sees them; where the two sides' packets
// arrive at different workers, each is made, and its number moved on, by the thread
// of its own, while the other reads it.
type synthFlow struct {
	client, server uint32 // atomic, once the flows are open
	delta          uint32 // added to the client's on their way to the server
	local          uint16 // index in Spec.Locals
	port           uint16
	backend        uint16 // index in the service's Backends
	owner          uint8  // worker
	open           bool
}

// packetGap is how far apart packets are by the workers' clock.
const packetGap = 100 // nanoseconds

func newSynth(o SynthOptions) (*synth, error) {
	s, err := newMaker(o)
	if err != nil {
		return nil, err
	}
	o = s.o
	s.r, err = newRig(&Options{
		Spec: o.Spec, LocalPorts: o.LocalPorts, FrameSize: o.FrameSize, MaxFlows: o.MaxFlows,
		Workers: o.Workers, Seed: o.Seed, RSSKnown: o.RSSKnown,
	}, o.Size)
	if err != nil {
		return nil, err
	}
	if o.Limit {
		if err := s.addLimits(); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

// addLimits makes a limit for each worker, on memory as large as the worker's table.
func (s *synth) addLimits() error {
	for range s.o.Workers {
		l, err := newLimit(s.o.MaxFlows/s.o.Workers, max(s.o.Flows/s.o.Workers, 1), s.o.FrameSize)
		if err != nil {
			return err
		}
		s.limits = append(s.limits, l)
	}
	return nil
}

// newMaker is a synth without a data plane, which can make packets.
func newMaker(o SynthOptions) (*synth, error) {
	o.FrameSize, o.Workers = orDefault(o.FrameSize, 2048), orDefault(o.Workers, 1)
	o.Packets, o.Rounds, o.Size = orDefault(o.Packets, 500_000), orDefault(o.Rounds, 5), orDefault(o.Size, MinSize)
	if err := o.check(); err != nil {
		return nil, err
	}
	// A quarter of it may be half-open, which at first all of a group are.
	need := max(o.Flows, 4*handshakeGroup)
	if o.Workers > 1 { // which the owner function does not share out evenly
		need += o.Flows/8 + 4*handshakeGroup*o.Workers
	}
	o.MaxFlows = max(o.MaxFlows, need)
	s := &synth{o: o, random: random{o.Seed}, clock: cpu.NewClock(), busy: cpu.NewThread(), time: base}
	var err error
	if s.services, err = servicesFor(&o.Spec, o.Protocol, o.Family); err != nil {
		return nil, err
	}
	if s.clients, err = newClients(&o.Spec); err != nil {
		return nil, err
	}
	s.flows = make([]synthFlow, o.Flows)
	for q := range o.Workers {
		s.batches = append(s.batches, newBatch(o.Seed, q))
	}
	return s, nil
}

// check looks whether the options are in range.
func (o *SynthOptions) check() error {
	switch {
	case o.Flows < 1 || o.Flows > 1<<30:
		return fmt.Errorf("%w: %d flows: want 1 to %d", ErrOptions, o.Flows, 1<<30)
	case o.Size < MinSize || o.Size > MaxSize:
		return fmt.Errorf("%w: packets of %d bytes: want %d to %d", ErrOptions, o.Size, MinSize, MaxSize)
	case o.Workers < 1 || o.Workers > 255 || o.Packets < 1 || o.Rounds < 1:
		return fmt.Errorf("%w: %d workers, %d rounds of %d packets", ErrOptions, o.Workers, o.Rounds, o.Packets)
	case o.Workers > 1 && o.Profile:
		return fmt.Errorf("%w: a profile is of one worker", ErrOptions)
	}
	return nil
}

// servicesFor are the services that packets can be made for.
func servicesFor(spec *dataplane.Spec, protocol uint8, family int) (out []*dataplane.ServiceSpec, err error) {
	for i := range spec.Services {
		s := &spec.Services[i]
		if !fits(s, &GenOptions{Spec: *spec, Protocol: protocol, Family: family}) {
			continue
		}
		if s.ReturnOnly {
			return nil, fmt.Errorf("%w: service %s is a return half, which has no flows to open: replay a capture of it", ErrOptions, s.Name)
		}
		if s.Proxy != nat.NoProxy {
			return nil, fmt.Errorf("%w: service %s has PROXY headers, which take a connection of their own making", ErrOptions, s.Name)
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: %s over IPv%s with backends of weight above 0 that its mode can reach", ErrNoService, protocolName(protocol), familyName(family))
	}
	return out, nil
}

func (s *synth) close() error {
	err := s.r.close()
	for _, l := range s.limits {
		err = errors.Join(err, l.close())
	}
	return err
}

func (s *synth) service(k int) *dataplane.ServiceSpec { return s.services[k%len(s.services)] }

// segment is a packet of flow k without flags and payload.
func (s *synth) segment(k int, reply bool) segment { return s.segmentOf(&s.flows[k], k, reply) }

// segmentOf is a packet, without flags and payload, of flow w of the client
// numbered k.
func (s *synth) segmentOf(w *synthFlow, k int, reply bool) segment {
	svc := s.service(k)
	client, port := s.clients.client(k, !svc.VIP.Addr.Is4())
	g := segment{proto: svc.VIP.Proto, flow: uint32(k), oui: clientOUI}
	if !reply {
		g.src, g.srcPort, g.dst, g.dstPort = client, port, svc.VIP.Addr, svc.VIP.Port
		g.seq, g.ack = atomic.LoadUint32(&w.client), atomic.LoadUint32(&w.server)
		return g
	}
	rs := &svc.Backends[w.backend].Endpoint
	g.oui = serverOUI
	g.src, g.srcPort, g.dst, g.dstPort = rs.Addr, rs.Port, client, port
	if svc.Mode == conntrack.FullNAT {
		g.dst, g.dstPort = s.o.Spec.Locals[w.local], w.port
	}
	g.seq, g.ack = atomic.LoadUint32(&w.server), atomic.LoadUint32(&w.client)+w.delta
	return g
}

// data is the next packet of flow k with payload; a reply only where there are any.
func (s *synth) data(k int, reply bool) segment {
	reply = reply && !oneWay(s.service(k))
	g := s.segment(k, reply)
	g.load(s.service(k), s.o.Size, reply)
	switch w := &s.flows[k]; {
	case g.proto != packet.ProtoTCP:
	case !reply:
		atomic.AddUint32(&w.client, uint32(g.payload))
	case s.o.Fresh:
		g.payload, g.flags = 0, packet.ACK
	default:
		atomic.AddUint32(&w.server, uint32(g.payload))
	}
	return g
}

// handshake is flow k's packet in step 0, 1 or 2, false if there is none.
func (s *synth) handshake(k, step int) (segment, bool) {
	if step == 1 && oneWay(s.service(k)) {
		return segment{}, false
	}
	if s.service(k).VIP.Proto == packet.ProtoUDP {
		return s.segment(k, step == 1), step < 2
	}
	return s.handshakeOf(&s.flows[k], k, step), true
}

// handshakeOf is the packet in step 0, 1 or 2 of TCP flow w of the client
// numbered k.
func (s *synth) handshakeOf(w *synthFlow, k, step int) segment {
	if step == 0 {
		isn := mix(s.o.Seed ^ uint64(k)*0x9e3779b97f4a7c15)
		w.client, w.server = uint32(isn), uint32(isn>>32)
	}
	g := s.segmentOf(w, k, step == 1)
	switch step {
	case 0:
		g.flags, g.ack, g.options = packet.SYN, 0, synOptions(&g)
		w.client++
	case 1:
		g.flags, g.options = packet.SYN|packet.ACK, synOptions(&g)
		w.server++
	case 2:
		g.flags = packet.ACK
	}
	return g
}

// synOptions are those of a SYN from s.src.
func synOptions(s *segment) []byte {
	if s.src.Is4() {
		return synOptions4
	}
	return synOptions6
}

// measure opens the flows and runs the rounds.
func (s *synth) measure(ctx context.Context) (*Report, error) {
	from := time.Now()
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	s.opening = newPart(s.fed, time.Since(from).Nanoseconds())
	s.fed, s.bytes = 0, 0
	return s.rounds(ctx)
}
