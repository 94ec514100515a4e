package steer

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"
)

// scene is one random frame, before it is bytes.
type scene struct {
	mac          net.HardwareAddr
	tags         []uint16
	src, dst     netip.Addr
	proto        uint8
	sport, dport uint16
	frag         *shape
	quoted       *scene // the packet an ICMP error is about, or nil
}

// twin decides as slowly and plainly as doc.go says it.
func twin(r Rules, s *scene) Counter {
	has := func(list []netip.Addr, a netip.Addr) bool { return slices.Contains(list, a) }
	within := func(a netip.Addr, proto uint8, port uint16) bool {
		return (proto == 6 || proto == 17) && slices.ContainsFunc(r.LocalRanges, func(l RangeRule) bool {
			return l.Addr == a && l.Lo <= port && port <= l.Hi
		})
	}
	first := s.frag != nil && s.frag.off == 0
	later := s.frag != nil && s.frag.off != 0
	switch {
	case s.mac[0]&1 == 0 && s.mac.String() != nicMAC.String():
		return PassForeignMAC
	case len(s.tags) > 1, s.mac[0]&1 != 0:
		return PassOther
	case has(r.Addrs, s.dst) && twinLease(s) && !slices.Contains(r.Services, ServiceRule{s.dst, 17, 68}) && !within(s.dst, 17, 68):
		return PassOther
	case has(r.Addrs, s.dst):
		return TakeAddress
	case later:
		return twinLater(r, s)
	case s.quoted != nil && !first:
		q := s.quoted
		if q.frag != nil && q.frag.off != 0 {
			return PassOther
		}
		if q.src == s.dst && (slices.Contains(r.Services, ServiceRule{q.src, q.proto, q.sport}) || within(q.src, q.proto, q.sport)) {
			return TakeICMPError
		}
		if !has(r.HostAddrs, s.dst) && slices.Contains(r.Backends, ServiceRule{q.dst, q.proto, q.dport}) {
			return TakeICMPError
		}
	case s.quoted != nil:
	case slices.Contains(r.Services, ServiceRule{s.dst, s.proto, s.dport}):
		return TakeService
	case within(s.dst, s.proto, s.dport):
		return TakeRange
	case !has(r.HostAddrs, s.dst) && slices.Contains(r.Backends, ServiceRule{s.src, s.proto, s.sport}):
		return TakeReturn
	case first && twinReturning(r, s):
		return TakeReturn
	}
	return PassOther
}

// twinLease: what a DHCP server sends to the address that it offers.
func twinLease(s *scene) bool {
	return s.dst.Is4() && s.proto == 17 && s.frag == nil && s.sport == 67 && s.dport == 68
}

// twinReturning: fragments of a backend's protocol, whatever their ports.
func twinReturning(r Rules, s *scene) bool {
	return !slices.Contains(r.HostAddrs, s.dst) && slices.ContainsFunc(r.Backends, func(b ServiceRule) bool {
		return b.Addr == s.src && b.Proto == s.proto
	})
}

// twinLater: every datagram of the test has an id of its own, so no first
// fragment was ever seen.
func twinLater(r Rules, s *scene) Counter {
	if twinReturning(r, s) {
		return TakeReturn
	}
	if slices.ContainsFunc(r.Services, func(x ServiceRule) bool { return x.Addr == s.dst }) ||
		slices.ContainsFunc(r.LocalRanges, func(x RangeRule) bool { return x.Addr == s.dst }) {
		return PassFragment
	}
	return PassOther
}

func (s *scene) datagram(t testing.TB) datagram {
	d := datagram{src: s.src, dst: s.dst, proto: s.proto, payload: l4(s.sport, s.dport), frag: s.frag, mac: s.mac}
	if q := s.quoted; q != nil {
		typ := uint8(3)
		if !s.dst.Is4() {
			typ = 1
		}
		d.proto, d.payload = icmp(!s.dst.Is4(), typ, q.datagram(t).ip(t))
	}
	return d
}

// universe is small, so that rules and frames meet often. The last two are the
// first two as IPv6 addresses that an IPv4 rule must not match.
var universe = []netip.Addr{
	netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3"),
	netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::3"),
	netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.2"),
}

