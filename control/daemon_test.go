package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/dataplane"
)

// idle is a daemon of one worker, which has ended.
func idle(t *testing.T) *Daemon {
	t.Helper()
	dp, err := dataplane.New(dataplane.Options{Workers: 1, UMEM: make([]byte, 128<<11), FrameSize: 2048, Flows: 16, Unpopulated: true})
	if err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(context.Background())
	end()
	d := &Daemon{dp: dp, ended: []context.Context{ended}}
	t.Cleanup(func() {
		if !d.closed {
			check(t, d.closeDataplane())
		}
	})
	return d
}

// TestWorkOfAnEndedWorker: what requests and the loop want of a worker that has ended is
// done one after the other, and not at all once its memory is gone.
func TestWorkOfAnEndedWorker(t *testing.T) {
	d := idle(t)
	var inside, done atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			err := d.onWorker(t.Context(), 0, func(w *dataplane.Worker) {
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d at a time", n)
				}
				time.Sleep(time.Millisecond)
				w.CopyFlows(new(dataplane.FlowSlice))
				inside.Add(-1)
				done.Add(1)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	if all.Wait(); done.Load() != 8 {
		t.Errorf("%d done", done.Load())
	}
	check(t, d.closeDataplane())
	err := d.onWorker(t.Context(), 0, func(*dataplane.Worker) { t.Error("without memory") })
	if !errors.Is(err, errNotRunning) {
		t.Errorf("closed: %v", err)
	}
}

// TestBoundsOfConfig: what config says of the data plane, which it does not know, is so.
func TestBoundsOfConfig(t *testing.T) {
	if config.MaxInterfaces != dataplane.MaxNICs {
		t.Errorf("%d interfaces, but %d NICs", config.MaxInterfaces, dataplane.MaxNICs)
	}
	var shown strings.Builder
	check(t, config.ShowDefaults(&shown))
	if want := fmt.Sprintf("all workers together; %d bytes of memory each", flowBytes); !strings.Contains(shown.String(), want) {
		t.Errorf("%s\ndoes not say %q", shown.String(), want)
	}
}
