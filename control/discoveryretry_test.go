package control

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// A set that is due again is taken less and less often, but once a minute; a newer one at
// once, and as often then as the first.
func TestPursue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &discovery{news: make(chan struct{}, 1)}
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		began, due := time.Now(), true
		var taken []time.Duration
		done := make(chan struct{})
		go func() {
			defer close(done)
			x.pursue(ctx, true, func() bool {
				mu.Lock()
				defer mu.Unlock()
				taken = append(taken, time.Since(began))
				began = time.Now()
				return due
			})
		}()
		look := func(what string, wants ...time.Duration) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if len(taken) < len(wants) {
				t.Fatalf("%s: %v", what, taken)
			}
			for i, want := range wants {
				if got := taken[i]; got > want || got < want/2 {
					t.Errorf("%s: %v after %v, want up to %v; %v", what, i, got, want, taken)
				}
			}
			began, taken = time.Now(), nil
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		look("refused", time.Second, 2*time.Second, 4*time.Second, 8*time.Second, 16*time.Second, 32*time.Second, time.Minute, time.Minute)
		x.wake()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		look("newer", 0, time.Second, 2*time.Second)
		mu.Lock()
		due = false
		mu.Unlock()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		look("in force")
		time.Sleep(time.Hour)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(taken) > 0 {
			t.Errorf("in force, and taken again: %v", taken)
		}
		cancel()
		<-done
	})
}

// What the host objects to, and what could not be put into force for another passing
// reason, is tried again; it is said once, and again when it is in force.
func TestDiscoveryTriesAgain(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	etcd := w.startEtcd()
	// What status told when a set was said to be in force.
	var running atomic.Pointer[daemon]
	var before atomic.Int64
	d := w.run(w.bare("off"), func(o *Options) {
		o.Log = o.Log.WithOptions(zap.Hooks(func(e zapcore.Entry) error {
			if d := running.Load(); d != nil && e.Message == "as etcd says" {
				before.Store(d.discoveryStatus().InForce)
			}
			return nil
		}))
	})
	running.Store(d)
	etcd.put("web", "%s", w.web())
	etcd.put("web/backends/a", "%s", w.rs(0))
	if s := d.backendsFound(1); before.Load() >= s.InForce {
		t.Errorf("revision %d was in force before the log said so", s.InForce)
	}

	// A program listens where a service is to be: at an address of the host.
	own := netip.AddrPortFrom(testbed.ServerNet[testbed.V4].Masked().Addr().Next(), 8080)
	var listener net.Listener
	if err := w.LB.Do(func() (err error) {
		listener, err = net.Listen("tcp", own.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	etcd.put("here", `{"address":%q,"protocol":"tcp","mode":"dnat","backends":[%s]}`, own, w.rs(0))
	s := d.discovered("refused", func(s *admin.DiscoveryStatus) bool { return s.Refused == 1 && s.InForce == s.Revision })
	if !strings.Contains(s.Problems[0], "a program listens on its tcp port 8080") {
		t.Errorf("%v", s.Problems)
	}
	said := d.logs.Len()
	time.Sleep(2 * time.Second) // one try or two
	if n := d.logs.Len(); n != said {
		t.Errorf("%d lines of log for nothing new:\n%s", n-said, d.said())
	}
	check(t, listener.Close())
	s = d.discovered("in force", func(s *admin.DiscoveryStatus) bool { return s.Refused == 0 && s.Services == 2 })
	if s.Refusal != "" {
		t.Errorf("%+v", s)
	}
	w.ask(w.VIP(testbed.V4, 0), 5)

	// The whole set: another configuration seems to be in force, which only a restart
	// could change.
	swap := func(change func()) {
		if err := d.onLoop(t.Context(), change); err != nil {
			t.Fatal(err)
		}
	}
	var was *config.Config
	swap(func() {
		was = d.cfg
		other := *was
		other.RingSize *= 2
		d.cfg = &other
	})
	etcd.remove("here")
	s = d.discovered("refused", func(s *admin.DiscoveryStatus) bool { return s.Refusal != "" })
	const line = "not as etcd says: all stays as it was; it is tried again"
	time.Sleep(1500 * time.Millisecond)
	if n := d.logs.FilterMessage(line).Len(); n != 1 || s.InForce == s.Revision {
		t.Errorf("said %d times; %+v", n, s)
	}
	if m, err := d.sample(t.Context()); err != nil || m.Discovery.Current || m.Discovery.Refused != 0 {
		t.Errorf("%v %+v", err, m.Discovery)
	}
	told := d.logs.FilterMessage("as etcd says").Len()
	swap(func() { d.cfg = was })
	s = d.discovered("in force", func(s *admin.DiscoveryStatus) bool { return s.Refusal == "" })
	if n := d.logs.FilterMessage("as etcd says").Len(); n != told+1 || s.Services != 1 || s.InForce != s.Revision {
		t.Errorf("said %d times, %+v", n-told, s)
	}
	if m, err := d.sample(t.Context()); err != nil || !m.Discovery.Current {
		t.Errorf("%v %+v", err, m.Discovery)
	}
	d.end()
	w.clean()
}
