package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// stats are those parts of --stats-file that the tests read. The names are a
// contract with users, so they are spelt out here and not taken from control.
type stats struct {
	Flows    int               `json:"flows"`
	Opened   uint64            `json:"opened"`
	Evicted  uint64            `json:"evicted"`
	Verdicts map[string]uint64 `json:"verdicts"`
	Dropped  uint64            `json:"dropped"`
	Refusals uint64            `json:"refusals"`
	Split    uint64            `json:"split"`
	Expired  uint64            `json:"expired"`
	Services []struct {
		Name     string            `json:"name"`
		QUIC     map[string]uint64 `json:"quic"`
		Backends []struct {
			Address string `json:"address"`
			Flows   uint64 `json:"flows"`
			Active  int64  `json:"active"`
			Health  struct {
				State  string `json:"state"`
				Reason string `json:"reason"`
			} `json:"health"`
		} `json:"backends"`
	} `json:"services"`
	Workers []struct {
		Received   uint64 `json:"received"`
		HandedOver uint64 `json:"handed_over"`
		Adopted    uint64 `json:"adopted"`
		FreeFrames uint64 `json:"free_frames"`
	} `json:"workers"`
	Interfaces []struct {
		Name   string `json:"name"`
		Up     bool   `json:"up"`
		Queues []struct {
			Received    uint64 `json:"received"`
			Filled      uint64 `json:"filled"`
			Transmitted uint64 `json:"transmitted"`
			Reclaimed   uint64 `json:"reclaimed"`
		} `json:"queues"`
	} `json:"interfaces"`
	TOA map[string]uint64 `json:"toa"`
}

// drops are the packets lost since earlier stats, by reason.
func (s stats) drops(since stats) map[string]uint64 {
	out := make(map[string]uint64)
	for name, n := range s.Verdicts {
		switch name {
		case "forwarded", "replied", "passed", "answered", "handed_over":
		default:
			if n -= since.Verdicts[name]; n > 0 {
				out[name] = n
			}
		}
	}
	return out
}

// forwarding are the verdicts of packets that crossed l4fwd.
func (s stats) forwarding() uint64 { return s.Verdicts["forwarded"] + s.Verdicts["replied"] }

// frames are all that l4fwd knows of, its own and those the kernel has, when no
// packet is under way.
func (s stats) frames() uint64 {
	var n uint64
	for _, w := range s.Workers {
		n += w.FreeFrames
	}
	for _, i := range s.Interfaces {
		for _, q := range i.Queues {
			n += q.Filled - q.Received + q.Transmitted - q.Reclaimed
		}
	}
	return n
}

// daemon is a running l4fwd.
type daemon struct {
	*testbed.Process
	t         *testing.T
	statsFile string
}

// program is what to run and how.
type program struct {
	race bool     // built with the race detector
	args []string // beyond run -c FILE
	// prepare changes the command before it starts; nil = nobody.
	prepare func(*testbed.Cmd)
}

// limit bounds a wait for l4fwd to start or stop on a busy machine.
const limit = 30 * time.Second

// command is l4fwd's path and arguments for a configuration.
func (p program) command(t *testing.T, config string) (path string, args []string, statsFile string) {
	t.Helper()
	path, err := testbed.Build(t.Context(), "./cmd/l4fwd", p.race)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "l4fwd.yaml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	statsFile = filepath.Join(dir, "stats.json")
	return path, append([]string{"run", "-c", file, "--stats-file", statsFile}, p.args...), statsFile
}

// start runs l4fwd until the end of the test and waits until it takes traffic.
func (p program) start(t *testing.T, ns *testbed.Namespace, config string) *daemon {
	t.Helper()
	path, args, statsFile := p.command(t, config)
	// Not the test's context: it ends before the cleanups, which stop l4fwd.
	proc, err := ns.StartProcess(context.Background(), testbed.ProcessOptions{
		Path: path, Args: args, Ready: "ready", ReadyTimeout: limit, PrivateSysfs: true, Prepare: p.prepare,
	})
	if err != nil {
		t.Fatalf("l4fwd: %v\nconfiguration:\n%s", err, config)
	}
	d := &daemon{Process: proc, t: t, statsFile: statsFile}
	t.Cleanup(d.end)
	return d
}

