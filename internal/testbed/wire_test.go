package testbed

import (
	"net/netip"
	"sync"
	"testing"
	"time"
)

// TestWire: TCP gets through what the wires do to it, what they did is counted,
// no frame is damaged, and who has no plan is left alone.
func TestWire(t *testing.T) {
	top := Up(t, TopologyOptions{Impaired: true, Queues: 2, StaticNeighbours: true})
	if err := top.Forwarding(true); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []*Namespace{top.Client, top.Servers[0]} {
		if err := ns.Sysctl("net.ipv4.tcp_ecn", "1"); err != nil {
			t.Fatal(err)
		}
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
	var mu sync.Mutex
	syns := 0
	sniff(t, top.ClientDev, SnifferOptions{Direction: Outgoing, Watch: func(frame []byte, _ bool) {
		if _, dst, s, ok := segmentOf(frame); ok && dst == PortHash && s == SYN {
			mu.Lock()
			syns++
			mu.Unlock()
		}
	}})
	behind := sniff(t, top.ServerDevs[0], SnifferOptions{})
	for i, w := range []*Wire{top.ClientWire, top.ServerWire} {
		p := Plan{Seed: uint64(i), Lose: 0.02, Duplicate: 0.02, Delay: 0.05, Mark: 0.05, MaxDelay: 5 * time.Millisecond}
		if i == 0 {
			p.Rules = []Rule{{Way: ToClient, Segment: SYNACK, Count: 1, Action: Lose}}
		}
		w.Plan(PortHash, p)
	}
	for _, f := range Families {
		tr := Transfer{To: netip.AddrPortFrom(top.ServerAddr(f, 0), PortHash), Up: 1 << 20, Down: 1 << 20, Timeout: time.Minute}
		if _, err := tr.Run(t.Context(), top.Client); err != nil {
			t.Error(err)
		}
		if _, err := top.Client.Ping(top.ServerAddr(f, 0), 56, patience); err != nil {
			t.Error(err)
		}
	}
	for i, w := range []*Wire{top.ClientWire, top.ServerWire} {
		for way := range ways {
			c := w.Counts(way)
			t.Logf("wire %d, way %d: %+v", i, way, c)
			if c.Lost == 0 || c.Duplicated == 0 || c.Delayed == 0 || c.Marked == 0 || c.Others == 0 {
				t.Errorf("wire %d has done nothing of some kind in way %d: %+v", i, way, c)
			}
			if c.Missed > 0 {
				t.Errorf("wire %d lost %d frames without being told", i, c.Missed)
			}
		}
	}
	mu.Lock()
	if syns < 3 { // the first connection's SYN-ACK was lost
		t.Errorf("%d SYNs", syns)
	}
	mu.Unlock()
	if r, err := behind.Stop(); err != nil || r.Bad > 0 {
		t.Errorf("%d frames are wrong, for example %v; %v", r.Bad, r.Violations, err)
	}
}
