package nat

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

func TestDecTTL(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		s := drawFlow(t, v6, true).fromServer(drawShape(t, v6, true))
		frame := s.frame()
		p := parse(t, frame)
		DecTTL(frame, &p)
		s.ttl--
		if d := cmp.Diff(s.frame(), frame); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

// TestKeepTTL: what the rewriting takes off is given back, to the bit, also where
// the packet has changed family.
func TestKeepTTL(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		f := drawFlow(t, v6, true)
		s := f.fromClient(drawShape(t, v6, true))
		s.ttl = uint8(rapid.SampledFrom([]int{1, 2, 64, 128, 255}).Draw(t, "ttl"))
		want := f.toServer(s)
		want.ttl = s.ttl
		frame := s.frame()
		p := parse(t, frame)
		if !Forward(frame, &p, &f.e, &f.dir) {
			t.Fatal("refused")
		}
		KeepTTL(frame, &p)
		if d := cmp.Diff(want.frame(), frame); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

func TestDecTTLAllocatesNothing(t *testing.T) {
	var p packet.Packet
	s := shape{src: addr("10.0.0.1"), dst: addr("10.0.0.2"), ttl: 200, udp: true}
	frame := s.frame()
	if n := testing.AllocsPerRun(100, func() { packet.Parse(frame, &p); DecTTL(frame, &p); KeepTTL(frame, &p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
