package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// portReuse is the service's and the server's.
const portReuse = 9300

// cycling is a load that uses few local ports of l4fwd again and again: each
// connection meets at the server what is left of the last one on its tuple.
type cycling struct {
	name     string
	lanes    int    // clients at the same time
	ports    int    // of l4fwd's
	same     bool   // each client has a port of its own, which it uses again at once
	up, down int    // bytes
	first    string // who closes first
	// Of both kernels: net.ipv4.tcp_timestamps and net.ipv4.tcp_tw_reuse.
	timestamps, twReuse string
	extra               string // of the service
}

const (
	byServer = "server"
	byClient = "client"
	kb100    = 100 << 10
)

// cyclings are the loads.
func cyclings(short bool) []cycling {
	rows := []cycling{
		{"one port", 1, 1, true, 100, 100, byServer, "1", "1", ""},
		{"small", 8, 8, true, 100, 100, byClient, "0", "0", ""},
		{"100 KB", 8, 8, true, kb100, kb100, byServer, "0", "0", ""},
		{"100 KB, others", 8, 128, false, kb100, kb100, byServer, "1", "1", "timestamps: translate"},
		// More than the 15.6 MB/s of the sequence numbers' clock.
		{"32 MB, others", 1, 2, false, 32 << 20, 100, byServer, "1", "1", ""},
	}
	if short {
		return rows
	}
	rows = append(rows, cycling{"100 KB on one port", 1, 1, true, kb100, kb100, byServer, "1", "1", ""})
	for _, row := range rows[:len(rows):len(rows)] {
		row.timestamps, row.twReuse = map[string]string{"0": "1", "1": "0"}[row.timestamps], "2"
		rows = append(rows, row)
		row.first = map[string]string{byServer: byClient, byClient: byServer}[row.first]
		rows = append(rows, row)
	}
	return rows
}

func (c cycling) translates() bool { return c.extra == "timestamps: translate" }

func (c cycling) String() string {
	return fmt.Sprintf("%s/%s closes/timestamps=%s/tw_reuse=%s", c.name, c.first, c.timestamps, c.twReuse)
}

// TestReuse: no connection fails, or has to wait, because its local port was
// another's a moment ago.
func TestReuse(t *testing.T) {
	top := testbed.Up(t, testbed.TopologyOptions{Servers: 1})
	span := 5 * time.Second
	if testing.Short() {
		span = 500 * time.Millisecond
	}
	// Each row has ports of its own: an l4fwd that has been started anew knows
	// nothing of what the server remembers.
	base := 20000
	for _, row := range cyclings(testing.Short()) {
		t.Run(row.String(), func(t *testing.T) { row.run(t, top, base, span) })
		base += row.ports
	}
}

