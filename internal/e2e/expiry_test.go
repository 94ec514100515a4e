package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

const flagRST = 0x04

// ends tells one TCP connection from others at a device.
type ends struct{ self, peer netip.AddrPort }

// talk is what a device has seen of a TCP connection.
type talk struct {
	in, out uint32 // the next sequence numbers, of what came in and what went out
	segs    int    // before a RST
	resets  []reset
	after   int // segments after a RST

	fins  [2]fin // of what came in and of what went out
	again int    // FINs sent again, less the RSTs that can be owed to them
}

// fin is what an end's FIN has the other acknowledge, if there was one.
type fin struct {
	sent bool
	ack  uint32
}

// reset is a RST and what was expected of it.
type reset struct {
	outgoing         bool
	seq, ack         uint32
	wantSeq, wantAck uint32
	flags            byte
	// late says that a FIN had been sent again. TIME_WAIT acknowledges it each time, and the
	// first time is the end of the socket that has sent it: the second meets nobody.
	late bool
}

// talks notes TCP connections.
type talks struct {
	ear *testbed.Sniffer

	mu  sync.Mutex
	all map[ends]*talk
}

// hearTalks notes those at a device.
func hearTalks(t *testing.T, ns *testbed.Namespace, device string) *talks {
	t.Helper()
	l := &talks{all: make(map[ends]*talk)}
	l.ear = sniff(t, ns, device, testbed.SnifferOptions{Watch: l.watch})
	return l
}

func (l *talks) watch(frame []byte, outgoing bool) {
	if len(frame) < ethernet {
		return
	}
	d, ok := datagramOf(frame[ethernet:])
	if !ok || d.proto != protoTCP || len(d.l4) < 20 {
		return
	}
	key := ends{d.dst, d.src}
	if outgoing {
		key = ends{d.src, d.dst}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.all[key]
	if t == nil {
		t = &talk{}
		l.all[key] = t
	}
	t.add(d, outgoing)
}

func (t *talk) add(d datagram, outgoing bool) {
	seq, ack, flags := binary.BigEndian.Uint32(d.l4[4:]), binary.BigEndian.Uint32(d.l4[8:]), d.l4[13]
	mine, theirs, last := &t.in, &t.out, &t.fins[0]
	if outgoing {
		mine, theirs, last = theirs, mine, &t.fins[1]
	}
	if flags&flagRST != 0 {
		late := t.again > 0
		if late {
			t.again--
		}
		t.resets = append(t.resets, reset{outgoing, seq, ack, *mine, *theirs, flags, late})
		return
	}
	if t.segs++; len(t.resets) > 0 {
		t.after++
	}
	header := 20
	if d.src.Addr().Is6() {
		header = 40
	}
	const flagFIN = 0x01
	next := seq + uint32(d.size-header-int(d.l4[12]>>4)*4)
	if flags&(flagSYN|flagFIN) != 0 {
		next++
	}
	if flags&flagSYN != 0 || int32(next-*mine) > 0 {
		*mine = next
	}
	switch {
	case flags&(flagSYN|flagACK) == flagSYN: // the ports are in use again
		t.fins, t.again = [2]fin{}, 0
	case flags&flagFIN == 0:
	case *last == fin{true, next}:
		t.again++
	default:
		*last = fin{true, next}
	}
}

// of is a copy of what is known of a connection, up to now.
func (l *talks) of(e ends) talk {
	l.ear.CatchUp()
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.all[e]; t != nil {
		return *t
	}
	return talk{}
}

// unexplained are the RSTs that no FIN sent again can have brought about.
func (l *talks) unexplained() map[ends][]reset {
	l.ear.CatchUp()
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[ends][]reset)
	for e, t := range l.all {
		for _, r := range t.resets {
			if !r.late {
				out[e] = append(out[e], r)
			}
		}
	}
	return out
}

// pair is a connection of which the test holds both ends.
type pair struct {
	client, server net.Conn
}

