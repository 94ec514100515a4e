package metrics

import (
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	atATime = 8                      // pages that are written
	working = 2                      // of them not waiting for their readers: to work them out is what costs
	slow    = 100 * time.Millisecond // who was waited for so long in all may be cut off for others
)

// readers are those for whom pages are being written. A page may be too large to be kept,
// so it is made while it is read, and who reads slowly must be in nobody's way: while he
// is waited for he has a place but no turn, and he loses it where places are wanting.
type readers struct {
	places   chan struct{}
	turns    chan struct{}
	patience time.Duration // of who waits for a place

	mu  sync.Mutex
	all map[*reader]struct{}
}

func newReaders() *readers {
	return &readers{
		places: make(chan struct{}, atATime), turns: make(chan struct{}, working), patience: patience,
		all: make(map[*reader]struct{}),
	}
}

// reader is one of them.
type reader struct {
	of *readers
	w  http.ResponseWriter

	// Under of.mu: how long he was waited for, since when he is, or zero, and whether he
	// was cut off.
	waited time.Duration
	since  time.Time
	out    bool
}

// enter waits for a place, or returns nil. leave gives it back.
func (r *readers) enter(ctx context.Context, w http.ResponseWriter) *reader {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		select {
		case r.places <- struct{}{}:
			x := &reader{of: r, w: w}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.all[x] = struct{}{}
			return x
		case <-look.C:
			r.cut()
			look.Reset(slow)
		case <-ctx.Done():
			return nil
		}
	}
}

func (x *reader) leave() {
	x.of.mu.Lock()
	delete(x.of.all, x)
	x.of.mu.Unlock()
	<-x.of.places
}

// cut ends the page whose reader has been waited for longest, if there is no place.
func (r *readers) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) < atATime {
		return
	}
	var slowest *reader
	longest := slow
	for x := range r.all {
		if d := x.slowness(); d >= longest && !x.out {
			slowest, longest = x, d
		}
	}
	if slowest != nil {
		slowest.out = true
		_ = http.NewResponseController(slowest.w).SetWriteDeadline(time.Now()) // Write fails
	}
}

// slowness is how long he has been waited for until now.
func (x *reader) slowness() time.Duration {
	if x.since.IsZero() {
		return x.waited
	}
	return x.waited + time.Since(x.since)
}

// work runs f, which writes to x, in a turn.
func (x *reader) work(f func() error) error {
	x.of.turns <- struct{}{}
	defer func() { <-x.of.turns }()
	return f()
}

// Write gives the turn back while the reader is waited for.
func (x *reader) Write(b []byte) (int, error) {
	<-x.of.turns
	x.of.mu.Lock()
	x.since = time.Now()
	x.of.mu.Unlock()
	defer func() {
		x.of.mu.Lock()
		x.waited, x.since = x.slowness(), time.Time{}
		x.of.mu.Unlock()
		x.of.turns <- struct{}{}
	}()
	return x.w.Write(b)
}
