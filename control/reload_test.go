package control

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// line is one TCP connection that stays open.
type line struct {
	net.Conn
	r *bufio.Reader
}

// call opens a line to a VIP's web service.
func (w *world) call(vip netip.Addr, port uint16) *line {
	w.t.Helper()
	c, err := w.Client.Dialer(0).DialContext(w.t.Context(), "tcp", netip.AddrPortFrom(vip, port).String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return &line{c, bufio.NewReader(c)}
}

// say makes a request and returns the server's name.
func (l *line) say() (server string, err error) {
	if err := l.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprint(l, "GET / HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		return "", err
	}
	res, err := http.ReadResponse(l.r, nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	b := make([]byte, 512)
	n, err := res.Body.Read(b)
	if n > 0 {
		_, name, _ := strings.Cut(string(b[:n]), `"server":"`)
		name, _, _ = strings.Cut(name, `"`)
		return name, nil
	}
	return "", err
}

func (w *world) mustSay(l *line) string {
	w.t.Helper()
	server, err := l.say()
	if err != nil {
		w.t.Fatal(err)
	}
	return server
}

// parse is a configuration for a reload of d.
func (d *daemon) parse(text string) *config.Config {
	d.t.Helper()
	c, err := config.Parse("test.yaml", []byte(text), config.Override{Flag: "test", Key: "admin_socket", Value: d.cfg.AdminSocket})
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

func (d *daemon) reload(text string) admin.ReloadReport {
	d.t.Helper()
	r, err := d.Reload(d.t.Context(), d.parse(text), false)
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

// fewer is text without the lines that name a server.
func fewer(text string, servers ...netip.AddrPort) string {
	return strings.Join(slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(l string) bool {
		return slices.ContainsFunc(servers, func(s netip.AddrPort) bool { return strings.Contains(l, `"`+s.String()+`"`) })
	}), "")
}

// TestReloadUnderLoad: reload after reload, each with other backends, weights and
// services, fails no request, ends no connection, and leaves nothing behind.
func TestReloadUnderLoad(t *testing.T) {
	reloads := 1000
	if testing.Short() {
		reloads = 100
	}
	w := newWorld(t, testbed.TopologyOptions{Servers: 3, Queues: 2})
	services := testbed.Services(0, "full-nat", "toa", "wrr")
	for i := range services { // whose backends are back before, however late that is
		services[i].Extra = "drain_timeout: 5m"
	}
	base := w.Config(services,
		"frames_per_queue: 1024", "ring_size: 256", "max_flows: 65536", "workers: 2", "drain_timeout: 1s", "timeouts: {tcp_time_wait: 1s}")
	d := w.run(base)
	vip := w.VIP(testbed.V4, 0)
	open := w.call(vip, testbed.VIPPortHTTP)
	for range 3 {
		if w.mustSay(open) == "rs1" { // who stays
			break
		}
		open = w.call(vip, testbed.VIPPortHTTP)
	}

	var stop atomic.Bool
	var load sync.WaitGroup
	var asked, failed atomic.Int64
	load.Go(func() {
		for !stop.Load() {
			r, err := testbed.HTTPLoad{To: netip.AddrPortFrom(vip, testbed.VIPPortHTTP), Requests: 50, Concurrency: 4}.Run(t.Context(), w.Client)
			asked.Add(int64(r.OK + r.Failed))
			if failed.Add(int64(r.Failed)); err != nil || r.Failed > 0 {
				t.Errorf("%v %v", err, r.Errors)
				return
			}
		}
	})
	defer load.Wait()
	defer stop.Store(true)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var before uint64
	for i := range reloads {
		text := fewer(base, netip.AddrPortFrom(w.ServerAddr(testbed.V4, 1+i%2), testbed.PortHTTP))
		if i%5 != 0 {
			text = strings.Replace(text, "weight: 1}", fmt.Sprintf("weight: %d}", 1+i%5), 1)
		}
		text += fmt.Sprintf("  - {name: s%d, address: \"%v:%d\", protocol: tcp, mode: dnat, backends: [{address: \"%v:%d\"}]}\n",
			i, w.VIP(testbed.V4, 1), 1000+i, w.ServerAddr(testbed.V4, 0), 20000+i)
		d.reload(text)
		if w.mustSay(open) != "rs1" {
			t.Fatal("the connection is another server's")
		}
		if i == reloads/4 {
			before = heap()
		}
	}
	eventually(t, "as many requests as reloads", func() bool { return asked.Load() >= int64(reloads) || failed.Load() > 0 })
	after := heap()
	workers, err := d.sampleWorkers(t.Context())
	check(t, err)
	stop.Store(true)
	load.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d requests, %d failed", asked.Load(), n)
	}
	// 18 backends of base; as many reloads as there are in the other services' drain_timeout
	// and a second for the loop to notice leave something behind.
	most := len(workers[0].Backends)
	t.Logf("%d requests, heap %d KiB, then %d KiB; %d backend ids, %d service ids", asked.Load(), before>>10, after>>10, most, len(workers[0].Services))
	if after > before+2<<20 && after > before+before/2 {
		t.Errorf("the heap grew from %d to %d bytes", before, after)
	}
	if reloads >= 1000 && most > 700 {
		t.Errorf("%d backend ids after %d reloads", most, reloads)
	}
	d.noneLost()
	d.end()
	w.clean()
}

// TestReloadDrains: what is removed keeps its connections for drain_timeout and takes
// no new ones; then they are reset. What comes back before is as it was.
func TestReloadDrains(t *testing.T) {
	for _, mode := range []string{"full-nat", "dnat"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, testbed.TopologyOptions{Servers: 2, Queues: 2})
			long := w.Config(testbed.Services(0, mode, "", "rr"), append(small, "workers: 2", "drain_timeout: 1h")...)
			short := strings.Replace(long, "drain_timeout: 1h", "drain_timeout: 0s", 1)
			d := w.run(long)
			vip, http := w.VIP(testbed.V4, 0), uint16(testbed.VIPPortHTTP)
			lines := map[string]*line{}
			for range 2 {
				l := w.call(vip, http)
				lines[w.mustSay(l)] = l
			}
			one := netip.AddrPortFrom(w.ServerAddr(testbed.V4, 0), testbed.PortHTTP)
			first := lines["rs1"]
			d.reload(fewer(long, one))
			w.mustSay(first)
			if r := w.ask(vip, 12); r.ByServer["rs1"] != 0 {
				t.Errorf("new connections to a backend that drains: %v", r.ByServer)
			}
			d.reload(long)
			if r := w.ask(vip, 12); r.ByServer["rs1"] == 0 {
				t.Errorf("none to the backend that is back: %v", r.ByServer)
			}
			w.mustSay(first)
			d.reload(short) // services have it from here on
			d.reload(fewer(short, one))
			if _, err := first.say(); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a connection to a backend that has left: %v", err)
			}
			// Now the service.
			d.reload(long)
			other := w.Config(testbed.Services(1, mode, "", "rr"), append(small, "workers: 2", "drain_timeout: 1h")...)
			second := lines["rs2"]
			w.mustSay(second)
			d.reload(other)
			w.mustSay(second)
			c, err := w.Client.Dialer(300*time.Millisecond).DialContext(t.Context(), "tcp", netip.AddrPortFrom(vip, http).String())
			if err == nil {
				_ = c.Close()
				t.Error("a new connection to a service that drains")
			}
			w.ask(w.VIP(testbed.V4, 1), 4)
			d.reload(short)
			w.mustSay(second)
			w.ask(vip, 4)
			d.reload(other)
			if _, err := second.say(); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a connection to a service that is gone: %v", err)
			}
			d.end()
			w.clean()
		})
	}
}

