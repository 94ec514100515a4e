package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// directScenes are those of a mode whose servers answer past l4fwd.
func directScenes(mode string, short bool) []scene {
	if short {
		return []scene{{false, 1, mode}, {true, 2, mode}}
	}
	return []scene{{false, 1, mode}, {false, 2, mode}, {true, 1, mode}, {true, 2, mode}}
}

// directNetwork has real servers that have a VIP of each family. In one-arm they
// answer the client on the link; in two-arm by the kernel under l4fwd, which routes.
func directNetwork(t *testing.T, s scene, ears testbed.SnifferOptions) *rig {
	t.Helper()
	r := network(t, testbed.TopologyOptions{OneArm: s.oneArm, Queues: s.workers, ServerVIPs: 1}, ears)
	if err := r.Forwarding(!s.oneArm); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestDirectReturn: TCP and UDP in both families. Servers see the client itself at
// the VIP, and answer past l4fwd.
func TestDirectReturn(t *testing.T) {
	for _, s := range directScenes(dsrL2, testing.Short()) {
		t.Run(s.String(), func(t *testing.T) {
			z := load()
			r := directNetwork(t, s, testbed.SnifferOptions{Every: z.sampled})
			d := r.start(s)
			r.warmUp()
			before := d.stats()
			for _, f := range testbed.Families {
				t.Run(f.String()+"/http", func(t *testing.T) { r.http(t, s, f) })
				t.Run(f.String()+"/udp", func(t *testing.T) { r.echo(t, s, f) })
				t.Run(f.String()+"/bulk", func(t *testing.T) {
					tr := testbed.Transfer{To: r.vip(f, 0, testbed.PortHash), Up: z.bytes, Down: z.bytes, Seed: 1}
					if _, err := tr.Run(t.Context(), r.Client); err != nil {
						t.Fatal(err)
					}
				})
			}
			r.checkPast(d, before)
			r.checkAddresses(s.mode)
			r.checkTOA(s)
			d.stop()
		})
	}
}

// checkPast: l4fwd has lost nothing, and seen no answer.
func (r *rig) checkPast(d *daemon, before stats) {
	r.t.Helper()
	after := d.stats()
	if diff := cmp.Diff(map[string]uint64{}, after.drops(before)); diff != "" {
		r.t.Errorf("drops (-want +got)\n%s", diff)
	}
	if n := after.Verdicts["replied"] + after.Verdicts["passed"]; n > 0 || after.Verdicts["forwarded"] == before.Verdicts["forwarded"] {
		r.t.Errorf("%v", after.Verdicts)
	}
}

// TestDirectPathMTU: path MTU discovery works past l4fwd in both directions. What a
// router on the way to the client says to the VIP reaches the server that sent, by
// whatever worker; what does not fit the way to the server the client hears of from
// the VIP.
func TestDirectPathMTU(t *testing.T) {
	for _, row := range []narrowing{
		{name: "download, a router before the client", workers: 2},
		{name: "upload, l4fwd's way to the server", upload: true, lb: true, workers: 1},
	} {
		t.Run(fmt.Sprintf("%s/%d workers", row.name, row.workers), func(t *testing.T) { row.past(t) })
	}
}

// past uses both families.
func (row narrowing) past(t *testing.T) {
	const mtu = 1400
	r := directNetwork(t, scene{true, row.workers, dsrL2}, testbed.SnifferOptions{Every: 20})
	at := r.routeClient()
	toClient := &router{r: r, ns: r.Topology.Servers[0], host: r.ServerDevs[0]}
	for _, f := range testbed.Families {
		outer := at.outer.Addr(f)
		toClient.route(r.ServerDevs[0], whole(outer), netip.Addr{}, netip.Addr{}, 0)
		toClient.route(r.ServerDevs[0], whole(r.ClientAddr(f, 0)), outer, netip.Addr{}, 0)
		if row.upload {
			toClient.route(r.LBServer, whole(r.ServerAddr(f, 0)), netip.Addr{}, netip.Addr{}, mtu)
		}
	}
	from := at
	if !row.upload {
		at.narrowHost(mtu)
		from = toClient
	}
	ear := &sender{}
	ear.ear = sniff(t, from.host.NS, from.host.Name, testbed.SnifferOptions{Every: 20, Watch: ear.watch})
	d := r.startWith(scene{true, row.workers, dsrL2}, 1, 0)
	r.warmUp(1, 0)
	for _, f := range testbed.Families {
		from.forgetPaths()
		k := kind{dsrL2, f, f, 0, ""}
		t.Run(f.String(), func(t *testing.T) { path{k, row, mtu}.discover(t, r, ear) })
	}
	if n := d.stats().Verdicts["replied"]; n > 0 {
		t.Errorf("%d answers seen", n)
	}
	d.stop()
}

// TestDirectResetUnseen: a server resets connections, which l4fwd does not see, and
// the client uses its port again at once: the SYN in the middle of what l4fwd takes for
// a living flow reaches the server that the flow has.
func TestDirectResetUnseen(t *testing.T) {
	r := directNetwork(t, scene{true, 2, dsrL2}, testbed.SnifferOptions{})
	met := make(chan int, 1) // who accepted
	all := testbed.Services(0, dsrL2, "", "rr")
	for _, f := range testbed.Families {
		at := r.vip(f, 0, portPair)
		all = append(all, testbed.Service{Name: "reset-" + f.String(), Family: f, Port: portPair, BackendPort: portPair,
			Protocol: "tcp", Mode: dsrL2, Scheduler: "rr"})
		for i, ns := range r.Topology.Servers {
			l, err := ns.Listen("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					_, _ = c.Read(make([]byte, 1))
					_ = c.(*net.TCPConn).SetLinger(0)
					_ = c.Close()
					met <- i
				}
			}()
		}
	}
	d := program{args: []string{"--workers", "2"}}.start(t, r.LB, r.Config(all))
	r.warmUp()
	for _, f := range testbed.Families {
		opened, first := d.stats().Opened, -1
		self := netip.AddrPortFrom(r.ClientAddr(f, 0), 0)
		for i := range 10 {
			dialer := r.Client.Dialer(5 * time.Second)
			dialer.LocalAddr = net.TCPAddrFromAddrPort(self)
			c, err := dialer.Dial("tcp", r.vip(f, 0, portPair).String())
			if err != nil {
				t.Fatalf("%s, connection %d from %s: %v", f, i, self, err)
			}
			self = endsOf(c).self
			if _, err = c.Write([]byte{1}); err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			if who := <-met; first < 0 {
				first = who
			} else if who != first {
				t.Errorf("%s, connection %d: at server %d, the first was at %d", f, i, who, first)
			}
			if !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("%s, connection %d: %v, want a reset", f, i, err)
			}
			_ = c.Close()
		}
		d.until("the flow to be counted", func(s stats) bool { return s.Opened > opened })
		if n := d.stats().Opened - opened; n != 1 {
			t.Errorf("%s: %d flows", f, n)
		}
	}
	d.stop()
}
