package testbed

import (
	"container/heap"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// WireCounts is what a Wire has done in one way. All but Others count segments of
// ports that have a plan.
type WireCounts struct {
	Others     uint64 // frames of anything else, which go their way at once
	Segments   [segments]uint64
	Lost       uint64
	Duplicated uint64
	Delayed    uint64
	Marked     uint64
	// Missed frames found no room in the kernel's buffers here, on their way in
	// or out: lost without a plan.
	Missed uint64
}

// Wire joins two devices by a goroutine for each way, which carries frames over
// and loses, repeats, delays and marks them as the plans say: what netem would
// do, where the kernel has none. It is safe for concurrent use. Close it.
type Wire struct {
	lanes [ways]*lane
	quit  atomic.Bool
	wg    sync.WaitGroup

	mu   sync.Mutex
	dice [ways]map[uint16]*dice // by server port
	err  error
}

// lane is one way.
type lane struct {
	w        *Wire
	way      Way
	from, to int // sockets
	held     held
	order    uint64 // of frames that are due at the same time
	counts   WireCounts
}

// NewWire joins a device on the client's side to one on the server's; both lie in
// the same namespace and have no address.
func NewWire(client, server *Device) (*Wire, error) {
	w := &Wire{}
	var fds [ways]int
	for i, d := range []*Device{client, server} {
		var err error
		if fds[i], err = d.openRaw(); err != nil {
			for _, fd := range fds[:i] {
				_ = unix.Close(fd)
			}
			return nil, fmt.Errorf("wire at %s: %w", d.Name, err)
		}
	}
	for way := range ways {
		w.lanes[way] = &lane{w: w, way: way, from: fds[way], to: fds[1-way]}
		w.dice[way] = make(map[uint16]*dice)
	}
	for _, l := range w.lanes {
		w.wg.Go(l.run)
	}
	return w, nil
}

// openRaw opens a socket that receives every frame that comes in by the device.
func (d *Device) openRaw() (fd int, err error) {
	err = d.NS.Do(func() (err error) {
		if err = d.NS.Sysctl("net/ipv6/conf/"+d.Name+"/disable_ipv6", "1"); err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		const buffer = 32 << 20
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, buffer),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: d.Index}),
		)
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		return nil
	})
	return fd, err
}

// allProtocols is ETH_P_ALL in network order.
const allProtocols = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8

// Plan lets the plan begin for the segments to and from a server's port,
// whatever the addresses.
func (w *Wire) Plan(port uint16, p Plan) {
	p.Rules = slices.Clone(p.Rules)
	w.mu.Lock()
	defer w.mu.Unlock()
	for way := range ways {
		w.dice[way][port] = newDice(p, way)
	}
}

// Counts is what has been done so far in a way.
func (w *Wire) Counts(way Way) WireCounts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lanes[way].counts
}

// Close cuts the wire; frames on their way are lost. The error tells of sockets
// that failed meanwhile.
func (w *Wire) Close() error {
	w.quit.Store(true)
	w.wg.Wait()
	var errs []error
	for _, l := range w.lanes {
		errs = append(errs, unix.Close(l.from))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(append(errs, w.err)...)
}

// wireNap bounds how long a lane does not look whether it is to end.
const wireNap = 20 * time.Millisecond

// run carries frames until Close.
func (l *lane) run() {
	buf := make([]byte, 1<<16)
	for !l.w.quit.Load() {
		nap := wireNap
		if len(l.held) > 0 {
			nap = min(nap, max(time.Until(l.held[0].due), 0))
		}
		timeout := unix.NsecToTimespec(int64(nap))
		_, err := unix.Ppoll([]unix.PollFd{{Fd: int32(l.from), Events: unix.POLLIN}}, &timeout, nil)
		if err == nil || errors.Is(err, unix.EINTR) {
			err = l.read(buf)
		}
		if err != nil {
			l.w.mu.Lock()
			l.w.err = errors.Join(l.w.err, err)
			l.w.mu.Unlock()
			return
		}
		for now := time.Now(); len(l.held) > 0 && !l.held[0].due.After(now); {
			l.write(heap.Pop(&l.held).(heldFrame).data)
		}
	}
}

// read takes what has come, up to a number that does not keep held frames waiting.
func (l *lane) read(buf []byte) error {
	for range 64 {
		n, err := unix.Read(l.from, buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return l.countMissed()
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wire: read: %w", err)
		default:
			l.carry(buf[:n])
		}
	}
	return nil
}

// countMissed asks the kernel for what it dropped since the last time.
func (l *lane) countMissed() error {
	s, err := unix.GetsockoptTpacketStats(l.from, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return fmt.Errorf("wire: statistics: %w", err)
	}
	if s.Drops > 0 {
		l.w.mu.Lock()
		l.counts.Missed += uint64(s.Drops)
		l.w.mu.Unlock()
	}
	return nil
}

// carry does with one frame what its plan says.
func (l *lane) carry(frame []byte) {
	f := l.decide(frame)
	if f.lose {
		return
	}
	if f.delay > 0 {
		l.hold(frame, f.delay)
	} else {
		l.write(frame)
	}
	if f.copied {
		l.hold(frame, f.delay+f.copyDelay)
	}
}

// decide finds and counts a frame's fate, and marks it.
func (l *lane) decide(frame []byte) (f fate) {
	src, dst, s, isTCP := segmentOf(frame)
	port := dst
	if l.way == ToClient {
		port = src
	}
	w, c := l.w, &l.counts
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.dice[l.way][port]
	if !isTCP || d == nil {
		c.Others++
		return f
	}
	f = d.next(s)
	c.Segments[s]++
	if f.lose {
		c.Lost++
		return f
	}
	if f.mark && markCE(frame) {
		c.Marked++
	}
	if f.delay > 0 {
		c.Delayed++
	}
	if f.copied {
		c.Duplicated++
	}
	return f
}

// wirePatience bounds how long a lane waits for room behind it.
const wirePatience = time.Second

// write sends a frame on. The kernel may have no room for it for a moment, since whoever
// empties the next queue has no turn on a busy machine: then the frame waits, and those
// behind it do.
func (l *lane) write(frame []byte) {
	_, err := unix.Write(l.to, frame)
	full := func() bool { return errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN) }
	for since := time.Now(); full() && time.Since(since) < wirePatience && !l.w.quit.Load(); {
		time.Sleep(time.Millisecond)
		_, err = unix.Write(l.to, frame)
	}
	if err != nil {
		l.w.mu.Lock()
		l.counts.Missed++
		l.w.mu.Unlock()
	}
}

// hold keeps a copy of a frame for later.
func (l *lane) hold(frame []byte, d time.Duration) {
	l.order++
	heap.Push(&l.held, heldFrame{due: time.Now().Add(d), order: l.order, data: slices.Clone(frame)})
}

// heldFrame waits for its time.
type heldFrame struct {
	due   time.Time
	order uint64
	data  []byte
}

// held is a heap, the frame that is due first at the top.
type held []heldFrame

// Len is part of heap.Interface, as are the others.
func (h held) Len() int { return len(h) }

// Less orders by time, then by arrival.
func (h held) Less(i, j int) bool {
	if h[i].due.Equal(h[j].due) {
		return h[i].order < h[j].order
	}
	return h[i].due.Before(h[j].due)
}

// Swap exchanges two.
func (h held) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push appends.
func (h *held) Push(x any) { *h = append(*h, x.(heldFrame)) }

// Pop removes the last.
func (h *held) Pop() any {
	all := *h
	last := all[len(all)-1]
	*h = all[:len(all)-1]
	return last
}