func (c cycling) run(t *testing.T, top *testbed.Topology, base int, span time.Duration) {
	// A client in TIME_WAIT could not use its port again.
	forgetful := c.first == byClient && c.same
	for _, ns := range []*testbed.Namespace{top.Client, top.Servers[0]} {
		settings := map[string]string{"tcp_timestamps": c.timestamps, "tcp_tw_reuse": c.twReuse, "tcp_max_tw_buckets": "65536"}
		if forgetful && ns == top.Client {
			settings["tcp_max_tw_buckets"] = "0"
		}
		for key, value := range settings {
			if err := ns.Sysctl("net.ipv4."+key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	srv := c.serve(t, top)
	met := hearWelcomes(t, top.Servers[0], portReuse)
	d := c.start(t, top, base)
	gateway := (&rig{Topology: top}).gateway(testbed.V4)
	for _, from := range []*testbed.Namespace{top.Client, top.Servers[0]} { // and l4fwd's kernel knows their MAC addresses
		to := gateway
		if from != top.Client {
			to = top.LBServer.Addr(testbed.V4)
		}
		if _, err := from.Ping(to, 56, limit); err != nil {
			t.Fatal(err)
		}
	}
	before := d.stats()
	counters := []*kernelCounters{countersOf(t, top.Client), countersOf(t, top.Servers[0])}
	n, took := c.load(t, top, srv, span)
	drops := d.stats().drops(before)
	again := sentAgain(t, counters, drops)
	for _, k := range counters {
		allowed := allowedAgain(again)
		if forgetful && k.ns == top.Client {
			allowed["TcpExt.TCPTimeWaitOverflow"] = math.MaxInt64
		}
		k.unmoved(t, allowed)
	}
	if len(drops) > 0 {
		t.Errorf("drops %v", drops)
	}
	if connections, refused := met.all(); connections < n || len(refused) > 0 {
		t.Errorf("the server has seen %d connections of %d, and let some wait: %v", connections, n, refused)
	}
	peers := srv.peers()
	if peers > c.ports || n < 2*peers {
		t.Errorf("%d connections from %d peers: no reuse of %d ports", n, peers, c.ports)
	}
	t.Logf("%d connections on %d local ports in %s: %.0f a second, %.0f MB/s", n, peers, took.Round(time.Millisecond),
		float64(n)/took.Seconds(), float64(n*(c.up+c.down))/took.Seconds()/1e6)
	d.stop()
}

// start runs l4fwd with a single local address and few ports.
func (c cycling) start(t *testing.T, top *testbed.Topology, base int) *daemon {
	t.Helper()
	s := testbed.Service{Name: "reuse", Family: testbed.V4, Port: portReuse, BackendPort: portReuse, Protocol: "tcp", Mode: fullNAT, ClientAddress: "toa", Extra: c.extra}
	config := top.Config([]testbed.Service{s}, forgetting(c.translates()))
	const whole = "  - %s-%s\n"
	was := fmt.Sprintf(whole, top.LocalAddr(testbed.V4, 0), top.LocalAddr(testbed.V4, 3))
	is := fmt.Sprintf("  - {address: %s, ports: %d-%d}\n", top.LocalAddr(testbed.V4, 0), base, base+c.ports-1)
	if !strings.Contains(config, was) {
		t.Fatalf("no %q in\n%s", was, config)
	}
	return program{args: []string{"--workers", "1"}}.start(t, top.LB, strings.Replace(config, was, is, 1))
}

// pattern is what both sides send.
var pattern = func() []byte {
	b := make([]byte, 32<<20)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}()

// reuseServer answers each connection's bytes with its own.
type reuseServer struct {
	wg  sync.WaitGroup
	mu  sync.Mutex
	met map[netip.AddrPort]bool
	// left is told the lane, a connection's first byte, once the socket is closed.
	left []chan struct{}
}

// peers is how many different addresses and ports it has met.
func (s *reuseServer) peers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.met)
}

func (c cycling) serve(t *testing.T, top *testbed.Topology) *reuseServer {
	t.Helper()
	l, err := top.Servers[0].Listen("tcp", netip.AddrPortFrom(top.ServerAddr(testbed.V4, 0), portReuse).String())
	if err != nil {
		t.Fatal(err)
	}
	s := &reuseServer{met: make(map[netip.AddrPort]bool)}
	for range c.lanes {
		s.left = append(s.left, make(chan struct{}, 1))
	}
	t.Cleanup(func() {
		_ = l.Close()
		s.wg.Wait()
	})
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() {
				s.mu.Lock()
				s.met[endsOf(conn).peer] = true
				s.mu.Unlock()
				lane, err := c.answer(conn.(*net.TCPConn))
				if err = errors.Join(err, conn.Close()); err != nil {
					t.Errorf("server: %s: %v", conn.RemoteAddr(), err)
					return
				}
				s.left[lane] <- struct{}{}
			})
		}
	})
	return s
}

// answer serves one connection to its end.
func (c cycling) answer(conn *net.TCPConn) (lane int, err error) {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return 0, err
	}
	in := make([]byte, c.up)
	if _, err := io.ReadFull(conn, in); err != nil {
		return 0, err
	}
	if lane = int(in[0]); lane >= c.lanes || !bytes.Equal(in[1:], pattern[1:c.up]) {
		return 0, errors.New("the client's bytes have changed on their way")
	}
	if _, err := conn.Write(pattern[:c.down]); err != nil {
		return 0, err
	}
	if c.first == byServer {
		if err := conn.CloseWrite(); err != nil {
			return 0, err
		}
	}
	if n, err := io.Copy(io.Discard, conn); n > 0 || err != nil {
		return 0, fmt.Errorf("%d bytes behind the last: %w", n, err)
	}
	return lane, nil
}

// forgets is after how long l4fwd has forgotten a connection that has ended. Where it moves
// timestamps a SYN that had to wait, on a busy machine, leaves the rest of its connection as far
// ahead of l4fwd's clock, which makes that good by 1,907 ticks a second: the next connection on
// the port must not come before.
func forgets(translated bool) time.Duration {
	if translated {
		return time.Second
	}
	return 100 * time.Millisecond
}

// keeps is more than the time for which l4fwd keeps the local port of such a connection: two
// ticks, and a turn of its clock.
func keeps(translated bool) time.Duration { return forgets(translated) + 150*time.Millisecond }

// forgetting is the configuration's line for that.
func forgetting(translated bool) string {
	return fmt.Sprintf("timeouts: {tcp_time_wait: %s, tcp_close: %[1]s}", forgets(translated))
}

