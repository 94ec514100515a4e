package conntrack

import (
	"testing"

	"pgregory.net/rapid"
)

// TestFollows compares the short way with the long one: what follows is admitted and
// covered, and moves both windows to the same places.
func TestFollows(t *testing.T) {
	followed := 0
	rapid.Check(t, func(t *rapid.T) {
		near := func(of uint32, what string) uint32 {
			return of + uint32(rapid.OneOf(rapid.SampledFrom([]int32{0, 0, 0, 1, -1, minSlack, 2 * minSlack, 2*minSlack + 1, -1 << 31}),
				rapid.Int32Range(-3*minSlack, 3*minSlack), rapid.Int32()).Draw(t, what))
		}
		width := rapid.SampledFrom([]uint32{0, 1, 1000, minSlack, 1 << 20, 65535 << 14})
		me := Window{End: rapid.Uint32().Draw(t, "end"), MaxWin: width.Draw(t, "my window")}
		peer := Window{End: rapid.Uint32().Draw(t, "peer's end"), MaxWin: width.Draw(t, "peer's window")}
		// Nothing is acknowledged that was not sent, and no window is wider.
		flight := rapid.OneOf(rapid.SampledFrom([]uint32{0, 1, 2 * minSlack, 2*minSlack + 1, 65535 << 14}), rapid.Uint32Range(0, 65535<<14))
		me.Acked, peer.Acked = me.End-flight.Draw(t, "flight"), peer.End-flight.Draw(t, "peer's flight")
		seq, ack := near(me.End, "seq"), near(peer.End, "ack")
		if rapid.Bool().Draw(t, "of acked") {
			ack = near(peer.Acked, "ack from acked")
		}
		end := seq + rapid.Uint32Range(0, 65535).Draw(t, "length")
		if !me.Follows(&peer, seq, ack) {
			return
		}
		followed++
		if !me.Admits(&peer, seq, end) || !peer.Covers(&me, ack) {
			t.Fatalf("%+v, peer %+v: %d to %d acknowledging %d follows, but does not fit", me, peer, seq, end, ack)
		}
		long, far := me, peer
		long.Send(end, 0)
		far.Acknowledge(ack)
		me.End, peer.Acked = end, ack
		if me != long || peer != far {
			t.Fatalf("windows %+v, %+v, by the long way %+v, %+v", me, peer, long, far)
		}
	})
	if followed == 0 {
		t.Fatal("nothing followed")
	}
}
