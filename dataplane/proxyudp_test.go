package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// proxyUDPSpec has UDP services with PROXY headers: IPv4, IPv6, NAT64, and one of
// which every datagram gets a flow.
func proxyUDPSpec() Spec {
	spec := testSpec()
	spec.Services = nil
	for _, s := range []struct{ vip, backend string }{
		{"192.0.2.15:5000", "10.0.1.20:5000"},
		{"[2001:db8::15]:5000", "[2001:db8:1::20]:5000"},
		{"[2001:db8::64]:5000", "10.0.1.20:5064"},
		{"192.0.2.16:53", "10.0.1.20:53"},
	} {
		svc := service(s.vip, s.vip, packet.ProtoUDP, conntrack.FullNAT, false, s.backend)
		svc.Proxy = nat.ProxyV2
		svc.OnePacket = s.vip == "192.0.2.16:53"
		spec.Services = append(spec.Services, svc)
	}
	return spec
}

// proxyDatagram is the header of version 2 that a client's datagram has to bear, as
// HAProxy's specification has it.
func proxyDatagram(client, vip string) []byte {
	c, v := endpoint(client, packet.ProtoUDP), endpoint(vip, packet.ProtoUDP)
	h := []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x12\x00\x0c")
	if !c.Addr.Is4() {
		h = []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x22\x00\x24")
	}
	h = append(append(h, c.Addr.Netip().AsSlice()...), v.Addr.Netip().AsSlice()...)
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(h, c.Port), v.Port)
}

// data is what a UDP packet carries.
func data(p gopacket.Packet) []byte { return p.Layer(layers.LayerTypeUDP).(*layers.UDP).Payload }

// TestProxyUDP: a flow's first datagram bears the header and no other does, unless
// each has a flow of its own; replies are as the server sent them.
func TestProxyUDP(t *testing.T) {
	for _, c := range []struct {
		client, vip string
		noCsum, all bool
	}{
		{client: "198.51.100.7:40000", vip: "192.0.2.15:5000"},
		{client: "198.51.100.7:40001", vip: "192.0.2.15:5000", noCsum: true},
		{client: "[2001:db8:c::7]:40000", vip: "[2001:db8::15]:5000"},
		{client: "[2001:db8:c::7]:40000", vip: "[2001:db8::64]:5000"},
		{client: "198.51.100.7:40000", vip: "192.0.2.16:53", all: true},
	} {
		for _, size := range []int{0, 1, 9, 500} {
			t.Run(fmt.Sprint(c.vip, c.noCsum, size), func(t *testing.T) {
				r := newRig(t, 2, proxyUDPSpec())
				want := proxyDatagram(c.client, c.vip)
				frame := build(t, seg{src: c.client, dst: c.vip, udp: true, payload: size, noCsum: c.noCsum})
				body := make([]byte, size) // as build has it; short frames are padded
				for i := range body {
					body[i] = byte(i*7 + 1)
				}
				var local, server string
				for i := range 3 {
					p := verify(t, r.one(i%2, 0, 1, frame))
					src, dst := ipOf(p)
					u := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
					local, server = hostPort(src.String(), uint16(u.SrcPort)), hostPort(dst.String(), uint16(u.DstPort))
					if i == 0 || c.all {
						if !bytes.Equal(u.Payload, append(bytes.Clone(want), body...)) {
							t.Fatalf("datagram %d: %q\nwant %q and %d bytes", i, u.Payload, want, size)
						}
					} else if !bytes.Equal(u.Payload, body) {
						t.Fatalf("datagram %d: %q", i, u.Payload)
					}
					if int(u.Length) != 8+len(u.Payload) || c.noCsum != (u.Checksum == 0) {
						t.Errorf("length %d for %d bytes, checksum %#x", u.Length, len(u.Payload), u.Checksum)
					}
				}
				answer := build(t, seg{src: server, dst: local, udp: true, payload: 33})
				if got := data(verify(t, r.one(1, 1, 0, answer))); !bytes.Equal(got, answer[len(answer)-33:]) {
					t.Errorf("answered %q", got)
				}
			})
		}
	}
}

// mayFragment clears DF.
func mayFragment(f []byte) []byte {
	f[14+6] &^= 0x40
	binary.BigEndian.PutUint16(f[14+10:], 0)
	binary.BigEndian.PutUint16(f[14+10:], packet.Checksum(f[14:34], 0))
	return f
}

