package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/discover"
	"github.com/l4fwd/l4fwd/control/metrics"
)

// discovery is what the daemon knows of services beside the file.
type discovery struct {
	etcd     config.Etcd
	follower *discover.Follower
	news     chan struct{} // there is a set that is newer than what is in force

	// Under Daemon.reloading.
	merger *discover.Merger
	file   *config.Config // what stands in the file alone
	unkept string         // why the state file is not up to date, as it was logged
	told   int64          // the revision that was last logged to be in force, 0 after a refusal
	due    bool           // the same set may fare better later

	mu       sync.Mutex
	set      *discover.Set // the last, nil if there was none
	recalled bool          // it is from the state file
	result   *discover.Result
	revision int64  // of result
	refusal  string // why the last set is not in force, "" if it is
	// Since when any of it has not been, zero if all is.
	refusedSince time.Time
}

// startDiscovery begins to follow etcd, and waits for its first words, but not for long:
// without them what was in force the last time is.
func (d *Daemon) startDiscovery(ctx context.Context, down *undo) error {
	if !d.cfg.Discovery.Etcd.On() {
		return nil
	}
	dial, err := d.dialer()
	if err != nil {
		return err
	}
	x := &discovery{etcd: d.cfg.Discovery.Etcd, news: make(chan struct{}, 1), file: d.cfg}
	x.merger = discover.NewMerger(&x.etcd)
	last := x.recall(d.log)
	x.follower = discover.New(discover.Options{Etcd: x.etcd, Log: d.log.Named("discovery"), Dial: dial, OnSet: x.put})
	living, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := guarded("discovery", func() error { x.follower.Run(living); return nil }); err != nil {
			d.fail(err)
		}
	}()
	down.add(func() error {
		cancel()
		<-done
		return nil
	})
	d.discovery = x
	late := time.NewTimer(x.etcd.Timeout)
	defer late.Stop()
	select {
	case <-x.news:
	case <-ctx.Done():
		return ctx.Err()
	case <-late.C:
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.set == nil {
			x.set, x.recalled = last, last != nil
			d.log.Warn("etcd has not answered yet; what was in force the last time is, until it does",
				zap.Bool("known", last != nil), zap.String("error", x.follower.Status().Error))
		}
	}
	return nil
}

// recall returns what was in force in an earlier run, nil if that is not known.
func (x *discovery) recall(log *zap.Logger) *discover.Set {
	if x.etcd.StateDir == "" {
		return nil
	}
	set, err := discover.Load(&x.etcd)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			log.Warn("discovery", zap.Error(err))
		}
		return nil
	}
	x.merger.Recall(set.Documents)
	return set
}

// put takes a set from the follower.
func (x *discovery) put(s *discover.Set) {
	x.mu.Lock()
	x.set, x.recalled = s, false
	x.mu.Unlock()
	x.wake()
}

// wake has the last set looked at.
func (x *discovery) wake() {
	select {
	case x.news <- struct{}{}:
	default:
	}
}

// How long after a set was not put into force as it is it is tried again, at first and at
// most; it doubles each time. What the host objects to, and what fails in the kernel or for
// want of memory, goes by; nothing tells when.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// pursue has take run each time there is a newer set and, as long as it says that the same
// one may fare better later, again.
func (x *discovery) pursue(ctx context.Context, due bool, take func() (due bool)) {
	for pause := firstRetry; ; {
		var again <-chan time.Time
		if due {
			again = time.After(pause/2 + rand.N(pause/2)) // not all l4fwds at once
		}
		select {
		case <-ctx.Done():
			return
		case <-x.news:
			pause = firstRetry
		case <-again:
			pause = min(2*pause, lastRetry)
		}
		due = take()
	}
}

// dialer opens connections in the daemon's namespace, nil if that is the process's.
func (d *Daemon) dialer() (func(context.Context, string) (net.Conn, error), error) {
	enter, err := d.entrance()
	if err != nil || enter == nil {
		return nil, err
	}
	return func(ctx context.Context, address string) (c net.Conn, err error) {
		done := make(chan struct{})
		go func() { // whose thread is of no use for anything else then
			defer close(done)
			if err = enter(); err != nil {
				return
			}
			var dial net.Dialer
			c, err = dial.DialContext(ctx, "tcp", address)
		}()
		<-done
		return c, err
	}, nil
}

// adoptFound puts the first set into force, as a reload would, and has the later ones
// follow. What is wrong with it does not keep the file's services from being served.
func (d *Daemon) adoptFound(ctx context.Context, down *undo) error {
	x := d.discovery
	if x == nil {
		return nil
	}
	d.reloading.Lock()
	d.takeFound(ctx, func(f func()) error { f(); return nil }) // this is the loop's goroutine
	due := x.due
	d.reloading.Unlock()
	living, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		x.pursue(living, due, func() (due bool) {
			d.reloading.Lock()
			defer d.reloading.Unlock()
			d.takeFound(living, func(f func()) error { return d.onLoop(living, f) })
			return x.due
		})
	}()
	down.add(func() error {
		cancel()
		<-done
		return nil
	})
	return nil
}