// TestReloadLocals: connections stay on local addresses that are taken out, new ones use
// those there are.
func TestReloadLocals(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1, Queues: 2})
	text := w.Config(testbed.Services(0, "full-nat", "", "wrr"), append(small, "workers: 2")...)
	d := w.run(text)
	vip := w.VIP(testbed.V4, 0)
	var lines []*line
	for range 8 { // on all four
		l := w.call(vip, testbed.VIPPortHTTP)
		w.mustSay(l)
		lines = append(lines, l)
	}
	first, last := w.LocalAddr(testbed.V4, 0), w.LocalAddr(testbed.V4, 2)
	d.reload(strings.Replace(text, fmt.Sprintf("  - %v-", first), fmt.Sprintf("  - %v-", last), 1))
	for _, s := range w.Servers { // which have to ask for the addresses again
		if _, err := s.Command(t.Context(), "ip", "neigh", "flush", "all").CombinedOutput(); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range lines {
		w.mustSay(l)
	}
	// The announcements of the start, which go on for a while, tell the servers too.
	if s, err := d.Stats(t.Context()); err != nil || s.Verdicts["not_ours"] != 0 {
		t.Errorf("not all questions for addresses that leave were answered: %v %v", s.Verdicts, err)
	}
	if r := w.ask(vip, 20); len(r.ByRemote) != 2 || r.ByRemote[last] == 0 {
		t.Errorf("new connections come from %v", r.ByRemote)
	}
	d.reload(text)
	if r := w.ask(vip, 20); len(r.ByRemote) != 4 {
		t.Errorf("new connections come from %v", r.ByRemote)
	}
	d.noneLost()
	d.end()
	w.clean()
}

