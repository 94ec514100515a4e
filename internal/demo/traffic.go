package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// How traffic is made.
const (
	concurrency   = 8 // requests of one scenario at the same time
	perSocket     = 4 // datagrams from each UDP socket, which is one flow
	datagramBytes = 200
	followDelay   = 200 * time.Millisecond // ample for l4fwd to hear of a neighbour from the kernel
	keepErrors    = 3                      // remembered in words, for each scenario
)

// patience is how long an answer may take: at first longer than a busy machine stops for.
// Where so many have not come in that time a network that is broken is not to take minutes
// to show it.
type patience struct{ first, then time.Duration }

var (
	requestPatience = patience{20 * time.Second, 5 * time.Second} // over HTTP, connecting included
	echoPatience    = patience{10 * time.Second, 2 * time.Second} // for each UDP datagram
)

// scenario is one VIP and port, with what came of asking it.
type scenario struct {
	mode     *mode
	family   testbed.Family
	protocol string // "http" or "udp"
	to       netip.AddrPort

	mu sync.Mutex
	t  tally
}

// tally counts a scenario's requests; UDP counts datagrams.
type tally struct {
	Planned, OK, Failed int
	Flows               int            // connections answered, sockets
	ByServer            map[string]int // flows by the server that answered
	PeerRight           int            // answers whose server saw the peer it should
	ClientRight         int            // answers that named the client's address and port
	Peer                netip.AddrPort // the latest, as a server saw it
	Client              netip.AddrPort // the latest, as TOA had it
	Errors              []string       // the first few
}

// fail counts a failed request. The caller holds the lock.
func (t *tally) fail(n int, why string) {
	t.Failed += n
	if len(t.Errors) < keepErrors {
		t.Errors = append(t.Errors, why)
	}
}

// wait is how long the next answer may take.
func (s *scenario) wait(p patience) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.t.Failed >= concurrency {
		return p.then
	}
	return p.first
}

func (s *scenario) tally() tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.t
	t.ByServer = maps.Clone(t.ByServer)
	return t
}

// name is for people.
func (s *scenario) name() string { return fmt.Sprintf("%s %s IP%s", s.mode.name, s.protocol, s.family) }

// scenarios are all combinations of mode, protocol and family.
func (n *network) scenarios(requests int) (out []*scenario) {
	for _, m := range n.modes {
		for _, protocol := range []string{"http", "udp"} {
			for _, f := range testbed.Families {
				port := m.webPort()
				if protocol == "udp" {
					port = testbed.PortEcho
				}
				s := &scenario{mode: m, family: f, protocol: protocol, to: netip.AddrPortFrom(n.vip(f, m), port)}
				s.t = tally{Planned: requests, ByServer: make(map[string]int)}
				out = append(out, s)
			}
		}
	}
	return out
}

