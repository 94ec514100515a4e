package afxdp

import (
	"math"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// starts are ring indices worth beginning at: the wrap at 2^32 falls inside.
var starts = []uint32{0, 1, math.MaxUint32 - 2, math.MaxUint32, 1 << 31}

func TestProducerFullAndEmpty(t *testing.T) {
	for _, start := range starts {
		k := newKernelRing[uint64](4, start)
		p := k.ourProducer()
		for round := range uint64(3) {
			if got := p.free(9); got != 4 {
				t.Fatalf("start %d round %d: free = %d, want 4", start, round, got)
			}
			if got := p.free(3); got != 3 {
				t.Fatalf("start %d: free(3) = %d", start, got)
			}
			for i := range uint32(4) {
				p.slots[(p.next+i)&3] = round*10 + uint64(i)
			}
			p.publish(p.next + 4)
			if got := p.free(1); got != 0 {
				t.Fatalf("start %d: full ring has %d free", start, got)
			}
			for i := range uint64(4) {
				if v, ok := k.get(); !ok || v != round*10+i {
					t.Fatalf("start %d round %d: kernel got %d, %v", start, round, v, ok)
				}
			}
		}
	}
}

func TestConsumerPartialBursts(t *testing.T) {
	for _, start := range starts {
		k := newKernelRing[uint64](4, start)
		c := k.ourConsumer()
		dst := make([]uint64, 8)
		if n := c.take(dst); n != 0 {
			t.Fatalf("start %d: empty ring gave %d", start, n)
		}
		for i := range uint64(4) {
			k.put(i)
		}
		if k.put(9) {
			t.Fatal("the fake ring took a fifth entry")
		}
		var got []uint64
		for _, want := range []int{1, 0, 2, 8} {
			n := c.take(dst[:want])
			got = append(got, dst[:n]...)
		}
		if diff := cmp.Diff([]uint64{0, 1, 2, 3}, got); diff != "" {
			t.Errorf("start %d (-want +got):\n%s", start, diff)
		}
	}
}

// A kernel index that cannot be must stop the ring, not send us through memory.
func TestRingWithImpossibleIndex(t *testing.T) {
	k := newKernelRing[uint64](4, 0)
	p, c := k.ourProducer(), k.ourConsumer()
	p.publish(4)
	k.consumer = 5 // ahead of the producer
	if got := p.free(4); got != 0 {
		t.Errorf("producer: free = %d", got)
	}
	k.producer, c.next, c.seen = 99, 0, 0
	if got := c.take(make([]uint64, 4)); got != 0 {
		t.Errorf("consumer: take = %d", got)
	}
	k.producer = 2
	if got := c.take(make([]uint64, 4)); got != 2 {
		t.Errorf("consumer after the index is sane again: take = %d, want 2", got)
	}
}

// Both ends against a slice that cannot be wrong.
func TestRingsAgainstTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := 1 << rapid.IntRange(0, 5).Draw(t, "log2 size")
		start := rapid.OneOf(rapid.SampledFrom(starts), rapid.Uint32()).Draw(t, "start")
		out, in := newKernelRing[uint64](size, start), newKernelRing[unix.XDPDesc](size, start)
		p, c := out.ourProducer(), in.ourConsumer()
		var outTwin []uint64
		var inTwin []unix.XDPDesc
		serial := uint64(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			n := rapid.IntRange(0, size+2).Draw(t, "n")
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				want := min(n, size-len(outTwin))
				if got := int(p.free(uint32(n))); got != want {
					t.Fatalf("free(%d) = %d, want %d", n, got, want)
				}
				next := p.next
				for range want {
					serial++
					p.slots[next&uint32(size-1)] = serial
					outTwin = append(outTwin, serial)
					next++
				}
				p.publish(next)
			case 1:
				for range min(n, len(outTwin)) {
					if v, ok := out.get(); !ok || v != outTwin[0] {
						t.Fatalf("kernel got %d, %v; want %d", v, ok, outTwin[0])
					}
					outTwin = outTwin[1:]
				}
			case 2:
				for range min(n, size-len(inTwin)) {
					serial++
					d := unix.XDPDesc{Addr: serial, Len: uint32(serial)}
					in.put(d)
					inTwin = append(inTwin, d)
				}
			case 3:
				dst := make([]unix.XDPDesc, n)
				got := c.take(dst)
				want := min(n, len(inTwin))
				if diff := cmp.Diff(inTwin[:want], dst[:got], cmp.Transformer("", func(d []unix.XDPDesc) []unix.XDPDesc { return append([]unix.XDPDesc{}, d...) })); diff != "" && want+got > 0 {
					t.Fatalf("take(%d) (-want +got):\n%s", n, diff)
				}
				inTwin = inTwin[want:]
			}
			if got := int(p.pending()); got != len(outTwin) {
				t.Fatalf("pending = %d, want %d", got, len(outTwin))
			}
		}
	})
}

// stress is the kernel's half of TestRingsStress: it receives numbered packets
// into filled frames, and completes sent ones, whose numbers must follow.
func (k *fakeKernel) stress(t *testing.T, packets uint64, memory []uint64) {
	for received, sent := uint64(0), uint64(0); sent < packets; {
		idle := true
		if d, ok := k.tx.get(); ok {
			if got := memory[d.Addr>>11]; got != sent || d.Len != uint32(64+sent%1000) {
				t.Errorf("packet %d left as %d, length %d", sent, got, d.Len)
				return
			}
			for !k.completion.put(d.Addr) {
				runtime.Gosched()
			}
			sent++
			idle = false
		}
		room := k.rx.producer-atomic.LoadUint32(&k.rx.consumer) < uint32(len(k.rx.slots))
		if received < packets && room {
			if a, ok := k.fill.get(); ok {
				memory[a>>11] = received
				k.rx.put(unix.XDPDesc{Addr: a + rxOffset, Len: uint32(64 + received%1000)})
				received++
				idle = false
			}
		}
		if idle {
			runtime.Gosched()
		}
	}
}

// A worker and a kernel, each on a goroutine of its own, pass the same few frames
// round and round; every packet must arrive once, in order and whole.
func TestRingsStress(t *testing.T) {
	const (
		frames  = 64
		packets = 300_000
	)
	s, k := newFakeSocket(frames, 32, math.MaxUint32-1000, true)
	go k.stress(t, packets, make([]uint64, frames))
	pool := frameAddrs(0, frames)
	var burst [16]unix.XDPDesc
	var addrs [16]uint64
	forwarded, reclaimed := 0, 0
	for reclaimed < packets && !t.Failed() {
		n := s.Receive(burst[:])
		for out := burst[:n]; len(out) > 0 && !t.Failed(); {
			m := s.Transmit(out)
			out = out[m:]
			if m == 0 {
				runtime.Gosched()
			}
		}
		forwarded += n
		m := s.Reclaim(addrs[:])
		reclaimed += m
		pool = append(pool, addrs[:m]...)
		f := s.Fill(pool[:min(len(pool), 16)])
		pool = pool[f:]
		if n+m == 0 {
			runtime.Gosched()
		}
	}
	if forwarded != packets {
		t.Errorf("forwarded %d packets, want %d", forwarded, packets)
	}
	if got := len(pool) + len(s.Held(nil)); got != frames {
		t.Errorf("%d frames are left of %d", got, frames)
	}
}
