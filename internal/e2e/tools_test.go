package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Programs of others, because our own clients and servers might share a habit.

// TestNginxCurl fetches pages from nginx with curl, one process a request.
func TestNginxCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Fatalf("curl is not installed (apt-get install curl): %v", err)
	}
	top := testbed.Up(t, testbed.TopologyOptions{})
	for i, ns := range top.Servers {
		var listen []netip.AddrPort
		for _, f := range testbed.Families {
			listen = append(listen, netip.AddrPortFrom(top.ServerAddr(f, i), testbed.PortHTTP))
		}
		p, err := testbed.StartNginx(t.Context(), ns, t.TempDir(), ns.Role(), listen...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
	}
	for _, d := range []struct{ side, device string }{{"client", "c0"}, {"server", "lb"}} {
		ns := top.Client
		if d.side == "server" {
			ns = top.Switch
		}
		sniff(t, ns, d.device, testbed.SnifferOptions{Direction: testbed.Incoming})
	}
	for _, mode := range []string{fullNAT, dnat} {
		t.Run(mode, func(t *testing.T) {
			d := program{}.start(t, top.LB, top.Config(testbed.Services(0, mode, "", "rr")))
			for _, f := range testbed.Families {
				by := make(map[string]int)
				for range 10 {
					url := fmt.Sprintf("http://%s/", netip.AddrPortFrom(top.VIP(f, 0), testbed.VIPPortHTTP))
					out, err := top.Client.Command(t.Context(), curl, "-sS", "--max-time", "30", url).Output()
					if err != nil {
						t.Fatal(err)
					}
					var reply testbed.HTTPReply
					if err := json.Unmarshal(out, &reply); err != nil {
						t.Fatalf("%v: %s", err, out)
					}
					by[reply.Server]++
					if peer := reply.Remote.Addr(); mode == fullNAT && !top.IsLocal(peer) || mode == dnat && peer != top.ClientAddr(f, 0) {
						t.Errorf("nginx saw %s", peer)
					}
				}
				if by["rs1"] != 5 || by["rs2"] != 5 {
					t.Errorf("%s: by server %v", f, by)
				}
			}
			d.stop()
		})
	}
}

// TestIperf3 has iperf3 push for a while over several connections; all of a
// client's go to one server, as iperf3 needs it.
func TestIperf3(t *testing.T) {
	const port = 5201
	top := testbed.Up(t, testbed.TopologyOptions{Queues: 2})
	var services []testbed.Service
	for _, f := range testbed.Families {
		services = append(services, testbed.Service{Name: "iperf3-" + f.String(), Family: f, Port: port, BackendPort: port,
			Protocol: "tcp", Mode: fullNAT, ClientAddress: "toa", Scheduler: "sh"})
		for i, ns := range top.Servers {
			p, err := testbed.StartIperf3(t.Context(), ns, netip.AddrPortFrom(top.ServerAddr(f, i), port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.Kill)
		}
	}
	seconds := 10
	if testing.Short() {
		seconds = 1
	}
	sniff(t, top.Switch, "lb", testbed.SnifferOptions{Direction: testbed.Incoming, Every: 100})
	sniff(t, top.Client, "c0", testbed.SnifferOptions{Direction: testbed.Incoming, Every: 100})
	d := program{args: []string{"--workers", "2"}}.start(t, top.LB, top.Config(services))
	for _, f := range testbed.Families {
		res, err := testbed.RunIperf3(t.Context(), top.Client, netip.AddrPortFrom(top.VIP(f, 0), port), seconds, 4)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %+v", f, res)
		if res.ReceivedMbps <= 0 {
			t.Errorf("%s: nothing arrived", f)
		}
	}
	d.stop()
}
