package conntrack

import (
	"testing"

	"pgregory.net/rapid"
)

// oneWayTwin is a connection as its client would tell it.
type oneWayTwin struct {
	isn, sent           uint32
	syn, ack, fin, over bool
}

// state follows from what was sent.
func (c *oneWayTwin) state() State {
	switch {
	case c.over:
		return Closed
	case c.fin:
		return FinWait
	case c.ack:
		return Established
	case c.syn:
		return SynSent
	}
	return None
}

// livelier is the state of a flow with both connections.
func livelier(a, b State) State {
	for _, s := range []State{Established, FinWait, SynSent, Closed} {
		if a == s || b == s {
			return s
		}
	}
	return None
}

// TestOneWayTwin has two connections of one tuple talk in any order, as when a
// client begins anew or somebody forges one: the flow is as alive as the
// livelier of them, and nothing shortens its life below that.
func TestOneWayTwin(tt *testing.T) {
	rapid.Check(tt, func(rt *rapid.T) {
		c := newPeers(tt, DirectReturn)
		c.cISN = 0
		conns := [2]*oneWayTwin{{}, {}}
		conns[0].isn = rapid.Uint32().Draw(rt, "ISN")
		conns[1].isn = conns[0].isn + rapid.Uint32Range(1<<23, 1<<32-1<<23).Draw(rt, "apart")
		e := c.t.Entry(c.r)
		send := func(w *oneWayTwin, flags uint8, seq uint32, length uint16) {
			if got := c.send(Forward, flags, w.isn+seq, rapid.Uint32().Draw(rt, "ack"), length); got != Pass {
				rt.Fatalf("%v", got)
			}
		}
		// some draws the first connection, or the second once there is a first.
		some := func(rt *rapid.T) *oneWayTwin {
			if !conns[0].syn || conns[0].over && !conns[1].syn {
				return conns[0]
			}
			return conns[rapid.IntRange(0, 1).Draw(rt, "connection")]
		}
		rt.Repeat(map[string]func(*rapid.T){
			"syn": func(rt *rapid.T) {
				w := some(rt)
				if w.ack || w.fin || w.over || conns[0].over {
					rt.Skip()
				}
				length := rapid.Uint16Range(0, 1).Draw(rt, "fast open") * 100
				send(w, fSYN, 0, length)
				w.syn, w.sent = true, max(w.sent, 1+uint32(length))
			},
			"data": func(rt *rapid.T) {
				w := some(rt)
				if !w.syn || w.over {
					rt.Skip()
				}
				length := rapid.Uint16Range(0, 1460).Draw(rt, "length")
				if w.fin {
					length = 0
				}
				send(w, fACK, w.sent, length)
				w.ack, w.sent = true, w.sent+uint32(length)
			},
			"fin": func(rt *rapid.T) {
				w := some(rt)
				if !w.syn || w.fin || w.over {
					rt.Skip()
				}
				send(w, fFIN, w.sent, 0)
				w.ack, w.fin, w.sent = true, true, w.sent+1
			},
			"rst": func(rt *rapid.T) {
				w := some(rt)
				if !w.syn || w.over || !rapid.Bool().Draw(rt, "really") {
					rt.Skip()
				}
				send(w, fRST, w.sent, 0)
				w.over = true
			},
			"RST in the window": func(rt *rapid.T) {
				w := some(rt)
				if !w.ack || w.over || !conns[0].syn || !conns[1].syn || conns[0].over || conns[1].over {
					rt.Skip()
				}
				left := e.Expires
				send(w, fRST, w.sent+rapid.Uint32Range(1, 1000).Draw(rt, "off"), 0)
				if e.Expires != left {
					rt.Fatalf("%d ticks left, were %d", e.Expires-c.now, left-c.now)
				}
			},
			"time passes": func(*rapid.T) { c.now++ },
			"": func(rt *rapid.T) {
				want := livelier(conns[0].state(), conns[1].state())
				if e.State != want {
					rt.Fatalf("state %v, want %v: %+v %+v, %+v", e.State, want, *conns[0], *conns[1], e.Win)
				}
				if half := e.Flags&HalfOpen != 0; half == (conns[0].ack || conns[1].ack) {
					rt.Fatalf("half-open %v", half)
				}
				checkWheel(rt, c.t)
				c.now++
			},
		})
	})
}

