package conntrack

import (
	"testing"

	"pgregory.net/rapid"
)

// TestFollows compares the short way with the long one: what follows is admitted and
// covered, and moves both windows to the same places.
func TestFollows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// Nothing is acknowledged that was not sent, and no window is wider.
		width := rapid.OneOf(rapid.SampledFrom([]uint32{0, 1, minSlack, 2 * minSlack, 2*minSlack + 1, 65535 << 14}), rapid.Uint32Range(0, 65535<<14))
		window := func(of string) Window {
			w := Window{End: rapid.Uint32().Draw(t, of+" end"), MaxWin: width.Draw(t, of+" window")}
			w.Acked = w.End - width.Draw(t, of+" flight")
			return w
		}
		me, peer := window("my"), window("peer's")
		flight := peer.End - peer.Acked
		seq, ack := me.End, peer.Acked+rapid.Uint32Range(0, flight).Draw(t, "newly acknowledged")
		if got, want := me.Follows(&peer, seq, ack), flight <= 2*minSlack; got != want {
			t.Fatalf("%+v, peer %+v: %d acknowledging %d follows: %v", me, peer, seq, ack, got)
		}
		if off := rapid.Uint32Range(1, 1<<32-1).Draw(t, "off"); me.Follows(&peer, seq+off, ack) || me.Follows(&peer, seq, peer.End+off) && off <= -flight-1 {
			t.Fatalf("%+v, peer %+v: %d acknowledging %d follows when %d off", me, peer, seq, ack, off)
		}
		if flight > 2*minSlack {
			return
		}
		end := seq + rapid.Uint32Range(0, 65535).Draw(t, "length")
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
}
