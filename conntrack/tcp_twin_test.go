package conntrack

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// tcpTwin knows a connection as the two ends would tell it: who sent what, and
// what was acknowledged. The state follows from that, not from a table.
type tcpTwin struct {
	syn, synack, acked, rst bool
	fin, finAcked           [2]bool
	sent                    [2]uint32 // from the ISN, FIN included
	known                   [2]uint32 // of the other side's, highest acknowledged
}

func (w *tcpTwin) state() State {
	switch {
	case w.finAcked[0] && w.finAcked[1]:
		return TimeWait
	case w.rst:
		return Closed
	case w.fin[0] && w.fin[1]:
		return LastAck
	case w.fin[0]:
		return FinWait
	case w.fin[1]:
		return CloseWait
	case w.acked:
		return Established
	case w.synack:
		return SynRecv
	case w.syn:
		return SynSent
	}
	return None
}

// TestTCPTwin lets two correct ends talk in any order, with losses behind us
// (segments sent again, acknowledgements that come late), and compares.
func TestTCPTwin(tt *testing.T) {
	rapid.Check(tt, func(rt *rapid.T) {
		c := newPeers(tt, FullNAT)
		c.cISN = rapid.Uint32().Draw(rt, "client ISN")
		c.sISN = rapid.Uint32().Draw(rt, "server ISN")
		w := &tcpTwin{}
		dir := func(rt *rapid.T) Dir { return Dir(rapid.IntRange(0, 1).Draw(rt, "dir")) }
		send := func(rt *rapid.T, d Dir, flags uint8, seq, ack uint32, length uint16) {
			if got := c.send(d, flags, seq, ack, length); got != Pass {
				rt.Fatalf("%v", got)
			}
		}
		// ack is what side d acknowledges: something between the last time
		// and all there is.
		ack := func(rt *rapid.T, d Dir) uint32 {
			a := rapid.Uint32Range(w.known[d], w.sent[d^1]).Draw(rt, "ack")
			w.known[d] = a
			if w.fin[d^1] && a == w.sent[d^1] {
				w.finAcked[d^1] = true
			}
			return a
		}
		rt.Repeat(map[string]func(*rapid.T){
			"syn": func(rt *rapid.T) {
				if w.synack || w.rst {
					rt.Skip()
				}
				send(rt, Forward, fSYN, 0, 0, 0)
				w.syn, w.sent[0] = true, 1
			},
			"synack": func(rt *rapid.T) {
				if !w.syn || w.fin[0] || w.rst || w.acked {
					rt.Skip()
				}
				send(rt, Reply, fSYNACK, 0, 1, 0)
				w.synack, w.sent[1], w.known[0], w.known[1] = true, 1, 1, 1
			},
			"data or ack": func(rt *rapid.T) {
				d := dir(rt)
				if !w.synack || d == Reply && !w.acked || w.rst {
					rt.Skip()
				}
				length := uint32(0)
				if !w.fin[d] {
					length = rapid.Uint32Range(0, 1460).Draw(rt, "length")
				}
				if w.sent[d]+length-w.known[d^1] > 0x8000 {
					length = 0
				}
				send(rt, d, fACK, w.sent[d], ack(rt, d), uint16(length))
				w.sent[d] += length
				w.acked = true
			},
			"again": func(rt *rapid.T) { // a retransmission
				d := dir(rt)
				if !w.acked || w.rst {
					rt.Skip()
				}
				seq := rapid.Uint32Range(w.known[d^1], w.sent[d]).Draw(rt, "seq")
				end := w.sent[d]
				if w.fin[d] {
					end--
				}
				length := uint32(0)
				if seq < end {
					length = min(end-seq, 1460)
				}
				send(rt, d, fACK, seq, ack(rt, d), uint16(length))
			},
			"fin": func(rt *rapid.T) {
				d := dir(rt)
				if !w.synack || d == Reply && !w.acked || w.rst {
					rt.Skip()
				}
				if !w.fin[d] {
					w.sent[d]++
				}
				a := ack(rt, d) // before fin: one cannot acknowledge its own
				send(rt, d, fFIN, w.sent[d]-1, a, 0)
				w.fin[d], w.acked = true, true
			},
			"rst": func(rt *rapid.T) {
				d := dir(rt)
				if !w.synack || w.rst || !rapid.Bool().Draw(rt, "really") {
					rt.Skip()
				}
				send(rt, d, fRSTACK, w.sent[d], 0, 0)
				w.rst = true
			},
			"blind": func(rt *rapid.T) { // somebody far outside every window
				if !w.synack {
					rt.Skip()
				}
				off := rapid.Uint32Range(1<<28, 1<<31).Draw(rt, "off")
				d := dir(rt)
				flags := rapid.SampledFrom([]uint8{fACK, fFIN, fRST}).Draw(rt, "flags")
				c.send(d, flags, w.sent[d]+off, w.sent[d^1]+off, 0)
			},
			"": func(rt *rapid.T) {
				e := c.t.Entry(c.r)
				if e.State != w.state() {
					rt.Fatalf("state %v, want %v", e.State, w.state())
				}
				if half := e.Flags&HalfOpen != 0; half == w.acked {
					rt.Fatalf("half-open %v, acknowledged %v", half, w.acked)
				}
				if w.synack && (e.Win[0].End != c.cISN+w.sent[0] || e.Win[1].End != c.sISN+w.sent[1]) {
					rt.Fatalf("ends %#x %#x, want %#x %#x", e.Win[0].End, e.Win[1].End, c.cISN+w.sent[0], c.sISN+w.sent[1])
				}
				if acked := e.Flags&ServerAcked != 0; acked != (w.known[0] > 1) {
					rt.Fatalf("server acked %v, client knows %d", acked, w.known[0])
				}
				checkWheel(rt, c.t)
			},
		})
	})
}