// refuse runs l4fwd where it must not start and returns what it printed. It
// fails the test if l4fwd gets ready, hangs, crashes or exits with another
// status than want.
func (p program) refuse(t *testing.T, ns *testbed.Namespace, config string, want int) string {
	t.Helper()
	path, args, _ := p.command(t, config)
	proc, err := ns.StartProcess(t.Context(), testbed.ProcessOptions{Path: path, Args: args, PrivateSysfs: true})
	if err != nil {
		t.Fatal(err)
	}
	return refused(t, proc, want)
}

// refused waits for the end of a process that must fail by itself.
func refused(t *testing.T, proc *testbed.Process, want int) string {
	t.Helper()
	select {
	case <-proc.Done():
	case <-time.After(limit):
		proc.Kill()
		t.Errorf("l4fwd runs on where it should refuse to\n%s", proc.Output())
		return proc.Output()
	}
	var exit interface{ ExitCode() int }
	if err := proc.Wait(); !errors.As(err, &exit) || exit.ExitCode() != want {
		t.Errorf("exit: %v, want status %d\n%s", err, want, proc.Output())
	}
	crashed(t, proc.Output())
	return proc.Output()
}

// end stops l4fwd if the test has not, and tells what to look at if the test
// failed.
func (d *daemon) end() {
	if d.Running() {
		d.stop()
	}
	crashed(d.t, d.Output())
	if !d.t.Failed() {
		return
	}
	d.t.Logf("l4fwd's log, the end of it, without stats:\n%s", tail(d.Output(), 60))
	b, err := os.ReadFile(d.statsFile)
	d.t.Logf("l4fwd's stats (%v):\n%s", err, b)
}

// stop ends l4fwd as an operator does.
func (d *daemon) stop() {
	d.t.Helper()
	if err := d.Terminate(limit); err != nil {
		d.t.Error(err)
	}
}

// crashed fails the test if the log has a panic or a data race.
func crashed(t *testing.T, log string) {
	t.Helper()
	for _, bad := range []string{"panic:", "fatal error:", "DATA RACE", "SIGSEGV"} {
		if strings.Contains(log, bad) {
			t.Errorf("l4fwd's log has %q:\n%s", bad, log)
		}
	}
}

// statsLine begins the fields of the log line that SIGUSR1 asks for.
const statsLine = `{"stats": `

// stats asks l4fwd for its figures of now.
func (d *daemon) stats() stats {
	d.t.Helper()
	before := strings.Count(d.Output(), statsLine)
	if err := d.Signal(syscall.SIGUSR1); err != nil {
		d.t.Fatal(err)
	}
	var line string
	await(d.t, "stats in the log after SIGUSR1", func() error {
		parts := strings.Split(d.Output(), statsLine)
		if len(parts) <= before+1 {
			return errors.New("none yet")
		}
		var whole bool
		if line, _, whole = strings.Cut(parts[len(parts)-1], "\n"); !whole {
			return errors.New("half a line")
		}
		return nil
	})
	var entry struct{ Stats stats }
	if err := json.Unmarshal([]byte(statsLine+line), &entry); err != nil {
		d.t.Fatalf("stats in the log: %v\n%s", err, line)
	}
	return entry.Stats
}

// until waits for stats that are as they should be.
func (d *daemon) until(what string, ok func(stats) bool) stats {
	d.t.Helper()
	var s stats
	await(d.t, what, func() error {
		if s = d.stats(); !ok(s) {
			return fmt.Errorf("stats are %+v", s)
		}
		return nil
	})
	return s
}

// await waits for a condition, patiently.
func await(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || t.Context().Err() != nil {
			t.Fatalf("waited in vain for %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// tail is the last lines of a log that are not stats.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	all = slices.DeleteFunc(all, func(line string) bool { return strings.Contains(line, statsLine) })
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
