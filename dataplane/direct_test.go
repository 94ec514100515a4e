package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

// directBackends are on-link neighbours, each with a MAC address of its own.
var directBackends = []string{"10.0.1.20", "10.0.1.21", "2001:db8:1::20", "2001:db8:1::21"}

func macOf(backend int) [6]byte { return [6]byte{2, 0, 0, 0, 2, byte(backend)} }

// directSpec has services of dsr-l2, and one whose backend is behind a router.
func directSpec() Spec {
	const dsr = conntrack.DirectReturn
	return Spec{Seed: 1, Services: []ServiceSpec{
		service("tcp4", "192.0.2.20:80", packet.ProtoTCP, dsr, false, "10.0.1.20:80", "10.0.1.21:80"),
		service("udp4", "192.0.2.20:5000", packet.ProtoUDP, dsr, false, "10.0.1.20:5000", "10.0.1.21:5000"),
		service("tcp6", "[2001:db8::20]:80", packet.ProtoTCP, dsr, false, "[2001:db8:1::20]:80", "[2001:db8:1::21]:80"),
		service("udp6", "[2001:db8::20]:5000", packet.ProtoUDP, dsr, false, "[2001:db8:1::20]:5000", "[2001:db8:1::21]:5000"),
		service("far", "192.0.2.21:80", packet.ProtoTCP, dsr, false, "10.0.5.20:80"),
	}}
}

// directRoutes leads to each backend by a hop of its own, and to 10.0.5.0/24 by the
// first one as a router.
func directRoutes(gen uint32, mtu int) *route.Table {
	hops := []route.Hop{{}, route.NewHop(0, clientMAC, nicMAC[0], 0, 1500)}
	peers := make([]route.Peer, 2)
	list := []route.Prefix{
		{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Hop: 1}, {Prefix: netip.MustParsePrefix("2001:db8:c::/64"), Hop: 1},
		{Prefix: netip.MustParsePrefix("10.0.5.0/24"), Hop: 2},
	}
	for i, s := range directBackends {
		a := netip.MustParseAddr(s)
		list = append(list, route.Prefix{Prefix: netip.PrefixFrom(a, a.BitLen()), Hop: route.HopID(len(hops))})
		hops = append(hops, route.NewHop(1, macOf(i), nicMAC[1], 0, mtu))
		peers = append(peers, route.Peer{Addr: packet.AddrFrom(a)})
	}
	return route.New(gen, hops, list).WithPeers(peers)
}

func newDirectRig(t testing.TB, workers int) *rig {
	r := newRigWith(t, workers, directSpec(), func(o *Options) { o.UMEM = make([]byte, workers*1024*testFrame) })
	r.dp.PublishRoutes(directRoutes(2, 1500))
	return r
}

// toBackend delivers a client's frame, which has to leave as from a router, with no other
// change, and returns to which backend.
func (r *rig) toBackend(worker int, frame []byte) int {
	r.t.Helper()
	out := r.one(worker, 0, 1, frame)
	if !bytes.Equal(out[12:14], frame[12:14]) || !bytes.HasPrefix(out[14:], routed(frame)) {
		r.t.Fatalf("sent\n%x\ngot\n%x", frame, out)
	}
	if [6]byte(out[6:]) != nicMAC[1] {
		r.t.Fatalf("sent from %x", out[6:12])
	}
	for i := range directBackends {
		if [6]byte(out) == macOf(i) {
			return i
		}
	}
	r.t.Fatalf("sent to %x", out[:6])
	return 0
}

// directKinds are clients and VIPs of each service.
var directKinds = []struct {
	name, client, vip string
	udp               bool
}{
	{"tcp4", "198.51.100.7:%d", "192.0.2.20:80", false},
	{"udp4", "198.51.100.7:%d", "192.0.2.20:5000", true},
	{"tcp6", "[2001:db8:c::7]:%d", "[2001:db8::20]:80", false},
	{"udp6", "[2001:db8:c::7]:%d", "[2001:db8::20]:5000", true},
}

