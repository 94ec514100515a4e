package e2e

import (
	"fmt"
	"math"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// scene is one row of the matrix: l4fwd in one network in one mode. Families
// and protocols are tested in each.
type scene struct {
	oneArm  bool
	workers int
	mode    string
}

func (s scene) String() string {
	arms := "two-arm"
	if s.oneArm {
		arms = "one-arm"
	}
	return fmt.Sprintf("%s/%d-workers/%s", arms, s.workers, s.mode)
}

// scenes is the whole matrix, or a part in which every pair of values of any
// two columns meets.
func scenes(short bool) []scene {
	if short {
		return []scene{{false, 1, fullNAT}, {false, 2, dnat}, {true, 1, dnat}, {true, 2, fullNAT}}
	}
	var out []scene
	for _, oneArm := range []bool{false, true} {
		for workers := 1; workers <= 2; workers++ {
			for _, mode := range []string{fullNAT, dnat} {
				out = append(out, scene{oneArm, workers, mode})
			}
		}
	}
	return out
}

// sizes are the loads of a test run.
type sizes struct {
	requests int
	echoes   int // UDP flows
	bytes    int64
	sampled  int // of the frames of a transfer one in so many is verified
}

func load() sizes {
	if testing.Short() {
		return sizes{requests: 500, echoes: 60, bytes: 20 << 20, sampled: 1}
	}
	return sizes{requests: 10_000, echoes: 300, bytes: 1 << 30, sampled: 50}
}

// weights of the two real servers.
var weights = []int{1, 2}

// TestForward is the main job: TCP and UDP, both families, everything that
// leaves verified.
func TestForward(t *testing.T) {
	for _, s := range scenes(testing.Short()) {
		t.Run(s.String(), func(t *testing.T) {
			r := network(t, testbed.TopologyOptions{OneArm: s.oneArm, Queues: s.workers}, testbed.SnifferOptions{})
			d := r.start(s)
			r.warmUp()
			before := d.stats()
			for _, f := range testbed.Families {
				t.Run(f.String()+"/http", func(t *testing.T) { r.http(t, s, f) })
				t.Run(f.String()+"/udp", func(t *testing.T) { r.echo(t, s, f) })
			}
			// Nothing had a reason to be lost.
			if diff := cmp.Diff(map[string]uint64{}, d.stats().drops(before)); diff != "" {
				t.Errorf("drops (-want +got)\n%s", diff)
			}
			r.checkAddresses(s.mode)
			r.checkTOA(s)
			d.stop()
		})
	}
}

// start runs l4fwd with the scene's services on the first VIPs.
func (r *rig) start(s scene) *daemon {
	r.t.Helper()
	return r.startWith(s, weights...)
}

// startWith is start with other weights of the real servers.
func (r *rig) startWith(s scene, weights ...int) *daemon {
	r.t.Helper()
	toa := ""
	if r.toa = s.mode == fullNAT; r.toa {
		toa = "toa"
	}
	p := program{args: []string{"--workers", fmt.Sprint(s.workers)}}
	return p.start(r.t, r.LB, r.Config(testbed.Services(0, s.mode, toa, "wrr", weights...)))
}

// http makes requests, each on a connection of its own, then some with
// keep-alive.
func (r *rig) http(t *testing.T, s scene, f testbed.Family) {
	n := load().requests
	var mu sync.Mutex
	type tuple struct {
		server string
		remote netip.AddrPort
	}
	used := make(map[tuple]bool)             // what the servers tell connections by
	clients := make(map[netip.AddrPort]bool) // what l4fwd does
	l := testbed.HTTPLoad{To: r.vip(f, 0, r.webPort()), Requests: n,
		OnAnswer: func(self netip.AddrPort, reply testbed.HTTPReply) {
			mu.Lock()
			defer mu.Unlock()
			clients[self] = true
			used[tuple{reply.Server, reply.Remote}] = true
			// The real server read TOA from its own capture.
			switch {
			case s.mode == fullNAT && reply.Client != self:
				t.Errorf("client %s: TOA said %s to %s", self, reply.Client, reply.Server)
			case s.mode != fullNAT && reply.Remote != self:
				t.Errorf("client %s: %s saw %s", self, reply.Server, reply.Remote)
			}
		}}
	res, err := l.Run(t.Context(), r.Client)
	if err != nil || res.OK != n || res.Failed != 0 {
		t.Fatalf("%d of %d requests answered, %v: %v", res.OK, n, err, res.Errors)
	}
	t.Logf("%d requests in %s, p50 %s, p99 %s, by server %v", n, res.Duration, res.P50, res.P99, res.ByServer)
	// A connection from a port that the client used before keeps its server.
	r.checkSpread(t, s, res.ByServer, n, n-len(clients))
	r.checkPeers(t, s, f, res.ByRemote)
	// The client's kernel may use a port again, l4fwd not so soon.
	if s.mode == fullNAT && len(used) != n {
		t.Errorf("%d different (local address, port, server) for %d connections", len(used), n)
	}
	l.KeepAlive = true
	if res, err = l.Run(t.Context(), r.Client); err != nil || res.OK != n {
		t.Errorf("keep-alive: %d of %d requests answered, %v: %v", res.OK, n, err, res.Errors)
	}
}

// checkSpread: each worker's scheduler is exact to within one of each server's
// share, and so is their sum to within one a worker; not so the kept choices.
func (r *rig) checkSpread(t *testing.T, s scene, by map[string]int, n, kept int) {
	t.Helper()
	total := 0
	for _, w := range weights {
		total += w
	}
	for i, server := range r.servers {
		want := float64(n*weights[i]) / float64(total)
		if got := by[server.Name()]; math.Abs(float64(got)-want) > float64(s.workers+kept) {
			t.Errorf("%s: %d of %d, want %.1f ± %d", server.Name(), got, n, want, s.workers+kept)
		}
	}
}

// checkPeers: real servers see a local address in Full-NAT, else the client.
func (r *rig) checkPeers(t *testing.T, s scene, f testbed.Family, by map[netip.Addr]int) {
	t.Helper()
	for a := range by {
		if s.mode == fullNAT && !r.IsLocal(a) {
			t.Errorf("a real server saw %s, which is no local address", a)
		}
		if s.mode != fullNAT && a != r.ClientAddr(f, 0) {
			t.Errorf("a real server saw %s, not the client's %s", a, r.ClientAddr(f, 0))
		}
	}
}

// echo sends datagrams over many flows; answers must come from the VIP.
func (r *rig) echo(t *testing.T, s scene, f testbed.Family) {
	e := testbed.Echo{To: r.vip(f, 0, testbed.PortEcho), Sockets: load().echoes, Count: 5, Size: 200, Timeout: 10 * time.Second}
	res, err := e.Run(t.Context(), r.Client)
	if err != nil || res.OK != e.Sockets*e.Count || res.Wrong != 0 || res.Moved != 0 {
		t.Errorf("UDP echo: %+v, %v", res, err)
	}
	for name, n := range res.ByServer {
		if n%e.Count != 0 {
			t.Errorf("%s answered %d datagrams, not a multiple of %d: a flow moved", name, n, e.Count)
		}
		res.ByServer[name] = n / e.Count
	}
	r.checkSpread(t, s, res.ByServer, e.Sockets, 0)
	r.checkPeers(t, s, f, res.ByRemote)
}

// checkTOA looks at all TOA options the real servers' captures have: none but
// in Full-NAT, never on a SYN, one client for each connection, one connection
// for each client.
func (r *rig) checkTOA(s scene) {
	r.t.Helper()
	clients := make(map[netip.AddrPort]bool)
	for i, b := range r.behind {
		report := b.Report()
		if s.mode != fullNAT && report.TOA > 0 || report.TOAOnSYN > 0 {
			r.t.Errorf("rs%d: %d TOA options, %d of them on SYNs", i+1, report.TOA, report.TOAOnSYN)
		}
		for key, all := range b.TOA() {
			for _, c := range all {
				clients[c] = true
				if f := testbed.FamilyOf(c.Addr()); c.Addr() != r.ClientAddr(f, 0) {
					r.t.Errorf("rs%d: TOA of %s names %s, which is no client", i+1, key.Src, c)
				}
			}
			if len(all) != 1 {
				r.t.Errorf("rs%d: TOA of %s names %v", i+1, key.Src, all)
			}
		}
	}
	if s.mode == fullNAT && len(clients) == 0 {
		r.t.Error("no TOA option seen")
	}
	for _, sn := range []*testbed.Sniffer{r.client} {
		if n := sn.Report().TOA; n > 0 {
			r.t.Errorf("the client has seen %d TOA options", n)
		}
	}
}

// TestTransfer sends bulk both ways at the same time and compares hashes.
func TestTransfer(t *testing.T) {
	for _, s := range scenes(testing.Short()) {
		t.Run(s.String(), func(t *testing.T) {
			z := load()
			r := network(t, testbed.TopologyOptions{OneArm: s.oneArm, Queues: s.workers}, testbed.SnifferOptions{Every: z.sampled})
			d := r.start(s)
			for _, f := range testbed.Families {
				t.Run(f.String(), func(t *testing.T) {
					tr := testbed.Transfer{To: r.vip(f, 0, testbed.PortHash), Up: z.bytes, Down: z.bytes, Seed: 1}
					res, err := tr.Run(t.Context(), r.Client)
					if err != nil {
						t.Fatal(err)
					}
					t.Logf("%d MiB each way in %s", z.bytes>>20, res.Duration)
				})
			}
			r.checkAddresses(s.mode)
			r.checkTOA(s)
			t.Logf("drops: %v", d.stats().drops(stats{}))
			d.stop()
		})
	}
}