// TestTransitions: no event leads out of the states there are, out of TCP, out
// of the end but by reopening, or to a state that a view cannot know of.
func TestTransitions(t *testing.T) {
	reopens := [3]map[State]bool{
		Forward: {SynSent: true, TimeWait: true, Closed: true},
		oneWay:  {Closed: true},
	}
	seenOneWay := map[State]bool{None: true, SynSent: true, Established: true, FinWait: true, Closed: true}
	for d := range transitions {
		for ev := range transitions[d] {
			for s, next := range transitions[d][ev] {
				s := State(s)
				switch {
				case next == reopen:
					if event(ev) > evNewSYN || !reopens[d][s] {
						t.Errorf("view %d event %d: %v reopens", d, ev, s)
					}
				case next >= NumStates, (s >= UDPOneWay) != (next >= UDPOneWay), s >= UDPOneWay && s != next:
					t.Errorf("view %d event %d: %v to %v", d, ev, s, next)
				case (s == TimeWait || s == Closed) && next != s:
					t.Errorf("view %d event %d: %v to %v", d, ev, s, next)
				case s != None && s < UDPOneWay && next < s:
					t.Errorf("view %d event %d: back from %v to %v", d, ev, s, next)
				case d == oneWay && next != s && !seenOneWay[next]:
					t.Errorf("view %d event %d: %v to %v", d, ev, s, next)
				}
			}
		}
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	check := func(name string) {
		t.Helper()
		if name == "" || seen[name] {
			t.Errorf("name %q is empty or used twice", name)
		}
		seen[name] = true
	}
	for s := State(0); s <= NumStates; s++ {
		check(s.String())
	}
	clear(seen)
	for o := Outcome(0); o < NumOutcomes; o++ {
		check(o.String())
	}
	clear(seen)
	for s := Status(0); s < NumStatuses; s++ {
		check(s.String())
	}
	if Outcome(200).String() != "invalid" || Status(200).String() != "invalid" {
		t.Error("a name for what does not exist")
	}
}

func TestTimeoutsCheck(t *testing.T) {
	to := DefaultTimeouts()
	if err := to.Check(); err != nil {
		t.Error(err)
	}
	for _, bad := range []uint32{0, MaxTimeout + 1} {
		to[FinWait] = bad
		if to.Check() == nil {
			t.Errorf("%d ticks accepted", bad)
		}
	}
	for s, least := range map[State]uint32{Established: 7440, UDPOneWay: 120, UDPTwoWay: 120, FinWait: 240, CloseWait: 240} {
		if got := DefaultTimeouts()[s]; got < least*TicksPerSecond {
			t.Errorf("%v: %d ticks, want %d s", s, got, least)
		}
	}
}

// FuzzTrack feeds packets made of any bytes to one flow: 16 bytes each. The
// flow stays in the wheel, its state stays one of its protocol.
func FuzzTrack(f *testing.F) {
	seg := func(d, kind, flags byte, seq, ack byte) []byte {
		return []byte{d, kind, flags, seq, 0, 0, 0, ack, 0, 0, 0, 0, 16, 0, 40, 1}
	}
	var talk []byte
	for _, s := range [][]byte{
		seg(0, 1, fSYN, 0, 0), seg(1, 1, fSYNACK, 9, 1), seg(0, 1, fACK, 1, 10),
		seg(0, 1, fFIN, 1, 10), seg(1, 1, fFIN, 10, 2), seg(0, 1, fACK, 2, 11),
	} {
		talk = append(talk, s...)
	}
	f.Add(false, talk)
	f.Add(true, append(seg(0, 2, 0, 0, 0), seg(1, 2, 0, 0, 0)...))
	t := newTest(f, Options{Flows: 4})
	f.Fuzz(func(tt *testing.T, udp bool, b []byte) {
		for r := range t.entries { // one table for all: making one takes long
			t.Remove(Ref(r))
		}
		e := Entry{Client: addr4(1), ClientPort: 1, LocalPort: 2, Proto: packet.ProtoTCP, SeqDelta: 0}
		if udp {
			e.Proto, e.Service, e.Backend = packet.ProtoUDP, 1, 1
		}
		r := mustInsert(tt, t, &e, testDirectory(), 0)
		pol := Policy{Timeouts: DefaultTimeouts()}
		to := &pol.Timeouts
		now := uint32(0)
		word := func(b []byte) uint32 { return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24 }
		for ; len(b) >= 16; b = b[16:] {
			p := packet.Packet{Kind: packet.Kind(b[1] % 9), TCPFlags: b[2], L3: 14, L4: 34, Payload: 54 + uint16(b[10]&0x2c),
				Seq: word(b[3:]), Ack: word(b[7:]), Window: uint16(b[11]) << 8}
			p.End = p.Payload + uint16(b[14])
			now += uint32(b[15])
			frame := make([]byte, p.End)
			for i := 54; i < int(p.Payload); i++ {
				frame[i] = b[i%16]
			}
			out := t.Track(r, Dir(b[0]), &p, packet.ScanSYN(frame, &p).Scale, now, &pol)
			got := t.Entry(r)
			if out < Pass || out >= NumOutcomes || got.State >= NumStates || (got.State >= UDPOneWay) != (udp && got.State != None) {
				tt.Fatalf("%v, state %v", out, got.State)
			}
			if got.wheelSlot == 0 || before(got.Expires+MaxTimeout, now) || before(now+to[Established], got.Expires) {
				tt.Fatalf("expires at %d, now %d", got.Expires, now)
			}
			due := slotDue(t.hdr.wheelNow, uint32(got.wheelSlot-1))
			if before(later(got.Expires, t.hdr.wheelNow), due) {
				tt.Fatalf("expires at %d, comes up at %d", got.Expires, due)
			}
		}
	})
}
