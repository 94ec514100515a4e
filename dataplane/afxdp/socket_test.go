package afxdp

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestReceiveRefusesNonsense(t *testing.T) {
	const frames = 8
	good := unix.XDPDesc{Addr: 3*2048 + 256, Len: 60}
	for _, tc := range []struct {
		name    string
		desc    unix.XDPDesc
		refused uint64
		doubled uint64
	}{
		{"beyond the UMEM", unix.XDPDesc{Addr: frames * 2048, Len: 60}, 1, 0},
		{"far beyond the UMEM", unix.XDPDesc{Addr: math.MaxUint64, Len: math.MaxUint32}, 1, 0},
		{"beyond its frame", unix.XDPDesc{Addr: 2*2048 + 2000, Len: 49}, 1, 0},
		{"longer than anything", unix.XDPDesc{Addr: 2 * 2048, Len: math.MaxUint32}, 1, 0},
		{"frame never filled", unix.XDPDesc{Addr: 7 * 2048, Len: 60}, 0, 1},
		{"to the frame's last byte", unix.XDPDesc{Addr: 2*2048 + 2000, Len: 48}, 0, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, k := newFakeSocket(frames, 8, 0, false)
			s.Fill(frameAddrs(0, 6))
			k.rx.put(tc.desc)
			k.rx.put(good)
			d := make([]unix.XDPDesc, 4)
			got := d[:s.Receive(d)]
			want := []unix.XDPDesc{good}
			if tc.refused+tc.doubled == 0 {
				want = []unix.XDPDesc{tc.desc, good}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("received (-want +got):\n%s", diff)
			}
			if r, d := s.count.rxRefused.Load(), s.count.doubled.Load(); r != tc.refused || d != tc.doubled {
				t.Errorf("refused %d doubled %d, want %d and %d", r, d, tc.refused, tc.doubled)
			}
		})
	}
}

func TestTransmitRefusesWhatWouldBeLost(t *testing.T) {
	const frames = 4
	for _, tc := range []struct {
		name             string
		desc             unix.XDPDesc
		returned         []uint64
		refused, doubled uint64
	}{
		{"empty", unix.XDPDesc{Addr: 2048 + 256}, []uint64{2048}, 1, 0},
		{"beyond its frame", unix.XDPDesc{Addr: 2048 + 2047, Len: 2}, []uint64{2048}, 1, 0},
		{"beyond the UMEM", unix.XDPDesc{Addr: frames * 2048, Len: 60}, nil, 1, 0},
		{"with the kernel already", unix.XDPDesc{Addr: 256, Len: 60}, nil, 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, k := newFakeSocket(frames, 4, 0, false)
			s.Fill([]uint64{0})
			last := unix.XDPDesc{Addr: 3*2048 + 1, Len: 2047, Options: 0xffff}
			if n := s.Transmit([]unix.XDPDesc{tc.desc, last}); n != 2 {
				t.Fatalf("Transmit = %d, want 2", n)
			}
			d, _ := k.tx.get()
			if diff := cmp.Diff(unix.XDPDesc{Addr: last.Addr, Len: last.Len}, d); diff != "" {
				t.Errorf("in the ring (-want +got):\n%s", diff)
			}
			if _, ok := k.tx.get(); ok {
				t.Error("the bad descriptor is in the ring")
			}
			a := make([]uint64, 4)
			if diff := cmp.Diff(tc.returned, append([]uint64(nil), a[:s.Reclaim(a)]...)); diff != "" {
				t.Errorf("Reclaim (-want +got):\n%s", diff)
			}
			if r, d := s.count.txRefused.Load(), s.count.doubled.Load(); r != tc.refused || d != tc.doubled {
				t.Errorf("refused %d doubled %d, want %d and %d", r, d, tc.refused, tc.doubled)
			}
		})
	}
}

// Refused frames must not be able to overflow their list, and nothing may be
// taken from the caller that cannot be given back.
func TestTransmitRefusedBeyondRing(t *testing.T) {
	s, _ := newFakeSocket(16, 4, 0, false)
	var d []unix.XDPDesc
	for _, a := range frameAddrs(0, 16) {
		d = append(d, unix.XDPDesc{Addr: a})
	}
	if n := s.Transmit(d); n != 4 {
		t.Fatalf("Transmit = %d, want 4", n)
	}
	if n := s.Transmit(d[4:]); n != 0 {
		t.Fatalf("Transmit with a full list = %d, want 0", n)
	}
	a := make([]uint64, 3)
	if n := s.Reclaim(a); n != 3 {
		t.Fatalf("Reclaim = %d, want 3", n)
	}
	if n := s.Transmit(d[4:]); n != 3 {
		t.Fatalf("Transmit = %d, want 3", n)
	}
}

func TestFillNormalisesAndRefuses(t *testing.T) {
	s, k := newFakeSocket(4, 8, math.MaxUint32, false)
	if n := s.Fill([]uint64{2048 + 700, 2048, 4 * 2048, 3 * 2048}); n != 4 {
		t.Fatalf("Fill = %d, want 4", n)
	}
	var got []uint64
	for a, ok := k.fill.get(); ok; a, ok = k.fill.get() {
		got = append(got, a)
	}
	if diff := cmp.Diff([]uint64{2048, 3 * 2048}, got); diff != "" {
		t.Errorf("fill ring (-want +got):\n%s", diff)
	}
	if r, d := s.count.fillRefused.Load(), s.count.doubled.Load(); r != 1 || d != 1 {
		t.Errorf("refused %d, doubled %d; want 1 and 1", r, d)
	}
	if got := s.FillFree(); got != 8 {
		t.Errorf("FillFree = %d, want 8", got)
	}
}

