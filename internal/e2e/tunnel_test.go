package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// tunnelServices are web, hash and echo at the first VIPs of both families, before
// servers that are met by their addresses of one family.
func (r *rig) tunnelServices(wr wrapping, outer testbed.Family, weights ...int) []testbed.Service {
	all := testbed.Services(0, tunnel, "", "wrr", weights...)
	for i := range all {
		s := &all[i]
		s.Address, s.Family = r.VIP(s.Family, 0), outer
		s.Extra = strings.TrimSuffix("encapsulation: "+wr.name+"\n    "+wr.extra, "\n    ")
	}
	return all
}

// TestTunnel: TCP and UDP in both families through every encapsulation, over either
// family, unwrapped by the kernel, by this test and by l4fwd itself. Servers see the
// client itself at the VIP, and answer past l4fwd.
func TestTunnel(t *testing.T) {
	short := testing.Short()
	for k, s := range directScenes(tunnel, short) {
		t.Run(s.String(), func(t *testing.T) {
			r := directNetwork(t, s, testbed.SnifferOptions{Every: 20})
			for i, wr := range wrappings {
				if !short && i > 0 && (i+k)%2 == 1 { // all but VXLAN in every other scene
					continue
				}
				for o, outer := range testbed.Families {
					if short && k != o {
						continue
					}
					if !short || i == 0 || i%2 == k {
						t.Run(fmt.Sprintf("%s in %s", wr.name, outer), func(t *testing.T) {
							for i, ns := range r.Topology.Servers {
								wr.unwrap(t, ns, r.ServerDevs[i], outer)
							}
							r.throughTunnel(t, s, wr, outer)
						})
					}
					if wr.name != "vxlan" && (!short || i%2 != k) {
						t.Run(fmt.Sprintf("%s in %s, rs decap", wr.name, outer), func(t *testing.T) {
							for i := range r.Topology.Servers {
								wr.byRS(t, r, i)
							}
							r.throughTunnel(t, s, wr, outer)
						})
					}
				}
			}
			r.checkAddresses(s.mode)
		})
	}
}

func (r *rig) throughTunnel(t *testing.T, s scene, wr wrapping, outer testbed.Family) {
	d := program{args: []string{"--workers", fmt.Sprint(s.workers)}}.start(t, r.LB, r.Config(r.tunnelServices(wr, outer, weights...)))
	r.warmUp()
	before := d.stats()
	for _, f := range testbed.Families {
		t.Run(f.String()+"/http", func(t *testing.T) { r.http(t, s, f) })
		t.Run(f.String()+"/udp", func(t *testing.T) { r.echo(t, s, f) })
	}
	r.checkPast(d, before)
	size := load().bytes
	if wr.name != "vxlan" { // which the test unwraps itself
		size = min(size, 10<<20)
	}
	for _, f := range testbed.Families {
		t.Run(f.String()+"/bulk", func(t *testing.T) {
			tr := testbed.Transfer{To: r.vip(f, 0, testbed.PortHash), Up: size, Down: size, Seed: 1}
			if _, err := tr.Run(t.Context(), r.Client); err != nil {
				t.Fatal(err)
			}
		})
	}
	// The client's kernel has to learn of the tunnel.
	drops := d.stats().drops(before)
	delete(drops, "too_big")
	if diff := cmp.Diff(map[string]uint64{}, drops); diff != "" {
		t.Errorf("drops (-want +got)\n%s", diff)
	}
	d.stop()
}

// tunnelRouted is a one-arm rig whose client and only real server in use are behind
// routers of their own, with a tunnel to that server.
func tunnelRouted(t *testing.T, wr wrapping, outer testbed.Family) (r *rig, client, server *router) {
	t.Helper()
	r = network(t, testbed.TopologyOptions{OneArm: true, Queues: 2, ServerVIPs: 1}, testbed.SnifferOptions{Every: 20})
	if err := r.Forwarding(true); err != nil {
		t.Fatal(err)
	}
	wr.unwrap(t, r.Topology.Servers[0], r.ServerDevs[0], outer)
	return r, r.routeClient(), r.routeServer()
}