// takeFound puts the last set onto the file that is in force. With d.reloading; on runs
// something on the loop.
func (d *Daemon) takeFound(ctx context.Context, on func(func()) error) {
	x := d.discovery
	_, err := d.reloadWith(ctx, x.file, reloadFound, on)
	if err == nil || errors.Is(err, errNotRunning) || ctx.Err() != nil {
		return
	}
	x.due, x.told = true, 0
	x.mu.Lock()
	defer x.mu.Unlock()
	if was := x.refusal; was != err.Error() {
		x.refusal = err.Error()
		d.log.Error("not as etcd says: all stays as it was; it is tried again", zap.Int64("revision", x.set.Revision), zap.Error(err))
	}
	x.dateRefusal()
}

// dateRefusal notes since when something is refused. With x.mu.
func (x *discovery) dateRefusal() {
	switch {
	case x.refusal == "" && (x.result == nil || len(x.result.Problems) == 0):
		x.refusedSince = time.Time{}
	case x.refusedSince.IsZero():
		x.refusedSince = time.Now()
	}
}

// isNews reports whether it is worth a line of the log that a set is in force. With
// d.reloading.
func (x *discovery) isNews(revision int64, changes int) bool {
	was := x.told
	x.told = revision
	return was != revision || changes > 0
}

// withFound is a file's configuration with what was found; the result is nil without
// discovery. With d.reloading.
func (d *Daemon) withFound(ctx context.Context, file *config.Config, on func(func()) error) (*config.Config, *found, error) {
	x := d.discovery
	if x == nil || file.Discovery.Etcd.Endpoints == nil {
		return file, nil, nil // or it needs a restart, as reload says
	}
	x.mu.Lock()
	set := x.set
	x.mu.Unlock()
	if set == nil {
		return file, nil, nil
	}
	var against func(*config.Service) error
	var err error
	if e := on(func() { against, err = d.hostJudge() }); e != nil {
		return nil, nil, e // the loop has ended, or nobody waits any more
	}
	if err != nil {
		return nil, nil, fmt.Errorf("what the host has against services: %w", err)
	}
	r, err := x.merger.Merge(ctx, file, set, against)
	if err != nil {
		return nil, nil, err
	}
	return r.Config, &found{r, set.Revision}, nil
}

// found is what became of a set.
type found struct {
	*discover.Result
	revision int64
}

// inForce notes what has been put into force, and says what of it is refused. With
// d.reloading.
func (d *Daemon) inForce(file *config.Config, f *found) {
	x := d.discovery
	if x == nil {
		return
	}
	if x.file = file; f == nil {
		return
	}
	x.due = f.Objections > 0
	before := make(map[discover.Problem]bool)
	if x.result != nil {
		for _, p := range x.result.Problems {
			before[p] = true
		}
	}
	logged := 0
	for _, p := range f.Problems {
		if before[p] {
			continue
		}
		if logged++; logged > toldChanges {
			d.log.Warn("more documents are refused; `l4fwd status` lists them", zap.Int("all", len(f.Problems)))
			break
		}
		d.log.Warn("not in force as etcd has it", zap.String("key", p.Key), zap.String("problem", p.Text))
	}
}

// show has Status tell what is in force, after all is logged: who has waited for it there
// finds it in the log. With Daemon.reloading.
func (x *discovery) show(f *found) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.refusal, x.result, x.revision = "", f.Result, f.revision
	x.dateRefusal()
}

// retain has the next start know what is in force. With d.reloading.
func (d *Daemon) retain(f *found) {
	x := d.discovery
	if !x.merger.Commit(f.Result) || x.etcd.StateDir == "" {
		return
	}
	text := ""
	if err := discover.Save(&x.etcd, &discover.Set{Revision: f.revision, Documents: x.merger.InForce()}); err != nil {
		if text = err.Error(); text != x.unkept {
			d.log.Warn("a start without etcd will not know its services", zap.Error(err))
		}
	}
	x.unkept = text
}

// mostProblems bounds what status lists.
const mostProblems = 100

// discoveryStatus is how discovery goes, nil without it. From any goroutine.
func (d *Daemon) discoveryStatus() *admin.DiscoveryStatus {
	x := d.discovery
	if x == nil {
		return nil
	}
	s := x.follower.Status()
	out := &admin.DiscoveryStatus{
		Endpoints: x.etcd.Endpoints, Prefix: x.etcd.Prefix, Connected: s.Connected, Since: s.Since,
		Revision: s.Revision, Error: s.Error, ErrorAt: s.ErrorAt,
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	out.Recalled, out.Refusal, out.RefusedSince, out.InForce = x.recalled, x.refusal, x.refusedSince, x.revision
	if x.result != nil {
		out.Services, out.Backends, out.Refused = x.result.Services, x.result.Backends, len(x.result.Problems)
		for _, p := range x.result.Problems[:min(len(x.result.Problems), mostProblems)] {
			out.Problems = append(out.Problems, p.String())
		}
	}
	return out
}

// sampleDiscovery is that for metrics.
func (d *Daemon) sampleDiscovery() *metrics.Discovery {
	s := d.discoveryStatus()
	if s == nil {
		return nil
	}
	return &metrics.Discovery{Connected: s.Connected, Current: s.Refusal == "" && s.InForce == s.Revision, Refused: s.Refused}
}

// warnings are the problems in words.
func (f *found) warnings() (out []string) {
	for i, p := range f.Problems {
		if i == mostProblems {
			return append(out, fmt.Sprintf("etcd: %d more", len(f.Problems)-i))
		}
		out = append(out, "etcd: "+p.String())
	}
	return out
}
