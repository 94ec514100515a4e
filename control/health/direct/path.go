package direct

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// Path is the way of one service's packets to one backend, a health.Path.
type Path struct {
	c       *Carrier
	tunnel  nat.Tunnel
	backend packet.Addr
	source  netip.Addr
}

// Path returns the way to a backend, by a tunnel or, if that is none, as a neighbour.
// Checks come from source, or, if it is zero, from the host's address on the link by
// which packets leave.
func (c *Carrier) Path(tunnel nat.Tunnel, backend, source netip.Addr) *Path {
	return &Path{c: c, tunnel: tunnel, backend: packet.AddrFrom(backend), source: source}
}

// A neighbour that has been quiet is asked for, and may answer within patience.
const (
	patience = 300 * time.Millisecond
	glance   = 10 * time.Millisecond
)

// way is the next hop, once it is known.
func (p *Path) way() (*route.Table, route.HopID, error) {
	for end := time.Now().Add(patience); ; time.Sleep(glance) {
		t := p.c.opt.Routes()
		id := t.Lookup(p.backend)
		switch hop := t.Hop(id); {
		case hop.State == route.Unresolved && time.Now().Before(end):
			p.c.opt.Resolve(p.backend.Netip())
			continue
		case hop.State != route.Resolved:
			return nil, 0, fmt.Errorf("no way to %v: %v", p.backend.Netip(), hop.State)
		case p.tunnel.Kind == nat.NoTunnel && !t.OnLink(id, p.backend):
			return nil, 0, fmt.Errorf("%v is no neighbour", p.backend.Netip())
		}
		return t, id, nil
	}
}

// Prepare marks the socket, binds it and takes note of its source.
func (p *Path) Prepare(network string, fd int, echo uint16) error {
	t, id, err := p.way()
	if err != nil {
		return err
	}
	v4 := strings.HasSuffix(network, "4") || strings.HasPrefix(network, "ip4")
	from := p.source
	if !from.IsValid() {
		a := t.Source(id, v4)
		if a.IsZero() {
			return errors.New("the host has no address of the VIP's family on the link to the backend; give health_check a source")
		}
		from = a.Netip()
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, Mark); err != nil {
		return os.NewSyscallError("SO_MARK", err)
	}
	if err := unix.Bind(fd, sockaddr(from)); err != nil {
		return fmt.Errorf("binding to %v: %w", from, err)
	}
	s := source{netip.AddrPortFrom(from, echo), protocolOf(network)}
	if s.proto == packet.ProtoTCP || s.proto == packet.ProtoUDP {
		port, err := boundPort(fd)
		if err != nil {
			return err
		}
		s.addr = netip.AddrPortFrom(from, port)
	}
	// It stays until another check has that source: what a socket says at its very end
	// is to get there too.
	p.c.mu.Lock()
	p.c.flows[s] = p
	p.c.mu.Unlock()
	return nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

func boundPort(fd int) (uint16, error) {
	own, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	switch a := own.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port), nil
	case *unix.SockaddrInet6:
		return uint16(a.Port), nil
	}
	return 0, errors.New("a socket of another family")
}

func protocolOf(network string) uint8 {
	switch {
	case strings.HasPrefix(network, "tcp"):
		return packet.ProtoTCP
	case strings.HasPrefix(network, "udp"):
		return packet.ProtoUDP
	case strings.HasPrefix(network, "ip4"):
		return packet.ProtoICMP
	}
	return packet.ProtoICMPv6
}

// wrap puts in front of the packet buf[room:end] what leads it to the backend, and
// returns the frame and the NIC it is for; false if there is no way at the moment.
func (p *Path) wrap(t *route.Table, buf []byte, end int, from source) (frame []byte, port uint16, ok bool) {
	id := t.Lookup(p.backend)
	hop := t.Hop(id)
	if hop.State != route.Resolved {
		p.c.opt.Resolve(p.backend.Netip())
		return nil, 0, false
	}
	start, six := room, buf[room]>>4 == 6
	if p.tunnel.Kind != nat.NoTunnel {
		o := nat.Outer{Dst: p.backend, Hash: uint32(from.addr.Port()) * 0x9e3779b1, MAC: [6]byte(hop.Header[packet.EthSrc:])}
		if o.Src = p.tunnel.SourceFor(o.Hash); o.Src.IsZero() {
			o.Src = t.Source(id, p.backend.Is4())
		}
		if o.Src.IsZero() {
			return nil, 0, false
		}
		if start, ok = p.tunnel.Encapsulate(buf, room, end, nil, &o); !ok {
			return nil, 0, false
		}
		six = !p.backend.Is4()
	}
	etherType := uint16(route.EtherIPv4)
	if six {
		etherType = route.EtherIPv6
	}
	hop.PutBefore((*[route.VLANLen]byte)(buf[start-route.VLANLen:start]), etherType)
	return buf[start-int(hop.HeaderLen) : end], hop.Port, true
}
