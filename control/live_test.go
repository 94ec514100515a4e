package control

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Both modes, both families, TCP and UDP, through a daemon with two workers;
// the figures agree with what the clients saw.
func TestForwards(t *testing.T) {
	for _, mode := range []string{"full-nat", "dnat"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, testbed.TopologyOptions{Queues: 2})
			d := w.run(w.Config(testbed.Services(0, mode, "", "wrr", 1, 3), append(small, "workers: 2")...))
			const requests = 24
			for _, f := range testbed.Families {
				if r := w.ask(w.VIP(f, 0), requests); len(r.ByServer) != 2 {
					t.Errorf("%v: not spread: %v", f, r.ByServer)
				}
				e := testbed.Echo{To: netip.AddrPortFrom(w.VIP(f, 0), testbed.PortEcho), Sockets: 4, Count: 3}
				if r, err := e.Run(t.Context(), w.Client); err != nil || r.OK < 8 || r.Wrong > 0 {
					t.Errorf("%v %+v", err, r)
				}
			}
			s, err := d.Stats(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Workers) != 2 || len(s.Links) != 2 || !s.Links[0].Up || len(s.Links[1].Queues) != 2 || len(s.Services) != 6 {
				t.Errorf("%+v", s)
			}
			for _, svc := range s.Services[:1] {
				n := uint64(0)
				for _, b := range svc.Backends {
					n += b.Flows
				}
				if n != requests {
					t.Errorf("%s: %d flows for %d requests", svc.Name, n, requests)
				}
			}
			d.noneLost()
			d.end()
			w.clean()
			if _, err := d.Stats(t.Context()); !errors.Is(err, errNotRunning) {
				t.Errorf("stats after the end: %v", err)
			}
		})
	}
}

// Everybody who waits for readiness and figures is told, and told of the end.
func TestTells(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	dir := t.TempDir()
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, manager.Close()) })
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	hears := func(want string) {
		t.Helper()
		b := make([]byte, 100)
		check(t, manager.SetReadDeadline(time.Now().Add(15*time.Second)))
		n, err := manager.Read(b)
		got, since, _ := strings.Cut(string(b[:n]), "\nMONOTONIC_USEC=")
		if err != nil || got != want || (since != "") != (want == "RELOADING=1") {
			t.Errorf("the service manager heard %q, %v, not %q", b[:n], err, want)
		}
	}
	dump, hangup := make(chan os.Signal, 1), make(chan os.Signal, 1)
	ready, stats := filepath.Join(dir, "ready"), filepath.Join(dir, "stats.json")
	d := w.run(w.Config(testbed.Services(0, "dnat", "", "rr"), small...), func(o *Options) {
		o.ReadyFile, o.StatsFile, o.DumpStats, o.ReloadOn = ready, stats, dump, hangup
		o.Load = func() (*config.Config, error) { return nil, errors.New("no such luck") }
	})
	hears("READY=1")
	w.ask(w.VIP(testbed.V4, 0), 5)
	hangup <- unix.SIGHUP
	hears("RELOADING=1")
	hears("READY=1")
	dump <- unix.SIGUSR1
	d.await("stats")
	if _, err := os.Stat(ready); err != nil {
		t.Error(err)
	}
	d.end()
	hears("STOPPING=1")
	if _, err := os.Stat(ready); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ready file: %v", err)
	}
	b, err := os.ReadFile(stats)
	if err != nil {
		t.Fatal(err)
	}
	var s Stats
	if err := json.Unmarshal(b, &s); err != nil || s.Opened != 5 || s.Verdicts["forwarded"] == 0 {
		t.Errorf("%v %+v", err, s)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("%v %v", err, left)
	}

	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "nobody"))
	d = w.begin(w.Config(testbed.Services(0, "dnat", "", "rr"), small...), func(o *Options) {
		o.ReadyFile = filepath.Join(dir, "no", "ready")
		o.StatsFile = filepath.Join(dir, "no", "stats")
	})
	d.fails("no such file or directory")
	if d.logs.FilterMessage("telling the service manager").Len() == 0 {
		t.Error("a service manager that is not there was not mentioned")
	}
	w.clean()
}

// That the stats file cannot be written is said once, not each second, and again when it
// could be in between.
func TestStatsFileTrouble(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	dir := filepath.Join(t.TempDir(), "none")
	d := w.run(w.Config(testbed.Services(0, "dnat", "", "rr"), small...), func(o *Options) { o.StatsFile = filepath.Join(dir, "stats") })
	thrice := func() {
		for range 3 {
			check(t, d.onLoop(t.Context(), func() { d.writeStats(t.Context()) }))
		}
	}
	thrice()
	check(t, os.Mkdir(dir, 0o700))
	thrice()
	check(t, os.RemoveAll(dir))
	thrice()
	if n := d.logs.FilterMessage("stats file").Len(); n != 2 {
		t.Errorf("said %d times", n)
	}
	d.end()
	w.clean()
}