// TestDirect: a client's packets reach one backend each flow, whatever worker they
// come to, with nothing changed but MAC addresses and TTL.
func TestDirect(t *testing.T) {
	for _, k := range directKinds {
		for workers := 1; workers <= 3; workers += 2 {
			t.Run(fmt.Sprintf("%s/%d", k.name, workers), func(t *testing.T) {
				r := newDirectRig(t, workers)
				met := map[int]int{}
				const flows = 30
				for n := range flows {
					s := seg{src: fmt.Sprintf(k.client, 4000+n), dst: k.vip, udp: k.udp, ttl: 2, syn: !k.udp, seq: 1000}
					to := r.toBackend(n%workers, build(t, s))
					met[to]++
					s.syn, s.ack, s.seq, s.ackNum, s.payload, s.ttl = false, !k.udp, 1001, 9001, 300, 7
					for w := range workers {
						if again := r.toBackend(w, build(t, s)); again != to {
							t.Fatalf("flow %d goes to backend %d, then to %d", n, to, again)
						}
					}
				}
				c := r.counts()
				if len(met) != 2 || c.Opened != flows || c.Verdicts[Forwarded] != uint64(flows*(1+workers)) || c.Drops() != 0 {
					t.Errorf("%v; %+v", met, c)
				}
				r.answered(0, 0, 0, DropTTL, build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: k.vip, udp: k.udp, ack: true, seq: 1301, ttl: 1}))
			})
		}
	}
}

// TestDirectFreshSYN: a client uses its port again after a reset of the server's
// that nobody here saw. The SYN goes to the same backend, and so does what follows,
// whether it belongs to the new connection or to the old one; where the backend takes
// no new flows it keeps those it has until they have been silent for long, or a moment
// after a FIN.
func TestDirectFreshSYN(t *testing.T) {
	r := newDirectRig(t, 1)
	g := NewRegistry(1)
	publish := func(weights ...uint32) {
		spec := directSpec()
		for i, w := range weights {
			spec.Services[0].Backends[i].Weight = w
		}
		snap, err := g.Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		r.dp.Publish(snap)
	}
	publish(1)
	const client, vip = "198.51.100.7:4000", "192.0.2.20:80"
	say := func(s seg) int { s.src, s.dst = client, vip; return r.toBackend(0, build(t, s)) }
	state := func() conntrack.State { return r.dp.Workers[0].table.Entry(1).State }
	first := say(seg{syn: true, seq: 1000})
	say(seg{ack: true, seq: 1001, ackNum: 1})
	for round := range uint32(3) {
		if first != 0 {
			t.Fatal("another first backend")
		}
		isn := 5_000_000 * (round + 1)
		for _, s := range []seg{
			{syn: true, seq: isn}, {ack: true, seq: isn + 1, ackNum: 7}, {ack: true, seq: isn + 1, ackNum: 7, payload: 100},
		} {
			if to := say(s); to != first {
				t.Fatalf("round %d: to backend %d", round, to)
			}
		}
		if state() != conntrack.Established {
			t.Errorf("round %d: %v", round, state())
		}
	}
	say(seg{ack: true, fin: true, seq: 15_000_101, ackNum: 7})
	if state() != conntrack.Established { // a former one may be alive
		t.Errorf("%v", state())
	}
	publish(0)
	if to := say(seg{syn: true, seq: 77}); to != first {
		t.Errorf("a SYN among a drained backend's goes to %d", to)
	}
	r.now += int64(desertion/conntrack.TicksPerSecond+1) * int64(time.Second)
	other := say(seg{syn: true, seq: 78})
	if other != 1 {
		t.Fatal("after a long silence still to a backend that takes no flows")
	}
	// That one's connection ends, as far as that is seen, and its backend.
	say(seg{ack: true, seq: 79, ackNum: 7})
	say(seg{ack: true, fin: true, seq: 79, ackNum: 8})
	if state() != conntrack.FinWait {
		t.Errorf("%v", state())
	}
	publish(1, 0)
	if to := say(seg{syn: true, seq: 90_000}); to != other {
		t.Errorf("a SYN behind the FIN goes to %d", to)
	}
	r.now += int64(time.Second)
	if to := say(seg{syn: true, seq: 90_000}); to == other {
		t.Error("after its end still to a backend that takes no flows")
	}
	if c := r.counts(); c.Opened != 3 || c.Reopened != 2 || r.dp.Workers[0].Flows() != 1 {
		t.Errorf("%+v", c)
	}
}

