package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// fragments are a UDP datagram from one end to another, cut by hand. Each is a
// frame of its own.
func (r *rig) fragments(t *testing.T, from, to netip.AddrPort, payload []byte, id uint16) (out [][]byte) {
	t.Helper()
	u := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	eth := &layers.Ethernet{SrcMAC: r.ClientDev.MAC, DstMAC: r.LBClient.MAC, EthernetType: layers.EthernetTypeIPv4}
	ip4 := layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolUDP, Id: id,
		SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
	ip6 := layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolIPv6Fragment,
		SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
	var network gopacket.NetworkLayer = &ip4
	if from.Addr().Is6() {
		eth.EthernetType, network = layers.EthernetTypeIPv6, &ip6
	}
	if err := u.SetNetworkLayerForChecksum(network); err != nil {
		t.Fatal(err)
	}
	datagram := serialized(t, u, gopacket.Payload(payload))
	const size = 1208
	for at := 0; at < len(datagram); at += size {
		part := datagram[at:min(at+size, len(datagram))]
		more := at+size < len(datagram)
		if from.Addr().Is4() {
			ip := ip4
			ip.FragOffset = uint16(at / 8)
			if more {
				ip.Flags = layers.IPv4MoreFragments
			}
			out = append(out, serialized(t, eth, &ip, gopacket.Payload(part)))
			continue
		}
		head := []byte{17, 0, byte(at >> 8), byte(at), 0, 0}
		if more {
			head[3] |= 1
		}
		head = binary.BigEndian.AppendUint16(head, id)
		ip := ip6
		out = append(out, serialized(t, eth, &ip, gopacket.Payload(append(head, part...))))
	}
	return out
}

func serialized(t *testing.T, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(b.Bytes())
}

// TestFragmentsBackwards: a datagram whose last fragment comes first, and some
// twice, is answered as any; one with an overlap never reaches a server.
func TestFragmentsBackwards(t *testing.T) {
	for _, s := range []scene{{false, 2, fullNAT}, {false, 2, dnat}} {
		t.Run(s.String(), func(t *testing.T) {
			r := network(t, testbed.TopologyOptions{Queues: s.workers}, testbed.SnifferOptions{})
			d := r.start(s)
			r.warmUp()
			for _, f := range testbed.Families {
				t.Run(f.String(), func(t *testing.T) {
					before := d.stats()
					r.backwards(t, f)
					want := map[string]uint64{"fragment_duplicate": backwardDatagrams, "fragment_overlap": backwardDatagrams,
						"fragment_condemned": backwardDatagrams}
					// The last fragments of what is condemned may be another worker's.
					await(t, "all fragments to be counted", func() error {
						if diff := cmp.Diff(want, d.stats().drops(before)); diff != "" {
							return fmt.Errorf("drops (-want +got)\n%s", diff)
						}
						return nil
					})
				})
			}
			d.stop()
		})
	}
}

// backwardDatagrams is how many datagrams backwards sends.
const backwardDatagrams = 20

func (r *rig) backwards(t *testing.T, f testbed.Family) {
	to := r.vip(f, 0, testbed.PortEcho)
	c, err := r.Client.ListenPacket("udp", netip.AddrPortFrom(r.ClientAddr(f, 0), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	from := c.LocalAddr().(*net.UDPAddr).AddrPort()
	before := r.echoed()
	buf := make([]byte, 1<<16)
	for i := range backwardDatagrams {
		payload := bytes.Repeat([]byte{byte(i)}, 6000)
		frames := r.fragments(t, from, to, payload, uint16(1000+i))
		slices.Reverse(frames)
		frames = slices.Insert(frames, 1, frames[0])
		bad := r.fragments(t, from, to, bytes.Repeat([]byte("bad"), 1000), uint16(2000+i))
		second := r.fragments(t, from, to, bytes.Repeat([]byte("overlaps"), 200), uint16(2000+i))[1]
		if err := r.ClientDev.Inject(append([][]byte{bad[0], bad[1], second, bad[2]}, frames...)...); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
			t.Fatal(err)
		}
		n, peer, err := c.ReadFrom(buf)
		if err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
		if peer.String() != to.String() || !bytes.HasSuffix(buf[:n], payload) {
			t.Errorf("datagram %d: %d bytes of %s", i, n, peer)
		}
	}
	if n := r.echoed() - before; n != backwardDatagrams {
		t.Errorf("the servers have answered %d datagrams, want %d", n, backwardDatagrams)
	}
}

// echoed is how many datagrams all servers have answered.
func (r *rig) echoed() (n uint64) {
	for _, s := range r.servers {
		n += s.Counts().Echoes
	}
	return n
}