func drawRules(t *rapid.T) Rules {
	addr := rapid.SampledFrom(universe[:6])
	end := rapid.Custom(func(t *rapid.T) ServiceRule {
		return ServiceRule{addr.Draw(t, "addr"), rapid.SampledFrom([]uint8{6, 17}).Draw(t, "proto"), rapid.SampledFrom([]uint16{1, 2, 3, 4, 1, 2, 3, 4, 68}).Draw(t, "port")}
	})
	r := Rules{
		Services:  rapid.SliceOfN(end, 0, 6).Draw(t, "services"),
		Backends:  rapid.SliceOfN(end, 0, 6).Draw(t, "backends"),
		HostAddrs: rapid.SliceOfN(addr, 0, 4).Draw(t, "host"),
	}
	for _, a := range rapid.SliceOfN(addr, 0, 3).Draw(t, "ours") {
		if !slices.Contains(r.HostAddrs, a) {
			r.Addrs = append(r.Addrs, a)
		}
	}
	for _, a := range rapid.SliceOfNDistinct(addr, 0, 2, rapid.ID).Draw(t, "ranges") {
		lo := rapid.Uint16Range(1, 4).Draw(t, "lo")
		r.LocalRanges = append(r.LocalRanges, RangeRule{a, lo, rapid.SampledFrom([]uint16{lo, 5, 68}).Draw(t, "hi")})
	}
	return r
}

var lastID uint32

func drawScene(t *rapid.T, depth int) *scene {
	s := &scene{
		mac:   rapid.SampledFrom([]net.HardwareAddr{nicMAC, nicMAC, nicMAC, nicMAC, otherMAC, layers.EthernetBroadcast}).Draw(t, "mac"),
		tags:  rapid.SliceOfN(rapid.SampledFrom([]uint16{0x8100, 0x88a8}), 0, 2).Draw(t, "tags"),
		dst:   rapid.SampledFrom(universe).Draw(t, "dst"),
		proto: rapid.SampledFrom([]uint8{6, 6, 17, 17, 47}).Draw(t, "proto"),
		sport: rapid.Uint16Range(1, 5).Draw(t, "sport"),
		dport: rapid.Uint16Range(1, 5).Draw(t, "dport"),
	}
	lease := depth == 0 && rapid.IntRange(0, 9).Draw(t, "lease") == 0
	if lease {
		s.mac, s.dst = nicMAC, rapid.SampledFrom(universe[:4]).Draw(t, "lease's dst")
		s.proto = rapid.SampledFrom([]uint8{17, 17, 17, 6}).Draw(t, "lease's proto")
		s.sport = rapid.SampledFrom([]uint16{67, 67, 67, 66}).Draw(t, "lease's sport")
		s.dport = rapid.SampledFrom([]uint16{68, 68, 68, 69}).Draw(t, "lease's dport")
	}
	same := slices.DeleteFunc(slices.Clone(universe), func(a netip.Addr) bool { return a.Is4() != s.dst.Is4() })
	s.src = rapid.SampledFrom(same).Draw(t, "src")
	if rapid.IntRange(0, 3).Draw(t, "fragmented") == 0 {
		lastID++
		s.frag = &shape{off: 8 * rapid.Uint16Range(0, 2).Draw(t, "offset"), more: true, id: lastID % 0xffff}
	}
	if depth == 0 && !lease && rapid.IntRange(0, 2).Draw(t, "error") == 0 {
		q := drawScene(t, 1)
		for q.dst.Is4() != s.dst.Is4() {
			q = drawScene(t, 1)
		}
		if rapid.Bool().Draw(t, "answers") {
			q.src = s.dst
		}
		s.quoted, s.proto = q, 1
	}
	return s
}

// TestAgainstTwin compares the program with the twin on random rules, reached
// by random updates, and random frames; and the map with the rules.
func TestAgainstTwin(t *testing.T) {
	b := newBench(t, Options{})
	seen := make(map[Counter]int)
	leases := 0
	rapid.Check(t, func(rt *rapid.T) {
		r := drawRules(rt)
		if err := b.Update(r); err != nil {
			rt.Fatalf("Update: %v", err)
		}
		checkRules(t, b.Steer, r)
		// So many that every outcome below is among them: the rarest is one of some 200.
		for range 120 {
			s := drawScene(rt, 0)
			f := tagged(s.datagram(t).frame(t), s.tags...)
			want := twin(r, s)
			seen[want]++
			if want == PassOther && slices.Contains(r.Addrs, s.dst) && slices.Equal(s.mac, nicMAC) && len(s.tags) < 2 {
				leases++
			}
			checkDecide(rt, r, f, want)
			if got := b.outcome(t, f); got != want {
				rt.Fatalf("%s, want %s: %+v quoting %+v\nrules %+v", got, want, s, s.quoted, r)
			}
		}
	})
	for _, c := range []Counter{PassOther, PassForeignMAC, PassFragment, TakeAddress, TakeService, TakeRange, TakeReturn, TakeICMPError} {
		if seen[c] == 0 {
			t.Errorf("no random frame had the outcome %s", c)
		}
	}
	if leases == 0 {
		t.Error("no random frame was a DHCP server's answer that passes")
	}
	t.Log(fmt.Sprint(seen, leases))
}
