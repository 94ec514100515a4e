package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/steer"
	"github.com/l4fwd/l4fwd/internal/sdnotify"
)

// errRestart is wrapped by the error of a reload that changes what only a new process
// can have.
var errRestart = errors.New("needs a restart")

// ReloadFile is Reload with what Options.Load gives. The service manager is told.
func (d *Daemon) ReloadFile(ctx context.Context, q admin.ReloadRequest) (r admin.ReloadReport, err error) {
	if d.opt.Load == nil {
		return r, admin.Refusal(admin.ErrConflict, errors.New("this daemon has no file to read again"))
	}
	d.reloading.Lock() // one after the other: the later one reads the later file
	defer d.reloading.Unlock()
	if !q.DryRun {
		defer func() { d.noteReload(err) }()
		if err := sdnotify.Reloading(); err != nil {
			d.log.Warn("telling the service manager", zap.Error(err))
		}
		defer func() {
			if err := sdnotify.Send("READY=1"); err != nil {
				d.log.Warn("telling the service manager", zap.Error(err))
			}
		}()
	}
	c, err := d.opt.Load()
	if err != nil {
		if !q.DryRun {
			d.log.Error("not reloaded: all stays as it was", zap.Error(err))
		}
		if errors.As(err, new(config.Errors)) || errors.Is(err, os.ErrNotExist) {
			err = admin.Refusal(admin.ErrInvalid, err)
		}
		return r, err
	}
	return d.reloadFrom(ctx, c, q.DryRun)
}

// noteReload remembers whether the file in place is the one in force.
func (d *Daemon) noteReload(err error) {
	if err != nil {
		d.reloadsRefused.Add(1)
	}
	d.lastRefused.Store(err != nil)
}

// Reload puts another configuration, a valid one, into force while packets flow: all of
// it, with what discovery has found, or with an error nothing. Flows go on; what is
// removed drains. With dryRun it only says what would change. From any goroutine but that
// of Run.
func (d *Daemon) Reload(ctx context.Context, c *config.Config, dryRun bool) (admin.ReloadReport, error) {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	return d.reloadFrom(ctx, c, dryRun)
}

// reloadFrom is Reload with d.reloading.
func (d *Daemon) reloadFrom(ctx context.Context, c *config.Config, dryRun bool) (admin.ReloadReport, error) {
	kind := reloadFile
	if dryRun {
		kind = reloadDry
	}
	return d.reloadWith(ctx, c, kind, func(f func()) error { return d.onLoop(ctx, f) })
}

// reloadKind is what a reload is for.
type reloadKind uint8

const (
	reloadFile  reloadKind = iota // of the file
	reloadDry                     // the same, but nothing is changed
	reloadFound                   // discovery has found something
)

// reloadWith puts the file's configuration and what was found into force. on runs
// something on the loop.
func (d *Daemon) reloadWith(ctx context.Context, file *config.Config, kind reloadKind, on func(func()) error) (r admin.ReloadReport, err error) {
	var changes []string
	use := func() {}
	if kind != reloadFound {
		if changes, use, err = d.gates.read(); err != nil { // not on the loop, which waits for no disk
			err = admin.Refusal(admin.ErrConflict, err)
		}
	}
	var c *config.Config
	var f *found
	if err == nil {
		c, f, err = d.withFound(ctx, file, on)
	}
	if err == nil {
		e := on(func() {
			began := time.Now()
			c := withWorkers(c)
			if kind == reloadFound && len(config.Diff(d.cfg, c)) == 0 {
				return
			}
			if r, err = d.reload(ctx, c, kind == reloadDry); err == nil && kind == reloadFile {
				d.loaded = time.Now()
				d.reloads++
			}
			r.Seconds = time.Since(began).Seconds()
		})
		err = errors.Join(e, err)
	}
	r.Changes = append(r.Changes, changes...)
	if err != nil {
		if kind == reloadFile { // who only asks is told; takeFound says it once
			d.log.Error("not reloaded: all stays as it was", zap.Error(err))
		}
		return r, err
	}
	if f != nil {
		r.Warnings = append(r.Warnings, f.warnings()...)
	}
	if kind == reloadDry {
		return r, nil
	}
	d.inForce(file, f)
	switch {
	case kind == reloadFile:
		use()
		d.gates.hosts.Set(c.WebHosts)
		if x := d.discovery; x != nil && x.due {
			x.wake()
		}
		d.log.Info("reloaded", zap.Int("changes", len(r.Changes)), zap.Float64("seconds", r.Seconds))
	case f != nil && d.discovery.isNews(f.revision, len(r.Changes)):
		d.log.Info("as etcd says", zap.Int64("revision", f.revision), zap.Int("changes", len(r.Changes)),
			zap.Int("services", f.Services), zap.Int("backends", f.Backends), zap.Float64("seconds", r.Seconds))
	}
	if f != nil {
		d.discovery.show(f)
		d.retain(f)
	}
	return r, nil
}

