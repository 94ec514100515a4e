package peers

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/bench/cpu"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// The figures of idling.
const (
	idleCPU   = "CPU"
	idleFirst = "first packet"
)

// Times of idling.
const (
	idleSettle = 1500 * time.Millisecond // what a start leaves to do is done by then
	idlePause  = 300 * time.Millisecond  // before each of the packets that are timed; a worker sleeps 100 ms at most
	idleProbes = 20                      // packets timed
)

func idleWork() work {
	return work{
		name: Idle, title: "idle, poll_mode adaptive", traffic: idle,
		how: fmt.Sprintf("nothing is sent for a while, then %d datagrams, %v before each: from the client's sendto to the server's device "+
			"(SO_TIMESTAMPNS), the median. nftables has no process and takes no CPU", idleProbes, idlePause),
		metrics: []Metric{{idleCPU, "% of a CPU", true, false}, {idleFirst, "µs", true, true}},
		chief:   1,
		measure: func(ctx context.Context, r *run, n *network, k *kind, took time.Duration) ([]float64, error) {
			return n.measureIdle(ctx, r.pidOf(k), took)
		},
	}
}

// pidOf is the process of a forwarder, 0 if it has none of its own.
func (r *run) pidOf(k *kind) int {
	for _, l := range r.lanes {
		if f, ok := l.fwd.(*l4fwd); ok && l.name == k.name && f.proc != nil {
			return f.proc.PID()
		}
	}
	return 0
}

// measureIdle gives the CPU time of a process while nothing happens, in per cent of
// a CPU, and the median of what the first packet after that takes, in µs.
func (n *network) measureIdle(ctx context.Context, pid int, took time.Duration) ([]float64, error) {
	p, err := n.newProbe()
	if err != nil {
		return nil, err
	}
	defer p.close()
	if _, err := p.run(ctx, 1, 0); err != nil { // opens the flow
		return nil, err
	}
	if err := sleep(ctx, idleSettle); err != nil {
		return nil, err
	}
	busy := 0.0
	if pid != 0 {
		if busy, err = cpuShare(ctx, pid, took); err != nil {
			return nil, err
		}
	}
	latencies, err := p.run(ctx, idleProbes, idlePause)
	if err != nil {
		return nil, err
	}
	slices.Sort(latencies)
	return []float64{100 * busy, median(latencies)}, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cpuShare is the part of a CPU that a process, all its threads together, takes
// in a while.
func cpuShare(ctx context.Context, pid int, while time.Duration) (float64, error) {
	// MAKE_PROCESS_CPUCLOCK of linux/posix-timers.h, with CPUCLOCK_SCHED.
	clock := int32(^pid<<3 | 2)
	var before, after unix.Timespec
	from := time.Now()
	if err := unix.ClockGettime(clock, &before); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	if err := sleep(ctx, while); err != nil {
		return 0, err
	}
	if err := unix.ClockGettime(clock, &after); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return float64(after.Nano()-before.Nano()) / float64(time.Since(from)), nil
}

// probe times single datagrams from the client to the server. Its sockets block:
// one thread sends, waits and sleeps without Go's scheduler, whose wake-ups of others
// would come to the forwarder's CPU while the packet does.
type probe struct {
	client   *testbed.Namespace
	cpu      int
	out, in  int // sockets in the client's and in the server's namespace
	patience time.Duration
}

// probeWarmUp is how long the sender spins before it sends: its CPU has slept too, and
// what that one takes to wake up is not the forwarder's.
const probeWarmUp = time.Millisecond

// probePatience is how long a datagram may take, longer than a busy machine stands still.
const probePatience = 10 * time.Second

var errUnheard = errors.New("no datagram arrived")

// newProbe opens the sockets. The server's hears what else comes to its port.
func (n *network) newProbe() (*probe, error) {
	p := &probe{client: n.client, cpu: n.cpus.Load, out: -1, in: -1}
	err := n.server.Do(p.openIn)
	if err == nil {
		err = n.client.Do(p.openOut)
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("probe: %w", err)
	}
	return p, nil
}

func (p *probe) openIn() (err error) {
	if p.in, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(p.in, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return err
	}
	if err := p.wait(probePatience); err != nil {
		return err
	}
	return unix.Bind(p.in, &unix.SockaddrInet4{Port: portUDP, Addr: serverAddr.Addr().As4()})
}

// wait sets how long a datagram may take.
func (p *probe) wait(patience time.Duration) error {
	p.patience = patience
	t := unix.NsecToTimeval(int64(patience))
	return unix.SetsockoptTimeval(p.in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t)
}

func (p *probe) openOut() (err error) {
	if p.out, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	return unix.Connect(p.out, &unix.SockaddrInet4{Port: portUDP, Addr: vipAddr.As4()})
}

func (p *probe) close() {
	for _, fd := range []int{p.in, p.out} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// run times datagrams one after the other, from the load's CPU, after a pause each,
// and returns the times in µs.
func (p *probe) run(ctx context.Context, count int, pause time.Duration) (took []float64, err error) {
	err = p.client.Do(func() error {
		restore, err := cpu.Pin(p.cpu)
		if err != nil {
			return err
		}
		for len(took) < count && err == nil {
			rest := unix.NsecToTimespec(int64(pause))
			for unix.Nanosleep(&rest, &rest) == unix.EINTR {
			}
			for up := time.Now(); time.Since(up) < probeWarmUp; {
			}
			var d time.Duration
			if d, err = p.send(); err == nil {
				took = append(took, float64(d)/float64(time.Microsecond))
				err = ctx.Err()
			}
		}
		return errors.Join(err, restore())
	})
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	return took, nil
}

// send sends a datagram and returns how long it took to the server's device.
func (p *probe) send() (time.Duration, error) {
	data, control := make([]byte, 64), make([]byte, 64)
	sent := time.Now()
	if err := unix.Send(p.out, []byte("probe"), 0); err != nil {
		return 0, err
	}
	for {
		_, got, _, _, err := unix.Recvmsg(p.in, data, control, 0)
		switch {
		case errors.Is(err, unix.EINTR): // a signal of Go's runtime
		case errors.Is(err, unix.EAGAIN):
			return 0, fmt.Errorf("%w in %v", errUnheard, p.patience)
		case err != nil:
			return 0, err
		default:
			arrived, err := stamp(control[:got])
			return arrived.Sub(sent.Round(0)), err // both by the clock on the wall
		}
	}
}

// stamp is the time in a control message SCM_TIMESTAMPNS.
func stamp(control []byte) (time.Time, error) {
	msgs, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Time{}, fmt.Errorf("timestamp: %w", err)
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:]))), nil
		}
	}
	return time.Time{}, errors.New("a datagram without a timestamp")
}
