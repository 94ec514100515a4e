package why

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

var (
	nicMAC  = [6]byte{2, 0, 0, 0, 1, 0}
	peerMAC = [6]byte{2, 0, 0, 0, 0, 1}
)

func tcp(src, dst string) Packet {
	return Packet{Protocol: packet.ProtoTCP, Source: netip.MustParseAddrPort(src), Destination: netip.MustParseAddrPort(dst), Flags: packet.SYN, TTL: 64}
}

func build(t *testing.T, p Packet) []byte {
	t.Helper()
	f, err := p.Frame(nicMAC, peerMAC, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// What is built is what was asked for, with right checksums, by packet.Parse and by
// gopacket.
func TestFrame(t *testing.T) {
	udp := tcp("[2001:db8::7]:53000", "[2001:db8::10]:5300")
	udp.Protocol, udp.Payload = packet.ProtoUDP, 11
	ack := tcp("198.51.100.7:4000", "192.0.2.10:80")
	ack.Flags, ack.Seq, ack.Ack, ack.Payload = packet.ACK|packet.PSH, 7, 9, 1000
	for _, c := range []struct {
		p    Packet
		tag  uint16
		want string
	}{
		{tcp("198.51.100.7:4000", "192.0.2.10:80"), 0, "tcp 198.51.100.7:4000 > 192.0.2.10:80 [syn], 44 bytes"},
		{tcp("[::ffff:198.51.100.7]:4000", "192.0.2.10:80"), 5, "tcp 198.51.100.7:4000 > 192.0.2.10:80 [syn], 44 bytes"},
		{ack, 0, "tcp 198.51.100.7:4000 > 192.0.2.10:80 [psh,ack], 1040 bytes"},
		{udp, 0x6005, "udp [2001:db8::7]:53000 > [2001:db8::10]:5300, 59 bytes"},
	} {
		f, err := c.p.Frame(nicMAC, peerMAC, c.tag, c.tag != 0)
		if err != nil {
			t.Fatal(err)
		}
		var p packet.Packet
		if packet.Parse(f, &p) != packet.ErrNone || !packet.VerifyL4(f, &p) || !packet.VerifyIPv4(f, &p) {
			t.Errorf("%s: %v, or a wrong checksum", c.want, p.Err)
		}
		if tci, tagged := p.VLAN(f); tagged != (c.tag != 0) || tci&0xefff != c.tag&0xefff {
			t.Errorf("%s: tag %#x, want %#x", c.want, tci, c.tag)
		}
		if e := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default).ErrorLayer(); e != nil {
			t.Errorf("%s: %v", c.want, e.Error())
		}
		if got := Describe(f); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
	for name, p := range map[string]Packet{
		"families": tcp("198.51.100.7:4000", "[2001:db8::1]:80"), "port": tcp("198.51.100.7:0", "192.0.2.10:80"),
		"zone": tcp("[fe80::1%x]:1", "[2001:db8::1]:80"), "nothing": {},
		"protocol": {Source: netip.MustParseAddrPort("1.2.3.4:1"), Destination: netip.MustParseAddrPort("1.2.3.4:2")},
		"payload":  {Protocol: packet.ProtoUDP, Source: netip.MustParseAddrPort("1.2.3.4:1"), Destination: netip.MustParseAddrPort("1.2.3.4:2"), Payload: 70000},
	} {
		if _, err := p.Frame(nicMAC, peerMAC, 0, false); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestParseFlags(t *testing.T) {
	for s, want := range map[string]uint8{"syn": packet.SYN, "SYN, ack": packet.SYN | packet.ACK, "none": 0, "fin,rst,psh,urg,ece,cwr": 0xed} {
		if got, err := ParseFlags(s); err != nil || got != want {
			t.Errorf("%s: %#x %v, want %#x", s, got, err, want)
		}
		if back, err := ParseFlags(flags(want)); err != nil || back != want {
			t.Errorf("%#x is %q, which is read as %#x (%v)", want, flags(want), back, err)
		}
	}
	for _, s := range []string{"", "up", "syn,,ack"} {
		if _, err := ParseFlags(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

// Every change has a line, and what is alike has none; a tunnel is one.
func TestCompare(t *testing.T) {
	before := build(t, tcp("198.51.100.7:4000", "192.0.2.10:80"))
	p := tcp("10.0.1.10:1025", "10.0.1.20:8080")
	p.TTL, p.Seq = 63, 99
	want := []Change{
		{"source", "198.51.100.7:4000", "10.0.1.10:1025"}, {"destination", "192.0.2.10:80", "10.0.1.20:8080"},
		{"TTL", "64", "63"}, {"sequence", "0", "99"},
	}
	if d := cmp.Diff(want, Compare(before, build(t, p))); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if got := Compare(before, before); got != nil {
		t.Errorf("to itself: %v", got)
	}
	if got := Compare(before[:20], before); got != nil {
		t.Errorf("of what is no packet: %v", got)
	}
	for kind, name := range map[nat.Encapsulation]string{nat.IPIP: "ipip", nat.GRE: "gre", nat.GUE: "udp", nat.FOU: "udp", nat.VXLAN: "udp"} {
		after := wrapped(t, kind, before)
		got := Compare(before, after)
		if len(got) != 1 || got[0].Field != "tunnel" || len(got[0].After) < len(name) || got[0].After[:len(name)] != name {
			t.Errorf("%v: %+v", kind, got)
		}
	}
}

// wrapped is a frame in a tunnel.
func wrapped(t *testing.T, kind nat.Encapsulation, frame []byte) []byte {
	t.Helper()
	chunk := make([]byte, 2048)
	off := copy(chunk[256:], frame)
	var p packet.Packet
	packet.Parse(frame, &p)
	tunnel := nat.Tunnel{Kind: kind, Port: 6080}
	outer := nat.Outer{Src: packet.AddrFrom(netip.MustParseAddr("10.0.1.1")), Dst: packet.AddrFrom(netip.MustParseAddr("10.0.1.20"))}
	start, ok := tunnel.Encapsulate(chunk, 256+packet.EthLen, 256+off, &p, &outer)
	if !ok {
		t.Fatal(kind)
	}
	out := append([]byte(nil), chunk[start-packet.EthLen:256+off]...)
	copy(out, frame[:packet.EthLen])
	return out
}

// Other packets than TCP and UDP in words.
func TestDescribe(t *testing.T) {
	ping := []byte{2, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 198, 51, 100, 7, 192, 0, 2, 10, 8, 0, 0, 0, 0, 1, 0, 1}
	later := append([]byte(nil), ping...)
	later[20+1], later[23] = 3, 17
	arp := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 198, 51, 100, 7, 0, 0, 0, 0, 0, 0, 192, 0, 2, 10}
	inner := build(t, tcp("192.0.2.10:80", "198.51.100.7:4000"))[14:]
	unreachable := append(append([]byte(nil), ping[:34]...), 3, 4, 0, 0, 0, 0, 5, 0)
	unreachable = append(unreachable, inner...)
	unreachable[17] = byte(28 + len(inner))
	gre := append([]byte(nil), ping...)
	gre[23] = 47
	for want, f := range map[string][]byte{
		"ping 198.51.100.7 > 192.0.2.10":                            ping,
		"fragment of udp 198.51.100.7 > 192.0.2.10 at 24, 28 bytes": later,
		"ARP request of 198.51.100.7 for 192.0.2.10":                arp,
		"gre 198.51.100.7 > 192.0.2.10, 28 bytes":                   gre,
		"ICMP fragmentation needed (MTU 1280) 198.51.100.7 > 192.0.2.10 about tcp 192.0.2.10:80 > 198.51.100.7:4000": unreachable,
		"13 bytes that are no packet: truncated": ping[:13],
	} {
		if got := Describe(f); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// Whatever the bytes are, there is a word for them and no panic.
func FuzzDescribe(f *testing.F) {
	p := tcp("198.51.100.7:4000", "192.0.2.10:80")
	frame, err := p.Frame(nicMAC, peerMAC, 0, false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame, frame)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if Describe(a) == "" {
			t.Error("no word")
		}
		Compare(a, b)
	})
}
