package testbed

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/asavie/xdp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// TestAFXDPReachesPlainVeth: what an AF_XDP socket sends on a veth arrives at
// the peer's sockets, although the peer has neither an XDP program nor GRO: copy
// mode goes through the driver's ordinary transmit function.
func TestAFXDPReachesPlainVeth(t *testing.T) {
	a, b := pair(t, VethOptions{AddrsA: prefixes("10.9.0.1/24"), AddrsB: prefixes("10.9.0.2/24"), StaticNeighbours: true})
	l, err := b.NS.ListenPacket("udp", "10.9.0.2:4000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	s := sniff(t, b, SnifferOptions{Direction: Incoming})
	var sock *xdp.Socket
	err = a.NS.Do(func() (err error) {
		sock, err = xdp.NewSocket(a.Index, 0, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sock.Close() }()
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IPv4(10, 9, 0, 1).To4(), DstIP: net.IPv4(10, 9, 0, 2).To4()}
	udp := udpLayer(ip)
	udp.DstPort = 4000
	payload := bytes.Repeat([]byte("l4"), 400)
	f := build(t, &layers.Ethernet{SrcMAC: a.MAC, DstMAC: b.MAC, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(payload))
	descs := sock.GetDescs(1)
	descs[0].Len = uint32(copy(sock.GetFrame(descs[0]), f))
	if n := sock.Transmit(descs); n != 1 {
		t.Fatalf("transmitted %d", n)
	}
	buf := make([]byte, 2048)
	if err := l.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	n, from, err := l.ReadFrom(buf)
	if err != nil || !bytes.Equal(buf[:n], payload) || from.String() != "10.9.0.1:1000" {
		t.Errorf("%d bytes from %v, %v", n, from, err)
	}
	r, err := s.Stop()
	if err != nil || r.UDP != 1 || r.Bad != 0 || !s.Saw(netip.MustParseAddr("10.9.0.1")) {
		t.Errorf("%+v, %v", r, err)
	}
}
