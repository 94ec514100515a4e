package afxdp

import (
	"testing"

	"golang.org/x/sys/unix"
)

const burst = 64

// Both benchmarks count the fake kernel's half as well, kept as cheap as can be:
// it moves indices only, the slots already holding what it would write.

func BenchmarkReceiveFill(b *testing.B) {
	const ring = 2048
	s, k := newFakeSocket(2*ring, ring, 0, false)
	addrs := make([]uint64, burst)
	d := make([]unix.XDPDesc, burst)
	for i := range k.rx.slots {
		k.rx.slots[i] = unix.XDPDesc{Addr: uint64(i)*2048 + 256, Len: 60}
	}
	for a := frameAddrs(0, ring); len(a) > 0; {
		a = a[s.Fill(a):]
	}
	b.ReportAllocs()
	for i := 0; i < b.N; i += burst {
		k.fill.consumer += burst
		k.rx.producer += burst
		n := s.Receive(d)
		for j, x := range d[:n] {
			addrs[j] = x.Addr
		}
		if s.Fill(addrs[:n]) != burst {
			b.Fatal("ring stuck")
		}
	}
}

func BenchmarkTransmitReclaim(b *testing.B) {
	const ring = 2048
	s, k := newFakeSocket(2*ring, ring, 0, false)
	addrs := make([]uint64, burst)
	d := make([]unix.XDPDesc, burst)
	for i := range k.completion.slots {
		k.completion.slots[i] = uint64(i)*2048 + 256
	}
	frame := 0
	b.ReportAllocs()
	for i := 0; i < b.N; i += burst {
		for j := range d {
			d[j] = unix.XDPDesc{Addr: uint64(frame)*2048 + 256, Len: 60}
			frame = (frame + 1) & (ring - 1)
		}
		s.Transmit(d)
		k.tx.consumer += burst
		k.completion.producer += burst
		if s.Reclaim(addrs) != burst {
			b.Fatal("ring stuck")
		}
	}
}
