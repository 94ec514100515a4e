package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// How long things may take.
const (
	startPatience = 15 * time.Second // until l4fwd takes traffic
	stopPatience  = 5 * time.Second  // SIGTERM to exit
	statsPatience = 3 * time.Second  // until the stats are renewed, which is every second
	warmPatience  = 4 * time.Second  // until every server has answered through every VIP
	pingPatience  = 2 * time.Second
)

// leastFlows is a small flow table: the demo should not want a server's memory.
const leastFlows = 65536

// maxFlows makes sure that all flows fit, even if none expires meanwhile: HTTP
// and UDP, two modes, two families.
func maxFlows(requests int) int { return max(leastFlows, 8*requests) }

// forwarder is the l4fwd process and the files it shares with the demo.
type forwarder struct {
	config, stats, ready string // paths
	text                 string // the configuration
	proc                 *testbed.Process
	up                   bool // it has taken traffic
}

// stats is the part of the stats file that the demo shows. The whole is
// documented with control.Stats.
type stats struct {
	Flows    int               `json:"flows"`
	Opened   uint64            `json:"opened"`
	Dropped  uint64            `json:"dropped"`
	Verdicts map[string]uint64 `json:"verdicts"`
}

// Names of verdicts that are no drops.
const (
	verdictForwarded = "forwarded"
	verdictReplied   = "replied"
	verdictAnswered  = "answered"
)

// notDrops are the outcomes of packets that went somewhere.
var notDrops = map[string]bool{
	verdictForwarded: true, verdictReplied: true, verdictAnswered: true, "passed": true, "handed_over": true,
}

// startForwarder writes the configuration and starts `l4fwd run` with it in the
// load balancer's namespace.
func (d *demo) startForwarder(ctx context.Context) error {
	f := &forwarder{
		config: filepath.Join(d.dir, "l4fwd.yaml"),
		stats:  filepath.Join(d.dir, "stats.json"),
		ready:  filepath.Join(d.dir, "ready"),
		text:   d.net.top.Config(services(), fmt.Sprintf("max_flows: %d", maxFlows(d.o.Requests))),
	}
	if err := os.WriteFile(f.config, []byte(f.text), 0o600); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	args := []string{"run", "-c", f.config, "--stats-file", f.stats, "--ready-file", f.ready}
	done := d.scr.timed("forwarder", "l4fwd run -c "+f.config)
	var err error
	// The process must outlive ctx, so that an interrupted demo can end it in
	// the way that puts the interfaces back.
	f.proc, err = d.net.top.LB.StartProcess(context.WithoutCancel(ctx), testbed.ProcessOptions{
		Path: d.o.Executable, Args: args, PrivateSysfs: true,
	})
	if err != nil {
		return err
	}
	d.fwd = f
	d.down.add(func() error {
		if !f.proc.Running() {
			return nil
		}
		err := f.proc.Terminate(stopPatience)
		if !f.up {
			return nil // it may not even have begun to listen to signals
		}
		return err
	})
	if err := f.waitReady(ctx); err != nil {
		if ctx.Err() == nil {
			d.scr.log("l4fwd's log", f.proc.Output())
		}
		return err
	}
	f.up = true
	done()
	d.scr.config(f.config, f.text)
	return nil
}

var errExitedZero = errors.New("exit status 0")

// waitReady waits for the file that says that traffic is being taken.
func (f *forwarder) waitReady(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(startPatience)
	defer late.Stop()
	for {
		if _, err := os.Stat(f.ready); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-f.proc.Done():
			return fmt.Errorf("l4fwd run did not start: %w", f.exit())
		case <-late.C:
			return fmt.Errorf("l4fwd run did not take traffic within %s", startPatience)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// exit is how the process ended, never nil.
func (f *forwarder) exit() error {
	if err := f.proc.Wait(); err != nil {
		return err
	}
	return errExitedZero
}

// read is the latest stats; zero ones before there are any.
func (f *forwarder) read() (s stats) {
	b, err := os.ReadFile(f.stats)
	if err != nil {
		return stats{}
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return stats{}
	}
	return s
}

// settled waits until the stats are from after now.
func (f *forwarder) settled(ctx context.Context) error {
	now := time.Now()
	late := time.NewTimer(statsPatience)
	defer late.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		// Counters are read before the file is written, and file times are
		// coarse: the renewal after the first one is surely of later.
		if info, err := os.Stat(f.stats); err == nil && info.ModTime().After(now.Add(50*time.Millisecond)) {
			return nil
		}
		select {
		case <-tick.C:
		case <-f.proc.Done():
			return fmt.Errorf("l4fwd ended: %w", f.exit())
		case <-late.C:
			return fmt.Errorf("%s was not renewed within %s", f.stats, statsPatience)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// complaints are the lines of the log that are warnings or worse.
func (f *forwarder) complaints() (out []string) {
	for line := range strings.Lines(f.proc.Output()) {
		for _, level := range []string{"WARN", "ERROR", "DPANIC", "PANIC", "FATAL", "panic:"} {
			if strings.Contains(line, level) {
				out = append(out, strings.TrimSpace(line))
				break
			}
		}
	}
	return out
}

// stopForwarder ends l4fwd as a service manager would and looks whether the
// interfaces are free again.
func (d *demo) stopForwarder() check {
	c := check{name: "l4fwd stops when told, its interfaces free again"}
	begin := time.Now()
	if err := d.fwd.proc.Terminate(stopPatience); err != nil {
		c.detail = "see the log"
		c.because = append(c.because, firstLine(err.Error()))
		return c
	}
	took := time.Since(begin)
	for _, name := range d.net.top.LBDevices() {
		link, err := d.net.top.LB.Netlink().LinkByName(name)
		if err != nil {
			c.because = append(c.because, err.Error())
			continue
		}
		if x := link.Attrs().Xdp; x != nil && x.Attached {
			c.because = append(c.because, name+" still has an XDP program")
		}
	}
	c.ok = len(c.because) == 0
	c.detail = fmt.Sprintf("exit status 0 after %s", round(took))
	return c
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
