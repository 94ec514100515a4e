package liveframes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Sink counts the IPv4 UDP packets that arrive at an interface and drops them
// before the kernel's IP layer. Everything else passes.
//
// It is a TCX program, not an XDP one: with XDP on a veth the kernel must copy
// every ordinary packet into a page that XDP may write to, which takes as long
// as all the rest of sending.
type Sink struct {
	prog *ebpf.Program
	hits *ebpf.Map
	link link.Link

	mu     sync.Mutex
	closed bool
	final  SinkCount
}

// SinkCount is what a Sink has dropped.
type SinkCount struct {
	Packets uint64
	// From is those of them whose source is in the prefix given to NewSink: the
	// local addresses, to see that there was NAT.
	From uint64
}

// The sink's memory: an element for each CPU, each a SinkCount.
const (
	hitPackets = 0
	hitFrom    = 8
	hitLen     = 16
)

// NewSink puts a sink at an interface, to be closed. from is the prefix of
// SinkCount.From, IPv4.
func NewSink(ns *testbed.Namespace, name string, from netip.Prefix) (*Sink, error) {
	s, err := newSink(ns, name, from)
	if err != nil {
		return nil, fmt.Errorf("sink at %s: %w", name, err)
	}
	return s, nil
}

func newSink(ns *testbed.Namespace, name string, from netip.Prefix) (s *Sink, err error) {
	if !from.Addr().Is4() {
		return nil, fmt.Errorf("%w: prefix %s: want IPv4", errFrames, from)
	}
	dev, err := ns.Netlink().LinkByName(name)
	if err != nil {
		return nil, err
	}
	s = &Sink{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.release())
			s = nil
		}
	}()
	s.hits, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "live_sink", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: hitLen, MaxEntries: 1,
	})
	if err != nil {
		return s, fmt.Errorf("map: %w", err)
	}
	s.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "live_sink", Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: sinkCode(s.hits.FD(), from),
	})
	if err != nil {
		return s, fmt.Errorf("program: %w", err)
	}
	err = ns.Do(func() error {
		s.link, err = link.AttachTCX(link.TCXOptions{
			Interface: dev.Attrs().Index, Program: s.prog, Attach: ebpf.AttachTCXIngress,
		})
		return err
	})
	return s, err
}

// Verdicts of TCX (enum tcx_action_base).
const (
	tcxNext = -1
	tcxDrop = 2
)

// Of struct __sk_buff.
const (
	skbData    = 76
	skbDataEnd = 80
)

func sinkCode(hits int, from netip.Prefix) asm.Instructions {
	// In the byte order that the packet is read with.
	native := func(b []byte) int64 { return int64(binary.NativeEndian.Uint32(b)) }
	mask := [4]byte{}
	binary.BigEndian.PutUint32(mask[:], uint32(uint64(0xffffffff)<<(32-from.Bits())))
	net := from.Masked().Addr().As4()
	return asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, skbData, asm.Word),
		asm.LoadMem(asm.R2, asm.R1, skbDataEnd, asm.Word),
		asm.Mov.Reg(asm.R3, asm.R6),
		asm.Add.Imm(asm.R3, offUDP),
		asm.JGT.Reg(asm.R3, asm.R2, "pass"),
		asm.LoadMem(asm.R1, asm.R6, offIP-2, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.JNE.Imm(asm.R1, 0x0800, "pass"),
		asm.LoadMem(asm.R1, asm.R6, offIP+9, asm.Byte),
		asm.JNE.Imm(asm.R1, protoUDP, "pass"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, hits),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.LoadMem(asm.R1, asm.R0, hitPackets, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, hitPackets, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R6, offSrc, asm.Word),
		asm.LoadImm(asm.R2, native(mask[:]), asm.DWord),
		asm.And.Reg(asm.R1, asm.R2),
		asm.LoadImm(asm.R2, native(net[:]), asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, "drop"),
		asm.LoadMem(asm.R1, asm.R0, hitFrom, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, hitFrom, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, tcxDrop).WithSymbol("drop"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("pass"),
		asm.Return(),
	}
}

// Count is what has been dropped so far, over all CPUs; after Close in all.
func (s *Sink) Count() (SinkCount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return s.final, nil
	}
	return s.read()
}

func (s *Sink) read() (c SinkCount, err error) {
	var perCPU [][]byte
	if err := s.hits.Lookup(uint32(0), &perCPU); err != nil {
		return c, fmt.Errorf("read counters: %w", err)
	}
	for _, b := range perCPU {
		c.Packets += binary.NativeEndian.Uint64(b[hitPackets:])
		c.From += binary.NativeEndian.Uint64(b[hitFrom:])
	}
	return c, nil
}

// Rate is how many packets a second were dropped in a while that begins now. It
// returns the count of the while, too.
func (s *Sink) Rate(ctx context.Context, while time.Duration) (pps float64, c SinkCount, err error) {
	from := time.Now()
	before, err := s.Count()
	if err != nil {
		return 0, c, err
	}
	t := time.NewTimer(while)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return 0, c, ctx.Err()
	case <-t.C:
	}
	after, err := s.Count()
	took := time.Since(from)
	if err != nil {
		return 0, c, err
	}
	c = SinkCount{Packets: after.Packets - before.Packets, From: after.From - before.From}
	return float64(c.Packets) / took.Seconds(), c, nil
}

// Close takes the sink away. Closing twice is harmless.
func (s *Sink) Close() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	s.final, err = s.read()
	return errors.Join(err, s.release())
}

func (s *Sink) release() error {
	var errs []error
	if s.link != nil {
		errs = append(errs, s.link.Close())
	}
	if s.prog != nil {
		errs = append(errs, s.prog.Close())
	}
	if s.hits != nil {
		errs = append(errs, s.hits.Close())
	}
	return errors.Join(errs...)
}
