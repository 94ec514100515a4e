package conntrack

import (
	"testing"

	"pgregory.net/rapid"
)

// connections are whole ones; each prefix of one is a state to be attacked in.
var connections = [][]step{
	after(talk,
		step{d: Forward, flags: fFIN, seq: 101, ack: 101, state: FinWait},
		step{d: Reply, flags: fACK, seq: 101, ack: 102, length: 1000, state: FinWait},
		step{d: Reply, flags: fFIN, seq: 1101, ack: 102, state: LastAck},
		step{d: Forward, flags: fACK, seq: 102, ack: 1102, state: TimeWait}),
	after(talk,
		step{d: Reply, flags: fFIN, seq: 101, ack: 101, state: CloseWait},
		step{d: Forward, flags: fFIN, seq: 101, ack: 102, state: LastAck},
		step{d: Reply, flags: fACK, seq: 102, ack: 102, state: TimeWait}),
	after(talk, step{d: Reply, flags: fRST, seq: 101, state: Closed}),
}

// lived takes a flow some way through a life, and returns what each side has
// sent, counted from its ISN.
func lived(rt *rapid.T, tb testing.TB, checks Checks) (c *peers, sent [2]uint32) {
	c = newPeers(tb, FullNAT)
	c.pol.Checks = checks
	life := rapid.SampledFrom(connections).Draw(rt, "life")
	steps := life[:rapid.IntRange(1, len(life)).Draw(rt, "steps")]
	c.run(tb, steps)
	for _, s := range steps {
		end := s.seq + uint32(s.length)
		if s.flags&((fSYN|fFIN)&^fACK) != 0 {
			end++
		}
		sent[s.d] = max(sent[s.d], end)
	}
	return c, sent
}

var allChecks = map[Checks]string{ChecksNormal: "normal", ChecksStrict: "strict", ChecksOff: "off"}

// TestChecksBlind: at every level a RST, SYN or any other segment from somebody
// who knows no numbers changes nothing but the counters, and where it may keep
// a flow alive, the deadline.
func TestChecksBlind(tt *testing.T) {
	for checks, name := range allChecks {
		tt.Run(name, func(tt *testing.T) {
			rapid.Check(tt, func(rt *rapid.T) {
				c, sent := lived(rt, tt, checks)
				d := Dir(rapid.IntRange(0, 1).Draw(rt, "dir"))
				flags := rapid.SampledFrom([]uint8{fRST, fRSTACK, fSYN, fACK, fFIN}).Draw(rt, "flags")
				seq := sent[d] + rapid.Uint32Range(1<<22, 1<<32-1<<22).Draw(rt, "sequence")
				ack := sent[d^1] + rapid.Uint32Range(1<<22, 1<<32-1<<22).Draw(rt, "acknowledgement")
				e := c.t.Entry(c.r)
				was := *e
				out := c.send(d, flags, seq, ack, 0)
				now := *e
				want := Pass
				switch {
				case flags&fRST != 0 && checks != ChecksOff:
					want = DropBadRST
				case flags == fSYN && d == Reply:
					want = DropBadSYN
				case flags == fSYN && (was.State == TimeWait || was.State == Closed):
					want = Reopen
				case flags != fSYN && checks == ChecksStrict && was.State > SynRecv:
					want = DropBadSeq
				}
				if out != want || out > DropNoFlow {
					rt.Fatalf("%#x from side %d in %v: %v, want %v", flags, d, was.State, out, want)
				}
				now.Packets, now.Bytes = was.Packets, was.Bytes
				if was.State == SynSent && (d == Forward) == (flags == fSYN) && flags&fRST == 0 {
					now.Win[Reply] = was.Win[Reply] // the note of a second SYN, or of what RST to expect
				}
				if flags&(fRST|fSYN) == 0 && !before(now.Expires, was.Expires) && out == Pass {
					now.Expires, now.wheelSlot, now.wheelNext, now.wheelPrev = was.Expires, was.wheelSlot, was.wheelNext, was.wheelPrev
				}
				if now != was {
					rt.Fatalf("%#x from side %d: %+v became %+v", flags, d, was, now)
				}
			})
		})
	}
}

