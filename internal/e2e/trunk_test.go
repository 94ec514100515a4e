package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// tags judges what leaves l4fwd's namespace by a trunk: every frame has one tag, that of
// the VLAN in which its receiver is.
type tags struct {
	at map[[6]byte]uint16 // VLANs by MAC address

	mu    sync.Mutex
	seen  map[uint16]int // frames by VLAN
	asks  map[uint16]int // of them, ARP, neighbour advertisements and solicitations
	told  map[announced]int
	wrong []string
}

// announced is an address that somebody has told all of a VLAN of, unasked.
type announced struct {
	addr netip.Addr
	vlan uint16
}

func newTags(r *testbed.Topology) *tags {
	g := &tags{at: map[[6]byte]uint16{[6]byte(r.ClientDev.MAC): testbed.VLANClient}, seen: map[uint16]int{}, asks: map[uint16]int{}, told: map[announced]int{}}
	for _, d := range r.ServerDevs {
		g.at[[6]byte(d.MAC)] = testbed.VLANServer
	}
	return g
}

func (g *tags) watch(frame []byte, _ bool) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	var found []*layers.Dot1Q
	var about netip.Addr
	asks := false
	for _, l := range p.Layers() {
		switch l := l.(type) {
		case *layers.Dot1Q:
			found = append(found, l)
		case *layers.ARP:
			if asks = true; bytes.Equal(l.SourceProtAddress, l.DstProtAddress) {
				about, _ = netip.AddrFromSlice(l.SourceProtAddress)
			}
		case *layers.ICMPv6NeighborAdvertisement:
			if asks = true; frame[0]&1 != 0 {
				about, _ = netip.AddrFromSlice(l.TargetAddress)
			}
		case *layers.ICMPv6NeighborSolicitation:
			asks = true
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	say := func(format string, args ...any) {
		if len(g.wrong) < 10 {
			g.wrong = append(g.wrong, fmt.Sprintf(format, args...)+fmt.Sprintf(": % x", frame[:min(len(frame), 60)]))
		}
	}
	if len(found) != 1 {
		say("%d tags", len(found))
		return
	}
	vlan := found[0].VLANIdentifier
	want, known := g.at[[6]byte(frame)]
	switch group := frame[0]&1 != 0; {
	case !known && !group:
		say("to nobody")
	case known && vlan != want, vlan != testbed.VLANClient && vlan != testbed.VLANServer:
		say("VLAN %d", vlan)
	case binary.BigEndian.Uint16(frame[14:])>>12 != 0:
		say("a priority")
	}
	g.seen[vlan]++
	if asks {
		g.asks[vlan]++
	}
	if about.IsValid() {
		g.told[announced{about, vlan}]++
	}
}

// check fails the test for what was wrong, if one of the VLANs was not used, and unless
// VIPs, which are in no network of the host's, were announced in both, and the servers'
// neighbours in theirs.
func (g *tags) check(t *testing.T, r *testbed.Topology, locals bool) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range g.wrong {
		t.Error(w)
	}
	if len(g.seen) != 2 || g.asks[testbed.VLANClient] == 0 || g.asks[testbed.VLANServer] == 0 {
		t.Errorf("frames by VLAN %v, of them ARP and ND %v", g.seen, g.asks)
	}
	for _, f := range testbed.Families {
		for _, vlan := range []uint16{testbed.VLANClient, testbed.VLANServer} {
			if g.told[announced{r.VIP(f, 0), vlan}] == 0 {
				t.Errorf("VIP %s not announced in VLAN %d", r.VIP(f, 0), vlan)
			}
			if n := g.told[announced{r.LocalAddr(f, 1), vlan}]; (n > 0) != (locals && vlan == testbed.VLANServer) {
				t.Errorf("local address %s announced in VLAN %d %d times", r.LocalAddr(f, 1), vlan, n)
			}
		}
	}
}

