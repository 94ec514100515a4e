package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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

	mu       sync.Mutex
	set      *discover.Set // the last, nil if there was none
	recalled bool          // it is from the state file
	result   *discover.Result
	revision int64  // of result
	refusal  string // why the last set is not in force, "" if it is
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
	select {
	case x.news <- struct{}{}:
	default:
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
	d.reloading.Unlock()
	living, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-living.Done():
				return
			case <-x.news:
			}
			d.reloading.Lock()
			d.takeFound(living, func(f func()) error { return d.onLoop(living, f) })
			d.reloading.Unlock()
		}
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
	if errors.Is(err, errNotRunning) || ctx.Err() != nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.refusal = ""; err != nil {
		x.refusal = err.Error()
	}
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
	ctx, giveUp := context.WithCancel(ctx)
	defer giveUp()
	var gone error
	r, err := x.merger.Merge(ctx, file, set, func(c *config.Config) (err error) {
		if gone = on(func() { err = d.checkChange(withWorkers(c)) }); gone != nil {
			giveUp() // the loop has ended, or nobody waits any more: no fault of documents
			return gone
		}
		return err
	})
	if gone != nil {
		return nil, nil, gone
	}
	if err != nil {
		return nil, nil, admin.Refusal(admin.ErrConflict, err)
	}
	return r.Config, &found{r, set.Revision}, nil
}

// found is what became of a set.
type found struct {
	*discover.Result
	revision int64
}

// inForce notes what has been put into force. With d.reloading.
func (d *Daemon) inForce(file *config.Config, f *found) {
	x := d.discovery
	if x == nil {
		return
	}
	if x.file = file; f == nil {
		return
	}
	x.mu.Lock()
	before := make(map[discover.Problem]bool)
	if x.result != nil {
		for _, p := range x.result.Problems {
			before[p] = true
		}
	}
	x.result, x.revision = f.Result, f.revision
	x.mu.Unlock()
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
	out.Recalled, out.Refusal, out.InForce = x.recalled, x.refusal, x.revision
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