// reload is Reload on the loop, with what was found.
func (d *Daemon) reload(ctx context.Context, c *config.Config, dryRun bool) (r admin.ReloadReport, err error) {
	r.DryRun = dryRun
	var restart []string
	for _, change := range config.Diff(d.cfg, c) {
		r.Changes = append(r.Changes, change.String())
		if change.Restart {
			change.Restart = false // the error says so of all of them
			restart = append(restart, change.String())
		}
	}
	r.Warnings = d.warnings(c)
	if len(restart) > 0 {
		return r, admin.Refusal(admin.ErrConflict, fmt.Errorf("%w: %s", errRestart, strings.Join(restart, "; ")))
	}
	advice, err := d.checkChange(c)
	if err != nil {
		return r, admin.Refusal(admin.ErrConflict, err)
	}
	if advice != nil {
		r.Warnings = append(r.Warnings, advice.Error())
	}
	if dryRun {
		return r, nil
	}
	for _, w := range r.Warnings {
		d.log.Warn("configuration", zap.String("problem", w))
	}
	if err := d.apply(ctx, c); err != nil {
		return r, err
	}
	return r, nil
}

// warnings are what is legal in c and probably not meant.
func (d *Daemon) warnings(c *config.Config) (out []string) {
	for _, p := range c.Warnings() {
		out = append(out, p.String())
	}
	return append(out, d.overruled(c)...)
}

// checkChange looks for what the host has against c and had not against the
// configuration in force: that l4fwd lives with already. advice is no reason to refuse c.
func (d *Daemon) checkChange(c *config.Config) (advice, against error) {
	ports, own, err := d.hostPorts()
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool)
	for _, e := range ports.conflicts(d.cfg, own) {
		known[e.Error()] = true
	}
	then := slices.DeleteFunc(ports.conflicts(c, own), func(e error) bool { return known[e.Error()] })
	_, refused := plan.Rules(c, d.host)
	for _, a := range refused {
		if !slices.Contains(d.refused, a) {
			then = append(then, refusedLocals([]netip.Addr{a}))
		}
	}
	if c.ManagementInterface != d.cfg.ManagementInterface {
		dev, err := netlink.LinkByName(c.ManagementInterface)
		if err == nil && slices.ContainsFunc(d.links, func(l *link) bool { return l.ifindex == dev.Attrs().Index }) {
			then = append(then, fmt.Errorf("management_interface: %s is a data-plane interface", c.ManagementInterface))
		}
	}
	return ports.lent(c, own), errors.Join(then...)
}

// apply is the change itself. What servers send is taken before the first packet goes
// to them, clients' packets when the workers know the service; what leaves is taken
// until its flows have been ended.
func (d *Daemon) apply(ctx context.Context, c *config.Config) error {
	ctx = context.WithoutCancel(ctx) // not half of it
	was, leavers, refused, rules := d.cfg, d.leavers, d.refused, d.rules
	d.forget(ctx)
	d.leavers, _ = end(leaving(was, c, leavers, time.Now()), time.Now())
	d.cfg = c
	_, d.refused = plan.Rules(c, d.host)
	next, _ := plan.Rules(d.effective(), d.host)
	d.follower.Keep(d.backendAddrs())
	err := d.steer.Update(beforehand(rules, next, c))
	published := false
	if err == nil {
		published = true
		if err = d.republish(); err == nil {
			err = d.onWorkers(ctx, func(*dataplane.Worker) {}) // they have it
		}
	}
	if err == nil {
		err = d.steer.Update(next)
	}
	if err != nil {
		d.cfg, d.leavers, d.refused = was, leavers, refused
		d.follower.Keep(d.backendAddrs())
		if published {
			err = errors.Join(err, d.republish())
		}
		return errors.Join(fmt.Errorf("new configuration: %w", err), d.steer.Update(rules))
	}
	d.rules = next
	err = d.logConnections(func(f func(*dataplane.Worker)) error { return d.onWorkers(ctx, f) })
	if err != nil {
		d.log.Error("connections are not logged", zap.Error(err))
	}
	d.outdated()
	d.settle()
	d.recheck()
	if d.opt.SetLogLevel != nil {
		d.opt.SetLogLevel(c.LogLevel)
	}
	return nil
}

// beforehand are the rules now and what has to be taken before workers know of next:
// what comes from new servers and to new local addresses.
func beforehand(now, next steer.Rules, c *config.Config) steer.Rules {
	out := now
	out.Backends = slices.Concat(now.Backends, next.Backends)
	out.Addrs = slices.Clone(now.Addrs)
	for a := range c.Locals() {
		if _, ours := slices.BinarySearchFunc(next.Addrs, a, netip.Addr.Compare); ours {
			out.Addrs = append(out.Addrs, a)
		}
	}
	out.LocalRanges = slices.Clone(next.LocalRanges)
	for _, r := range now.LocalRanges {
		if !slices.ContainsFunc(out.LocalRanges, func(o steer.RangeRule) bool { return o.Addr == r.Addr }) {
			out.LocalRanges = append(out.LocalRanges, r)
		}
	}
	return out
}

// resettle is what follows, outside of the workers, when fewer leave.
func (d *Daemon) resettle() {
	d.follower.Keep(d.backendAddrs())
	rules, _ := plan.Rules(d.effective(), d.host)
	if err := d.steer.Update(rules); err != nil {
		d.log.Error("XDP rules", zap.Error(err))
		return
	}
	d.rules = rules
	d.settle()
}

// settle has announcements and path MTUs follow the rules.
func (d *Daemon) settle() {
	for _, l := range d.links {
		if l.voice == nil {
			continue
		}
		if err := d.speakFor(l); err != nil {
			d.log.Warn("announcing addresses", zap.String("interface", l.name), zap.Error(err))
		}
	}
	d.listenPathMTU()
}
