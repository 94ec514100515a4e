package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/bench/cpu"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/packet"
)

// limit is the least work that any forwarder with a state for each flow must do
// for a packet, in Go, on this memory: take it from a memory port as replay
// does, the same copy included, read its addresses and ports, read one line of
// a bucket, one of an entry and write there, write the header back, and send it.
// Lines are asked for ahead, a burst at a time. Nothing is compared, parsed,
// checked or counted.
//
// The memory is as large as the flow table's (a bucket line for two flows it can
// hold, 128 bytes for each flow it holds) and in huge pages where the kernel
// gives them. Packets of both directions of a flow lead to two entries, not one,
// so of the entries some 14 % are never met.
type limit struct {
	port  *memport.Port
	umem  memory
	chunk int
	pool  []uint64

	memory  memory // buckets, then entries
	buckets int
	lines   []line

	desc [dataplane.BurstSize]unix.XDPDesc
	hash [dataplane.BurstSize]uint64
	at   [dataplane.BurstSize]uint64 // offsets in memory
	addr [dataplane.BurstSize]uint64
	seen uint32 // packets
}

// Sizes of what stands for the flow table: see the layout of package conntrack.
const (
	limitEntryLines  = 2
	limitFlowsBucket = 2
	limitSlots       = 8 // the second half of a bucket's line are its slots
)

// newLimit makes memory for a table of capacity flows, of which it holds flows.
func newLimit(capacity, flows, frameSize int) (*limit, error) {
	l := &limit{chunk: frameSize, buckets: capacity/limitFlowsBucket + 1}
	size := (uint64(l.buckets) + uint64(flows)*limitEntryLines) * lineBytes
	var err error
	if l.memory, err = hugeMemory(size); err != nil {
		return nil, err
	}
	if l.umem, err = hugeMemory(uint64(framesAlone * frameSize)); err != nil {
		return nil, errors.Join(err, l.memory.close())
	}
	l.lines = lines(l.memory.used)
	r := random{uint64(flows)}
	for b := range l.lines[:l.buckets] {
		for s := range limitSlots {
			l.lines[b][limitSlots+s] = uint32(r.below(flows))
		}
	}
	l.port = memport.New(l.umem.used, frameSize, portRing)
	for i := framesAlone - 1; i >= 0; i-- {
		l.pool = append(l.pool, uint64(i*frameSize))
	}
	l.refill()
	return l, nil
}

func (l *limit) close() error {
	l.lines = nil
	return errors.Join(l.memory.close(), l.umem.close())
}

// LimitAlone is the result of Limit.
type LimitAlone struct {
	Spread
	Flows  int    `json:"flows"`
	Memory uint64 `json:"memory_bytes"`
}

// Limit measures the limit (see the package comment) by itself, with packets as
// Synthesize makes them. What o says of workers, arrival and profiles does not
// count.
func Limit(ctx context.Context, o SynthOptions) (rep *LimitAlone, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o.Workers, o.Limit, o.Profile = 1, false, false
	s, err := newMaker(o)
	if err != nil {
		return nil, fmt.Errorf("limit: %w", err)
	}
	// Replies need local addresses and ports, whichever.
	locals := map[bool][]uint16{} // whether IPv4
	for i, a := range o.Spec.Locals {
		locals[a.Is4()] = append(locals[a.Is4()], uint16(i))
	}
	for k := range s.flows {
		w := &s.flows[k]
		w.backend = uint16(k % len(s.service(k).Backends))
		w.port = uint16(1024 + k%maxPorts)
		if of := locals[s.service(k).Backends[w.backend].Endpoint.Addr.Is4()]; len(of) > 0 { // DNAT needs none
			w.local = of[k/maxPorts%len(of)]
		}
	}
	if err := s.addLimits(); err != nil {
		return nil, fmt.Errorf("limit: %w", err)
	}
	alone := s.limits[0]
	defer func() {
		if e := alone.close(); err == nil && e != nil {
			rep, err = nil, fmt.Errorf("limit: %w", e)
		}
	}()
	rep = &LimitAlone{Flows: s.o.Flows, Memory: uint64(len(alone.memory.used))}
	s.limitRound(min(s.o.Packets, 4*len(s.flows)))
	var ns []float64
	for i := range s.o.Rounds {
		ns = append(ns, s.limitRound(s.o.Packets))
		if o.Progress != nil {
			o.Progress(float64(i+1) / float64(s.o.Rounds))
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("limit: %w", err)
		}
	}
	rep.Spread = *newSpread(ns)
	return rep, nil
}

// limitPackets and limitRounds are what limitAfter measures.
const (
	limitPackets = 200_000
	limitRounds  = 5
)

// limitAfter measures the limit just after something else, of so many flows like s's.
func limitAfter(ctx context.Context, s *synth, flows int) (*LimitAlone, error) {
	o := s.o
	o.Flows, o.Packets, o.Rounds, o.Progress, o.CPUProfile = flows, limitPackets, limitRounds, nil, nil
	return Limit(ctx, o)
}

// writeBeside writes the limit as one line beside other figures; nothing without one.
func (r *LimitAlone) writeBeside(p *printer) {
	if r != nil {
		p.linef("limit, just after: median %.1f, best %.1f ns a packet of %d flows", r.Median, r.Best, r.Flows)
	}
}