func TestCheckPanicsOnSecondOwner(t *testing.T) {
	s, k := newFakeSocket(8, 8, 0, true)
	other, _ := newFakeSocket(8, 8, 0, true)
	other.owners, other.id = s.owners, 2
	s.Fill(frameAddrs(0, 4))
	for name, f := range map[string]func(){
		"filled twice":                func() { s.Fill([]uint64{0}) },
		"filled at two sockets":       func() { other.Fill([]uint64{2048}) },
		"filled and sent":             func() { other.Transmit([]unix.XDPDesc{{Addr: 2048, Len: 60}}) },
		"received though never given": func() { k.rx.put(unix.XDPDesc{Addr: 7 * 2048, Len: 60}); s.Receive(make([]unix.XDPDesc, 1)) },
		"completed though never sent": func() { k.completion.put(6 * 2048); s.Reclaim(make([]uint64, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
}

func TestKickReportsDeadSocket(t *testing.T) {
	s, k := newFakeSocket(4, 4, 0, false) // fd is no file: EBADF
	k.tx.flags = unix.XDP_RING_NEED_WAKEUP
	for i := range probeEvery - 1 {
		if err := s.Kick(); err != nil {
			t.Fatalf("idle Kick %d: %v", i, err)
		}
	}
	if err := s.Kick(); !errors.Is(err, ErrGone) || !errors.Is(err, ErrDown) {
		t.Errorf("Kick %d = %v, want ErrGone", probeEvery, err)
	}
	s.Transmit([]unix.XDPDesc{{Addr: 0, Len: 60}})
	err := s.Kick()
	var ke *KickError
	if !errors.As(err, &ke) || !errors.Is(err, ErrGone) || !errors.Is(err, unix.EBADF) {
		t.Fatalf("Kick with a packet = %v, want ErrGone by EBADF", err)
	}
	if diff := cmp.Diff(KickError{Call: "sendto", Errno: unix.EBADF}, *ke); diff != "" {
		t.Error(diff)
	}
	if got := testing.AllocsPerRun(100, func() { _ = s.Kick() }); got != 0 {
		t.Errorf("failing Kick allocates %v times", got)
	}
	k.tx.flags = 0
	if err := s.Kick(); err != nil {
		t.Errorf("Kick without NEED_WAKEUP made a call: %v", err)
	}
}

func TestKickErrorIs(t *testing.T) {
	for errno, want := range map[unix.Errno][2]bool{
		unix.ENETDOWN: {true, false}, unix.ENXIO: {true, true}, unix.ENODEV: {true, true},
		unix.EBADF: {true, true}, unix.EINVAL: {false, false},
	} {
		err := fmt.Errorf("wrapped: %w", &KickError{Call: "sendto", Errno: errno})
		if got := [2]bool{errors.Is(err, ErrDown), errors.Is(err, ErrGone)}; got != want {
			t.Errorf("%v: down, gone = %v, want %v", errno, got, want)
		}
		if !errors.Is(err, errno) {
			t.Errorf("%v is lost", errno)
		}
	}
}

func TestClosedSocketIsHarmless(t *testing.T) {
	s, k := newFakeSocket(8, 8, 0, true)
	s.Fill(frameAddrs(0, 3))
	s.Transmit([]unix.XDPDesc{{Addr: 5 * 2048, Len: 60}, {Addr: 6 * 2048}})
	k.rx.put(unix.XDPDesc{Addr: 256, Len: 60})
	s.fd = -1
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal("second Close:", err)
	}
	d, a := make([]unix.XDPDesc, 4), make([]uint64, 4)
	if n := s.Receive(d) + s.Fill(frameAddrs(3, 4)) + s.Transmit([]unix.XDPDesc{{Addr: 7 * 2048, Len: 60}}) + s.FillFree(); n != 0 {
		t.Errorf("a closed socket moved %d descriptors", n)
	}
	if err := s.Kick(); !errors.Is(err, ErrGone) {
		t.Errorf("Kick = %v, want ErrGone", err)
	}
	if _, err := s.Stats(); !errors.Is(err, unix.EBADF) {
		t.Errorf("Stats = %v, want EBADF", err)
	}
	got := s.Held(nil)
	slices.Sort(got)
	if diff := cmp.Diff([]uint64{0, 2048, 2 * 2048, 5 * 2048, 6 * 2048}, got); diff != "" {
		t.Errorf("Held (-want +got):\n%s", diff)
	}
	if again := s.Held(nil); len(again) != 0 {
		t.Errorf("Held gave %v a second time", again)
	}
	if n := s.Reclaim(a); n != 0 {
		t.Errorf("Reclaim after Held = %d", n)
	}
}

func TestDatapathAllocs(t *testing.T) {
	for _, check := range []bool{false, true} {
		s, k := newFakeSocket(64, 64, 0, check)
		d, a := make([]unix.XDPDesc, 16), make([]uint64, 16)
		addrs := frameAddrs(0, 16)
		held := make([]uint64, 0, 64)
		got := testing.AllocsPerRun(1000, func() {
			s.Fill(addrs)
			for range 16 {
				x, _ := k.fill.get()
				k.rx.put(unix.XDPDesc{Addr: x + 256, Len: 60})
			}
			n := s.Receive(d)
			d[0].Len = 0 // the refusing path as well
			s.Transmit(d[:n])
			held = s.Held(held[:0])
			for x, ok := k.tx.get(); ok; x, ok = k.tx.get() {
				k.completion.put(x.Addr)
			}
			if s.Reclaim(a) != 16 || s.FillFree() != 64 {
				t.Error("frames are missing")
			}
			_ = s.Kick()
		})
		if got != 0 {
			t.Errorf("check=%v: %v allocations a burst", check, got)
		}
	}
}