// TestTunnelPathMTU: a client whose packets do not fit the way to the server together
// with the tunnel is told what does fit; with 1,400 bytes on that way, too.
func TestTunnelPathMTU(t *testing.T) {
	const mtu = 1400
	row := narrowing{name: "upload, l4fwd's way to the server", upload: true, lb: true, workers: 2}
	for i, wr := range wrappings[:2] {
		outer := testbed.Families[i]
		if testing.Short() && i > 0 {
			break
		}
		t.Run(fmt.Sprintf("%s in %s", wr.name, outer), func(t *testing.T) {
			r, client, server := tunnelRouted(t, wr, outer)
			server.narrowLB(mtu)
			ear := &sender{}
			ear.ear = sniff(t, client.host.NS, client.host.Name, testbed.SnifferOptions{Every: 20, Watch: ear.watch})
			d := program{args: []string{"--workers", fmt.Sprint(row.workers)}}.start(t, r.LB, r.Config(r.tunnelServices(wr, outer, 1, 0)))
			r.warmUp(1, 0)
			for _, f := range testbed.Families {
				client.forgetPaths()
				k := kind{tunnel, f, f, 0, ""}
				t.Run(f.String(), func(t *testing.T) { path{k, row, mtu - wr.size[i]}.discover(t, r, ear) })
			}
			d.stop()
		})
	}
}

// forgeTooBig has a host tell l4fwd that a packet in a tunnel of UDP was too big, which
// nobody has sent.
func (r *rig) forgeTooBig(t *testing.T, from *testbed.Namespace, wr wrapping, outer testbed.Family) {
	t.Helper()
	lb, server := r.LBServer.Addr(outer), r.ServerAddr(outer, 0)
	head := make([]byte, wr.size[0]-28)
	within := &layers.IPv4{Version: 4, TTL: 60, Protocol: layers.IPProtocolTCP, SrcIP: r.ClientAddr(testbed.V4, 0).AsSlice(), DstIP: r.VIP(testbed.V4, 0).AsSlice()}
	tcp := gopacket.Payload{0x17, 0x70, 0, 80, 1, 2, 3, 4}
	udp := &layers.UDP{SrcPort: 50000, DstPort: layers.UDPPort(wr.port)}
	var ls []gopacket.SerializableLayer
	network := "ip4:icmp"
	if outer == testbed.V4 {
		ip := &layers.IPv4{Version: 4, TTL: 60, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolUDP, SrcIP: lb.AsSlice(), DstIP: server.AsSlice()}
		_ = udp.SetNetworkLayerForChecksum(ip)
		ls = append(ls, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: 600}, ip)
	} else {
		network = "ip6:ipv6-icmp"
		ip := &layers.IPv6{Version: 6, HopLimit: 60, NextHeader: layers.IPProtocolUDP, SrcIP: lb.AsSlice(), DstIP: server.AsSlice()}
		_ = udp.SetNetworkLayerForChecksum(ip)
		ls = append(ls, gopacket.Payload{2, 0, 0, 0, 0, 0, 5, 0}, ip)
	}
	b := gopacket.NewSerializeBuffer()
	o := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(b, o, append(ls, udp, gopacket.Payload(head), within, tcp)...); err != nil {
		t.Fatal(err)
	}
	c, err := from.ListenPacket(network, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.WriteTo(b.Bytes(), &net.IPAddr{IP: lb.AsSlice()}); err != nil {
		t.Fatal(err)
	}
}

// TestTunnelLearnsPathMTU: the router before the server is the narrowest, which l4fwd
// learns from its ICMP errors about the tunnel's packets, and tells the client. Of one
// about a packet that it has not sent it believes nothing.
func TestTunnelLearnsPathMTU(t *testing.T) {
	const mtu = 1400
	size := int64(10 << 20)
	if !testing.Short() {
		size = 100 << 20
	}
	for i, wr := range []wrapping{wrappings[0], wrappings[3]} {
		outer := testbed.Families[i]
		if testing.Short() && i == 0 {
			continue
		}
		t.Run(fmt.Sprintf("%s in %s", wr.name, outer), func(t *testing.T) {
			r, client, server := tunnelRouted(t, wr, outer)
			server.narrowHost(mtu)
			d := program{args: []string{"--workers", "2"}}.start(t, r.LB, r.Config(r.tunnelServices(wr, outer, 1, 0)))
			r.warmUp(1, 0)
			r.forgeTooBig(t, server.host.NS, wr, outer)
			for _, f := range testbed.Families {
				client.forgetPaths()
				tr := testbed.Transfer{To: r.vip(f, 0, testbed.PortHash), Up: size, Down: 1000}
				res, err := tr.Run(t.Context(), r.Client)
				if err != nil {
					t.Fatalf("%s: %v", f, err)
				}
				t.Logf("%s: %d MiB in %s", f, size>>20, res.Duration)
				k := kind{tunnel, f, f, 0, ""}
				r.checkLearned(t, path{k, narrowing{upload: true}, mtu}, r.VIP(f, 0), mtu-wr.size[i])
			}
			d.stop()
		})
	}
}
