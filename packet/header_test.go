package packet

import (
	"encoding/binary"
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
		name string
		want Fragment
	}{
		{"fragment4 first", Fragment{ID: 0xbeef, More: true}},
		{"fragment4 later", Fragment{ID: 0xbeef, Offset: 24}},
		{"fragment4 icmp first", Fragment{ID: 0xbeef, More: true}},
		{"fragment6 first", Fragment{ID: 0xc0ffee, More: true}},
		{"fragment6 later", Fragment{ID: 0xc0ffee, Offset: 32}},
		{"fragment6 of options", Fragment{ID: 0xc0ffee, More: true}},
	} {
		frame := caseFrame(t, c.name)
		var p Packet
		Parse(frame, &p)
		if got := p.Fragment(frame); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// TestFirstFragment: what is read of a first fragment is what is read of the
// whole datagram, or it is refused.
func TestFirstFragment(t *testing.T) {
	const more = 0x2000
	head6 := func(proto, body string) []byte { return eth6(ip6(fwd6, 44, proto+"00 0001 00c0ffee"+body)) }
	for _, c := range []struct {
		name  string
		frame []byte
		want  Err
	}{
		{"tcp4", eth4(ip4(fwd4, 6, more, "", ack+"61626364")), ErrNone},
		{"tcp4, options", eth4(ip4(fwd4, 6, more, "", "c001 0050 01020304 0a0b0c0d 6010 ffff 1234 0000 0101 0101")), ErrNone},
		{"tcp4, options in the next", eth4(ip4(fwd4, 6, more, "", "c001 0050 01020304 0a0b0c0d 7010 ffff 1234 0000 0101 0101")), ErrTinyFragment},
		{"tcp4, offset 4", eth4(ip4(fwd4, 6, more, "", "c001 0050 01020304 0a0b0c0d 4010 ffff 1234 0000 0101 0101")), ErrTCPOffset},
		{"tcp6", head6("06", ack+"61626364"), ErrNone},
		{"udp4, longer than the fragment", eth4(ip4(fwd4, 17, more, "", "c001 0035 1f48 1234 6162 6364 6566 6768")), ErrNone},
		{"udp4, no checksum", eth4(ip4(fwd4, 17, more, "", "c001 0035 1f48 0000")), ErrNone},
		{"udp4, short length", eth4(ip4(fwd4, 17, more, "", "c001 0035 0007 1234")), ErrUDPLength},
		{"udp6", head6("11", "c001 0035 1f48 1234 6162 6364 6566 6768"), ErrNone},
		{"udp6, no checksum", head6("11", "c001 0035 1f48 0000"), ErrUDPZeroChecksum},
		{"udp4, land", eth4(ip4("c6336407 c6336407", 17, more, "", "0035 0035 1f48 1234")), ErrLand},
	} {
		var got, want Packet
		if e := Parse(c.frame, &got); e != ErrNone || got.Kind != KindFragment {
			t.Fatalf("%s: %v, kind %d", c.name, e, got.Kind)
		}
		whole := with(c.frame, EthLen+IPv4Frag, "0000")
		if got.V6 {
			whole = with(c.frame, EthLen+IPv6Len+2, "0000")
		}
		if got.Proto == ProtoUDP {
			binary.BigEndian.PutUint16(whole[got.L4+UDPLength:], got.End-got.L4)
		}
		if e := got.FirstFragment(c.frame); e != c.want {
			t.Errorf("%s: %v, want %v", c.name, e, c.want)
		}
		if c.want != ErrNone {
			if got.Kind != KindFragment {
				t.Errorf("%s: refused, kind %d", c.name, got.Kind)
			}
			continue
		}
		Parse(whole, &want)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
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