// A file that is not a ready file is neither emptied nor removed.
func TestReadyFileOfOthers(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	path := filepath.Join(t.TempDir(), "l4fwd.yaml")
	check(t, os.WriteFile(path, []byte("precious"), 0o600))
	d := w.begin(w.Config(testbed.Services(0, "dnat", "", "rr"), small...), func(o *Options) { o.ReadyFile = path })
	d.fails("a ready file is empty")
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("%q %v", b, err)
	}
	w.clean()
}

// What a killed daemon has left goes before anything can fail, and is there again when the
// next one is ready. That of one that lives stays.
func TestReadyFileOfDead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ready")
	there := func() bool {
		_, err := os.Lstat(path)
		if !errors.Is(err, fs.ErrNotExist) {
			check(t, err)
		}
		return err == nil
	}
	leave := func() { check(t, os.WriteFile(path, nil, 0o644)) }
	leave()
	cfg := config.Defaults()
	cfg.Interfaces = []config.Interface{{Name: "nope0"}}
	err := Run(t.Context(), cfg, Options{ReadyFile: path, JournalDir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "nope0") || there() {
		t.Errorf("%v; ready file: %t", err, there())
	}

	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	leave()
	var early atomic.Bool
	text := w.Config(testbed.Services(0, "dnat", "", "rr"), small...)
	d := w.run(text, func(o *Options) {
		o.ReadyFile = path
		o.Log = o.Log.WithOptions(zap.Hooks(func(e zapcore.Entry) error {
			if (e.Message == "memory" || e.Message == "ready") && there() {
				early.Store(true)
			}
			return nil
		}))
	})
	_, err = d.Stats(t.Context()) // once it is quite ready
	check(t, err)
	if early.Load() || !there() {
		t.Errorf("ready file: there too early: %t, there now: %t", early.Load(), there())
	}
	w.begin(text, func(o *Options) { o.ReadyFile = path }).fails("ready file", "another l4fwd, which runs")
	if !there() {
		t.Error("the ready file of one that lives is gone")
	}
	d.end()
	if there() {
		t.Error("the ready file stays")
	}
	w.clean()
}

// What gets the ready file's name while a daemon starts is not touched.
func TestReadyFileTaken(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "ready"), filepath.Join(dir, "victim")
	check(t, os.WriteFile(victim, []byte("precious"), 0o600))
	d := w.begin(w.Config(testbed.Services(0, "dnat", "", "rr"), small...), func(o *Options) {
		o.ReadyFile = path
		o.Log = o.Log.WithOptions(zap.Hooks(func(e zapcore.Entry) error {
			if e.Message != "ready" {
				return nil
			}
			return os.Symlink(victim, path)
		}))
	})
	d.fails("ready file", "file exists")
	if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := os.Readlink(path); err != nil {
		t.Error(err)
	}
	w.clean()
}

// What is no file is not replaced or removed either.
func TestOursToReplace(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	check(t, os.Symlink("/dev/stdout", link))
	for _, path := range []string{"/dev/null", link, t.TempDir()} {
		for _, o := range []Options{{ReadyFile: path}, {StatsFile: path}} {
			d, err := New(config.Defaults(), o)
			check(t, err)
			if err := d.preflight(); err == nil || !strings.Contains(err.Error(), " file: "+path+" is no regular file") {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

// Without a capability nothing is touched. It is the thread's that counts, so
// a thread gives it up for a while.
func TestRunWithoutCapability(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	cfg, err := config.Parse("test.yaml", []byte(dnat("interfaces: [{name: l0}, {name: l1}]")))
	if err != nil {
		t.Fatal(err)
	}
	err = w.LB.Do(func() error {
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var all [2]unix.CapUserData
		if err := unix.Capget(&hdr, &all[0]); err != nil {
			return err
		}
		less := all
		less[0].Effective &^= 1 << unix.CAP_NET_RAW
		if err := unix.Capset(&hdr, &less[0]); err != nil {
			return err
		}
		ran := Run(t.Context(), cfg, Options{Log: zap.NewNop(), JournalDir: w.journal})
		if err := unix.Capset(&hdr, &all[0]); err != nil {
			return err
		}
		return ran
	})
	if !errors.Is(err, ErrCapability) {
		t.Errorf("%v", err)
	}
	w.clean()
}