// warmUp lets everybody get to know each other, and has every VIP answer from
// every real server once. l4fwd drops and counts what goes to a neighbour whose
// MAC address the kernel does not know yet, or knew a moment too late: TCP
// sends it again, UDP would count as lost.
func (d *demo) warmUp(ctx context.Context) error {
	done := d.scr.timed("warm-up", "the first answers of each server through each VIP")
	// If it fails, the check of the same will say so.
	_, _ = d.net.ping(d.net.gateways())
	if !sleepUntil(ctx, time.Now().Add(followDelay)) {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, warmPatience)
	defer cancel()
	d.tests = d.net.scenarios(d.o.Requests)
	turns := 0 // of a scheduler that goes round all servers by weight
	for _, w := range weights {
		turns += w
	}
	transport := &http.Transport{DialContext: d.net.top.Client.Dialer(warmPatience).DialContext, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, s := range d.of(nil, "http") {
		for range turns {
			wg.Go(func() {
				if _, _, err := ask(ctx, &http.Client{Transport: transport}, s.to); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		// The traffic will show what works all the same.
		d.scr.step("warm-up", fmt.Sprintf("%d of %d first requests were not answered within %s", len(errs), turns*len(d.of(nil, "http")), warmPatience))
		return nil
	}
	done()
	return nil
}

// sendTraffic runs all scenarios at once, spread over the duration, and shows
// how they go on. It fails only if the forwarder does.
func (d *demo) sendTraffic(ctx context.Context) error {
	d.scr.step("traffic", fmt.Sprintf("%d HTTP requests and %d UDP datagrams to each VIP, within %s", d.o.Requests, d.o.Requests, d.o.Duration))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begin := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var wg sync.WaitGroup
		for _, s := range d.tests {
			wg.Go(func() { s.run(ctx, d.net.top, begin, d.o.Duration) })
		}
		wg.Wait()
	}()
	d.watch(begin, done, cancel)
	<-done
	if err := context.Cause(ctx); err != nil {
		if errors.Is(err, errDied) {
			d.logs()
		}
		return err
	}
	return nil
}

var errDied = errors.New("a forwarder ended while traffic was sent")

// watch shows how things stand until done, and cancels everything if a
// forwarder dies.
func (d *demo) watch(begin time.Time, done <-chan struct{}, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(d.scr.period())
	defer tick.Stop()
	for {
		d.scr.live(time.Since(begin), d.tests, d.figures())
		select {
		case <-done:
			return
		case f := <-d.ended:
			cancel(fmt.Errorf("%w: %s: %w", errDied, f.name, f.exit()))
		case <-tick.C:
		}
	}
}

// run makes the scenario's requests, the i-th at its share of the duration. A
// slow machine makes them late, not fewer.
func (s *scenario) run(ctx context.Context, top *testbed.Topology, begin time.Time, duration time.Duration) {
	// A UDP turn is a socket with several datagrams.
	each := 1
	if s.protocol == "udp" {
		each = perSocket
	}
	turns := (s.t.Planned + each - 1) / each
	transport := &http.Transport{DialContext: top.Client.Dialer(requestPatience.first).DialContext, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range concurrency {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= turns || !sleepUntil(ctx, begin.Add(duration*time.Duration(i)/time.Duration(turns))) {
					return
				}
				if s.protocol == "udp" {
					s.echo(ctx, top, min(each, s.t.Planned-i*each))
				} else {
					s.get(ctx, top, client)
				}
			}
		})
	}
	wg.Wait()
}

// sleepUntil returns false if ctx ended the sleep.
func sleepUntil(ctx context.Context, t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// get makes one HTTP request over a connection of its own.
func (s *scenario) get(ctx context.Context, top *testbed.Topology, client *http.Client) {
	limited, cancel := context.WithTimeout(ctx, s.wait(requestPatience))
	defer cancel()
	reply, mine, err := ask(limited, client, s.to)
	if err != nil && ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.t.fail(1, err.Error())
		return
	}
	s.t.OK++
	s.t.Flows++
	s.t.ByServer[reply.Server]++
	s.t.Peer, s.t.Client = reply.Remote, reply.Client
	peer, named := reply.Remote == mine, reply.Remote == mine
	if s.mode.name == fullNAT {
		peer, named = top.IsLocal(reply.Remote.Addr()), reply.Client == mine
	}
	if peer {
		s.t.PeerRight++
	}
	if named {
		s.t.ClientRight++
	}
}

// ask makes the request and returns the answer and the connection's own address.
func ask(ctx context.Context, client *http.Client, to netip.AddrPort) (reply testbed.HTTPReply, mine netip.AddrPort, err error) {
	trace := &httptrace.ClientTrace{GotConn: func(g httptrace.GotConnInfo) {
		mine, _ = netip.ParseAddrPort(g.Conn.LocalAddr().String())
	}}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodGet, "http://"+to.String()+"/", nil)
	if err != nil {
		return reply, mine, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return reply, mine, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		return reply, mine, fmt.Errorf("status %s", resp.Status)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return reply, mine, err
	}
	return reply, mine, json.Unmarshal(body, &reply)
}

// echo sends n datagrams from a socket of its own. An answer from another
// address than the VIP's, or with other contents, counts as failed.
func (s *scenario) echo(ctx context.Context, top *testbed.Topology, n int) {
	within := s.wait(echoPatience)
	r, err := testbed.Echo{To: s.to, Count: n, Size: datagramBytes, Timeout: within}.Run(ctx, top.Client)
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.t.fail(n, err.Error())
		return
	}
	s.t.OK += r.OK
	if r.OK > 0 {
		s.t.Flows++
	}
	if r.Lost > 0 {
		s.t.fail(r.Lost, fmt.Sprintf("%s: no answer within %s", s.to, within))
	}
	for _, e := range r.Errors {
		s.t.fail(0, e)
	}
	s.t.Failed += r.Wrong
	if r.Moved > 0 {
		s.t.fail(0, "one flow was answered by two servers")
		s.t.Failed += r.OK
		s.t.OK -= r.OK
	}
	for name := range r.ByServer {
		s.t.ByServer[name]++
	}
	for peer, n := range r.ByRemote {
		s.t.Peer = netip.AddrPortFrom(peer, 0)
		if s.mode.name == fullNAT && top.IsLocal(peer) || s.mode.name != fullNAT && peer == top.ClientAddr(s.family, 0) {
			s.t.PeerRight += n
		}
	}
}