// TestDirectErrors: an ICMP error of a router on the way to the client, about what
// the server has sent as the VIP, reaches that server as it is.
func TestDirectErrors(t *testing.T) {
	for _, k := range directKinds {
		t.Run(k.name, func(t *testing.T) {
			const workers = 3
			r := newDirectRig(t, workers)
			for n := range 10 {
				client := fmt.Sprintf(k.client, 4000+n)
				to := r.toBackend(0, build(t, seg{src: client, dst: k.vip, udp: k.udp, syn: !k.udp, seq: 1000}))
				answer := build(t, seg{src: k.vip, dst: client, udp: k.udp, ack: !k.udp, seq: 9001, ackNum: 1001, payload: 900})
				router := "203.0.113.9"
				if answer[14]>>4 == 6 {
					router = "2001:db8:ff::9"
				}
				for w := range workers {
					if got := r.toBackend(w, complaint(t, router, answer, 1300, 64)); got != to {
						t.Errorf("flow %d has backend %d, the error went to %d", n, to, got)
					}
				}
			}
			stranger := build(t, seg{src: k.vip, dst: fmt.Sprintf(k.client, 999), udp: k.udp, ack: !k.udp, seq: 9001})
			from := map[bool]string{true: "203.0.113.9", false: "2001:db8:ff::9"}[stranger[14]>>4 == 4]
			r.refused(0, 0, DropNoFlow, complaint(t, from, stranger, 1300, 64))
		})
	}
}

// TestDirectFragments: fragments follow the first, in any order and by any worker,
// as from a router.
func TestDirectFragments(t *testing.T) {
	const workers = 2
	for _, k := range directKinds {
		if !k.udp {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			r := newDirectRig(t, workers)
			for n := range uint32(12) {
				whole := build(t, seg{src: fmt.Sprintf(k.client, 4000+n), dst: k.vip, udp: true, payload: 3000})
				pieces := cut(freely(whole), 100+n, 1000)
				if n%3 == 1 { // the first comes last
					pieces = append(pieces[1:], pieces[0])
				}
				var out []sentFrame
				for i, f := range pieces {
					out = append(out, r.deliver(i%workers, 0, f)...)
				}
				if len(out) != len(pieces) {
					t.Fatalf("%d of %d pieces sent", len(out), len(pieces))
				}
				for _, f := range out {
					if [6]byte(f.bytes) != [6]byte(out[0].bytes) {
						t.Errorf("pieces for %x and %x", out[0].bytes[:6], f.bytes[:6])
					}
					found := false
					for _, p := range pieces {
						found = found || bytes.HasPrefix(f.bytes[14:], routed(p))
					}
					if !found {
						t.Errorf("changed: %x", f.bytes)
					}
				}
			}
			if c := r.counts(); c.Opened != 12 || c.Drops() != 0 {
				t.Errorf("%+v", c)
			}
		})
	}
}

// TestDirectRefuses: what cannot reach its backend, or must not.
func TestDirectRefuses(t *testing.T) {
	const client = "198.51.100.7:4000"
	t.Run("behind a router", func(t *testing.T) {
		r := newDirectRig(t, 1)
		r.refused(0, 0, DropOffLink, build(t, seg{src: client, dst: "192.0.2.21:80", syn: true}))
	})
	t.Run("sent by the backend", func(t *testing.T) {
		r := newDirectRig(t, 1)
		syn := seg{src: client, dst: "192.0.2.20:80", syn: true, seq: 1}
		to := r.toBackend(0, build(t, syn))
		syn.srcMAC = macOf(to)
		r.refused(0, 1, DropLoop, build(t, syn))
	})
	t.Run("from a VIP to a VIP", func(t *testing.T) {
		r := newDirectRig(t, 1)
		r.refused(0, 0, malformedNamed("martian_source"), build(t, seg{src: "192.0.2.21:80", dst: "192.0.2.20:80", syn: true}))
	})
	t.Run("a stray segment", func(t *testing.T) {
		r := newDirectRig(t, 1)
		r.refused(0, 0, DropNoFlow, build(t, seg{src: client, dst: "192.0.2.20:80", ack: true, seq: 1}))
	})
	t.Run("no neighbour", func(t *testing.T) {
		r := newDirectRig(t, 1)
		table := directRoutes(3, 1500)
		hops := append([]route.Hop(nil), table.Hops...)
		for i := 2; i < len(hops); i++ {
			hops[i].State = route.Unresolved
		}
		r.dp.PublishRoutes(table.WithHops(hops))
		r.refused(0, 0, DropNeighbour, build(t, seg{src: client, dst: "192.0.2.20:80", syn: true}))
	})
}

