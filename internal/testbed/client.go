package testbed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// keepErrors bounds the errors a load remembers in words.
const keepErrors = 10

// HTTPLoad is many HTTP requests to a Server, perhaps through a VIP.
type HTTPLoad struct {
	To          netip.AddrPort
	Requests    int
	Concurrency int           // requests at the same time; 0 = 32
	KeepAlive   bool          // one connection for each of the concurrent clients, else one a request
	Timeout     time.Duration // of a request, connecting included; 0 = 10 s
	// From are the client's source addresses, used in turn; none = the kernel's choice.
	From []netip.Addr
	// OnReply is called for each answer, from many goroutines; nil = nobody.
	OnReply func(HTTPReply)
	// OnAnswer is the same with the client's own address and port; nil = nobody.
	OnAnswer func(self netip.AddrPort, reply HTTPReply)
}

// LoadResult is what came of a load.
type LoadResult struct {
	OK, Failed  int
	Errors      []string           // the first few
	ByServer    map[string]int     // answers by server name
	ByRemote    map[netip.Addr]int // answers by the peer address the server saw
	Connections int                // different peers, address and port, the servers saw
	Duration    time.Duration
	P50, P99    time.Duration // latency of the answered requests
}

// loadState collects results of concurrent clients.
type loadState struct {
	mu        sync.Mutex
	r         LoadResult
	peers     map[netip.AddrPort]struct{}
	latencies []time.Duration
}

// Run makes the requests from a namespace. Failed requests are counted in the
// result; the error is of a done context.
func (l HTTPLoad) Run(ctx context.Context, ns *Namespace) (LoadResult, error) {
	if l.Concurrency <= 0 {
		l.Concurrency = 32
	}
	if l.Timeout == 0 {
		l.Timeout = 10 * time.Second
	}
	st := &loadState{
		r:     LoadResult{ByServer: make(map[string]int), ByRemote: make(map[netip.Addr]int)},
		peers: make(map[netip.AddrPort]struct{}),
	}
	start := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range min(l.Concurrency, l.Requests) {
		wg.Go(func() {
			client, closeIdle := l.client(ns, w)
			defer closeIdle()
			for ctx.Err() == nil && next.Add(1) <= int64(l.Requests) {
				begin := time.Now()
				self, reply, err := l.get(ctx, client)
				st.add(reply, err, time.Since(begin))
				if err == nil && l.OnReply != nil {
					l.OnReply(reply)
				}
				if err == nil && l.OnAnswer != nil {
					l.OnAnswer(self, reply)
				}
			}
		})
	}
	wg.Wait()
	st.r.Duration, st.r.Connections = time.Since(start), len(st.peers)
	if n := len(st.latencies); n > 0 {
		slices.Sort(st.latencies)
		st.r.P50, st.r.P99 = st.latencies[n/2], st.latencies[n*99/100]
	}
	return st.r, ctx.Err()
}

// client makes the HTTP client of the w-th concurrent client.
func (l HTTPLoad) client(ns *Namespace, w int) (c *http.Client, closeIdle func()) {
	d := ns.Dialer(l.Timeout)
	if len(l.From) > 0 {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.From[w%len(l.From)], 0))
	}
	tr := &http.Transport{DialContext: d.DialContext, DisableKeepAlives: !l.KeepAlive, MaxConnsPerHost: 1}
	return &http.Client{Transport: tr, Timeout: l.Timeout}, tr.CloseIdleConnections
}

// get makes one request. self is the client's end of the connection it used.
func (l HTTPLoad) get(ctx context.Context, c *http.Client) (self netip.AddrPort, reply HTTPReply, err error) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if a, ok := i.Conn.LocalAddr().(*net.TCPAddr); ok {
			self = plain(a.AddrPort())
		}
	}})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.To.String()+"/", nil)
	if err != nil {
		return self, reply, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return self, reply, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return self, reply, err
	}
	if resp.StatusCode != http.StatusOK {
		return self, reply, fmt.Errorf("status %s", resp.Status)
	}
	return self, reply, json.Unmarshal(body, &reply)
}

func (st *loadState) add(reply HTTPReply, err error, took time.Duration) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if err != nil {
		st.r.Failed++
		if len(st.r.Errors) < keepErrors {
			st.r.Errors = append(st.r.Errors, err.Error())
		}
		return
	}
	st.r.OK++
	st.r.ByServer[reply.Server]++
	st.r.ByRemote[reply.Remote.Addr()]++
	st.peers[reply.Remote] = struct{}{}
	st.latencies = append(st.latencies, took)
}

// Echo is many UDP datagrams to a Server's echo service.
type Echo struct {
	To      netip.AddrPort
	Sockets int           // flows, all at the same time; 0 = 1
	Count   int           // datagrams a socket, one after the other; 0 = 1
	Size    int           // bytes of payload, at least 16
	Timeout time.Duration // for an answer; 0 = 2 s
	// AtATime bounds how many wait for an answer at a time; 0 = all. A veth's queue has 256
	// places, which the fragments of some dozens of datagrams fill on a busy machine.
	AtATime int
	// OnAnswer is called for each answer as it must be, from many goroutines; nil = nobody.
	OnAnswer func()
}

// EchoResult is what came of an Echo.
type EchoResult struct {
	OK, Lost int
	Errors   []string           // the first few: wrong source, wrong contents
	Wrong    int                // answers that were not as they must be
	ByServer map[string]int     // answers by server name
	ByRemote map[netip.Addr]int // answers by the peer address the server saw
	Moved    int                // sockets answered by more than one server
}

