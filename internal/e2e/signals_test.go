package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// unheard runs l4fwd until the end of the test. Whoever reads what it logs goes away once
// it is ready.
func unheard(t *testing.T, ns *testbed.Namespace, path string, args ...string) *testbed.Process {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = read.Close() }()
	p, err := ns.StartProcess(context.Background(), testbed.ProcessOptions{
		Path: path, Args: args, PrivateSysfs: true,
		Prepare: func(c *testbed.Cmd) { c.Stdout, c.Stderr = write, write },
	})
	_ = write.Close() // that of this process
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	if err := read.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	lines := bufio.NewScanner(read)
	for lines.Scan() {
		log.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "  ready  ") {
			return p
		}
	}
	t.Fatalf("%v; not ready:\n%s", lines.Err(), log.String())
	return nil
}

// TestReaderGone: `l4fwd run 2>&1 | tee log` without tee forwards on, and ends in order.
func TestReaderGone(t *testing.T) {
	r := network(t, testbed.TopologyOptions{}, testbed.SnifferOptions{})
	stripVLANs(t, r)
	before := conditionOf(t, r.LB, r.LBDevices())
	ready := filepath.Join(t.TempDir(), "ready")
	path, args, _ := program{args: []string{"--ready-file", ready}}.command(t, r.Config(testbed.Services(0, fullNAT, "", "wrr")))
	p := unheard(t, r.LB, path, args...)
	for range 3 {
		if err := p.Signal(syscall.SIGUSR1); err != nil { // it has something to say
			t.Fatal(err)
		}
		r.warmUp()
	}
	if err := p.Terminate(limit); err != nil {
		t.Error(err)
	}
	gone(t, ready)
	untouched(t, r.LB, r.LBDevices(), before)
}

// TestReaderGoneOfRealServer: so do the commands of real servers, which log at their end.
func TestReaderGoneOfRealServer(t *testing.T) {
	top := testbed.Up(t, testbed.TopologyOptions{Servers: 1})
	path, err := testbed.Build(t.Context(), "./cmd/l4fwd", false)
	if err != nil {
		t.Fatal(err)
	}
	p := unheard(t, top.Servers[0], path, "rs", "decap", "--dev", "s0", "--vip", top.VIP(testbed.V4, 0).String())
	if err := p.Terminate(limit); err != nil {
		t.Error(err)
	}
}

// silentManager is a service manager that does not read what it is told, so that l4fwd
// waits a second before it takes itself down. The path is for NOTIFY_SOCKET.
func silentManager(t *testing.T) (path string) {
	t.Helper()
	at := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"}
	l, err := net.ListenUnixgram("unixgram", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	c, err := net.DialUnix("unixgram", nil, at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = c.Write([]byte("full"))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return at.Name
}

// TestToldTwice: a terminal that is closed, sudo and timeout tell l4fwd twice to end. It
// puts everything back all the same, unless both came from somebody at the terminal.
func TestToldTwice(t *testing.T) {
	r := network(t, testbed.TopologyOptions{}, testbed.SnifferOptions{})
	stripVLANs(t, r)
	before := conditionOf(t, r.LB, r.LBDevices())
	ready := filepath.Join(t.TempDir(), "ready")
	user, terminal, err := testbed.Terminal()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = user.Close(), terminal.Close() })
	notify, config := silentManager(t), r.Config(testbed.Services(0, fullNAT, "", "wrr"))
	p := program{args: []string{"--ready-file", ready}, prepare: func(c *testbed.Cmd) {
		c.Stdin = terminal
		c.Env = append(c.Env, "NOTIFY_SOCKET="+notify)
	}}
	for _, row := range []struct {
		first, second syscall.Signal
		pause         time.Duration
	}{
		{unix.SIGHUP, unix.SIGHUP, 2 * time.Millisecond}, {unix.SIGHUP, unix.SIGTERM, 2 * time.Millisecond},
		{unix.SIGTERM, unix.SIGTERM, 100 * time.Millisecond}, {unix.SIGINT, unix.SIGHUP, 100 * time.Millisecond},
		{unix.SIGINT, unix.SIGINT, 100 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("%s, %s", unix.SignalName(row.first), unix.SignalName(row.second)), func(t *testing.T) {
			d := p.start(t, r.LB, config)
			await(t, "the ready file", func() error { _, err := os.Lstat(ready); return err })
			if err := d.Signal(row.first); err != nil {
				t.Fatal(err)
			}
			time.Sleep(row.pause)
			if err := d.Signal(row.second); err != nil {
				t.Fatal(err)
			}
			select {
			case <-d.Done():
			case <-time.After(limit):
				t.Fatal("it does not end")
			}
			err := d.Wait()
			if row.first != row.second || row.first != unix.SIGINT {
				if err != nil {
					t.Error(err)
				}
				gone(t, ready)
				untouched(t, r.LB, r.LBDevices(), before)
				return
			}
			var end *exec.ExitError
			if !errors.As(err, &end) || end.Sys().(syscall.WaitStatus).Signal() != unix.SIGINT {
				t.Errorf("%v, want an end by SIGINT", err)
			}
			p.start(t, r.LB, config).stop() // which puts back what is left
			untouched(t, r.LB, r.LBDevices(), before)
		})
	}
}

// gone fails the test if there is such a file.
func gone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v, want %v", path, err, fs.ErrNotExist)
	}
}