// endsOf are a connection's ends as its own kernel knows them.
func endsOf(c net.Conn) ends {
	self, peer := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	unmap := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
	return ends{unmap(self), unmap(peer)}
}

// portPair is where the tests' own server listens.
const portPair = 9100

// pairKinds are every kind, and Full-NAT's with PROXY.
var pairKinds = slices.Concat(kinds, proxyKinds[:3])

// pairServices are services of each of them for such connections.
func (r *rig) pairServices() []testbed.Service {
	var out []testbed.Service
	for _, k := range pairKinds {
		s := r.service(k, "pair", portPair, portPair)
		s.Weights = []int{1, 0}
		out = append(out, s)
	}
	return out
}

// connect makes a connection through a kind's VIP to the first real server, and
// has both ends hear something of the other.
func (r *rig) connect(k kind) (p pair) {
	r.t.Helper()
	l, err := r.Topology.Servers[0].Listen("tcp", netip.AddrPortFrom(r.ServerAddr(k.server, 0), portPair).String())
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if p.client, err = r.Client.Dialer(limit).Dial("tcp", r.vip(k.client, k.vip, portPair).String()); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = p.client.Close() })
	if p.server, err = l.Accept(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = p.server.Close() })
	// Neither end speaks unasked, however long a test takes.
	if err := p.server.(*net.TCPConn).SetKeepAlive(false); err != nil {
		r.t.Fatal(err)
	}
	if k.proxy != "" {
		// Not a byte more than the header.
		client, _, err := readProxy(bufio.NewReader(iotest.OneByteReader(p.server)))
		if err != nil || client != endsOf(p.client).self {
			r.t.Fatalf("%s: PROXY names %s, %v", k, client, err)
		}
	}
	for _, c := range []struct{ from, to net.Conn }{{p.client, p.server}, {p.server, p.client}} {
		in := make([]byte, 300)
		_, err := c.from.Write(in)
		if err == nil {
			_, err = io.ReadFull(c.to, in)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	return p
}

// read waits for the end of a connection.
func read(c net.Conn, deadline time.Time) error {
	if err := c.SetReadDeadline(deadline); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

// phase is how far a connection has come when its flow idles out.
type phase struct {
	name string
	// reach brings it there; nil: established.
	reach func(p pair) error
}

// closeWrite closes one direction and waits until the other end knows.
func closeWrite(from, to net.Conn) error {
	if err := from.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if err := read(to, time.Now().Add(limit)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the other end: %w, want EOF", err)
	}
	return nil
}

// exchange sends much both ways at the same time, on windows that need scaling.
func (p pair) exchange() error {
	for _, c := range []net.Conn{p.client, p.server} {
		const scaled = 4 // TCPI_OPT_WSCALE
		if info, err := tcpInfo(c); err != nil || info.Options&scaled == 0 {
			return fmt.Errorf("windows are not scaled: %w", err)
		}
	}
	n := int64(8 << 20)
	if testing.Short() {
		n = 1 << 20
	}
	errs := make(chan error, 4)
	for _, c := range [][2]net.Conn{{p.client, p.server}, {p.server, p.client}} {
		go func() {
			_, err := io.CopyN(c[0], zeros{}, n)
			errs <- err
		}()
		go func() {
			_, err := io.CopyN(io.Discard, c[1], n)
			errs <- err
		}()
	}
	var all []error
	for range 4 {
		all = append(all, <-errs)
	}
	return errors.Join(append(all, p.settle())...)
}

// settle waits until nothing is under way any more.
func (p pair) settle() error {
	for deadline := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		a, err := tcpInfo(p.client)
		b, err2 := tcpInfo(p.server)
		if err := errors.Join(err, err2); err != nil || a.Unacked == 0 && b.Unacked == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d and %d segments are never acknowledged", a.Unacked, b.Unacked)
		}
	}
}

