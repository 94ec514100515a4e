package conntrack

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestHandshakeTimer: the times of a handshake come out as they went by, once each, in
// whatever order its packets come, and the bytes beside the timer are not touched.
func TestHandshakeTimer(t *testing.T) {
	type model struct {
		state State
		since uint32 // who is waited for since when
		wait  int    // for: 0 nobody yet, 1 the server, 2 the client
		bytes uint32
		heard bool // something of the server's, or the wait was found late
	}
	rapid.Check(t, func(t *rapid.T) {
		m := model{state: SynSent}
		e := Entry{State: SynSent, Flags: HalfOpen}
		now := rapid.Uint32().Draw(t, "start")
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			now += rapid.Uint32Range(0, 1<<26).Draw(t, "later")
			e.State = m.state
			type result struct {
				Took uint32
				OK   bool
			}
			var got, want result
			switch rapid.IntRange(0, 6).Draw(t, "what") {
			case 0:
				e.SYNSent(now)
				if m.state == SynSent && m.wait == 0 {
					m.wait, m.since, m.heard = 1, now, false
				}
			case 1:
				m.state = SynRecv
			case 2:
				got.Took, got.OK = e.SYNACKSent(now)
				if m.state == SynRecv && m.wait == 1 {
					want = result{now - m.since, true}
					m.wait, m.since = 2, now
				}
			case 3:
				got.Took, got.OK = e.HandshakeOver(now)
				if m.wait == 2 {
					want = result{now - m.since, true}
				}
				m.wait = 0
			case 4:
				n := rapid.Uint32Range(0, 1<<20).Draw(t, "bytes")
				e.Bytes[Reply] += uint64(n)
				m.bytes += n
			case 5:
				got.OK = e.Late(now)
				want.OK = m.state == SynSent && m.wait == 1 && !m.heard && now-m.since >= patience
				m.heard = m.heard || want.OK
			case 6:
				e.Heard()
				m.heard = true
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("%+v: %s", m, d)
			}
			if e.ReplyBytes() != uint64(m.bytes) {
				t.Fatalf("%d bytes, want %d", e.ReplyBytes(), m.bytes)
			}
		}
	})
	e := Entry{State: Established}
	e.Bytes[Reply] = 1<<62 - 1 // more than any flow has
	if _, ok := e.HandshakeOver(5); ok || e.ReplyBytes() != 1<<62-1 {
		t.Errorf("a flow that is not timed: %v, %#x bytes", ok, e.ReplyBytes())
	}
}

// TestAuditTimer: what the caller of Track forgot to end is found.
func TestAuditTimer(tt *testing.T) {
	c := newPeers(tt, FullNAT)
	c.run(tt, []step{
		{d: Forward, flags: fSYN, state: SynSent}, {d: Reply, flags: fSYNACK, ack: 1, state: SynRecv},
		{d: Forward, flags: fACK, seq: 1, ack: 1, state: Established},
	})
	e := c.t.Entry(c.r)
	e.setTimer(timedClient | 7)
	if err := c.t.Audit(); err == nil {
		tt.Error("an established flow that is timed passes the audit")
	}
	e.setTimer(0)
	if err := c.t.Audit(); err != nil {
		tt.Error(err)
	}
}
