package control

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// many is c with n services more of b backends each, at ports from first on.
func many(w *world, c *config.Config, n, b, first int) *config.Config {
	out := *c
	out.Services = slices.Clone(c.Services)
	for i := range n {
		s := c.Services[0]
		s.Name, s.Address = fmt.Sprintf("many-%d", i), netip.AddrPortFrom(w.VIP(testbed.V4, 1), uint16(first+i))
		s.Backends = nil
		for j := range b {
			s.Backends = append(s.Backends, config.Backend{Address: netip.AddrPortFrom(w.ServerAddr(testbed.V4, j%2), uint16(10000+(b*i+j)/2)), Weight: 1})
		}
		out.Services = append(out.Services, s)
	}
	return &out
}

// spent is the CPU time of the daemon's loop, whose thread is its own here: on a busy
// machine the clock says nothing of it.
func (d *daemon) spent() (t time.Duration) {
	d.t.Helper()
	check(d.t, d.onLoop(d.t.Context(), func() {
		var u unix.Rusage
		check(d.t, unix.Getrusage(unix.RUSAGE_THREAD, &u))
		t = time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}))
	return t
}

// TestLargeReload: ten thousand services of ten backends each come, others take their
// place, and all go, each with less than two seconds of work, while requests are answered without
// one that is lost. In one of the two modes those that go drain all the while.
func TestLargeReload(t *testing.T) {
	for mode, drain := range map[string]string{"full-nat": "5m", "dnat": "0s"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, testbed.TopologyOptions{Servers: 2, Queues: 2})
			d := w.run(w.Config(testbed.Services(0, mode, "", "wrr"),
				"frames_per_queue: 4096", "ring_size: 2048", "max_flows: 65536", "workers: 2", "drain_timeout: "+drain, "timeouts: {tcp_time_wait: 1s}"))
			procs := runtime.GOMAXPROCS(0)
			TuneRuntime(d.cfg) // as run does: two workers leave no thread for anybody else
			t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
			base, vip := d.cfg, w.VIP(testbed.V4, 0)
			w.ask(vip, 8) // the first packets find the neighbours
			begun, err := d.Stats(t.Context())
			check(t, err)
			var stop atomic.Bool
			var asked, failed atomic.Int64
			var load sync.WaitGroup
			load.Go(func() {
				for !stop.Load() {
					r, err := testbed.HTTPLoad{To: netip.AddrPortFrom(vip, testbed.VIPPortHTTP), Requests: 50, Concurrency: 4}.Run(t.Context(), w.Client)
					asked.Add(int64(r.OK))
					if failed.Add(int64(r.Failed)); err != nil || r.Failed > 0 {
						t.Errorf("%v %v", err, r.Errors)
						return
					}
				}
			})
			defer load.Wait()
			defer stop.Store(true)
			services := 10000
			if testing.Short() {
				services = 2000
			}
			for _, tt := range []struct {
				name     string
				services int
				first    int
			}{{"come", services, 10000}, {"change", services, 30000}, {"go", 0, 0}} {
				before := d.spent()
				r, err := d.Reload(t.Context(), many(w, base, tt.services, 10, tt.first), false)
				if err != nil {
					t.Fatal(err)
				}
				took := d.spent() - before
				t.Logf("they %s: %d changes in %.2f s, of which %v of work", tt.name, len(r.Changes), r.Seconds, took)
				if took > 2*time.Second && !raceDetector {
					t.Errorf("they %s: %v", tt.name, took)
				}
				w.ask(vip, 4)
			}
			stop.Store(true)
			load.Wait()
			end, err := d.Stats(t.Context())
			check(t, err)
			if t.Logf("%d requests", asked.Load()); end.Dropped != begun.Dropped {
				t.Errorf("packets were lost: %v, before %v", end.Verdicts, begun.Verdicts)
			}
			for _, l := range end.Links {
				for _, q := range l.Queues {
					if q.Kernel.RxDropped+q.Kernel.RxRingFull+q.Kernel.RxFillRingEmptyDescs > 0 {
						t.Errorf("%s: %+v", l.Name, q.Kernel)
					}
				}
			}
			d.noneLost()
			d.end()
			w.clean()
		})
	}
}