// TestOneWayForged: an open connection survives whatever is sent by somebody
// who does not know its numbers, and knows its own again afterwards.
func TestOneWayForged(tt *testing.T) {
	rapid.Check(tt, func(rt *rapid.T) {
		c := newPeers(tt, DirectReturn)
		c.run(tt, []step{
			{d: Forward, flags: fSYN, seq: 0, state: SynSent},
			{d: Forward, flags: fACK, seq: 1, ack: 1, length: 100, state: Established},
		})
		e := c.t.Entry(c.r)
		near := rapid.Uint32Range(1<<22, 1<<32-1<<22).Draw(rt, "forged")
		for range rapid.IntRange(1, 20).Draw(rt, "segments") {
			flags := rapid.SampledFrom([]uint8{fSYN, fACK, fFIN, fRST, fRSTACK, 0}).Draw(rt, "flags")
			if flags == fSYN && rapid.Bool().Draw(rt, "another") {
				near = rapid.Uint32Range(1<<22, 1<<32-1<<22).Draw(rt, "forged")
			}
			left := e.Expires
			c.send(Forward, flags, near+rapid.Uint32Range(0, 2).Draw(rt, "next"), 0, 0)
			if e.State != Established || before(e.Expires, left) {
				rt.Fatalf("%v, %d ticks left", e.State, e.Expires-c.now)
			}
			c.now++
		}
		if c.send(Forward, fRST, 101, 0, 0); rank(e.State) > rank(Established) {
			rt.Fatal(e.State)
		}
	})
}

func TestOneWayScenarios(tt *testing.T) {
	const other = 0x20000000
	open := []step{
		{d: Forward, flags: fSYN, seq: 0, state: SynSent},
		{d: Forward, flags: fACK, seq: 1, ack: 1, length: 100, state: Established},
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"client crashed: the server's challenge is answered past us", after(open,
			step{d: Forward, flags: fSYN, seq: other, state: Established},
			step{d: Forward, flags: fRST, seq: 101, state: SynSent},
			step{d: Forward, flags: fSYN, seq: other, state: SynSent},
			step{d: Forward, flags: fACK, seq: other + 1, state: Established},
			step{d: Forward, flags: fFIN, seq: other + 1, state: FinWait})},
		{"both crashed: the server takes the new connection", after(open,
			step{d: Forward, flags: fSYN, seq: other, state: Established},
			step{d: Forward, flags: fACK, seq: other + 1, state: Established},
			step{d: Forward, flags: fRST, seq: other + 1, state: Established},
			step{d: Forward, flags: fRST, seq: 101, state: Closed},
			step{d: Forward, flags: fSYN, seq: 7, state: Closed, out: Reopen})},
		{"port used again after a close", after(open,
			step{d: Forward, flags: fFIN, seq: 101, state: FinWait},
			step{d: Forward, flags: fSYN, seq: other, state: FinWait},
			step{d: Forward, flags: fACK, seq: other + 1, state: Established},
			step{d: Forward, flags: fFIN, seq: other + 1, state: FinWait})},
		{"flags nobody sends", after(open,
			step{d: Forward, flags: fSYNACK, seq: 0, state: Established, out: DropBadSYN},
			step{d: Forward, flags: fSYN | fFIN, seq: 0, state: Established, out: DropBadFlags},
			step{d: Forward, flags: 0, seq: 101, state: Established, out: DropBadFlags})},
	} {
		tt.Run(c.name, func(tt *testing.T) { newPeers(tt, DirectReturn).run(tt, c.steps) })
	}
}
