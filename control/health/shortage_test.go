package health

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var errFiles = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", syscall.EMFILE)}

// lacks is what was told of shortages since it was asked last.
func (w *world) lacks() (out []string) {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.short {
		out = append(out, fmt.Sprintf("%s %v over=%v", s.Reason, s.Backend, s.Over))
	}
	w.short = nil
	return out
}

func (w *world) told(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, w.lacks()); diff != "" {
		t.Errorf("told of shortages (-want +got)\n%s", diff)
	}
}

func TestShortageIsNoResult(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.engine.Set(targets(usual(), web, other))
		time.Sleep(10 * time.Second)
		w.heard()
		before, _ := w.engine.Status(web)
		w.set(web, errFiles)
		time.Sleep(5 * time.Second)
		w.set(other, errFiles)
		time.Sleep(time.Minute)
		if e := w.heard(); e != nil {
			t.Errorf("what the host lacks is news of a backend: %v", e)
		}
		s, _ := w.engine.Status(web)
		if s.State != Up || s.Failed != 0 || s.Checks < before.Checks || s.Checks > before.Checks+2 || s.Reason != "fine" || s.Unchecked != "too many open files" {
			t.Errorf("%+v", s)
		}
		w.told(t, "too many open files 10.0.0.1:80 over=false")
		w.set(web, nil)
		time.Sleep(time.Minute)
		if s, _ := w.engine.Status(web); s.Unchecked != "" || s.Checks < before.Checks+25 {
			t.Errorf("%+v", s)
		}
		w.told(t) // the other one cannot be checked
		w.set(other, nil)
		time.Sleep(calm - 3*time.Second)
		w.told(t)
		time.Sleep(4 * time.Second)
		w.told(t, "too many open files 10.0.0.1:80 over=true")
		// And once more.
		w.set(other, errFiles)
		time.Sleep(time.Minute)
		w.told(t, "too many open files 10.0.0.2:80 over=false")
		w.engine.Set(targets(usual(), web))
		time.Sleep(calm + grain)
		w.told(t, "too many open files 10.0.0.2:80 over=true")
	})
}

// Failures count on where they were before, whatever lies between them.
func TestShortageKeepsCounts(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.engine.Set(targets(usual(), web))
		time.Sleep(10 * time.Second)
		w.set(web, errRefused)
		time.Sleep(2*time.Second + grain)
		before, _ := w.engine.Status(web)
		if before.State != Up || before.Failed < 1 || before.Failed > 2 {
			t.Fatalf("%+v", before)
		}
		w.set(web, errFiles)
		time.Sleep(time.Minute)
		if s, _ := w.engine.Status(web); s.State != Up || s.Failed != before.Failed || s.Reason != "refused" {
			t.Errorf("%+v", s)
		}
		w.heard()
		w.set(web, errRefused)
		for range 5 {
			time.Sleep(time.Second)
			if e := w.heard(); len(e) > 0 {
				break
			}
		}
		if s, _ := w.engine.Status(web); s.State != Down || s.Failed != 3 || s.Unchecked != "" {
			t.Errorf("%+v", s)
		}
	})
}

// A shortage that is there every other moment is one.
func TestShortageComesAndGoes(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.engine.Set(targets(usual(), web))
		for range 30 {
			w.set(web, errFiles)
			time.Sleep(2 * time.Second)
			w.set(web, nil)
			time.Sleep(2 * time.Second)
		}
		w.told(t, "too many open files 10.0.0.1:80 over=false")
	})
}

// Of a backend that could never be checked it is known why.
func TestShortageFromTheStart(t *testing.T) {
	within(t, Options{}, func(t *testing.T, w *world) {
		w.set(web, errStuck)
		w.set(other, os.NewSyscallError("fork/exec", syscall.EAGAIN))
		w.engine.Set(targets(usual(), web, other))
		time.Sleep(time.Minute)
		for k, want := range map[Key]string{web: "too many commands that were killed have not ended", other: "no more processes may be started"} {
			if s, _ := w.engine.Status(k); s.State != Unknown || s.Checks != 0 || s.Unchecked != want {
				t.Errorf("%+v", s)
			}
		}
		if got := w.lacks(); len(got) != 2 {
			t.Errorf("told of %q", got)
		}
	})
}

func TestLack(t *testing.T) {
	for _, n := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EAGAIN, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.ECHILD} {
		if got := lack(fmt.Errorf("odd: %w", os.NewSyscallError("x", n))); got == "" {
			t.Errorf("%v is the backend's fault", n)
		}
	}
	for _, err := range []error{
		nil, errRefused, context.DeadlineExceeded, os.ErrDeadlineExceeded, errClosed,
		syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN, syscall.ECONNREFUSED, syscall.ECONNRESET,
		syscall.ETIMEDOUT, syscall.EPIPE, syscall.EPROTO, syscall.ENOPROTOOPT, syscall.EMSGSIZE, syscall.EACCES, syscall.EPERM, syscall.ENOENT,
	} {
		if got := lack(err); got != "" {
			t.Errorf("%v: the host lacks something: %s", err, got)
		}
	}
}

// What the kernel says of real shortages.
func TestRealShortages(t *testing.T) {
	b := newBench(t)
	try := func(what string, c Check, to netip.AddrPort) {
		t.Helper()
		b.do(func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := (&Target{Address: to, Check: &c}).probe(ctx)
			if lack(err) == "" {
				t.Errorf("%s: %v", what, err)
			}
			return nil
		})
	}
	nobody := netip.MustParseAddrPort("127.0.0.1:1")
	try("no such source", Check{Kind: TCP, Source: netip.MustParseAddr("192.0.2.1")}, nobody)
	command := Check{Kind: Exec, Exec: []string{"/bin/true"}}
	b.do(func() error {
		var files unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
			return err
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: files.Max}); err != nil {
			return err
		}
		_, err := (&Target{Address: nobody, Check: &Check{Kind: TCP}}).probe(t.Context())
		_, err2 := (&Target{Address: nobody, Check: &command}).probe(t.Context())
		if lack(err) == "" || lack(err2) == "" {
			t.Errorf("without descriptors: %v, %v", err, err2)
		}
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &files)
	})

	if err := b.ns.Sysctl("net.ipv4.ip_local_port_range", "40000 40001"); err != nil {
		t.Fatal(err)
	}
	hung := b.serveAt("127.0.0.1:7", func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) })
	b.do(func() error {
		for i := 0; ; i++ {
			c, err := net.Dial("tcp", hung.String())
			switch {
			case err == nil:
				t.Cleanup(func() { _ = c.Close() })
			case i == 2 && errors.Is(err, syscall.EADDRNOTAVAIL):
				return nil
			}
			if i == 2 {
				return fmt.Errorf("not all ports were taken: %w", err)
			}
		}
	})
	try("no free port", Check{Kind: TCP}, hung)
	try("no free port of the source", Check{Kind: TCP, Source: hung.Addr()}, hung)
}

func TestAtATime(t *testing.T) {
	for files, want := range map[uint64]int{0: 1, 1: 1, 256: 128, 1024: 512, 8191: 4095, 8192: 4096, 262144: 4096, math.MaxUint64: 4096} {
		if got := atATime(files); got != want {
			t.Errorf("with %d files: %d, want %d", files, got, want)
		}
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if got, want := New(Options{}).opt.MaxRunning, atATime(files.Cur); got != want {
		t.Errorf("%d, want %d", got, want)
	}
	if got := New(Options{MaxRunning: 7}).opt.MaxRunning; got != 7 {
		t.Errorf("%d, want 7", got)
	}
}
