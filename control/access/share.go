package access

import (
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Share returns a listener that has no more than all connections open at a time, and gives
// to nobody more than each of them: another from the same address, or IPv6 /64, is closed.
// One more in all takes the place of the oldest of whoever has most, so that those who
// only open connections keep nobody out; those that Keep was told of keep their places.
func Share(l net.Listener, all, each int) net.Listener {
	return &sharing{Listener: l, all: all, each: each, has: make(map[netip.Addr]int)}
}

// Keep has a connection of Share's, or one of TLS over it, make room for nobody.
func Keep(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if c, ok := c.(*shared); ok {
		c.of.mu.Lock()
		defer c.of.mu.Unlock()
		c.keep = true
	}
}

type sharing struct {
	net.Listener
	all, each int

	mu   sync.Mutex
	open []*shared // oldest first
	has  map[netip.Addr]int
}

// Accept returns the next connection of one who has not too many.
func (s *sharing) Accept() (net.Conn, error) {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			return nil, err
		}
		in := &shared{Conn: c, of: s, who: placeOf(c.RemoteAddr().String())}
		out := s.enter(in)
		if out != nil {
			_ = out.Conn.Close() // who has it open notices
		}
		if out != in {
			return in, nil
		}
	}
}

// enter has a connection counted, and returns the one that must be closed for it, if any:
// itself if there is no place.
func (s *sharing) enter(in *shared) (out *shared) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.has[in.who] >= s.each {
		return in
	}
	if len(s.open) >= s.all {
		if out = s.surplus(); out == nil {
			return in
		}
		s.remove(out)
	}
	s.open = append(s.open, in)
	s.has[in.who]++
	return out
}

// surplus is the oldest connection of whoever has most that are not kept, nil if all are.
func (s *sharing) surplus() (out *shared) {
	loose := make(map[netip.Addr]int, len(s.has)) // or who has one that is kept would be the first to go
	for _, c := range s.open {
		if !c.keep {
			loose[c.who]++
		}
	}
	for _, c := range s.open {
		if !c.keep && (out == nil || loose[c.who] > loose[out.who]) {
			out = c
		}
	}
	return out
}

// remove is leave with s.mu.
func (s *sharing) remove(c *shared) {
	i := slices.Index(s.open, c)
	if i < 0 {
		return // it has made room already, or is closed a second time
	}
	s.open = slices.Delete(s.open, i, i+1)
	if s.has[c.who]--; s.has[c.who] == 0 {
		delete(s.has, c.who)
	}
}

func (s *sharing) leave(c *shared) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(c)
}

// shared is a connection that is counted until it is closed.
type shared struct {
	net.Conn
	of   *sharing
	who  netip.Addr
	keep bool // under of.mu
}

// Close closes the connection.
func (c *shared) Close() error {
	c.of.leave(c)
	return c.Conn.Close()
}
