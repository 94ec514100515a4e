package conntrack

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// TestOneWaySendersStay: as long as half-open flows are scarce, of those with
// datagrams one way the one that was silent for longest makes room, and TCP's
// go by age; with room nothing changes its place.
func TestOneWaySendersStay(tt *testing.T) {
	rapid.Check(tt, func(rt *rapid.T) {
		const budget = 8
		t, err := New(Options{Flows: 4 * budget, HalfOpen: budget, Lazy: true, Secret: *secret(1)})
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = t.Close() }()
		dir, pol := testDirectory(), &Policy{Timeouts: DefaultTimeouts()}
		now, ports := uint32(0), uint16(1000)
		var order []uint16 // client ports, the next to go first
		client := func(r Ref) uint16 { return t.Entry(r).ClientPort }
		track := func(r Ref, d Dir) {
			p := &packet.Packet{Kind: packet.KindUDP, L3: 14, L4: 34, Payload: 42, End: 42}
			if t.Entry(r).Proto == packet.ProtoTCP {
				p.Kind, p.TCPFlags, p.Seq = packet.KindTCP, packet.SYN, 7
			}
			to := &pol.Timeouts
			if rapid.Bool().Draw(rt, "plain") && plainDatagram(t, r, d, now, to) {
				return
			}
			if out := t.Track(r, d, p, packet.NoScale, now, pol); out != Pass {
				rt.Fatal(out)
			}
		}
		refOf := func(port uint16) Ref {
			for r := t.OldestHalfOpen(); r != 0; r = Ref(t.half[r].next) {
				if client(r) == port {
					return r
				}
			}
			rt.Fatalf("%d has gone: %v", port, order)
			return 0
		}
		rt.Repeat(map[string]func(*rapid.T){
			"begin": func(rt *rapid.T) {
				ports++
				e := Entry{Client: addr4(0xc6336401), ClientPort: ports, Proto: packet.ProtoTCP, Mode: DNAT}
				if rapid.Bool().Draw(rt, "udp") {
					e.Proto, e.Service, e.Backend = packet.ProtoUDP, 1, 1
				}
				fwd, rev := tuples(&e, dir)
				var gone Entry
				r, st, evicted := t.Insert(&e, &fwd, rev, dir, now, &gone)
				if st != Inserted || evicted != (len(order) == budget) || evicted && gone.ClientPort != order[0] {
					rt.Fatalf("%v, %d evicted: %v", st, gone.ClientPort, order)
				}
				if evicted {
					order = order[1:]
				}
				order = append(order, ports)
				track(r, Forward)
			},
			"send": func(rt *rapid.T) {
				if len(order) == 0 {
					rt.Skip()
				}
				port := rapid.SampledFrom(order).Draw(rt, "port")
				r := refOf(port)
				if len(order) > budget-budget/4 && t.Entry(r).Proto == packet.ProtoUDP && t.Entry(r).Expires != now+pol.Timeouts[UDPOneWay]/4 {
					i := slices.Index(order, port)
					order = append(slices.Delete(order, i, i+1), port)
				}
				track(r, Forward)
			},
			"answer": func(rt *rapid.T) {
				if len(order) == 0 || t.Entry(refOf(order[0])).Proto != packet.ProtoUDP {
					rt.Skip()
				}
				track(refOf(order[0]), Reply)
				order = order[1:]
			},
			"a tick": func(*rapid.T) { now++ },
			"": func(rt *rapid.T) {
				var got []uint16
				for r := t.OldestHalfOpen(); r != 0; r = Ref(t.half[r].next) {
					got = append(got, client(r))
				}
				if !slices.Equal(got, order) {
					rt.Fatalf("%v, want %v", got, order)
				}
				if err := t.Audit(); err != nil {
					rt.Fatal(err)
				}
			},
		})
	})
}

// plainDatagram does with a datagram what a caller of Answered and Unanswered does,
// and reports whether it is plain.
func plainDatagram(t *Table, r Ref, d Dir, now uint32, to *Timeouts) bool {
	e, timeout := t.Entry(r), to[UDPTwoWay]
	if !e.Answered() {
		if !t.Unanswered(e, d) {
			return false
		}
		timeout = to[UDPOneWay]
	}
	if !e.CanPutOff(now + timeout) {
		return false
	}
	e.Expires = now + timeout
	return true
}