// TestProxyUDPTooBig: a first datagram that the header makes too big is refused with
// the size that would do, and the next has the header; without DF it goes in pieces.
func TestProxyUDPTooBig(t *testing.T) {
	const client, vip = "198.51.100.7:40000", "192.0.2.15:5000"
	want := proxyDatagram(client, vip)
	fits := 1500 - 28 - len(want)
	t.Run("DF", func(t *testing.T) {
		r := newRig(t, 1, proxyUDPSpec())
		for _, size := range []int{fits + 1, 1472} {
			out := r.deliver(0, 0, build(t, seg{src: client, dst: vip, udp: true, payload: size}))
			if len(out) != 1 || out[0].nic != 0 {
				t.Fatalf("%d bytes: %+v", size, out)
			}
			icmp := verify(t, out[0].bytes).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
			if icmp.TypeCode != layers.CreateICMPv4TypeCode(3, 4) || int(icmp.Seq) != 1500-len(want) {
				t.Errorf("%d bytes: %v, MTU %d", size, icmp.TypeCode, icmp.Seq)
			}
		}
		got := data(verify(t, r.one(0, 0, 1, build(t, seg{src: client, dst: vip, udp: true, payload: fits}))))
		if !bytes.HasPrefix(got, want) || len(got) != len(want)+fits {
			t.Errorf("%d bytes, %q...", len(got), got[:40])
		}
	})
	t.Run("without DF", func(t *testing.T) {
		r := newRig(t, 1, proxyUDPSpec())
		frame := mayFragment(build(t, seg{src: client, dst: vip, udp: true, payload: 1472}))
		var all []byte
		for i, f := range r.deliver(0, 0, frame) {
			ip := gopacket.NewPacket(f.bytes, layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeIPv4).(*layers.IPv4)
			if int(ip.FragOffset)*8 != len(all) || ip.Length > 1500 {
				t.Errorf("piece %d of %d bytes at %d, want %d", i, ip.Length, ip.FragOffset*8, len(all))
			}
			all = append(all, ip.Payload...)
		}
		if len(all) != 8+len(want)+1472 || !bytes.Equal(all[8:8+len(want)], want) || !bytes.Equal(all[8+len(want):], frame[len(frame)-1472:]) {
			t.Errorf("%d bytes: %q...", len(all), all[:min(40, len(all))])
		}
		src, dst := r.dp.Workers[0].snap.Directory.Locals[0], r.dp.Workers[0].snap.Directory.Backends[0].Addr
		if len(all) > 0 {
			got := data(verify(t, r.one(0, 0, 1, build(t, seg{src: client, dst: vip, udp: true, payload: 3}))))
			if len(got) != 3 {
				t.Errorf("the next has %d bytes", len(got))
			}
			sum := packet.Checksum(all, packet.PseudoSum(src, dst, packet.ProtoUDP, len(all)))
			other := packet.Checksum(all, packet.PseudoSum(r.dp.Workers[0].snap.Directory.Locals[1], dst, packet.ProtoUDP, len(all)))
			if sum != 0 && other != 0 {
				t.Errorf("the whole datagram's checksum is wrong by %#x", sum)
			}
		}
	})
}

// TestProxyUDPFragments: what comes in fragments cannot bear the header, and need not
// later.
func TestProxyUDPFragments(t *testing.T) {
	const client, vip = "198.51.100.7:40000", "192.0.2.15:5000"
	r := newRig(t, 1, proxyUDPSpec())
	pieces := cut(build(t, seg{src: client, dst: vip, udp: true, payload: 900}), 7, 400)
	r.refused(0, 0, DropFragmentProxy, pieces[0])
	r.deliver(0, 0, build(t, seg{src: client, dst: vip, udp: true, payload: 3}))
	if out := r.deliver(0, 0, cut(build(t, seg{src: client, dst: vip, udp: true, payload: 900}), 8, 400)...); len(out) != len(pieces) {
		t.Errorf("%d of %d fragments went on", len(out), len(pieces))
	}
}

// TestProxyUDPAllocatesNothing, nor does anything that has no room bring it down.
func TestProxyUDPAllocatesNothing(t *testing.T) {
	r := newRig(t, 1, proxyUDPSpec())
	r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
	frames := make([][]byte, 400)
	for i := range frames {
		frames[i] = build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 2000+i), dst: "192.0.2.15:5000", udp: true, payload: 20})
	}
	n := 0
	if allocs := testing.AllocsPerRun(100, func() {
		r.port[0][0].Feed(frames[n:n+1], 1)
		n++
		r.dp.Workers[0].Poll(r.now)
	}); allocs != 0 {
		t.Errorf("%g allocations", allocs)
	}
}
