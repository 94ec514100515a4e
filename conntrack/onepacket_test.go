package conntrack

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// datagram is the template of a one-packet flow: client port number c, in
// Full-NAT with local port l.
func datagram(mode Mode, c, l int) Entry {
	e := Entry{Client: addr4(0xc6336401), ClientPort: uint16(1000 + c), Service: 1, Backend: 1,
		Proto: packet.ProtoUDP, Mode: mode, State: UDPOnePacket}
	if mode == FullNAT {
		e.LocalPort = uint16(2000 + l)
	}
	return e
}

// TestOnePacketTwin: whatever is opened, used again, removed and evicted in any
// order, a client's tuple leads to its latest flow if that is still there, each
// flow's reply tuple to the flow, and nothing is left behind.
func TestOnePacketTwin(tt *testing.T) {
	rapid.Check(tt, func(rt *rapid.T) {
		dir := testDirectory()
		t := newTest(tt, Options{Flows: 8, HalfOpen: 6})
		to := DefaultTimeouts()
		type flow struct {
			client, local int
			mode          Mode
		}
		flows := map[Ref]flow{}
		latest := map[int]Ref{} // by client port; 0 none
		forget := func(r Ref) {
			if latest[flows[r].client] == r {
				delete(latest, flows[r].client)
			}
			delete(flows, r)
		}
		some := func(rt *rapid.T) Ref {
			if len(flows) == 0 {
				rt.Skip()
			}
			var refs []Ref
			for r := range flows {
				refs = append(refs, r)
			}
			slices.Sort(refs)
			return rapid.SampledFrom(refs).Draw(rt, "flow")
		}
		rt.Repeat(map[string]func(*rapid.T){
			"open": func(rt *rapid.T) {
				f := flow{rapid.IntRange(0, 2).Draw(rt, "client"), rapid.IntRange(0, 9).Draw(rt, "local"), Mode(rapid.IntRange(0, 1).Draw(rt, "mode"))}
				e := datagram(f.mode, f.client, f.local)
				fwd, rev := tuples(&e, dir)
				oldest := t.OldestHalfOpen()
				was, _, used := t.Lookup(rev, dir)
				r, st, gone := t.Insert(&e, &fwd, rev, dir, 0, nil)
				if used != (st == DuplicateReply) || !used && st != Inserted || gone && used {
					rt.Fatalf("%v, reply tuple in use %v, evicted %v", st, used, gone)
				}
				if gone {
					forget(oldest)
				}
				if used {
					if r = was; flows[r].client != f.client {
						return // another's
					}
					t.Again(r, &fwd, dir)
				} else {
					flows[r] = f
				}
				latest[f.client] = r
				p := packet.Packet{Kind: packet.KindUDP, L3: 14, L4: 34, Payload: 42, End: 50}
				t.Track(r, Forward, &p, packet.NoScale, 0, &Policy{Timeouts: to})
			},
			"answer": func(rt *rapid.T) {
				p := packet.Packet{Kind: packet.KindUDP, L3: 14, L4: 34, Payload: 42, End: 50}
				t.Track(some(rt), Reply, &p, packet.NoScale, 0, &Policy{Timeouts: to})
			},
			"remove": func(rt *rapid.T) {
				r := some(rt)
				t.Remove(r)
				forget(r)
			},
			"nothing": func(*rapid.T) {},
			"": func(rt *rapid.T) {
				if t.Len() != len(flows) || t.HalfOpenLen() != len(flows) {
					rt.Fatalf("%d flows, %d half-open, want %d", t.Len(), t.HalfOpenLen(), len(flows))
				}
				for r, f := range flows {
					e := datagram(f.mode, f.client, f.local)
					_, rev := tuples(&e, dir)
					if got, d, ok := t.Lookup(rev, dir); got != r || d != Reply || !ok {
						rt.Fatalf("reply tuple of %d leads to %d", r, got)
					}
					if e := t.Entry(r); e.State != UDPOnePacket {
						rt.Fatal(e.State)
					}
				}
				for c := range 3 {
					e := datagram(DNAT, c, 0)
					fwd, _ := tuples(&e, dir)
					if got, d, _ := t.Lookup(&fwd, dir); got != latest[c] || d != Forward {
						rt.Fatalf("client %d leads to %d, want %d", c, got, latest[c])
					}
				}
				if err := t.Audit(); err != nil {
					rt.Fatal(err)
				}
			},
		})
		for r := range flows {
			t.Remove(r)
		}
		for i := range t.buckets {
			if b := &t.buckets[i]; b.slots != (bucket{}).slots {
				rt.Fatalf("left behind: %v", b.slots)
			}
		}
	})
}

// TestOnePacketMixed: an ordinary flow and a one-packet flow do not share a
// client's tuple.
func TestOnePacketMixed(tt *testing.T) {
	dir := testDirectory()
	for _, c := range []struct {
		name          string
		first, second State
	}{{"ordinary first", None, UDPOnePacket}, {"one packet first", UDPOnePacket, None}} {
		tt.Run(c.name, func(tt *testing.T) {
			t := newTest(tt, Options{Flows: 8})
			e := datagram(FullNAT, 0, 0)
			e.State = c.first
			mustInsert(tt, t, &e, dir, 0)
			e = datagram(FullNAT, 0, 1)
			e.State = c.second
			fwd, rev := tuples(&e, dir)
			if _, st, _ := t.Insert(&e, &fwd, rev, dir, 0, nil); st != DuplicateForward {
				tt.Error(st)
			}
		})
	}
}

// TestOnePacketDeadlines: the answer to the last datagram ends the wait, and of
// datagrams in fragments only the first one counts.
func TestOnePacketDeadlines(tt *testing.T) {
	dir := testDirectory()
	t := newTest(tt, Options{Flows: 8})
	pol := Policy{Timeouts: DefaultTimeouts()}
	e := datagram(DNAT, 0, 0)
	r := mustInsert(tt, t, &e, dir, 0)
	p := packet.Packet{Kind: packet.KindUDP, L3: 14, L4: 34, Payload: 42, End: 50}
	const datagram, fragment = packet.KindUDP, packet.KindFragment
	for i, s := range []struct {
		d    Dir
		kind packet.Kind
		left uint32
	}{
		{Forward, datagram, pol.Timeouts[UDPOnePacket]},
		{Forward, fragment, pol.Timeouts[UDPOnePacket]},
		{Forward, datagram, pol.Timeouts[UDPOnePacket]},
		{Reply, datagram, pol.Timeouts[UDPOnePacket]},
		{Reply, fragment, pol.Timeouts[UDPOnePacket]},
		{Reply, datagram, answeredTicks},
		{Reply, fragment, answeredTicks},
		{Reply, datagram, answeredTicks},
		{Forward, datagram, pol.Timeouts[UDPOnePacket]},
		{Reply, datagram, answeredTicks},
	} {
		p.Kind = s.kind
		t.Track(r, s.d, &p, packet.NoScale, 0, &pol)
		if got := t.Entry(r).Expires; got != s.left || t.HalfOpenLen() != 1 {
			tt.Errorf("step %d: %d ticks left, want %d; %d half-open", i, got, s.left, t.HalfOpenLen())
		}
	}
}
