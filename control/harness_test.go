package control

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// small keeps the memory of a test's daemon low.
var small = []string{"frames_per_queue: 1024", "ring_size: 256", "max_flows: 4096"}

// world is a network with servers, and what daemons in it wrote down.
type world struct {
	*testbed.Topology
	t       *testing.T
	journal string
}

func newWorld(t *testing.T, o testbed.TopologyOptions) *world {
	t.Helper()
	topo, err := testbed.NewTopology(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, topo.Close()) })
	servers, err := topo.StartServers()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, testbed.CloseServers(servers)) })
	return &world{Topology: topo, t: t, journal: t.TempDir()}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// daemon is a Daemon that runs in the load balancer's namespace.
type daemon struct {
	*Daemon
	t      *testing.T
	logs   *observer.ObservedLogs
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// begin starts a daemon without waiting for anything.
func (w *world) begin(text string, change ...func(*Options)) *daemon {
	w.t.Helper()
	dir, err := os.MkdirTemp("", "l4fwd") // t.TempDir may be too long for a socket
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { check(w.t, os.RemoveAll(dir)) })
	cfg, err := config.Parse("test.yaml", []byte(text), config.Override{Flag: "test", Key: "admin_socket", Value: dir + "/admin.sock"})
	if err != nil {
		w.t.Fatal(err)
	}
	core, logs := observer.New(zap.DebugLevel)
	o := Options{Log: zap.New(core), JournalDir: w.journal}
	for _, f := range change {
		f(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &daemon{t: w.t, logs: logs, cancel: cancel, done: make(chan struct{})}
	if d.Daemon, err = New(cfg, o); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		defer close(d.done)
		d.err = w.LB.Do(func() error { return d.Run(ctx) })
	}()
	w.t.Cleanup(func() {
		cancel()
		<-d.done
		if w.t.Failed() {
			w.t.Log(d.said())
		}
	})
	return d
}

// run starts a daemon and waits until it is ready.
func (w *world) run(text string, change ...func(*Options)) *daemon {
	w.t.Helper()
	d := w.begin(text, change...)
	d.await("ready")
	return d
}

// await waits for a log message.
func (d *daemon) await(message string) {
	d.t.Helper()
	d.awaitN(message, 1)
}

// awaitN waits for it to have come n times.
func (d *daemon) awaitN(message string, n int) {
	d.t.Helper()
	for end := time.Now().Add(15 * time.Second); d.logs.FilterMessage(message).Len() < n; {
		select {
		case <-d.done:
			d.t.Fatalf("ended before it said %q: %v\n%s", message, d.err, d.said())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(end) {
			d.t.Fatalf("did not say %q\n%s", message, d.said())
		}
	}
}

// end stops the daemon, which must go well.
func (d *daemon) end() {
	d.t.Helper()
	d.cancel()
	select {
	case <-d.done:
		check(d.t, d.err)
	case <-time.After(15 * time.Second):
		d.t.Fatalf("does not stop\n%s", d.said())
	}
}

// fails waits for the daemon to end by itself with an error that has all parts.
func (d *daemon) fails(parts ...string) {
	d.t.Helper()
	select {
	case <-d.done:
	case <-time.After(15 * time.Second):
		d.t.Fatalf("still runs\n%s", d.said())
	}
	if d.err == nil {
		d.t.Fatal("no error")
	}
	for _, p := range parts {
		if !strings.Contains(d.err.Error(), p) {
			d.t.Errorf("error %q has no %q", d.err, p)
		}
	}
}

// said is the log as text.
func (d *daemon) said() string {
	enc := zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig())
	var b strings.Builder
	for _, e := range d.logs.All() {
		if line, err := enc.EncodeEntry(e.Entry, e.Context); err == nil {
			b.WriteString(line.String())
		}
	}
	return b.String()
}

// ask makes requests to a VIP, all of which must be answered.
func (w *world) ask(vip netip.Addr, n int) testbed.LoadResult {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	r, err := testbed.HTTPLoad{To: netip.AddrPortFrom(vip, testbed.VIPPortHTTP), Requests: n, Concurrency: 4}.Run(ctx, w.Client)
	if err != nil || r.Failed > 0 || r.OK != n {
		w.t.Fatalf("%v %+v", err, r)
	}
	return r
}

// clean asserts that nothing is left of a daemon: no program, no journal.
func (w *world) clean() {
	w.t.Helper()
	for _, name := range w.LBDevices() {
		dev, err := w.LB.Netlink().LinkByName(name)
		if err != nil {
			continue // gone with its interface
		}
		if x := dev.Attrs().Xdp; x != nil && x.Attached {
			w.t.Errorf("%s: XDP program %d is still attached", name, x.ProgId)
		}
	}
	left, err := filepath.Glob(filepath.Join(w.journal, "*.json"))
	check(w.t, err)
	if len(left) > 0 {
		b, _ := os.ReadFile(left[0])
		w.t.Errorf("journals left: %v\n%s", left, b)
	}
}
