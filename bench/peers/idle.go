package peers

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
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
	idlePause  = 1100 * time.Millisecond // before each of the packets that are timed
	idleProbes = 5                       // packets timed, at most
)

func idleWork() work {
	return work{
		name: Idle, title: "idle, poll_mode adaptive", traffic: idle,
		how: "nothing is sent for a while, then a datagram each second: from the client's sendto to the server's device " +
			"(SO_TIMESTAMPNS). nftables has no process and takes no CPU",
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
	if _, err := p.send(); err != nil { // opens the flow
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
	var latencies []float64
	for range min(max(int(took/time.Second), 1), idleProbes) {
		if err := sleep(ctx, idlePause); err != nil {
			return nil, err
		}
		d, err := p.send()
		if err != nil {
			return nil, err
		}
		latencies = append(latencies, float64(d)/float64(time.Microsecond))
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

// probe times single datagrams from the client to the server.
type probe struct {
	client *testbed.Namespace
	cpu    int
	out    int // a socket in the client's namespace
	in     *net.UDPConn
}

// newProbe opens the sockets. The server's hears what else comes to its port.
func (n *network) newProbe() (*probe, error) {
	c, err := n.server.ListenPacket("udp4", netip.AddrPortFrom(serverAddr.Addr(), portUDP).String())
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	p := &probe{client: n.client, cpu: n.cpus.Load, in: c.(*net.UDPConn), out: -1}
	if err := p.open(); err != nil {
		p.close()
		return nil, fmt.Errorf("probe: %w", err)
	}
	return p, nil
}

func (p *probe) open() error {
	raw, err := p.in.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) }); err != nil {
		return err
	}
	if serr != nil {
		return serr
	}
	return p.client.Do(func() (err error) {
		if p.out, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Connect(p.out, &unix.SockaddrInet4{Port: portUDP, Addr: vipAddr.As4()})
	})
}

func (p *probe) close() {
	_ = p.in.Close() // both have done their work
	if p.out >= 0 {
		unix.Close(p.out)
	}
}

// probePatience is how long a datagram may take.
const probePatience = 2 * time.Second

// send sends a datagram from the load's CPU and returns how long it took to the
// server's device.
func (p *probe) send() (took time.Duration, err error) {
	var sent time.Time
	err = p.client.Do(func() error {
		restore, err := cpu.Pin(p.cpu)
		if err != nil {
			return err
		}
		sent = time.Now()
		err = unix.Send(p.out, []byte("probe"), 0)
		return errors.Join(err, restore())
	})
	if err != nil {
		return 0, fmt.Errorf("probe: %w", err)
	}
	if err := p.in.SetReadDeadline(time.Now().Add(probePatience)); err != nil {
		return 0, err
	}
	data, control := make([]byte, 64), make([]byte, 64)
	_, got, _, _, err := p.in.ReadMsgUDP(data, control)
	if err != nil {
		return 0, fmt.Errorf("probe: %w", err)
	}
	arrived, err := stamp(control[:got])
	if err != nil {
		return 0, err
	}
	return arrived.Sub(sent.Round(0)), nil // both by the clock on the wall
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