// trunked is a rig whose only device is a trunk. Clients find VIPs by ARP and ND where
// servers have none.
func trunked(t *testing.T, workers int, direct bool) (*rig, *tags) {
	t.Helper()
	o := testbed.TopologyOptions{OneArm: true, Trunk: true, Queues: workers, VIPs: testbed.VIPOnLink}
	if direct {
		o.ServerVIPs = 1
	}
	r := network(t, o, testbed.SnifferOptions{Every: load().sampled})
	// The kernel under l4fwd routes what servers answer past it.
	if err := r.Forwarding(direct); err != nil {
		t.Fatal(err)
	}
	g := newTags(r.Topology)
	r.sniff(r.Switch, "lb", testbed.SnifferOptions{Direction: testbed.Incoming, Watch: g.watch})
	return r, g
}

// snat is the mode of trunk scenes with both of DNAT's halves.
const snat = "snat"

// trunkScenes are all modes; a part of them, each with another number of workers.
func trunkScenes(short bool) (out []scene) {
	for i, mode := range []string{fullNAT, dnat, dsrL2, tunnel, snat} {
		for workers := 1; workers <= 2; workers++ {
			if !short || i%2 == workers%2 {
				out = append(out, scene{true, workers, mode})
			}
		}
	}
	return out
}

// TestTrunk: one arm on two VLANs of one NIC, with tags that l4fwd itself reads and
// writes: TCP and UDP in both families, in all modes.
func TestTrunk(t *testing.T) {
	for _, s := range trunkScenes(testing.Short()) {
		t.Run(fmt.Sprintf("%d-workers/%s", s.workers, s.mode), func(t *testing.T) {
			direct := s.mode == dsrL2 || s.mode == tunnel
			r, g := trunked(t, s.workers, direct)
			var d *daemon
			switch s.mode {
			case tunnel:
				wr, outer := wrappings[3], testbed.V6
				if s.workers == 2 { // VXLAN, of which the servers' kernel is the judge
					wr, outer = wrappings[0], testbed.V4
				}
				for i, ns := range r.Topology.Servers {
					if wr.name == "vxlan" {
						wr.unwrap(t, ns, r.ServerDevs[i], outer)
					} else {
						wr.byRS(t, r, i)
					}
				}
				d = program{args: []string{"--workers", fmt.Sprint(s.workers)}}.start(t, r.LB, r.Config(r.tunnelServices(wr, outer, weights...)))
			case snat:
				s.mode = dnat // as clients and servers see it
				d = program{args: []string{"--workers", fmt.Sprint(s.workers)}}.start(t, r.LB, r.Config(halves(weights...)))
			default:
				d = r.start(s)
			}
			r.warmUp()
			for _, f := range testbed.Families {
				if _, err := r.Client.Ping(r.VIP(f, 0), 56, limit); err != nil {
					t.Error(err)
				}
				if s.mode != fullNAT { // nobody has local addresses
					continue
				}
				if _, err := r.Topology.Servers[0].Ping(r.LocalAddr(f, 0), 56, limit); err != nil {
					t.Error(err)
				}
			}
			before := d.stats()
			for _, f := range testbed.Families {
				t.Run(f.String()+"/http", func(t *testing.T) { r.http(t, s, f) })
				t.Run(f.String()+"/udp", func(t *testing.T) { r.echo(t, s, f) })
			}
			if direct {
				r.checkPast(d, before)
			} else if diff := cmp.Diff(map[string]uint64{}, d.stats().drops(before)); diff != "" {
				t.Errorf("drops (-want +got)\n%s", diff)
			}
			// A tunnel's clients may have to learn its MTU first.
			for _, f := range testbed.Families {
				t.Run(f.String()+"/bulk", func(t *testing.T) {
					size := min(load().bytes, 100<<20)
					tr := testbed.Transfer{To: r.vip(f, 0, testbed.PortHash), Up: size, Down: size, Seed: 1}
					if _, err := tr.Run(t.Context(), r.Client); err != nil {
						t.Fatal(err)
					}
				})
			}
			r.checkAddresses(s.mode)
			r.checkTOA(s)
			d.stop()
			g.check(t, r.Topology, s.mode == fullNAT)
		})
	}
}