// zeros is endless.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// TestExpiry: a flow that idles out ends for its client and its server at once,
// by RSTs that both kernels believe: each has exactly the number it expects.
func TestExpiry(t *testing.T) {
	r := network(t, testbed.TopologyOptions{Queues: 2}, testbed.SnifferOptions{})
	at := [2]*talks{hearTalks(t, r.Client, "c0"), hearTalks(t, r.Topology.Servers[0], "s0")}
	// So long that a busy machine lets no flow idle out before its time.
	config := r.Config(append(r.allKinds(1, 0), r.pairServices()...),
		"timeouts: {tcp_established: 6s, tcp_fin_wait: 4s, tcp_close_wait: 4s, tcp_time_wait: 2s}")
	d := program{args: []string{"--workers", "2"}}.start(t, r.LB, config)
	r.warmUp(1, 0)
	// One of which a FIN is late ends by RSTs, too.
	before := d.until("the flows of the warm-up to go", func(s stats) bool { return s.Flows == 0 })
	phases := []phase{
		{"much has been sent", pair.exchange},
		{"established", nil},
		{"client has closed", func(p pair) error { return closeWrite(p.client, p.server) }},
		{"server has closed", func(p pair) error { return closeWrite(p.server, p.client) }},
	}
	// All are idle at the same time.
	all := make(map[string]pair)
	for _, ph := range phases {
		for _, k := range pairKinds {
			p := r.connect(k)
			if ph.reach != nil {
				if err := ph.reach(p); err != nil {
					t.Fatalf("%s, %s: %v", ph.name, k, err)
				}
			}
			all[ph.name+"/"+k.String()] = p
		}
	}
	deadline := time.Now().Add(limit)
	var wg sync.WaitGroup
	for name, p := range all {
		wg.Go(func() {
			if err := p.expire(at, deadline); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	wg.Wait()
	n := uint64(len(all))
	s := d.until("the flows to go", func(s stats) bool { return s.Expired-before.Expired >= n })
	if got := s.Refusals - before.Refusals; got != 2*n {
		t.Errorf("refusals counts %d for %d flows", got, n)
	}
	// A challenge ACK would have come to nobody.
	if got := s.Verdicts["no_flow"]; got != before.Verdicts["no_flow"] {
		t.Errorf("no_flow counts %d, %d before", got, before.Verdicts["no_flow"])
	}
	d.stop()
}

// expire waits for both ends of a connection to break, then looks at how.
func (p pair) expire(at [2]*talks, deadline time.Time) error {
	var errs []error
	for i, c := range []net.Conn{p.client, p.server} {
		if err := broken(c, deadline); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", []string{"client", "server"}[i], err))
		}
	}
	for i, c := range []net.Conn{p.client, p.server} {
		who, e := []string{"client", "server"}[i], endsOf(c)
		got := at[i].of(e)
		if len(got.resets) != 1 || got.after != 0 {
			errs = append(errs, fmt.Errorf("%s %s: %d RSTs, %d segments after: %+v", who, e.self, len(got.resets), got.after, got.resets))
			continue
		}
		if s := got.resets[0]; s.outgoing || s.seq != s.wantSeq || s.ack != s.wantAck || s.flags != flagRST|flagACK {
			errs = append(errs, fmt.Errorf("%s %s: %+v", who, e.self, s))
		}
	}
	return errors.Join(errs...)
}

// broken waits until a connection is reset. A kernel that has had the other
// end's FIN calls that a broken pipe (EPIPE), and only if one sends.
func broken(c net.Conn, deadline time.Time) error {
	err := read(c, deadline)
	for errors.Is(err, io.EOF) && time.Now().Before(deadline) {
		info, infoErr := tcpInfo(c)
		if infoErr != nil {
			return infoErr
		}
		if info.State != tcpClosed {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if _, err = c.Write([]byte{0}); errors.Is(err, unix.EPIPE) {
			return nil
		}
	}
	if !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("%w, want %w", err, unix.ECONNRESET)
	}
	return nil
}

// tcpClosed is TCP_CLOSE of the kernel's net/tcp_states.h.
const tcpClosed = 7

// TestNoFlow: after a restart l4fwd knows no flows. A connection that goes on is
// reset at once where the service says so, and else hears nothing: its client,
// and in Full-NAT its server.
func TestNoFlow(t *testing.T) {
	r := network(t, testbed.TopologyOptions{Queues: 2}, testbed.SnifferOptions{})
	at := [2]*talks{hearTalks(t, r.Client, "c0"), hearTalks(t, r.Topology.Servers[0], "s0")}
	// The same connections by services that reset and by services that do not.
	services := append(r.allKinds(1, 0), r.pairServices()...)
	for i := range services {
		if s := &services[i]; s.Protocol == "tcp" {
			s.Extra = "no_flow: reset"
		}
	}
	resetting := r.Config(services)
	dropping := strings.ReplaceAll(resetting, "no_flow: reset", "no_flow: drop")
	p := program{args: []string{"--workers", "2"}}
	for _, row := range []struct {
		config string
		resets bool
	}{{resetting, true}, {dropping, false}} {
		t.Run(fmt.Sprintf("reset=%t", row.resets), func(t *testing.T) {
			d := p.start(t, r.LB, row.config)
			r.warmUp(1, 0)
			var all [2][]pair // of which the client speaks, the server
			for _, k := range pairKinds {
				for i := range all {
					all[i] = append(all[i], r.connect(k))
					if err := all[i][len(all[i])-1].exchange(); err != nil {
						t.Fatalf("%s: %v", k, err)
					}
				}
			}
			d.Kill()
			d = p.start(t, r.LB, row.config)
			r.warmUp(1, 0)
			earlier := r.resetsBehind()
			for i, who := range []string{"client", "server"} {
				var wg sync.WaitGroup
				for j, k := range pairKinds {
					wg.Go(func() {
						c := []net.Conn{all[i][j].client, all[i][j].server}[i]
						// What DNAT's servers send is routed on, not reset.
						if err := forgotten(c, at[i], row.resets && (i == 0 || k.mode == fullNAT)); err != nil {
							t.Errorf("%s, %s speaks: %v", k, who, err)
						}
					})
				}
				wg.Wait()
				if now := r.resetsBehind(); i == 0 && now != earlier {
					t.Errorf("the servers' side has seen %d RSTs", now-earlier)
				}
			}
			d.stop()
		})
	}
}

// resetsBehind counts the RSTs that have been seen at the real servers' devices.
func (r *rig) resetsBehind() (n uint64) {
	for _, s := range r.behind {
		s.CatchUp()
		n += s.Report().Resets
	}
	return n
}

// forgotten has one end of a connection that l4fwd does not know speak.
func forgotten(c net.Conn, at *talks, resets bool) error {
	before := at.of(endsOf(c))
	if len(before.resets) > 0 {
		return fmt.Errorf("reset before it spoke: %+v", before)
	}
	start := time.Now()
	if _, err := c.Write([]byte("still there?")); err != nil {
		return err
	}
	wait := quiet
	if resets {
		wait = limit
	}
	if err := c.SetReadDeadline(start.Add(wait)); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	got := at.of(endsOf(c))
	if !resets {
		if !timedOut(err) || len(got.resets) > 0 {
			return fmt.Errorf("%w, %d RSTs; want silence", err, len(got.resets))
		}
		return nil
	}
	// Where the answer takes long, the segment is sent again, and answered again: the first
	// answer ends the wait, and the other may still be under way.
	for len(got.resets) < got.segs-before.segs && time.Since(start) < limit {
		time.Sleep(time.Millisecond)
		got = at.of(endsOf(c))
	}
	sent := got.segs - before.segs
	if !errors.Is(err, unix.ECONNRESET) || sent == 0 || len(got.resets) != sent || got.after > 0 {
		return fmt.Errorf("%w; %d segments before and %d after: %+v", err, sent, got.after, got.resets)
	}
	// It knows no more than the segment it answers: what that end expects.
	for _, s := range got.resets {
		if s.outgoing || s.seq != s.wantSeq || s.flags != flagRST {
			return fmt.Errorf("%+v", s)
		}
	}
	return nil
}
