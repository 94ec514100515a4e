package packet

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAccessors(t *testing.T) {
	type facts struct {
		Src, Dst string // outer
		TTL      uint8
		DF       bool
		IPLen    int
		VLAN     uint16
		Tagged   bool
		ICMP     uint8
	}
	for _, c := range []struct {
		name string
		want facts
	}{
		{"tcp4", facts{"198.51.100.7", "192.0.2.10", 64, true, 40, 0, false, 1}},
		{"tcp4 padded by ethernet", facts{"198.51.100.7", "192.0.2.10", 64, false, 40, 0, false, 1}},
		{"tcp4 vlan", facts{"198.51.100.7", "192.0.2.10", 64, false, 40, 0x6064, true, 1}},
		{"tcp6", facts{"2001:db8::7", "2001:db8::10", 64, true, 60, 0, false, 58}},
		{"icmp4 unreachable tcp", facts{"10.0.0.1", "192.0.2.10", 64, false, 56, 0, false, 1}},
		{"icmp6 too big tcp", facts{"2001:db8::1", "2001:db8::10", 64, true, 96, 0, false, 58}},
		{"ns unicast vlan", facts{"2001:db8::7", "2001:db8::10", 255, true, 64, 0x6064, true, 58}},
	} {
		frame := caseFrame(t, c.name)
		var p Packet
		Parse(frame, &p)
		src, dst := p.OuterAddrs(frame)
		tci, tagged := p.VLAN(frame)
		got := facts{src.String(), dst.String(), p.TTL(frame), p.DontFragment(frame), p.IPLen(), tci, tagged, p.ICMPProto()}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func TestFragment(t *testing.T) {
	for _, c := range []struct {
		name  string
		want  Fragment
		tuple Tuple
		ok    bool
	}{
		{"fragment4 first", Fragment{ID: 0xbeef, More: true}, tuple4, true},
		{"fragment4 later", Fragment{ID: 0xbeef, Offset: 24}, Tuple{}, false},
		{"fragment4 icmp first", Fragment{ID: 0xbeef, More: true}, Tuple{}, false},
		{"fragment6 first", Fragment{ID: 0xc0ffee, More: true}, dns6, true},
		{"fragment6 later", Fragment{ID: 0xc0ffee, Offset: 32}, Tuple{}, false},
		{"fragment6 of options", Fragment{ID: 0xc0ffee, More: true}, Tuple{}, false},
	} {
		frame := caseFrame(t, c.name)
		var p Packet
		Parse(frame, &p)
		if got := p.Fragment(frame); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
		if got, ok := p.FirstFragmentTuple(frame); got != c.tuple || ok != c.ok {
			t.Errorf("%s: %+v %v, want %+v %v", c.name, got, ok, c.tuple, c.ok)
		}
	}
	frame := caseFrame(t, "tcp4")
	var p Packet
	if Parse(frame, &p); p.Kind != KindTCP {
		t.Fatal(p.Kind)
	}
	if _, ok := p.FirstFragmentTuple(frame); ok {
		t.Error("a whole datagram is a first fragment")
	}
}

func TestAddr(t *testing.T) {
	for _, s := range []string{"0.0.0.0", "192.0.2.10", "255.255.255.255", "::", "::1", "2001:db8::10", "::fffe:c000:20a"} {
		n := netip.MustParseAddr(s)
		a := AddrFrom(n)
		if a.Netip() != n || a.String() != s || a.Is4() != n.Is4() || a.IsZero() != (s == "::") {
			t.Errorf("%s: %v %v %v", s, a, a.Is4(), a.IsZero())
		}
		var b [16]byte
		if a.Put16(b[:]); Addr16(b[:]) != a {
			t.Errorf("%s: Put16 % x", s, b)
		}
		if !a.Is4() {
			continue
		}
		var q [4]byte
		if a.Put4(q[:]); q != n.As4() || Addr4(q[:]) != a || a.V4() != uint32(q[0])<<24|uint32(q[1])<<16|uint32(q[2])<<8|uint32(q[3]) {
			t.Errorf("%s: Put4 % x", s, q)
		}
	}
	if AddrFrom(netip.MustParseAddr("::ffff:192.0.2.10")) != AddrFrom(netip.MustParseAddr("192.0.2.10")) {
		t.Error("mapped and plain differ")
	}
}
