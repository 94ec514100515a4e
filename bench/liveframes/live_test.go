package liveframes

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// pair is a veth between two namespaces.
func pair(t *testing.T) (near, far *testbed.Device) {
	t.Helper()
	var ns [2]*testbed.Namespace
	for i, role := range []string{"gen", "sink"} {
		n, err := testbed.NewNamespace(role)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
		// Nothing but our packets.
		if err := n.Sysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
			t.Fatal(err)
		}
		ns[i] = n
	}
	near, far, err := testbed.Veth(ns[0], "near", ns[1], "far", testbed.VethOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

func attachPass(t *testing.T, d *testbed.Device) {
	t.Helper()
	l, err := AttachPass(d.NS, d.Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

func newTestSink(t *testing.T, d *testbed.Device, from string) *Sink {
	t.Helper()
	s, err := NewSink(d.NS, d.Name, netip.MustParsePrefix(from))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func start(t *testing.T, ctx context.Context, near, far *testbed.Device, o Options) *Generator {
	t.Helper()
	o.NetNS, o.Interface = near.NS, near.Name
	o.Frames.SrcMAC, o.Frames.DstMAC = near.MAC, far.MAC
	g, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// within waits for a condition.
func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", d, what)
		}
	}
}

func sent(t *testing.T, g *Generator) uint64 {
	t.Helper()
	n, err := g.Sent()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func count(t *testing.T, s *Sink) SinkCount {
	t.Helper()
	c, err := s.Count()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Paced frames arrive at the kernel beyond the veth, each whole and right, at the
// rate asked for, and the sink counts them.
func TestLive(t *testing.T) {
	near, far := pair(t)
	attachPass(t, far)
	sniffer, err := far.NS.Sniff(far.Name, testbed.SnifferOptions{Direction: testbed.Incoming})
	if err != nil {
		t.Fatal(err)
	}
	sink := newTestSink(t, far, "10.1.0.0/30")
	const pps = 10_000
	f := someFrames(2 * portsOfAddress) // from 10.1.0.2 and .3
	f.Src = netip.MustParseAddr("10.1.0.3")
	begin := time.Now()
	g := start(t, context.Background(), near, far, Options{CPU: 0, PPS: pps, Frames: f})
	within(t, 20*time.Second, "3000 packets", func() bool { return count(t, sink).Packets >= 3000 })
	if err := g.Stop(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	offered := sent(t, g)
	// More than its rate never; a busy machine makes it less.
	if most := uint64(pps*took.Seconds()) + 10; offered > most {
		t.Errorf("%d packets in %s, at most %d were asked for", offered, took, most)
	}
	rep, err := sniffer.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if rep.Bad != 0 || rep.UDP != rep.Frames || rep.Checked != rep.Frames || rep.Frames+rep.Dropped < 3000 {
		t.Errorf("sniffer: %+v", rep)
	}
	for addr, want := range map[string]bool{"10.1.0.3": true, "10.1.0.4": true, "10.1.0.2": false, "10.1.0.5": false} {
		if sniffer.Saw(netip.MustParseAddr(addr)) != want {
			t.Errorf("packets from %s: want %v", addr, want)
		}
	}
	// Half of the flows are from 10.1.0.3, which is in the prefix.
	c := count(t, sink)
	if c.Packets > offered || c.From < c.Packets/3 || c.From > c.Packets*2/3 {
		t.Errorf("sink: %+v of %d", c, offered)
	}
	if _, _, err := sink.Rate(context.Background(), 0); err != nil {
		t.Error(err)
	}
}

// Without a rate it makes as many as it can, ends with the context, and keeps its
// count.
func TestUnlimited(t *testing.T) {
	near, far := pair(t)
	attachPass(t, far)
	sink := newTestSink(t, far, "10.2.0.0/16")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	g := start(t, ctx, near, far, Options{CPU: 0, Frames: someFrames(256)})
	within(t, 20*time.Second, "100000 packets", func() bool { return sent(t, g) > 100_000 })
	cancel()
	select {
	case <-g.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("goes on without its context")
	}
	offered := sent(t, g)
	for range 2 {
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
	}
	if again := sent(t, g); again != offered {
		t.Errorf("sent %d, after Stop %d", offered, again)
	}
	if c := count(t, sink); c.Packets == 0 || c.Packets > offered || c.From != 0 {
		t.Errorf("sink: %+v of %d", c, offered)
	}
}

// A signal ends a call that would go on for minutes.
func TestInterrupt(t *testing.T) {
	f := someFrames(1)
	p, state, err := newProgram(&f, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(p.Close(), state.Close()); err != nil {
			t.Error(err)
		}
	}()
	tid, ended := make(chan int, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		frame := f.template()
		ended <- runLive(p.FD(), frame[:], math.MaxInt32, batch)
	}()
	id := <-tid
	for deadline := time.After(20 * time.Second); ; {
		if err := unix.Tgkill(unix.Getpid(), id, unix.SIGURG); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if !errors.Is(err, unix.EINTR) {
				t.Errorf("ended with %v", err)
			}
			return
		case <-deadline:
			t.Fatal("no signal ends it")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestRefused(t *testing.T) {
	near, far := pair(t)
	good := Options{NetNS: near.NS, Interface: near.Name, CPU: 0, Frames: someFrames(1)}
	cases := map[string]func(*Options){
		"no interface": func(o *Options) { o.Interface = "nowhere" },
		"no such CPU":  func(o *Options) { o.CPU = 1000 },
		"no flows":     func(o *Options) { o.Frames.Flows = 0 },
		"below zero":   func(o *Options) { o.PPS = -1 },
	}
	for name, spoil := range cases {
		o := good
		spoil(&o)
		if g, err := Start(context.Background(), o); err == nil {
			t.Errorf("%s: no error", name)
			_ = g.Stop()
		}
	}
	if _, err := NewSink(far.NS, "nowhere", netip.MustParsePrefix("10.0.0.0/8")); err == nil {
		t.Error("a sink at no interface")
	}
	if _, err := NewSink(far.NS, far.Name, netip.MustParsePrefix("2001:db8::/32")); err == nil {
		t.Error("a sink for IPv6")
	}
	if _, err := AttachPass(far.NS, "nowhere"); err == nil {
		t.Error("a program at no interface")
	}
}
