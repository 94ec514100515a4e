package testbed

import (
	"bytes"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWireWaits: where there is no room for a frame it waits with those behind it, in their
// order, though not for ever.
func TestWireWaits(t *testing.T) {
	// A pair of sockets stands for a device whose queue is full.
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) }()
	l := &lane{w: &Wire{}, to: fds[0]}
	room := 0
	for ; unix.Send(fds[0], []byte{0}, 0) == nil; room++ {
	}
	l.write([]byte{1})
	if l.counts.Missed != 1 {
		t.Errorf("missed %d frames, want one", l.counts.Missed)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range room {
			l.write([]byte{byte(i)})
		}
	}()
	time.Sleep(20 * time.Millisecond)
	var got []byte
	for sent := false; !sent; time.Sleep(time.Millisecond) {
		select {
		case <-done:
			sent = true
		default:
		}
		for in := make([]byte, 1); ; got = append(got, in[0]) {
			if _, err := unix.Read(fds[1], in); err != nil {
				break
			}
		}
	}
	want := make([]byte, room, 2*room) // what filled it
	for i := range room {
		want = append(want, byte(i))
	}
	if !bytes.Equal(got, want) || l.counts.Missed != 1 {
		t.Errorf("%v came, want %v; missed %d frames, want one", got, want, l.counts.Missed)
	}
}

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
