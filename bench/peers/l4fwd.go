package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// l4fwd is this program's own `run`, as a child process.
type l4fwd struct {
	executable string
	proc       *testbed.Process
}

// l4fwdConfig is a configuration as a user would write it for this network.
func l4fwdConfig(cpu int, mode string) string {
	text := fmt.Sprintf("admin_socket: off\ninterfaces:\n  - name: l0\n  - name: l1\nlocal_addresses:\n  - %s-%s\n"+
		"cpus: \"%d\"\npoll_mode: %s\nservices:\n", firstLocal, lastLocal, cpu, mode)
	for _, s := range []struct {
		name, protocol string
		port, inner    int
	}{{"http", "tcp", portHTTP, portHTTPInner}, {"iperf", "tcp", portIperf, portIperf}, {"datagrams", "udp", portUDP, portUDP}} {
		text += fmt.Sprintf("  - {name: %s, address: \"%s:%d\", protocol: %s, mode: full-nat, backends: [{address: \"%s:%d\"}]}\n",
			s.name, vipAddr, s.port, s.protocol, serverAddr.Addr(), s.inner)
	}
	return text
}

func (f *l4fwd) start(ctx context.Context, n *network, t traffic) error {
	mode := "busy"
	if t == idle {
		mode = "adaptive"
	}
	conf, ready := n.file(fileConfig), n.file(fileReady)
	if err := os.WriteFile(conf, []byte(l4fwdConfig(n.cpus.Forward, mode)), 0o600); err != nil {
		return err
	}
	var err error
	// It must outlive ctx, so that it can put the devices back.
	f.proc, err = n.balancer.StartProcess(context.WithoutCancel(ctx), testbed.ProcessOptions{
		Path: f.executable, Args: []string{"run", "-c", conf, "--ready-file", ready}, PrivateSysfs: true,
	})
	if err != nil {
		return err
	}
	if err := f.waitReady(ctx, ready); err != nil {
		return errors.Join(err, f.stop())
	}
	return nil
}

var errEnded = errors.New("ended by itself")

func (f *l4fwd) waitReady(ctx context.Context, ready string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(ready); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-f.proc.Done():
			return fmt.Errorf("l4fwd run: %w\n%s", errEnded, f.proc.Output())
		case <-ctx.Done():
			return fmt.Errorf("l4fwd run is not ready: %w\n%s", ctx.Err(), f.proc.Output())
		}
	}
}

func (f *l4fwd) stop() error {
	if f.proc == nil {
		return nil
	}
	p := f.proc
	f.proc = nil
	if !p.Running() {
		return fmt.Errorf("l4fwd run: %w\n%s", errEnded, p.Output())
	}
	return p.Terminate(patience)
}
