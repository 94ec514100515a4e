package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// testpmd is DPDK's testpmd in mac mode over two net_af_xdp ports: it writes both
// MAC addresses and looks at nothing else.
type testpmd struct {
	proc  *testbed.Process
	stdin io.WriteCloser
	net   *network
}

// testpmdPrefix names its runtime directory, in testpmdRuntime: two at the same
// time need one each.
func testpmdPrefix() string { return fmt.Sprintf("%s%d", filePrefix, os.Getpid()) }

const testpmdRuntime = "/var/run/dpdk"

// testpmdArgs are its arguments. It needs no huge page.
func testpmdArgs(cpus CPUs, client, server string) []string {
	// Else it would ask for preferred busy polling, which veth does not have.
	const budget = ",busy_budget=0"
	return []string{
		"-l", fmt.Sprintf("%d,%d", cpus.Load, cpus.Forward), "--main-lcore", fmt.Sprint(cpus.Load),
		"--no-huge", "-m", "1024", "--no-pci", "--iova-mode=va", "--no-shconf", "--no-telemetry", "--file-prefix", testpmdPrefix(),
		"--vdev", "net_af_xdp0,iface=l0" + budget, "--vdev", "net_af_xdp1,iface=l1" + budget,
		"--", "--forward-mode=mac", "--port-topology=paired", "--total-num-mbufs=16384", "--burst=64", "--disable-link-check",
		"--eth-peer=0," + client, "--eth-peer=1," + server,
	}
}

// testpmdReady is what it prints when it forwards; it then waits for the end of its
// input.
const testpmdReady = "Press enter to exit"

func (p *testpmd) start(ctx context.Context, n *network, _ traffic) (err error) {
	p.net = n
	var r *os.File
	if r, p.stdin, err = os.Pipe(); err != nil {
		return err
	}
	p.proc, err = n.balancer.StartProcess(ctx, testbed.ProcessOptions{
		// Without stdbuf (coreutils) nothing is read of it before its end.
		Path: "stdbuf", Args: append([]string{"-oL", "dpdk-testpmd"}, testpmdArgs(n.cpus, n.c0.MAC.String(), n.s0.MAC.String())...),
		Ready: testpmdReady, ReadyTimeout: patience,
		Prepare: func(c *testbed.Cmd) { c.Stdin = r },
	})
	err = errors.Join(err, r.Close())
	if err != nil {
		p.proc = nil
		return errors.Join(err, p.stdin.Close(), p.detach())
	}
	return nil
}

func (p *testpmd) stop() error {
	if p.proc == nil {
		return nil
	}
	proc := p.proc
	p.proc = nil
	// It ends with the status of the signal.
	err := proc.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = fmt.Errorf("dpdk-testpmd: %w\n%s", errEnded, lastLines(proc.Output(), 5))
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-proc.Done():
	case <-t.C:
		proc.Kill()
		err = errors.Join(err, fmt.Errorf("dpdk-testpmd did not end within %s", patience))
	}
	return errors.Join(err, p.stdin.Close(), p.detach())
}

// detach takes away what its driver leaves behind, XDP programs, and its runtime
// directory.
func (p *testpmd) detach() error {
	errs := []error{os.RemoveAll(filepath.Join(testpmdRuntime, testpmdPrefix()))}
	for _, d := range []*testbed.Device{p.net.l0, p.net.l1} {
		link, err := d.NS.Netlink().LinkByName(d.Name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if x := link.Attrs().Xdp; x == nil || !x.Attached {
			continue
		}
		errs = append(errs, d.NS.Do(func() error { return netlink.LinkSetXdpFd(link, -1) }))
	}
	return errors.Join(errs...)
}

// testpmdVersion asks for the version only, which leaves a directory too.
func testpmdVersion() string {
	prefix := testpmdPrefix() + "-v"
	v := version("dpdk-testpmd", "-v", "-m", "16", "--no-huge", "--no-pci", "--no-shconf", "--no-telemetry", "--file-prefix", prefix, "--", "--help")
	_ = os.RemoveAll(filepath.Join(testpmdRuntime, prefix)) // of no consequence: it is in a tmpfs, and empty
	return v
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}
