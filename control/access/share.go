package access

import (
	"net"
	"net/netip"
	"sync"
)

// Share returns a listener that gives to nobody more than most connections at a time:
// another from the same address, or IPv6 /64, is closed. With a bound on all of them, one
// who only opens connections does not keep all others out.
func Share(l net.Listener, most int) net.Listener {
	return &sharing{Listener: l, most: most, open: make(map[netip.Addr]int)}
}

type sharing struct {
	net.Listener
	most int

	mu   sync.Mutex
	open map[netip.Addr]int
}

// Accept returns the next connection of one who has not too many.
func (s *sharing) Accept() (net.Conn, error) {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			return nil, err
		}
		who := placeOf(c.RemoteAddr().String())
		s.mu.Lock()
		full := s.open[who] >= s.most
		if !full {
			s.open[who]++
		}
		s.mu.Unlock()
		if !full {
			return &shared{Conn: c, end: sync.OnceFunc(func() { s.leave(who) })}, nil
		}
		_ = c.Close() // it has not been asked for anything yet
	}
}

func (s *sharing) leave(who netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[who]--; s.open[who] == 0 {
		delete(s.open, who)
	}
}

// shared is a connection that is counted until it is closed.
type shared struct {
	net.Conn
	end func()
}

// Close closes the connection.
func (c *shared) Close() error {
	c.end()
	return c.Conn.Close()
}
