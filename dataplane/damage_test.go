package dataplane

import (
	"bytes"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/packet"
)

// errorTo is an ICMP "port unreachable" from a router on the servers' side about a
// packet that went out to them.
func errorTo(t *testing.T, local string, about []byte) []byte {
	t.Helper()
	return serialize(t, &layers.Ethernet{SrcMAC: serverMAC[:], DstMAC: nicMAC[1][:], EthernetType: layers.EthernetTypeIPv4},
		&layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: []byte{10, 0, 1, 1}, DstIP: addr(local).Netip().AsSlice()},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 3)}, gopacket.Payload(about[14:]))
}

// TestDamagedHeaderEndsHere: NAT64 takes away the IPv4 header and its checksum
// with it, so what that checksum finds wrong goes no further.
func TestDamagedHeaderEndsHere(t *testing.T) {
	r := newRig(t, 1, testSpec())
	c := r.open(0, "[2001:db8:c::7]:40000", "[2001:db8::64]:80")
	q := verify(t, r.one(0, 0, 1, build(t, seg{src: "[2001:db8:c::7]:40000", dst: "[2001:db8::64]:5000", udp: true, payload: 30})))
	src, dst := ipOf(q)
	u := q.Layer(layers.LayerTypeUDP).(*layers.UDP)
	local, backend := hostPort(src.String(), uint16(u.SrcPort)), hostPort(dst.String(), uint16(u.DstPort))
	for _, tt := range []struct {
		name  string
		frame []byte
	}{
		{"TCP", build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10})},
		{"UDP", build(t, seg{src: backend, dst: local, udp: true, payload: 10})},
		{"UDP without checksum", build(t, seg{src: backend, dst: local, udp: true, noCsum: true, payload: 10})},
		{"ICMP error", errorTo(t, src.String(), q.Data())},
	} {
		t.Run(tt.name, func(t *testing.T) {
			flips := map[string]int{"identification": packet.IPv4ID, "checksum": packet.IPv4Checksum, "type of service": packet.IPv4TOS}
			for field, at := range flips {
				bad := bytes.Clone(tt.frame)
				bad[14+at] ^= 0x55
				t.Log(field)
				r.refused(0, 1, DropIPChecksum, bad)
			}
			r.one(0, 1, 0, tt.frame)
		})
	}
	// Where the header stays, its checksum takes the damage along.
	c = r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	bad := build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10})
	bad[14+packet.IPv4ID] ^= 0x55
	out := r.deliver(0, 1, bad)
	var p packet.Packet
	if len(out) != 1 || packet.Parse(out[0].bytes, &p) != packet.ErrNone || packet.VerifyIPv4(out[0].bytes, &p) {
		t.Errorf("%d frames, or repaired", len(out))
	}
}

// TestDamagedStrayIsNotReset: a segment with a wrong checksum is answered by
// nobody, and costs no token.
func TestDamagedStrayIsNotReset(t *testing.T) {
	spec := testSpec()
	spec.Services[0].ResetStray = true
	r := newRig(t, 1, spec)
	for _, c := range []struct {
		name, src, dst string
		nic            int
	}{
		{"client's", "198.51.100.7:40000", "192.0.2.10:80", 0},
		{"server's", "10.0.1.20:8080", "10.0.1.10:5001", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			good := build(t, seg{src: c.src, dst: c.dst, ack: true, seq: 5, ackNum: 77, payload: 9})
			for _, at := range []int{len(good) - 1, 14 + 20 + packet.TCPAck, 14 + packet.IPv4ID} {
				bad := bytes.Clone(good)
				bad[at] ^= 0x55
				for range 2 * refusalBurst {
					r.refused(0, c.nic, DropNoFlow, bad)
				}
			}
			r.answered(0, c.nic, c.nic, DropNoFlow, good)
		})
	}
}

// uoaFrame is a client's packet with IPv4 options of type 31 as DPVS writes them.
func uoaFrame(t *testing.T, dst string, proto layers.IPProtocol, transport ...byte) []byte {
	t.Helper()
	forged := []byte{0, 1, 10, 9, 8, 7}
	return serialize(t, &layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: nicMAC[0][:], EthernetType: layers.EthernetTypeIPv4},
		&layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: []byte{198, 51, 100, 7}, DstIP: addr(dst).Netip().AsSlice(),
			Options: []layers.IPv4Option{
				{OptionType: 7, OptionLength: 8, OptionData: []byte{4, 0, 0, 0, 0, 0}}, // record route stays
				{OptionType: 31, OptionLength: 8, OptionData: forged},
				{OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1},
				{OptionType: 31, OptionLength: 8, OptionData: forged},
			}}, gopacket.Payload(transport))
}

// TestForgedUOA: what DPVS tells servers by is no client's to say.
func TestForgedUOA(t *testing.T) {
	r := newRig(t, 1, testSpec())
	udp := []byte{0x0f, 0xa0, 0x13, 0x88, 0, 12, 0, 0, 'd', 'a', 't', 'a'}
	syn := append([]byte{0x0f, 0xa0, 0, 80, 0, 0, 0, 5, 0, 0, 0, 0, 0x50, packet.SYN, 0xff, 0xff}, 0, 0, 0, 0)
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"UDP, Full-NAT", uoaFrame(t, "192.0.2.10", layers.IPProtocolUDP, udp...)},
		{"UDP, DNAT", uoaFrame(t, "192.0.2.11", layers.IPProtocolUDP, udp...)},
		{"TCP", uoaFrame(t, "192.0.2.10", layers.IPProtocolTCP, syn...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 2 { // the flow's first packet, and a later one
				out := r.deliver(0, 0, c.frame)
				if len(out) != 1 || out[0].nic != 1 {
					t.Fatalf("%d frames", len(out))
				}
				f := out[0].bytes
				var p packet.Packet
				if packet.Parse(f, &p) != packet.ErrNone || !packet.VerifyIPv4(f, &p) {
					t.Fatalf("header checksum\n% x", f)
				}
				want := append([]byte{7, 8, 4, 0, 0, 0, 0, 0}, bytes.Repeat([]byte{1}, 20)...)
				if got := f[14+20 : p.L4]; !bytes.Equal(got, want) {
					t.Errorf("options % x, want % x", got, want)
				}
			}
		})
	}
	// The same as a header of its own, between IP and UDP.
	opp := append([]byte{0x10, 17, 0, 12, 31, 8, 0, 1, 10, 9, 8, 7}, udp...)
	for _, vip := range []string{"192.0.2.10", "192.0.2.11"} {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: 248, SrcIP: []byte{198, 51, 100, 7}, DstIP: addr(vip).Netip().AsSlice()}
		r.refused(0, 0, DropUnsupported, serialize(t,
			&layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: nicMAC[0][:], EthernetType: layers.EthernetTypeIPv4}, ip, gopacket.Payload(opp)))
	}
	for _, vip := range []string{"2001:db8::10", "2001:db8::64"} {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: 248, SrcIP: addr("2001:db8:c::7").Netip().AsSlice(), DstIP: addr(vip).Netip().AsSlice()}
		r.refused(0, 0, DropUnsupported, serialize(t,
			&layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: nicMAC[0][:], EthernetType: layers.EthernetTypeIPv6}, ip, gopacket.Payload(opp)))
	}
}