// TestDirectTooBig: what does not fit the way to the backend is told to the client, or
// divided if it may be.
func TestDirectTooBig(t *testing.T) {
	const mtu = 1300
	for _, k := range directKinds {
		t.Run(k.name, func(t *testing.T) {
			r := newDirectRig(t, 1)
			client := fmt.Sprintf(k.client, 4000)
			r.toBackend(0, build(t, seg{src: client, dst: k.vip, udp: k.udp, syn: !k.udp, seq: 1000}))
			r.dp.PublishRoutes(directRoutes(3, mtu))
			large := build(t, seg{src: client, dst: k.vip, udp: k.udp, ack: !k.udp, seq: 1001, payload: 1350})
			answer := r.answered(0, 0, 0, DropTooBig, large)
			if got := toldMTU(answer); got != mtu {
				t.Errorf("told %d", got)
			}
			if large[14]>>4 == 4 && k.udp {
				out := r.deliver(0, 0, freely(large))
				if len(out) != 2 || r.counts().Split != 1 {
					t.Fatalf("%d pieces", len(out))
				}
				f, id := whole(t, out)
				if !bytes.Equal(f[14:], routed(plainly(large))) || id != 0xbeef {
					t.Errorf("put together, id %x: %x", id, f)
				}
			}
		})
	}
}

// TestDirectFarewell: the server of a flow that has idled out hears of it, at the
// VIP; the client cannot be told in numbers that it believes.
func TestDirectFarewell(t *testing.T) {
	for _, k := range directKinds {
		if k.udp {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			r := newDirectRig(t, 1)
			client := fmt.Sprintf(k.client, 4000)
			to := r.toBackend(0, build(t, seg{src: client, dst: k.vip, syn: true, seq: 1000}))
			r.toBackend(0, build(t, seg{src: client, dst: k.vip, ack: true, seq: 1001, ackNum: 5, payload: 10}))
			r.sent = nil
			r.now += 3 * int64(time.Hour)
			for range 100 {
				r.step()
			}
			if len(r.sent) != 1 || r.sent[0].nic != 1 || [6]byte(r.sent[0].bytes) != macOf(to) {
				t.Fatalf("%+v", r.sent)
			}
			p := verify(t, r.sent[0].bytes)
			src, dst := ipOf(p)
			tcp := tcpOf(p)
			if hostPort(src.String(), uint16(tcp.SrcPort)) != client || hostPort(dst.String(), uint16(tcp.DstPort)) != k.vip ||
				!tcp.RST || tcp.ACK || tcp.Seq != 1011 {
				t.Errorf("%v", p)
			}
		})
	}
}

// TestDirectOnePacket: each datagram of a client has a backend of its own, and there
// is one flow of them at a time.
func TestDirectOnePacket(t *testing.T) {
	spec := directSpec()
	spec.Services[1].OnePacket = true
	r := newRig(t, 2, spec)
	r.dp.PublishRoutes(directRoutes(2, 1500))
	met := map[int]int{}
	for i := range 20 {
		met[r.toBackend(i%2, build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.20:5000", udp: true, payload: i}))]++
	}
	flows := 0
	for _, w := range r.dp.Workers {
		flows += w.Flows()
	}
	if met[0] != 10 || met[1] != 10 || flows != 1 {
		t.Errorf("%v, %d flows", met, flows)
	}
}

// TestDirectAllocatesNothing: neither opening a flow nor its packets do.
func TestDirectAllocatesNothing(t *testing.T) {
	r := newDirectRig(t, 1)
	w := r.dp.Workers[0]
	for _, p := range r.port[0] {
		p.OnSend = nil
	}
	n := uint16(5000)
	for _, k := range directKinds {
		frames := [][]byte{
			build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: k.vip, udp: k.udp, syn: !k.udp, seq: 1}),
			build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: k.vip, udp: k.udp, ack: !k.udp, seq: 2, payload: 100}),
		}
		if a := testing.AllocsPerRun(300, func() {
			n++
			for _, f := range frames { // another client each time
				binary.BigEndian.PutUint16(f[map[bool]int{true: 34, false: 54}[f[14]>>4 == 4]:], n)
			}
			r.port[0][0].Feed(frames, 1)
			w.Poll(r.now)
		}); a != 0 {
			t.Errorf("%s: %v allocations", k.name, a)
		}
	}
}