// load has all lanes make connections, one after the other, for that long and
// until each port has been used three times.
func (c cycling) load(t *testing.T, top *testbed.Topology, srv *reuseServer, span time.Duration) (n int, took time.Duration) {
	t.Helper()
	to := &unix.SockaddrInet4{Port: portReuse, Addr: top.VIP(testbed.V4, 0).As4()}
	var made atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for lane := range c.lanes {
		self := &unix.SockaddrInet4{Addr: top.ClientAddr(testbed.V4, 0).As4()}
		var pace time.Duration
		if c.same { // l4fwd knows the client again
			self.Port = 30000 + lane
		} else { // as many end in that time as there are ports for, beside those of the living
			pace = keeps(c.translates()) * time.Duration(c.lanes) / time.Duration(c.ports-c.lanes)
		}
		wg.Go(func() {
			in, out := make([]byte, c.down+1), bytes.Clone(pattern[:c.up])
			out[0] = byte(lane)
			// On one thread, since a socket is made where its thread is.
			err := top.Client.Do(func() error {
				// Go's scheduler has calls with a time limit, and close(2), end early.
				var preempt unix.Sigset_t
				preempt.Val[0] = 1 << (unix.SIGURG - 1)
				if err := unix.PthreadSigmask(unix.SIG_BLOCK, &preempt, nil); err != nil {
					return err
				}
				defer func() { _ = unix.PthreadSigmask(unix.SIG_UNBLOCK, &preempt, nil) }()
				for time.Since(start) < span || made.Load() < int64(3*c.ports) {
					if err := c.connection(self, to, out, in); err != nil {
						return fmt.Errorf("after %d: %w", made.Load(), err)
					}
					// A SYN that comes while close(2) holds the server's old socket
					// is lost with it: no client in TIME_WAIT is that fast.
					select {
					case <-srv.left[lane]:
					case <-time.After(limit):
						return errors.New("the server does not close")
					}
					made.Add(1)
					time.Sleep(pace)
				}
				return nil
			})
			if err != nil {
				t.Errorf("lane %d: %v", lane, err)
			}
		})
	}
	wg.Wait()
	return int(made.Load()), time.Since(start)
}

// connection makes one.
func (c cycling) connection(self, to *unix.SockaddrInet4, out, in []byte) (err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	patience := unix.NsecToTimeval(int64(limit))
	if err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience),
		// close(2) waits until the client's FIN is acknowledged: another client who needs the
		// port must not be ahead of that, which l4fwd may have to see first on another NIC.
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: int32(limit / time.Second)}),
		unix.Bind(fd, self)); err != nil {
		return err
	}
	if err := unix.Connect(fd, to); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	for len(out) > 0 {
		k, err := unix.Write(fd, out)
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		out = out[k:]
	}
	got := 0
	for {
		if c.first == byClient && got == c.down {
			if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
				return fmt.Errorf("shutdown: %w", err)
			}
		}
		k, err := unix.Read(fd, in[got:])
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		if k == 0 {
			break
		}
		got += k
	}
	if !bytes.Equal(in[:got], pattern[:c.down]) {
		return fmt.Errorf("%d bytes came, not the server's %d", got, c.down)
	}
	return nil
}

// kernelCounters are a namespace's TCP counters as they were.
type kernelCounters struct {
	ns     *testbed.Namespace
	before map[string]int64
}

func countersOf(t *testing.T, ns *testbed.Namespace) *kernelCounters {
	t.Helper()
	k := &kernelCounters{ns: ns}
	k.before = k.read(t)
	return k
}

