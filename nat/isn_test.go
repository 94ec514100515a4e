package nat

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// TestSipHashVectors uses the vectors published with the reference
// implementation: key 00..0f, message 00, 01, 02, ... of each length.
func TestSipHashVectors(t *testing.T) {
	want := [][8]byte{
		{0x31, 0x0e, 0x0e, 0xdd, 0x47, 0xdb, 0x6f, 0x72},
		{0xfd, 0x67, 0xdc, 0x93, 0xc5, 0x39, 0xf8, 0x74},
		{0x5a, 0x4f, 0xa9, 0xd9, 0x09, 0x80, 0x6c, 0x0d},
		{0x2d, 0x7e, 0xfb, 0xd7, 0x96, 0x66, 0x67, 0x85},
		{0xb7, 0x87, 0x71, 0x27, 0xe0, 0x94, 0x27, 0xcf},
		{0x8d, 0xa6, 0x99, 0xcd, 0x64, 0x55, 0x76, 0x18},
		{0xce, 0xe3, 0xfe, 0x58, 0x6e, 0x46, 0xc9, 0xcb},
		{0x37, 0xd1, 0x01, 0x8b, 0xf5, 0x00, 0x02, 0xab},
		{0x62, 0x24, 0x93, 0x9a, 0x79, 0xf5, 0xf5, 0x93},
	}
	k0, k1 := uint64(0x0706050403020100), uint64(0x0f0e0d0c0b0a0908)
	var m [15]byte
	for i := range m {
		m[i] = byte(i)
	}
	for n, w := range want {
		if got := sipHash24(k0, k1, m[:n]); got != binary.LittleEndian.Uint64(w[:]) {
			t.Errorf("length %d: %016x, want %016x", n, got, binary.LittleEndian.Uint64(w[:]))
		}
	}
	// The example worked through in appendix A of the paper.
	if got := sipHash24(k0, k1, m[:]); got != 0xa129ca6149be45e5 {
		t.Errorf("length 15: %016x, want a129ca6149be45e5", got)
	}
}

// TestISNHash compares the words that the hash is made of with the bytes that they stand for.
func TestISNHash(t *testing.T) {
	s := NewISN([16]byte{0: 1, 15: 2}, 0)
	for _, c := range []struct {
		src, dst string
		bytes    string
	}{
		{"10.0.1.10", "192.0.2.20", "\x0a\x00\x01\x0a\xc0\x00\x02\x14\x04\x01\x1f\x90"},
		{"2001:db8::1", "2001:db8::2", "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x02\x04\x01\x1f\x90"},
	} {
		if got, want := s.hash(addr(c.src), 1025, addr(c.dst), 8080), sipHash24(s.k0, s.k1, []byte(c.bytes)); got != want {
			t.Errorf("%s to %s: %016x, want %016x", c.src, c.dst, got, want)
		}
	}
}

func addr(s string) packet.Addr { return packet.AddrFrom(netip.MustParseAddr(s)) }

func TestISNDependsOnEverything(t *testing.T) {
	s := NewISN([16]byte{1, 2, 3}, 0)
	base := s.Next(addr("10.0.1.10"), 1024, addr("10.0.1.20"), 80, 0)
	other := NewISN([16]byte{1, 2, 4}, 0)
	for name, got := range map[string]uint32{
		"source":           s.Next(addr("10.0.1.11"), 1024, addr("10.0.1.20"), 80, 0),
		"source port":      s.Next(addr("10.0.1.10"), 1025, addr("10.0.1.20"), 80, 0),
		"destination":      s.Next(addr("10.0.1.10"), 1024, addr("10.0.1.21"), 80, 0),
		"destination port": s.Next(addr("10.0.1.10"), 1024, addr("10.0.1.20"), 81, 0),
		"secret":           other.Next(addr("10.0.1.10"), 1024, addr("10.0.1.20"), 80, 0),
		"last v6 byte":     s.Next(addr("2001:db8::1"), 1024, addr("2001:db8::2"), 80, 0),
		"other v6 byte":    s.Next(addr("2001:db8::1"), 1024, addr("2001:db8::3"), 80, 0),
	} {
		// 1 MiB apart is far more than chance puts next to each other.
		if d := int32(got - base); d > -1<<20 && d < 1<<20 {
			t.Errorf("%s: %d and %d are suspiciously near", name, base, got)
		}
	}
}

