package testbed

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTopologyPing(t *testing.T) {
	for _, o := range []TopologyOptions{{}, {OneArm: true}, {OneArm: true, Trunk: true}} {
		t.Run(fmt.Sprintf("oneArm=%t trunk=%t", o.OneArm, o.Trunk), func(t *testing.T) {
			start := time.Now()
			top := Up(t, o)
			t.Log("up in", time.Since(start))
			if err := top.Forwarding(true); err != nil {
				t.Fatal(err)
			}
			for _, f := range Families {
				for i := range top.Servers {
					if _, err := top.Client.Ping(top.ServerAddr(f, i), 56, patience); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

func TestKernelRouting(t *testing.T) {
	for _, o := range []TopologyOptions{{}, {OneArm: true}, {Queues: 2, StaticNeighbours: true, ClientAddrs: 3}, {OneArm: true, Trunk: true, Queues: 2}} {
		t.Run(fmt.Sprintf("oneArm=%t queues=%d trunk=%t", o.OneArm, o.Queues, o.Trunk), func(t *testing.T) {
			top := Up(t, o)
			if err := top.Forwarding(true); err != nil {
				t.Fatal(err)
			}
			servers, err := top.StartServers()
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := CloseServers(servers); err != nil {
					t.Error(err)
				}
			}()
			for _, f := range Families {
				t.Run(f.String(), func(t *testing.T) { exercise(t, top, f, servers[1]) })
			}
		})
	}
}

// exercise uses all three services of the second real server.
func exercise(t *testing.T, top *Topology, f Family, s *Server) {
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(top.ServerAddr(f, 1), port) }
	before := s.Counts()
	for _, keep := range []bool{false, true} {
		r, err := HTTPLoad{To: at(PortHTTP), Requests: 200, KeepAlive: keep}.Run(t.Context(), top.Client)
		if err != nil || r.OK != 200 || r.ByServer["rs2"] != 200 || r.ByRemote[top.ClientAddr(f, 0)] != 200 {
			t.Errorf("HTTP keep-alive %t: %+v, %v", keep, r, err)
		}
		t.Logf("HTTP keep-alive %t: %s, p50 %s, p99 %s, %d connections", keep, r.Duration, r.P50, r.P99, r.Connections)
	}
	tr, err := Transfer{To: at(PortHash), Up: 8 << 20, Down: 9 << 20, Seed: 7}.Run(t.Context(), top.Client)
	if err != nil || tr.Client.Addr() != top.ClientAddr(f, 0) {
		t.Errorf("transfer: %+v, %v", tr, err)
	}
	cs, err := top.Client.OpenConns(t.Context(), at(PortHash), 5)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := cs.Exchange(1000, 1<<20, patience); err != nil {
			t.Error(err)
		}
	}
	if l := cs.Locals(); len(l) != 5 || l[0].Addr() != top.ClientAddr(f, 0) {
		t.Errorf("local addresses %v", l)
	}
	if err := cs.Close(); err != nil {
		t.Error(err)
	}
	e, err := Echo{To: at(PortEcho), Sockets: 20, Count: 5, Size: 100, Timeout: patience}.Run(t.Context(), top.Client)
	want := EchoResult{OK: 100, ByServer: map[string]int{"rs2": 100}, ByRemote: map[netip.Addr]int{top.ClientAddr(f, 0): 100}}
	if diff := cmp.Diff(want, e, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
		t.Errorf("echo: %v (-want +got)\n%s", err, diff)
	}
	after := s.Counts()
	got := ServerCounts{
		HTTP: after.HTTP - before.HTTP, Transfers: after.Transfers - before.Transfers, Echoes: after.Echoes - before.Echoes,
		BytesIn: after.BytesIn - before.BytesIn, BytesOut: after.BytesOut - before.BytesOut,
		Peers: map[netip.Addr]uint64{top.ClientAddr(f, 0): after.Peers[top.ClientAddr(f, 0)]},
	}
	wantCounts := ServerCounts{HTTP: 400, Transfers: 16, Echoes: 100, BytesIn: 8<<20 + 15*1000, BytesOut: 9<<20 + 15<<20,
		Peers: map[netip.Addr]uint64{top.ClientAddr(f, 0): 516}}
	if diff := cmp.Diff(wantCounts, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("server's counts (-want +got)\n%s", diff)
	}
}
