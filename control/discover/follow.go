package discover

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
)

// Changes that come within quietTime of one another are one, for at most batchTime.
const (
	quietTime = 100 * time.Millisecond
	batchTime = time.Second
)

// firstPause is how long after a session the next one begins, if it had connected; it
// doubles each time that no member answers, up to the timeout. Each member has its share.
const firstPause = 200 * time.Millisecond

// Options of New.
type Options struct {
	// Etcd is what to follow; it must be on.
	Etcd config.Etcd
	// Log; nil: silent.
	Log *zap.Logger
	// Dial opens a TCP connection to address:port; nil: as usual.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// OnSet is called with all documents when there are any, and after each batch of
	// changes, on the goroutine of Run, which it must not keep for long.
	OnSet func(*Set)
}

// Status is how the following goes.
type Status struct {
	Connected bool      // etcd answers
	Since     time.Time // it is so
	Revision  int64     // of the last set; 0: there was none
	Documents int       // in it
	Error     string    // the last one, "" for none
	ErrorAt   time.Time
}

// Follower follows the documents of a prefix. Make one with New, start it with Run.
type Follower struct {
	opt  Options
	peer func(tls.ConnectionState) error // beside what is usual; nil: nothing
	turn int                             // of the endpoint that is asked
	told map[string]string               // why one does not answer, as it was logged

	mu     sync.Mutex
	status Status
}

// New returns a Follower. Nothing is opened before Run.
func New(o Options) *Follower {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return &Follower{opt: o, turn: rand.N(max(1, len(o.Etcd.Endpoints))), told: make(map[string]string), status: Status{Since: time.Now()}}
}

// Status says how it goes. From any goroutine.
func (f *Follower) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// Run follows until ctx is done.
func (f *Follower) Run(ctx context.Context) {
	members := len(f.opt.Etcd.Endpoints)
	for pause, failed := firstPause, 0; ; {
		endpoint := f.opt.Etcd.Endpoints[f.turn%members]
		err := f.session(ctx, endpoint)
		if ctx.Err() != nil {
			return
		}
		if f.lost(endpoint, err) {
			pause, failed = firstPause, 0
		}
		if !errors.Is(err, errCompacted) { // the member is there
			f.turn++
		}
		share := pause / time.Duration(members)
		wait := time.NewTimer(share/2 + rand.N(share)) // not all l4fwds at once
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
		if failed++; failed%members == 0 {
			pause = min(2*pause, max(f.opt.Etcd.Timeout, firstPause))
		}
	}
}

// session lists all documents, and follows their changes as long as the connection lasts.
func (f *Follower) session(ctx context.Context, endpoint string) (err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	client, err := f.connect(ctx, endpoint)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }() // it only says that ctx is done
	set, err := f.list(ctx, client)
	if err != nil {
		return err
	}
	var beside sync.WaitGroup
	defer beside.Wait()
	defer end(nil)
	beside.Go(func() { watchConnection(ctx, client.ActiveConnection(), end) })
	f.found(endpoint)
	f.deliver(set)
	return f.watch(ctx, client, set, f.deliver)
}

// deliver passes a set on.
func (f *Follower) deliver(set *Set) {
	f.mu.Lock()
	f.status.Revision, f.status.Documents = set.Revision, len(set.Documents)
	f.mu.Unlock()
	f.opt.OnSet(set)
}

// found notes that etcd answers.
func (f *Follower) found(endpoint string) {
	clear(f.told)
	f.mu.Lock()
	f.status.Connected, f.status.Since = true, time.Now()
	f.mu.Unlock()
	f.opt.Log.Info("etcd answers", zap.String("endpoint", endpoint))
}

// lost notes that it does not, and reports whether it did.
func (f *Follower) lost(endpoint string, err error) bool {
	f.mu.Lock()
	was := f.status
	f.status.Error, f.status.ErrorAt = err.Error(), time.Now()
	if was.Connected {
		f.status.Connected, f.status.Since = false, time.Now()
	}
	f.mu.Unlock()
	switch {
	case was.Connected:
		f.opt.Log.Warn("etcd is lost; the services stay as they are", zap.String("endpoint", endpoint), zap.Error(err))
	case f.told[endpoint] != err.Error():
		f.opt.Log.Warn("etcd does not answer", zap.String("endpoint", endpoint), zap.Error(err))
		f.told[endpoint] = err.Error()
	}
	return was.Connected
}

// batch gathers changes.
type batch struct {
	set          *Set
	pending      map[string]*Document // by key, nil: it is gone
	revision     int64
	quiet, limit <-chan time.Time
	deliver      func(*Set)
}

// add takes changes in.
func (b *batch) add(r *clientv3.WatchResponse) {
	b.revision = max(b.revision, r.Header.Revision)
	if len(r.Events) == 0 {
		return
	}
	if b.pending == nil {
		b.pending = make(map[string]*Document)
		b.limit = time.After(batchTime)
	}
	for _, e := range r.Events {
		var d *Document
		if e.Type != clientv3.EventTypeDelete {
			d = &Document{string(e.Kv.Key), e.Kv.ModRevision, e.Kv.Value}
		}
		b.pending[string(e.Kv.Key)] = d
	}
	b.quiet = time.After(quietTime)
}

// flush delivers what has been gathered, unless it is too much.
func (b *batch) flush() error {
	b.quiet, b.limit = nil, nil
	if b.pending == nil {
		return nil
	}
	next := &Set{Revision: b.revision, Documents: make([]Document, 0, len(b.set.Documents)+len(b.pending))}
	for _, d := range b.set.Documents {
		if _, changed := b.pending[d.Key]; !changed {
			next.Documents = append(next.Documents, d)
		}
	}
	for _, d := range b.pending {
		if d != nil {
			next.Documents = append(next.Documents, *d)
		}
	}
	slices.SortFunc(next.Documents, func(x, y Document) int { return strings.Compare(x.Key, y.Key) })
	b.set, b.pending = next, nil
	size := 0
	for i := range next.Documents {
		size += len(next.Documents[i].Key) + len(next.Documents[i].Value)
	}
	if size > maxBytes || len(next.Documents) > maxDocuments {
		return errTooMuch
	}
	b.deliver(next)
	return nil
}