// TestReloadRefused: what is wrong, in the file or with the host, or needs a restart,
// changes nothing, and all of it is told.
func TestReloadRefused(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	text := w.Config(testbed.Services(0, "full-nat", "", "wrr"), small...)
	file := filepath.Join(t.TempDir(), "l4fwd.yaml")
	write := func(s string) { t.Helper(); check(t, os.WriteFile(file, []byte(s), 0o600)) }
	write(text)
	hangup := make(chan os.Signal, 1)
	var socket string
	d := w.run(text, func(o *Options) {
		o.ReloadOn = hangup
		o.Load = func() (*config.Config, error) {
			return config.Reload(file, config.Override{Flag: "test", Key: "admin_socket", Value: socket})
		}
	})
	socket = d.cfg.AdminSocket
	c := admin.NewClient(socket)
	defer c.Close()
	host := w.LBServer.Addrs[slices.IndexFunc(w.LBServer.Addrs, func(p netip.Prefix) bool { return p.Addr().Is4() })].Addr()
	for name, tt := range map[string]struct {
		text, want string
		kind       error
	}{
		"not valid":      {strings.Replace(text, "mode: full-nat", "mode: ful-nat", 1) + "colour: blue\n", "did you mean full-nat?\n", admin.ErrInvalid},
		"not YAML":       {"a: [", "l4fwd.yaml:", admin.ErrInvalid},
		"restart":        {"workers: 2\nbusy_poll: true\n" + text, "needs a restart: workers: 1 → 2; busy_poll: false → true", admin.ErrConflict},
		"host's address": {strings.Replace(text, "local_addresses:\n", fmt.Sprintf("local_addresses:\n  - %v\n", host), 1), "belong to this host", admin.ErrConflict},
	} {
		write(tt.text)
		if _, err := c.Reload(t.Context(), admin.ReloadRequest{}); !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		w.ask(w.VIP(testbed.V4, 0), 3)
	}
	check(t, os.Remove(file))
	if _, err := c.Reload(t.Context(), admin.ReloadRequest{}); !errors.Is(err, admin.ErrInvalid) || !strings.Contains(err.Error(), syscall.ENOENT.Error()) {
		t.Errorf("no file: %v", err)
	}
	check(t, syscall.Mkfifo(file, 0o600))
	if _, err := c.Reload(t.Context(), admin.ReloadRequest{}); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("pipe: %v", err)
	}
	check(t, os.Remove(file))
	moved := strings.Replace(text, `:80"`, `:81"`, 1)
	write(moved)
	r, err := c.Reload(t.Context(), admin.ReloadRequest{DryRun: true})
	if err != nil || len(r.Changes) != 1 || !strings.Contains(r.Changes[0], ".address: ") {
		t.Errorf("%+v %v", r, err)
	}
	w.ask(w.VIP(testbed.V4, 0), 3)
	if s, err := c.Status(t.Context()); err != nil || s.Reloads != 0 {
		t.Errorf("%+v %v", s, err)
	}
	if s, err := d.sample(t.Context()); err != nil || s.ReloadsRefused != 6 || !s.LastRefused {
		t.Errorf("%v: metrics say %d refused, the last one %v", err, s.ReloadsRefused, s.LastRefused)
	}
	hangup <- syscall.SIGHUP
	d.await("reloaded")
	w.mustSay(w.call(w.VIP(testbed.V4, 0), 81))
	d.reloading.Lock() // until it is noted
	defer d.reloading.Unlock()
	if s, err := d.sample(t.Context()); err != nil || s.Reloads != 1 || s.ReloadsRefused != 6 || s.LastRefused || !s.Loaded.After(s.Started) {
		t.Errorf("%v: metrics say %d applied, %d refused, the last one %v", err, s.Reloads, s.ReloadsRefused, s.LastRefused)
	}
	if s, err := c.Status(t.Context()); err != nil || s.Reloads != 1 || !s.Loaded.After(s.Started) {
		t.Errorf("%+v %v", s, err)
	}
	if n := d.logs.FilterLevelExact(zap.ErrorLevel).Len(); n != 6 {
		t.Errorf("%d errors logged", n)
	}
	d.end()
	w.clean()
}
