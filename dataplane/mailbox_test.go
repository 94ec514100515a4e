package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	var ended atomic.Int64
	for range 4 {
		callers.Add(1)
		go func() {
			defer callers.Done()
			for i := range 20000 {
				var ran atomic.Bool
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%8)*200*time.Nanosecond)
				err := w.Do(ctx, func(*Worker) { ran.Store(true) })
				cancel()
				ended.Add(1)
				if got := ran.Load(); got != (err == nil) {
					t.Errorf("ran %v, error %v", got, err)
					return
				}
			}
		}()
	}
	done := make(chan struct{})
	go func() { callers.Wait(); close(done) }()
	// All of them may take long where others have the processors, but not one.
	for before, waits := int64(-1), true; waits; {
		select {
		case <-done:
			waits = false
		case <-time.After(20 * time.Second):
			if now := ended.Load(); now > before {
				before = now
			} else {
				t.Error("a job was lost")
				waits = false
			}
		}
	}
	stop.Store(true)
	polls.Wait()
}

// TestDoPanics: whoever waits for a job that panics is told that it will not end, also if
// he has given up meanwhile.
func TestDoPanics(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	for name, gaveUp := range map[string]bool{"waits": false, "gave up": true} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			told := make(chan error, 1)
			go func() {
				told <- w.Do(ctx, func(*Worker) {
					if gaveUp {
						cancel()
						time.Sleep(50 * time.Millisecond) // Do sees that, and waits
					}
					panic("in a job")
				})
			}()
			for ended := false; !ended; {
				func() {
					defer func() { ended = recover() != nil }()
					w.Poll(r.now)
				}()
			}
			select {
			case err := <-told:
				if !errors.Is(err, ErrUnfinished) {
					t.Errorf("%v", err)
				}
			case <-time.After(20 * time.Second):
				t.Error("waits for ever")
			}
		})
	}
}

// TestOneWakeUp: a sleeper is woken once, not by every packet of a burst: each
// is a system call.
func TestOneWakeUp(t *testing.T) {
	r := newRig(t, 2, testSpec())
	sleeper := r.dp.Workers[1]
	sleeper.asleep.Store(true)
	var list [][]byte
	for i := range 60 {
		list = append(list, build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1000+i), dst: "192.0.2.10:80", syn: true}))
	}
	r.port[0][0].Feed(list, 1)
	r.dp.Workers[0].Poll(r.now)
	var b [8]byte
	if _, err := unix.Read(sleeper.wakeFD, b[:]); err != nil {
		t.Fatalf("not woken: %v", err)
	}
	if n := binary.NativeEndian.Uint64(b[:]); n != 1 {
		t.Errorf("woken %d times", n)
	}
	r.step()
}

// TestNoLongSleepWithoutFrames: while all its frames are with others nothing
// can arrive, so a worker must not wait for that, but look for its frames.
func TestNoLongSleepWithoutFrames(t *testing.T) {
	r := newRig(t, 2, testSpec())
	w := r.dp.Workers[0]
	var list [][]byte
	for port := 1000; len(list) < testRing; port++ {
		client := fmt.Sprintf("198.51.100.7:%d", port)
		if w.owners.client(endpoint(client, 17).Addr, uint16(port)) == 1 {
			list = append(list, build(t, seg{src: client, dst: "192.0.2.11:5000", udp: true}))
		}
	}
	kept := append([]uint64(nil), w.pool.take(1<<20)...)
	r.port[0][0].Feed(list, 1)
	w.Poll(r.now)
	if !sleeps(w, func(took time.Duration) bool { return took < maxSleep/2 }) {
		t.Error("sleeps long with no frame to receive into")
	}
	r.dp.Workers[1].Poll(r.now)
	w.pool.free = append(w.pool.free, kept...)
	if !sleeps(w, func(took time.Duration) bool { return took >= maxSleep/2 }) {
		t.Error("does not sleep long with frames enough")
	}
}

// sleeps reports whether a sleep of the worker is as it should be. One of many: others
// may have the processor for longer than it sleeps, and a signal of Go's runtime ends it.
func sleeps(w *Worker, well func(took time.Duration) bool) bool {
	for range 20 {
		start := time.Now()
		if w.sleep(); well(time.Since(start)) {
			return true
		}
	}
	return false
}

// TestDownPortTellsOnce: a word that waits for room is not lost at every round.
func TestDownPortTellsOnce(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	for w.events.push(Event{Kind: EventResolve}) {
	}
	before := w.Counts().LostEvents
	w.portDown(&w.queues[1])
	for range 1000 {
		w.Poll(r.now)
	}
	if got := w.Counts().LostEvents - before; got != 0 {
		t.Errorf("%d words lost, though the one there is waits", got)
	}
	w.Event()
	w.Poll(r.now)
	told := false
	for e, ok := w.Event(); ok; e, ok = w.Event() {
		told = told || e == Event{Kind: EventPortDown, NIC: 1}
	}
	if !told {
		t.Error("nobody was told")
	}
}
