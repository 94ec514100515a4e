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

// How long things may take: longer than a busy machine stops for, since only what fails
// waits for them.
const (
	startPatience = 15 * time.Second // until l4fwd takes traffic
	stopPatience  = 20 * time.Second // SIGTERM to exit
	statsPatience = 15 * time.Second // until the stats are renewed, which is every second
	warmPatience  = 15 * time.Second // until every server has answered through every VIP
	pingPatience  = 10 * time.Second
)

// leastFlows is a small flow table: the demo should not want a server's memory.
const leastFlows = 65536

// maxForwarders is how many l4fwd a mode has at most.
const maxForwarders = 2

// maxFlows makes sure that all flows fit, even if none expires meanwhile: HTTP
// and UDP, two modes, two families.
func maxFlows(requests int) int { return max(leastFlows, 8*requests) }

// forwarder is an l4fwd process and the files it shares with the demo.
type forwarder struct {
	name                 string             // for people
	ns                   *testbed.Namespace // where it runs
	devices              []string           // its interfaces
	config, stats, ready string             // paths
	text                 string             // the configuration
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

// startForwarders starts the one that has the VIPs, and the one that answers go
// through if that is another.
func (d *demo) startForwarders(ctx context.Context) error {
	top, flows := d.net.top, fmt.Sprintf("max_flows: %d", maxFlows(d.o.Requests))
	first, back := d.net.services()
	all := []*forwarder{{name: d.net.names[0], ns: top.LB, devices: top.LBDevices(), text: top.Config(first, flows)}}
	if len(back) > 0 {
		all = append(all, &forwarder{name: d.net.names[1], ns: top.Return, devices: []string{top.ReturnDev.Name}, text: top.ReturnConfig(back)})
	}
	for _, f := range all {
		if err := d.startForwarder(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// startForwarder writes the configuration and starts `l4fwd run` with it in the
// forwarder's namespace.
func (d *demo) startForwarder(ctx context.Context, f *forwarder) error {
	file := func(suffix string) string {
		return filepath.Join(d.dir, strings.ToLower(strings.ReplaceAll(f.name, " ", "-"))+suffix)
	}
	f.config, f.stats, f.ready = file(".yaml"), file(".json"), file(".ready")
	if err := os.WriteFile(f.config, []byte(f.text), 0o600); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	args := []string{"run", "-c", f.config, "--stats-file", f.stats, "--ready-file", f.ready}
	done := d.scr.timed("forwarder", "l4fwd run -c "+f.config)
	var err error
	// The process must outlive ctx, so that an interrupted demo can end it in
	// the way that puts the interfaces back.
	f.proc, err = f.ns.StartProcess(context.WithoutCancel(ctx), testbed.ProcessOptions{
		Path: d.o.Executable, Args: args, PrivateSysfs: true,
	})
	if err != nil {
		return err
	}
	d.fwds = append(d.fwds, f)
	go func() {
		<-f.proc.Done()
		d.ended <- f
	}()
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
			d.logs()
		}
		return err
	}
	f.up = true
	done()
	d.scr.config(f.text, d.modes)
	return nil
}

// logs shows what the forwarders have logged.
func (d *demo) logs() {
	for _, f := range d.fwds {
		d.scr.log(f.name+"'s log", f.proc.Output())
	}
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

// figures are the latest stats of all forwarders together.
func (d *demo) figures() (sum stats) {
	for _, f := range d.fwds {
		s := f.read()
		sum.Flows += s.Flows
		sum.Opened += s.Opened
		sum.Dropped += s.Dropped
		for v, n := range s.Verdicts {
			if sum.Verdicts == nil {
				sum.Verdicts = make(map[string]uint64)
			}
			sum.Verdicts[v] += n
		}
	}
	return sum
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

// settled waits until the stats of all forwarders are from after now.
func (d *demo) settled(ctx context.Context) error {
	for _, f := range d.fwds {
		if err := f.settled(ctx); err != nil {
			return err
		}
	}
	return nil
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

// stopForwarders ends l4fwd as a service manager would and looks whether the
// interfaces are free again.
func (d *demo) stopForwarders() check {
	c := check{name: "l4fwd stops when told, its interfaces free again"}
	begin := time.Now()
	for _, f := range d.fwds {
		if err := f.proc.Terminate(stopPatience); err != nil {
			c.detail = "see the log"
			c.because = append(c.because, firstLine(err.Error()))
			return c
		}
		for _, name := range f.devices {
			link, err := f.ns.Netlink().LinkByName(name)
			if err != nil {
				c.because = append(c.because, err.Error())
				continue
			}
			if x := link.Attrs().Xdp; x != nil && x.Attached {
				c.because = append(c.because, name+" still has an XDP program")
			}
		}
	}
	c.ok = len(c.because) == 0
	c.detail = fmt.Sprintf("exit status 0 after %s", round(time.Since(begin)))
	return c
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