// TestChecksChallenge: at every level, after any forged or honest surprise, each
// side's ACK of its true numbers passes, and the RST that it asks for ends what
// it is about.
func TestChecksChallenge(tt *testing.T) {
	for checks, name := range allChecks {
		tt.Run(name, func(tt *testing.T) {
			rapid.Check(tt, func(rt *rapid.T) {
				c, sent := lived(rt, tt, checks)
				e := c.t.Entry(c.r)
				if rapid.Bool().Draw(rt, "SYN") {
					if c.send(Forward, fSYN, rapid.Uint32().Draw(rt, "number"), 0, 0) == Reopen {
						return
					}
				}
				for _, d := range []Dir{Reply, Forward} {
					if out := c.send(d, fACK, sent[d], sent[d^1], 0); out != Pass {
						rt.Fatalf("challenge of side %d in %v: %v", d, e.State, out)
					}
				}
				if e.State < Established || e.State == TimeWait {
					return
				}
				if out := c.send(Forward, fRST, sent[0], 0, 0); out != Pass || e.State != Closed {
					rt.Fatalf("exact RST: %v, %v", out, e.State)
				}
			})
		})
	}
}

// TestChecksOffKeepsHalfClosed: where part of the packets pass by, what comes is
// a sign of life even if it does not fit.
func TestChecksOffKeepsHalfClosed(tt *testing.T) {
	for _, life := range connections[:2] {
		c := newPeers(tt, FullNAT)
		c.pol.Checks = ChecksOff
		c.run(tt, life[:len(talk)+1])
		c.now += 1000
		e := c.t.Entry(c.r)
		s := e.State
		c.send(Reply, fACK, 1<<26, 102, 100)
		if e.State != s || e.Expires != c.now+c.pol.Timeouts[s] {
			tt.Errorf("%v: %v, %d ticks left", s, e.State, e.Expires-c.now)
		}
	}
}

// TestNearMisses: the numbers that somebody who guesses is most likely to hit are
// those of a whole window. At every level a RST of any but an exact one, in or
// below the window, and any SYN change nothing of a connection, which may have
// nothing to say for hours: not even its deadline.
func TestNearMisses(tt *testing.T) {
	for checks, name := range allChecks {
		tt.Run(name, func(tt *testing.T) {
			rapid.Check(tt, func(rt *rapid.T) {
				c, sent := lived(rt, tt, checks)
				e := c.t.Entry(c.r)
				if e.State < Established || e.State > LastAck {
					return
				}
				c.now += rapid.Uint32Range(0, 1000).Draw(rt, "idle")
				was := *e
				d := Dir(rapid.IntRange(0, 1).Draw(rt, "dir"))
				flags := rapid.SampledFrom([]uint8{fRST, fRSTACK}).Draw(rt, "flags")
				if d == Forward && rapid.Bool().Draw(rt, "SYN") {
					flags = fSYN
				}
				off := rapid.OneOf(rapid.Uint32Range(1, 1<<17), rapid.Map(rapid.Uint32Range(1, 1<<17), func(n uint32) uint32 { return -n }),
					rapid.Uint32Range(1, 1<<32-1)).Draw(rt, "off")
				if base := [2]uint32{c.cISN, c.sISN}[d]; flags != fSYN && base+sent[d]+off == e.Win[d].Acked {
					return // exact, too
				}
				if out := c.send(d, flags, sent[d]+off, sent[d^1], 0); out == Reopen {
					rt.Fatalf("%#x from side %d in %v reopens", flags, d, was.State)
				}
				now := *e
				now.Packets, now.Bytes = was.Packets, was.Bytes
				if now != was {
					rt.Fatalf("%#x from side %d: %+v became %+v", flags, d, was, now)
				}
			})
		})
	}
}