func TestISNClock(t *testing.T) {
	s := NewISN([16]byte{9}, 0)
	a, b := addr("192.0.2.1"), addr("192.0.2.2")
	at := func(n int64) uint32 { return s.Next(a, 1, b, 2, n) }
	for _, c := range []struct {
		name  string
		nanos int64
		ticks uint32
	}{
		{"less than a tick", 63, 0},
		{"one tick", 64, 1},
		{"a millisecond", 1e6, 15625},
		{"wrap", 64 << 32, 0},
	} {
		if got := at(c.nanos) - at(0); got != c.ticks {
			t.Errorf("%s: moved by %d, want %d", c.name, got, c.ticks)
		}
	}
	if n := testing.AllocsPerRun(100, func() { at(5) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestBeyondLast(t *testing.T) {
	for _, c := range []struct {
		name            string
		isn, last, want uint32
	}{
		{"already beyond", 1000, 999, 1000},
		{"equal", 1000, 1000, 1000 + isnStep},
		{"behind", 999, 1000, 1000 + isnStep},
		{"beyond across the wrap", 5, 0xfffffff0, 5},
		{"behind across the wrap", 0xfffffff0, 5, 5 + isnStep},
		{"correction wraps", 1, 0xffffffff - 10, 1},
	} {
		if got := beyondLast(c.isn, c.last); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		isn, last := rapid.Uint32().Draw(t, "isn"), rapid.Uint32().Draw(t, "last")
		if got := beyondLast(isn, last); int32(got-last) <= 0 {
			t.Fatalf("%d is not beyond %d", got, last)
		}
	})
}

// TestISNBeyondEveryConnection lives the life of two tuples: whatever the last
// connection sent and however long it took, the next one begins beyond it while a
// server may be in TIME_WAIT.
func TestISNBeyondEveryConnection(t *testing.T) {
	const timeWait = 60e9
	rapid.Check(t, func(t *rapid.T) {
		s := NewISN([16]byte{rapid.Byte().Draw(t, "secret")}, 0)
		nanos := rapid.Int64Range(0, 1e12).Draw(t, "start")
		var last [2]uint32
		var ended [2]int64
		for i := range 30 {
			port := rapid.IntRange(0, 1).Draw(t, "port")
			nanos += rapid.OneOf(rapid.Int64Range(0, 1e6), rapid.Int64Range(0, 100e9)).Draw(t, "pause")
			isn := s.Next(addr("10.0.1.10"), uint16(port), addr("10.0.1.20"), 80, nanos)
			if i > 0 && ended[port] != 0 && nanos-ended[port] <= timeWait && int32(isn-last[port]) <= 0 {
				t.Fatalf("%d s after its end at %d the next connection begins at %d", (nanos-ended[port])/1e9, last[port], isn)
			}
			nanos += rapid.OneOf(rapid.Int64Range(0, 1e6), rapid.Int64Range(0, 600e9)).Draw(t, "duration")
			last[port] = isn + rapid.OneOf(rapid.Uint32Range(2, 1<<20), rapid.Uint32()).Draw(t, "sent")
			ended[port] = nanos
			s.Closed(addr("10.0.1.10"), uint16(port), addr("10.0.1.20"), 80, last[port], nanos)
		}
	})
}

// TestISNOverRestart: with the secret kept and the host's clock as epoch, a process
// whose own clock begins at 0 again goes on where the one before it ended.
func TestISNOverRestart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := [16]byte{rapid.Byte().Draw(t, "secret")}
		boot := rapid.Int64Range(0, 1e18).Draw(t, "since boot")
		ran := rapid.Int64Range(0, 1e15).Draw(t, "ran")
		took := rapid.Int64Range(1e6, 60e9).Draw(t, "took")
		src, dst := addr("10.0.1.10"), addr("10.0.1.20")
		first, second := NewISN(secret, boot), NewISN(secret, boot+ran+took)
		if d := second.Next(src, 1, dst, 80, 0) - first.Next(src, 1, dst, 80, ran); int32(d) <= 0 {
			t.Fatalf("the sequence number moved by %d in %d ns", int32(d), took)
		}
		if d := second.Timestamp(src, dst, 0) - first.Timestamp(src, dst, ran); int32(d) <= 0 {
			t.Fatalf("the timestamp moved by %d in %d ns", int32(d), took)
		}
	})
}

// TestISNForgets: a server has forgotten a connection long before its number
// would bind the next one.
func TestISNForgets(t *testing.T) {
	s := NewISN([16]byte{3}, 0)
	a, b := addr("192.0.2.1"), addr("192.0.2.2")
	isn := s.Next(a, 1, b, 2, 0)
	s.Closed(a, 1, b, 2, isn+1<<30, 0)
	if got := s.Next(a, 1, b, 2, 1e9); got != isn+1<<30+isnStep {
		t.Errorf("a second later by %d", got-isn)
	}
	if got := s.Next(a, 1, b, 3, 1e9) - s.Next(a, 1, b, 3, 0); got != 1e9/64 {
		t.Errorf("another tuple moved by %d", got)
	}
	if got := s.Next(a, 1, b, 2, 101e9); got-isn != uint32(101_000_000_000/64) {
		t.Errorf("101 s later by %d", got-isn)
	}
	// What is slower than the clock takes no place, and frees the tuple's own.
	s.Closed(a, 1, b, 2, isn+1<<30, 0)
	s.Closed(a, 1, b, 2, isn+1000, 1e9)
	if got := s.Next(a, 1, b, 2, 2e9); got-isn != 2e9/64 {
		t.Errorf("after a short one by %d", got-isn)
	}
	if n := testing.AllocsPerRun(100, func() { s.Closed(a, 1, b, 2, isn, 5e9); s.Next(a, 1, b, 2, 6e9) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
