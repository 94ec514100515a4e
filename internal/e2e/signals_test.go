package e2e

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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

// gone fails the test if there is such a file.
func gone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v, want %v", path, err, fs.ErrNotExist)
	}
}
