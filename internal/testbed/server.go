package testbed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Ports of the servers' services, and of the VIPs in the configuration that
// Topology.Config renders (HTTP differs there: VIPPortHTTP).
const (
	PortHTTP    = 8080 // TCP: HTTP
	PortHash    = 9000 // TCP: Transfer
	PortEcho    = 9001 // UDP: Echo
	VIPPortHTTP = 80
)

// HTTPReply is the JSON body of every answer of a Server.
type HTTPReply struct {
	Server string `json:"server"`
	// Remote is the peer as the real server's socket sees it.
	Remote netip.AddrPort `json:"remote"`
	// Client is the address and port the TOA option carried, where
	// ServerOptions.ClientOf knows it.
	Client netip.AddrPort `json:"client"`
}

// ServerOptions describe a real server's services.
type ServerOptions struct {
	Name  string       // reported in every answer; "" = the namespace's role
	Addrs []netip.Addr // to listen on; UDP answers come from the address asked
	// ClientOf finds the TOA client behind a peer, Sniffer.Client for example;
	// nil = HTTPReply.Client stays empty. local is the address asked.
	ClientOf func(peer, local netip.AddrPort) (netip.AddrPort, bool)
	// OnRequest is called for every HTTP request before it is answered; nil = nobody.
	OnRequest func(HTTPReply)
}

// ServerCounts is what a server has done. Bytes are of Transfer's payload.
type ServerCounts struct {
	HTTP, Transfers, Echoes uint64
	BytesIn, BytesOut       uint64
	// Peers counts requests of all kinds by the peer's address.
	Peers map[netip.Addr]uint64
}

// Server is a real server: HTTP on PortHTTP, Transfer on PortHash, Echo on
// PortEcho, in a namespace, on real sockets.
type Server struct {
	o    ServerOptions
	http *http.Server
	tcp  []net.Listener
	udp  []net.PacketConn
	wg   sync.WaitGroup

	requests, transfers, echoes atomic.Uint64
	bytesIn, bytesOut           atomic.Uint64

	mu    sync.Mutex
	peers map[netip.Addr]uint64
	conns map[net.Conn]struct{}
	done  bool
}

// StartServer starts the three services in a namespace. Close ends them.
func StartServer(ns *Namespace, o ServerOptions) (*Server, error) {
	if o.Name == "" {
		o.Name = ns.Role()
	}
	s := &Server{o: o, peers: make(map[netip.Addr]uint64), conns: make(map[net.Conn]struct{})}
	s.http = &http.Server{Handler: http.HandlerFunc(s.answer), ReadHeaderTimeout: time.Minute}
	if err := s.listen(ns); err != nil {
		return nil, errors.Join(fmt.Errorf("server %s: %w", o.Name, err), s.Close())
	}
	return s, nil
}

// StartServers starts one server in every real server's namespace. ClientOf is
// taken from the options of the same index, if there are that many.
func (t *Topology) StartServers(options ...ServerOptions) ([]*Server, error) {
	var out []*Server
	for i, ns := range t.Servers {
		var o ServerOptions
		if i < len(options) {
			o = options[i]
		}
		for _, f := range Families {
			o.Addrs = append(o.Addrs, t.ServerAddr(f, i))
		}
		o.Addrs = append(o.Addrs, t.serverVIPs()...)
		s, err := StartServer(ns, o)
		if err != nil {
			return nil, errors.Join(err, CloseServers(out))
		}
		out = append(out, s)
	}
	return out, nil
}

// CloseServers closes all of them.
func CloseServers(all []*Server) error {
	var errs []error
	for _, s := range all {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func (s *Server) listen(ns *Namespace) error {
	for _, a := range s.o.Addrs {
		web, err := ns.Listen("tcp", netip.AddrPortFrom(a, PortHTTP).String())
		if err != nil {
			return err
		}
		s.wg.Go(func() { _ = s.http.Serve(web) })
		hash, err := ns.Listen("tcp", netip.AddrPortFrom(a, PortHash).String())
		if err != nil {
			return err
		}
		s.tcp = append(s.tcp, hash)
		s.wg.Go(func() { s.serveTransfers(hash) })
		echo, err := ns.ListenPacket("udp", netip.AddrPortFrom(a, PortEcho).String())
		if err != nil {
			return err
		}
		s.udp = append(s.udp, echo)
		if err := roomy(echo.(*net.UDPConn)); err != nil {
			return err
		}
		s.wg.Go(func() { s.serveEcho(echo.(*net.UDPConn)) })
	}
	return nil
}

// roomy lets a socket hold the datagrams of thousands of clients at once: a
// server that loses some in its own buffer says nothing about who forwards.
func roomy(c *net.UDPConn) error {
	const size = 16 << 20
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size)
	}); err != nil {
		return err
	}
	if set != nil {
		return fmt.Errorf("receive buffer: %w", set)
	}
	return nil
}

// Name is the server's name.
func (s *Server) Name() string { return s.o.Name }

// Counts is what the server has done so far.
func (s *Server) Counts() ServerCounts {
	c := ServerCounts{
		HTTP: s.requests.Load(), Transfers: s.transfers.Load(), Echoes: s.echoes.Load(),
		BytesIn: s.bytesIn.Load(), BytesOut: s.bytesOut.Load(), Peers: make(map[netip.Addr]uint64),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for a, n := range s.peers {
		c.Peers[a] = n
	}
	return c
}

// Close ends the services and their connections and waits until they are gone.
func (s *Server) Close() error {
	s.mu.Lock()
	s.done = true
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	errs := []error{s.http.Close()}
	for _, l := range s.tcp {
		errs = append(errs, l.Close())
	}
	for _, c := range s.udp {
		errs = append(errs, c.Close())
	}
	s.wg.Wait()
	for i, err := range errs {
		if errors.Is(err, net.ErrClosed) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

func (s *Server) met(peer netip.AddrPort) {
	s.mu.Lock()
	s.peers[peer.Addr().Unmap()]++
	s.mu.Unlock()
}

// answer serves one HTTP request.
func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.requests.Add(1)
	s.met(peer)
	reply := HTTPReply{Server: s.o.Name, Remote: plain(peer)}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok && s.o.ClientOf != nil {
		reply.Client, _ = s.o.ClientOf(plain(peer), plain(local.AddrPort()))
	}
	if s.o.OnRequest != nil {
		s.o.OnRequest(reply)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(reply) // the client notices a torn answer
}

// serveEcho answers each datagram with "name peer\n" before what was sent.
func (s *Server) serveEcho(c *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, peer, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for an earlier answer
		}
		s.echoes.Add(1)
		s.met(peer)
		reply := fmt.Appendf(nil, "%s %s\n", s.o.Name, plain(peer))
		// A lost answer is the client's business.
		_, _ = c.WriteToUDPAddrPort(append(reply, buf[:n]...), peer)
	}
}

// track notes an open connection; false if the server is closing.
func (s *Server) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) untrack(c net.Conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	_ = c.Close()
}

// plain is p with an IPv4-mapped address unmapped.
func plain(p netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// WaitTCP waits until a TCP connection from the namespace to the address works.
func (ns *Namespace) WaitTCP(ctx context.Context, to netip.AddrPort) error {
	d := ns.Dialer(time.Second)
	for {
		c, err := d.DialContext(ctx, "tcp", to.String())
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %w)", to, ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
