package liveframes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/bench/cpu"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Repeat is how often a call runs the program: a second or so.
const Repeat = 1 << 22

// batch is how many frames the kernel makes before it lets softirqs, and with
// them the receiver, run: a NAPI budget.
const batch = 64

// Options of Start.
type Options struct {
	NetNS     *testbed.Namespace
	Interface string // a veth of NetNS; frames leave by it
	CPU       int    // that the generator runs on; negative leaves it to the kernel
	PPS       int    // packets a second; 0 is as many as the core makes
	Frames    Frames
}

// Generator sends until it is stopped. It is safe for concurrent use.
type Generator struct {
	prog   *ebpf.Program
	state  *ebpf.Map
	halt   atomic.Bool
	tid    atomic.Int64 // of the thread in the loop, 0 outside it
	done   chan struct{}
	err    error // why the loop ended by itself; there when done is closed
	unhook func() bool

	mu     sync.Mutex
	closed bool   // prog and state are
	final  uint64 // Sent from then on
}

// Start begins to send. The generator ends with ctx or by Stop, which has to be
// called in any case.
func Start(ctx context.Context, o Options) (*Generator, error) {
	fail := func(err error) (*Generator, error) {
		return nil, fmt.Errorf("live frames on %s: %w", o.Interface, err)
	}
	if err := o.Frames.check(); err != nil {
		return fail(err)
	}
	if o.PPS < 0 {
		return fail(fmt.Errorf("%w: %d packets a second", errFrames, o.PPS))
	}
	link, err := o.NetNS.Netlink().LinkByName(o.Interface)
	if err != nil {
		return fail(err)
	}
	g := &Generator{done: make(chan struct{})}
	if g.prog, g.state, err = newProgram(&o.Frames, link.Attrs().Index, o.PPS); err != nil {
		return fail(err)
	}
	started := make(chan error, 1)
	go g.run(&o, started)
	if err := <-started; err != nil {
		<-g.done
		return fail(errors.Join(err, g.free()))
	}
	g.unhook = context.AfterFunc(ctx, g.end)
	return g, nil
}

// run is the generator's goroutine. It says on started that it runs, or why not.
func (g *Generator) run(o *Options, started chan<- error) {
	defer close(g.done)
	frame := o.Frames.template()
	running := false
	err := o.NetNS.Do(func() error {
		restore, err := cpu.Pin(o.CPU)
		if err != nil {
			return err
		}
		g.tid.Store(int64(unix.Gettid()))
		running = true
		started <- nil
		err = g.loop(frame[:])
		g.tid.Store(0)
		return errors.Join(err, restore())
	})
	if running {
		g.err = err
	} else {
		started <- err
	}
}

// loop makes calls until it is told to end.
func (g *Generator) loop(frame []byte) error {
	for !g.halt.Load() {
		if err := runLive(g.prog.FD(), frame, Repeat, batch); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("BPF_PROG_RUN: %w", err)
		}
	}
	return nil
}

// end has the loop end and waits for it. A signal that comes just before a call
// does not end it, so signals go on until one has.
func (g *Generator) end() {
	g.halt.Store(true)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if tid := int(g.tid.Load()); tid != 0 {
			_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG) // it has ended: what was wanted
		}
		select {
		case <-g.done:
			return
		case <-tick.C:
		}
	}
}

// Done is closed when the generator has ended, by itself if something is wrong;
// Stop tells what.
func (g *Generator) Done() <-chan struct{} { return g.done }

// Sent is how many frames have been offered to the interface so far, or, after
// Stop, in all. See the package comment for those that nobody took.
func (g *Generator) Sent() (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return g.final, nil
	}
	return readWord(g.state, stateSent)
}

// Stop ends the generator and frees what it holds. It returns why it had ended
// before, if it had. Stopping twice is harmless.
func (g *Generator) Stop() error {
	g.unhook()
	g.end()
	return errors.Join(g.err, g.free())
}

// free keeps the last count and lets go of program and map.
func (g *Generator) free() (err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	g.final, err = readWord(g.state, stateSent)
	return errors.Join(err, g.prog.Close(), g.state.Close())
}

// readWord reads a 64-bit word of an array's only element.
func readWord(m *ebpf.Map, offset int) (uint64, error) {
	b, err := m.LookupBytes(uint32(0))
	if err != nil {
		return 0, fmt.Errorf("read counters: %w", err)
	}
	return binary.NativeEndian.Uint64(b[offset:]), nil
}