// TestDirectFlowsEndAsTheyBegan: a service becomes one of direct return, or ceases to
// be: flows that are open go on as they were.
func TestDirectFlowsEndAsTheyBegan(t *testing.T) {
	r := newDirectRig(t, 1)
	g := NewRegistry(1)
	was := directSpec()
	publish := func(mode conntrack.Mode) {
		spec := directSpec()
		spec.Services[1].Mode = mode
		spec = spec.after(was)
		snap, err := g.Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		was = spec
		r.dp.Publish(snap)
	}
	say := func(port int) (dst string, mac [6]byte) {
		f := r.one(0, 0, 1, build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", port), dst: "192.0.2.20:5000", udp: true}))
		_, to := ipOf(verify(t, f))
		return to.String(), [6]byte(f)
	}
	modes := []conntrack.Mode{conntrack.DirectReturn, conntrack.DNAT, conntrack.DirectReturn}
	met := map[int]string{}
	for i, mode := range modes {
		publish(mode)
		for port := range i + 1 {
			say(4000 + port) // which finds out the way
			dst, mac := say(4000 + port)
			if now := fmt.Sprint(dst, mac); port < i && now != met[port] {
				t.Errorf("flow %d went to %s, now to %s", port, met[port], now)
			} else {
				met[port] = now
			}
			if (dst == "192.0.2.20") != (modes[port] == conntrack.DirectReturn) {
				t.Errorf("flow %d, mode %d, goes to %s", port, modes[port], dst)
			}
		}
	}
}

// TestDirectBackendGone: a backend leaves the configuration. The client of a flow of
// its hears so by its next segment, which tells what number it believes, and the
// server when the flow ends.
func TestDirectBackendGone(t *testing.T) {
	r := newDirectRig(t, 1)
	g := NewRegistry(1)
	spec := directSpec()
	for range 2 {
		snap, err := g.Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		r.dp.Publish(snap)
		const client, vip = "198.51.100.7:4000", "192.0.2.20:80"
		if len(spec.Services[0].Backends) == 2 {
			r.toBackend(0, build(t, seg{src: client, dst: vip, syn: true, seq: 1000}))
			if to := r.toBackend(0, build(t, seg{src: client, dst: vip, ack: true, seq: 1001, ackNum: 7777})); to != 0 {
				t.Fatalf("backend %d", to)
			}
			spec.Services[0].Backends = spec.Services[0].Backends[1:]
			continue
		}
		r.deliver(0, 0, build(t, seg{src: client, dst: vip, ack: true, seq: 1001, ackNum: 7777, payload: 10}))
		r.now += int64(time.Second)
		for range 10 {
			r.step()
		}
		out := r.sent
		if len(out) != 2 || out[0].nic != 0 || out[1].nic != 1 || [6]byte(out[1].bytes) != macOf(0) {
			t.Fatalf("%+v", out)
		}
		back, on := tcpOf(verify(t, out[0].bytes)), tcpOf(verify(t, out[1].bytes))
		if !back.RST || back.Seq != 7777 || !on.RST || on.Seq != 1001 {
			t.Errorf("to the client %+v, to the server %+v", back, on)
		}
		if c := r.counts(); c.Verdicts[DropBackendGone] != 1 || c.Refusals != 2 || r.dp.Workers[0].Flows() != 0 {
			t.Errorf("%+v", c)
		}
	}
}