// Run sends the datagrams from a namespace. Sockets are not connected, so that
// an answer from another address than the one asked is seen and counted as
// wrong; a port is one socket's until all have ended. When the context is done
// nobody waits any longer, and the result is of what has come till then. The error
// is of a socket or of a done context.
func (e Echo) Run(ctx context.Context, ns *Namespace) (EchoResult, error) {
	e.Sockets, e.Count, e.Size = max(e.Sockets, 1), max(e.Count, 1), max(e.Size, 16)
	if e.Timeout == 0 {
		e.Timeout = 2 * time.Second
	}
	if e.AtATime == 0 {
		e.AtATime = e.Sockets
	}
	res := EchoResult{ByServer: make(map[string]int), ByRemote: make(map[netip.Addr]int)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	errs := make([]error, e.Sockets)
	turns := make(chan struct{}, e.AtATime)
	wild := "0.0.0.0:0"
	if FamilyOf(e.To.Addr()) == V6 {
		wild = "[::]:0"
	}
	for i := range e.Sockets {
		c, err := ns.ListenPacket("udp", wild)
		if err != nil {
			errs[i] = fmt.Errorf("echo: %w", err)
			break
		}
		defer func() { _ = c.Close() }()
		wg.Go(func() {
			one := e.flow(ctx, c.(*net.UDPConn), i, turns)
			mu.Lock()
			defer mu.Unlock()
			res.merge(one)
		})
	}
	wg.Wait()
	return res, errors.Join(errors.Join(errs...), ctx.Err())
}

// flow sends one socket's datagrams, each when it has room in turns.
func (e Echo) flow(ctx context.Context, c *net.UDPConn, id int, turns chan struct{}) EchoResult {
	r := EchoResult{ByServer: make(map[string]int), ByRemote: make(map[netip.Addr]int)}
	out, in := make([]byte, e.Size), make([]byte, e.Size+256)
	givenUp := make(map[string]bool) // datagrams whose answer may still come
	defer context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })()
	for i := range e.Count {
		turns <- struct{}{}
		if ctx.Err() != nil {
			<-turns
			break
		}
		copy(out, fmt.Sprintf("%07d %07d", id, i)) // numbered
		for k := 16; k < len(out); k++ {
			out[k] = byte(k * (i + 1))
		}
		e.ask(ctx, c, &r, out, in, givenUp)
		<-turns
	}
	if len(r.ByServer) > 1 {
		r.Moved = 1
	}
	return r
}

// ask sends a datagram and waits for its answer, for which there is room in in.
func (e Echo) ask(ctx context.Context, c *net.UDPConn, r *EchoResult, out, in []byte, givenUp map[string]bool) {
	if _, err := c.WriteToUDPAddrPort(out, e.To); err != nil {
		r.wrong(err)
		return
	}
	if err := c.SetReadDeadline(time.Now().Add(e.Timeout)); err != nil {
		r.wrong(err)
		return
	}
	if ctx.Err() != nil {
		_ = c.SetReadDeadline(time.Now()) // which may have been set already
	}
	before := r.OK
	n, from, err := c.ReadFromUDPAddrPort(in)
	for ; err == nil && givenUp[numbers(in[:n])]; n, from, err = c.ReadFromUDPAddrPort(in) {
		delete(givenUp, numbers(in[:n])) // one more of it is wrong
	}
	var nerr net.Error
	if errors.As(err, &nerr) && nerr.Timeout() {
		r.Lost++
		givenUp[string(out[:numbered])] = true
		return
	}
	if err != nil {
		r.wrong(err)
		return
	}
	if r.judge(e.To, plain(from), in[:n], out); r.OK > before && e.OnAnswer != nil {
		e.OnAnswer()
	}
}

// numbered is the length of what tells a datagram from all others.
const numbered = 15

// numbers are those of the datagram that an answer is to.
func numbers(answer []byte) string {
	_, body, _ := bytes.Cut(answer, []byte{'\n'})
	return string(body[:min(len(body), numbered)])
}

// judge looks at one answer.
func (r *EchoResult) judge(asked, from netip.AddrPort, got, sent []byte) {
	head, body, _ := bytes.Cut(got, []byte{'\n'})
	name, peer, _ := bytes.Cut(head, []byte{' '})
	remote, err := netip.ParseAddrPort(string(peer))
	switch {
	case from != asked:
		r.wrong(fmt.Errorf("asked %s, answered by %s", asked, from))
	case err != nil || !bytes.Equal(body, sent):
		r.wrong(fmt.Errorf("answer of %d bytes differs from what was sent", len(got)))
	default:
		r.OK++
		r.ByServer[string(name)]++
		r.ByRemote[remote.Addr()]++
	}
}

func (r *EchoResult) wrong(err error) {
	r.Wrong++
	if len(r.Errors) < keepErrors {
		r.Errors = append(r.Errors, err.Error())
	}
}

func (r *EchoResult) merge(o EchoResult) {
	r.OK += o.OK
	r.Lost += o.Lost
	r.Wrong += o.Wrong
	r.Moved += o.Moved
	r.Errors = append(r.Errors, o.Errors[:min(len(o.Errors), keepErrors-len(r.Errors))]...)
	for s, n := range o.ByServer {
		r.ByServer[s] += n
	}
	for a, n := range o.ByRemote {
		r.ByRemote[a] += n
	}
}