// maxPorts is how many ports there are from 1024 on.
const maxPorts = 1<<16 - 1024

// WriteJSON writes the report as one JSON object.
func (r *LimitAlone) WriteJSON(w io.Writer) error { return writeJSON(w, r) }

// WriteText writes the report for people.
func (r *LimitAlone) WriteText(w io.Writer) error {
	p := &printer{w: w}
	p.linef("limit: median %.1f, best %.1f, worst %.1f ns a packet over %d rounds", r.Median, r.Best, r.Worst, r.Rounds)
	p.linef("%d flows, %.1f MiB of memory", r.Flows, float64(r.Memory)/(1<<20))
	return p.err
}

// feed does the work for all frames.
func (l *limit) feed(frames [][]byte) {
	l.port.Feed(frames, 1)
	for !l.port.Idle() {
		l.round()
	}
}

// round is a burst.
func (l *limit) round() {
	n := l.port.Receive(l.desc[:])
	for i := range n {
		l.hash[i] = l.key(l.frame(i))
		hi, _ := bits.Mul64(l.hash[i], uint64(l.buckets))
		l.at[i] = hi * lineBytes
	}
	cpu.Prefetch(l.memory.used, l.at[:n])
	entries := uint64(l.buckets)
	for i := range n {
		b := &l.lines[l.at[i]/lineBytes]
		l.at[i] = (entries + limitEntryLines*uint64(b[limitSlots+l.hash[i]%limitSlots])) * lineBytes
	}
	cpu.Prefetch(l.memory.used, l.at[:n])
	for i := range n {
		e := &l.lines[l.at[i]/lineBytes]
		e[0]++
		l.seen++
		e[1] = l.seen
		l.write(l.frame(i), e)
	}
	l.refill()
	l.port.Transmit(l.desc[:n])
	k := l.port.Reclaim(l.addr[:])
	l.pool = append(l.pool, l.addr[:k]...)
}

func (l *limit) frame(i int) []byte {
	d := &l.desc[i]
	return l.umem.used[d.Addr : d.Addr+uint64(d.Len)]
}

func (l *limit) refill() {
	if l.port.FillFree() < dataplane.BurstSize {
		return
	}
	n := min(dataplane.BurstSize, len(l.pool))
	from := len(l.pool) - n
	l.pool = l.pool[:len(l.pool)-l.port.Fill(l.pool[from:])]
}

// Where addresses and ports lie in a frame without tag and options: four bytes
// or sixteen each, then two times two.
const (
	limitAt4  = packet.EthLen + packet.IPv4Src
	limitAt6  = packet.EthLen + packet.IPv6Src
	limitLen4 = packet.EthLen + packet.IPv4MinLen + packet.TCPChecksum + 2
	limitLen6 = packet.EthLen + packet.IPv6Len + packet.UDPLen
)

func limitIs6(f []byte) bool { return f[packet.EthType] == packet.EtherTypeIPv6>>8 }

// key mixes addresses and ports.
func (l *limit) key(f []byte) uint64 {
	const k0, k1 = 0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9
	switch {
	case len(f) < limitLen4:
		return 0
	case limitIs6(f) && len(f) >= limitLen6:
		hi, lo := bits.Mul64(binary.LittleEndian.Uint64(f[limitAt6:])^k0, binary.LittleEndian.Uint64(f[limitAt6+8:])^k1)
		x := hi ^ lo
		hi, lo = bits.Mul64(binary.LittleEndian.Uint64(f[limitAt6+16:])^x, binary.LittleEndian.Uint64(f[limitAt6+24:])^k0)
		hi, lo = bits.Mul64(hi^lo, uint64(binary.LittleEndian.Uint32(f[limitAt6+32:]))^k1)
		return hi ^ lo
	}
	hi, lo := bits.Mul64(binary.LittleEndian.Uint64(f[limitAt4:])^k0, uint64(binary.LittleEndian.Uint32(f[limitAt4+8:]))^k1)
	return hi ^ lo
}

// write changes what a forwarder with address translation changes: both MAC
// addresses, both IP addresses, both ports, TTL and checksums.
func (l *limit) write(f []byte, e *line) {
	if len(f) < limitLen4 {
		return
	}
	binary.LittleEndian.PutUint64(f, uint64(e[2])|1)
	binary.LittleEndian.PutUint32(f[8:], e[3])
	if limitIs6(f) && len(f) >= limitLen6 {
		f[packet.EthLen+packet.IPv6HopLimit]--
		for i := range 4 {
			binary.LittleEndian.PutUint64(f[limitAt6+8*i:], uint64(e[4+i]))
		}
		binary.LittleEndian.PutUint32(f[limitAt6+32:], e[8])
		binary.LittleEndian.PutUint16(f[limitLen6-2:], uint16(e[9]))
		return
	}
	f[packet.EthLen+packet.IPv4TTL]--
	binary.LittleEndian.PutUint64(f[limitAt4:], uint64(e[4]))
	binary.LittleEndian.PutUint32(f[limitAt4+8:], e[5])
	binary.LittleEndian.PutUint16(f[packet.EthLen+packet.IPv4Checksum:], uint16(e[6]))
	binary.LittleEndian.PutUint16(f[limitLen4-2:], uint16(e[7]))
}
