package nat

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
)

// TestErrorThereAndBack: an ICMP error that is translated, and then by the inverse
// flow, is the error it was, whatever it has of the embedded packet, and gopacket
// finds its checksums right on the way. So it does those of the embedded packet,
// where it is whole.
func TestErrorThereAndBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow(t, v6, udp)
		m := f.inverse()
		s := drawAny(t, v6, udp)
		towards := conntrack.Dir(rapid.IntRange(0, 1).Draw(t, "direction"))
		in := icmpError{ttl: s.ttl, vlan: s.vlan}
		// From the end point itself: a router's address is not given back.
		if towards == conntrack.Reply {
			s = f.toServer(f.fromClient(s))
		} else {
			s = f.toClient(f.fromServer(s))
		}
		in.src, in.dst = s.dst, s.src
		whole := s.datagram()
		transport := len(whole) - len(s.payload) - len(s.opts) - 20
		if udp {
			transport = len(whole) - len(s.payload) - 8
		}
		in.inner = whole[:rapid.OneOf(rapid.IntRange(transport+8, len(whole)), rapid.Just(len(whole))).Draw(t, "embedded bytes")]
		drawError(t, &in, v6)

		frame := in.frame()
		complete := len(in.inner) == len(whole)
		for _, by := range []*flow{f, m} {
			p := parse(t, frame)
			if !TranslateError(frame, &p, &by.e, towards, &by.dir, 0) {
				t.Fatalf("refused % x", frame)
			}
			judgeRaw(t, frame)
			if complete {
				judgeRaw(t, append(ether(!v6, false), frame[p.Payload:p.End]...))
			}
		}
		in.ttl -= 2
		if d := cmp.Diff(in.frame(), frame); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
	})
}

// TestErrorQuotesWhatWasSent: a packet of either end, rewritten and sent back within
// an error by the other, is quoted to its sender as this has sent it, its TTL apart.
func TestErrorQuotesWhatWasSent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow(t, v6, udp)
		for _, way := range []struct {
			name string
			fn   rewriter
			s    shape
			back conntrack.Dir
		}{
			{"to the server", Forward, f.fromClient(drawAny(t, v6, udp)), conntrack.Reply},
			{"to the client", Reply, f.fromServer(drawAny(t, v6, udp)), conntrack.Forward},
		} {
			sent := way.s.frame()
			pass(t, way.name, way.fn, f, sent)
			p := parse(t, sent)
			in := icmpError{src: p.Dst, dst: p.Src, ttl: 9, inner: sent[p.L3:p.End]}
			drawError(t, &in, v6)
			frame := in.frame()
			p = parse(t, frame)
			if !TranslateError(frame, &p, &f.e, way.back, &f.dir, 0) {
				t.Fatal("refused")
			}
			judgeRaw(t, frame)
			way.s.ttl--
			if d := cmp.Diff(way.s.datagram(), frame[p.Payload:p.End]); d != "" {
				t.Fatalf("%s (-sent +quoted):\n%s", way.name, d)
			}
		}
	})
}
