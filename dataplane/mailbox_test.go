package dataplane

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestDoCancelled: a job whose Do gave up never runs, one whose Do did not
// always has, and none gets lost behind another's.
func TestDoCancelled(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	var stop atomic.Bool
	var polls sync.WaitGroup
	polls.Add(1)
	go func() {
		defer polls.Done()
		for !stop.Load() {
			w.Poll(1)
		}
	}()
	var callers sync.WaitGroup
	for range 4 {
		callers.Add(1)
		go func() {
			defer callers.Done()
			for i := range 20000 {
				var ran atomic.Bool
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%8)*200*time.Nanosecond)
				err := w.Do(ctx, func(*Worker) { ran.Store(true) })
				cancel()
				if got := ran.Load(); got != (err == nil) {
					t.Errorf("ran %v, error %v", got, err)
					return
				}
			}
		}()
	}
	done := make(chan struct{})
	go func() { callers.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("a job was lost")
	}
	stop.Store(true)
	polls.Wait()
}