// read parses both files: a line of names, then one of values.
func (k *kernelCounters) read(t *testing.T) map[string]int64 {
	t.Helper()
	out := make(map[string]int64)
	for _, file := range []string{"snmp", "netstat"} {
		var b []byte
		err := k.ns.Do(func() (err error) {
			b, err = os.ReadFile("/proc/thread-self/net/" + file)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for j := 1; j < len(names) && j < len(values); j++ {
				if out[strings.TrimSuffix(names[0], ":")+"."+names[j]], err = strconv.ParseInt(values[j], 10, 64); err != nil {
					t.Fatalf("%s: %s: %v", file, names[j], err)
				}
			}
		}
	}
	return out
}

// moved is by how much a counter has moved.
func (k *kernelCounters) moved(t *testing.T, name string) int64 {
	t.Helper()
	return k.read(t)[name] - k.before[name]
}

// sentAgain is how many segments the kernels have sent again. On a busy machine a FIN is
// before its acknowledgement comes. It, or the answer to it, may find that nobody remembers
// the connection: as many may be among the drops, and are taken out of them.
func sentAgain(t *testing.T, kernels []*kernelCounters, drops map[string]uint64) (again int64) {
	t.Helper()
	for _, k := range kernels {
		again += k.moved(t, "Tcp.RetransSegs")
	}
	for _, reason := range []string{"bad_rst", "no_flow"} {
		if drops[reason] <= uint64(again) {
			delete(drops, reason)
		}
	}
	return again
}

// allowedAgain are the counters that so many segments sent again can move. A SYN is one, a
// SYN-ACK that comes to an established end has it challenged, as an error, and so is a SYN; TIME_WAIT
// answers two of them within 500 ms but once. That none had to be sent again for its port's
// sake is what welcomes find.
func allowedAgain(again int64) map[string]int64 {
	allowed := make(map[string]int64)
	for _, name := range []string{"Tcp.OutRsts", "Tcp.InErrs", "TcpExt.TCPSynRetrans", "TcpExt.TCPACKSkippedTimeWait", "TcpExt.TCPACKSkippedSynRecv",
		"TcpExt.TCPSYNChallenge", "TcpExt.TCPChallengeACK"} {
		allowed[name] = again
	}
	return allowed
}

// welcomes are a server's answers to SYNs, as its device sees them. One that the server has
// a use for it answers on the spot, however busy the machine is: before any other SYN of
// that address and port.
type welcomes struct {
	ear  *testbed.Sniffer
	port uint16

	mu          sync.Mutex
	last        map[ends]*welcome
	connections int
	refused     []string
}

// welcome is what has become of a SYN.
type welcome struct {
	isn      uint32
	answered bool
}

// hearWelcomes hears those of a port.
func hearWelcomes(t *testing.T, ns *testbed.Namespace, port uint16) *welcomes {
	t.Helper()
	w := &welcomes{port: port, last: make(map[ends]*welcome)}
	w.ear = sniff(t, ns, "s0", testbed.SnifferOptions{SYNs: true, Watch: w.watch})
	return w
}

func (w *welcomes) watch(frame []byte, outgoing bool) {
	d, ok := datagramOf(frame[ethernet:])
	if !ok || d.proto != protoTCP || len(d.l4) < 20 {
		return
	}
	seq, ack, flags := binary.BigEndian.Uint32(d.l4[4:]), binary.BigEndian.Uint32(d.l4[8:]), d.l4[13]&(flagSYN|flagACK)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !outgoing && flags == flagSYN && d.dst.Port() == w.port:
		key := ends{d.dst, d.src}
		was := w.last[key]
		if was != nil && !was.answered {
			w.refused = append(w.refused, fmt.Sprintf("%s with %d", d.src, was.isn))
		}
		if was == nil || was.isn != seq { // else it is sent again
			w.last[key] = &welcome{isn: seq}
			w.connections++
		}
	case outgoing && flags == flagSYN|flagACK:
		if was := w.last[ends{d.src, d.dst}]; was != nil && ack == was.isn+1 {
			was.answered = true
		}
	}
}

// all are how many connections were asked for, and the SYNs that had no answer in their turn.
func (w *welcomes) all() (connections int, refused []string) {
	w.ear.CatchUp()
	w.mu.Lock()
	defer w.mu.Unlock()
	refused = slices.Clone(w.refused)
	for e, was := range w.last {
		if !was.answered {
			refused = append(refused, fmt.Sprintf("%s with %d", e.peer, was.isn))
		}
	}
	return w.connections, refused
}

// unmoved fails the test if the kernel has met with anything but connections
// that begin, live and end, but for what is allowed of a counter.
func (k *kernelCounters) unmoved(t *testing.T, allowed map[string]int64) {
	t.Helper()
	now := k.read(t)
	for _, name := range []string{
		"Tcp.AttemptFails", "Tcp.EstabResets", "Tcp.OutRsts", "Tcp.InErrs", "Tcp.InCsumErrors",
		"TcpExt.TCPSynRetrans", "TcpExt.TCPTimeWaitOverflow", "TcpExt.TCPACKSkippedTimeWait", "TcpExt.TCPACKSkippedSynRecv",
		"TcpExt.TCPSYNChallenge", "TcpExt.TCPChallengeACK", "TcpExt.PAWSEstab", "TcpExt.PAWSActive", "TcpExt.PAWSTimewait",
		"TcpExt.ListenDrops", "TcpExt.ListenOverflows", "TcpExt.SyncookiesSent", "TcpExt.TCPAbortOnTimeout", "TcpExt.TCPAbortOnData",
	} {
		was, known := k.before[name]
		if !known {
			t.Errorf("the kernel has no counter %s", name)
		}
		if moved := now[name] - was; moved > allowed[name] {
			t.Errorf("%s: %s counts %d", k.ns.Role(), name, moved)
		}
	}
}
