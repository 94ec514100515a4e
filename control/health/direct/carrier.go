package direct

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// Options of Open; all are needed.
type Options struct {
	// Routes is the table by which workers send now.
	Routes func() *route.Table
	// Interface is the index of a data NIC by route.Hop.Port, 0 if it is not there.
	Interface func(port uint16) int
	// Resolve asks for the MAC address on the way to a backend, and does not wait.
	Resolve func(netip.Addr)
}

// Carrier carries the packets of checks. Make one with Open.
type Carrier struct {
	opt    Options
	tun    *os.File
	socket int // AF_PACKET
	done   chan struct{}

	mu    sync.Mutex
	flows map[source]*Path
}

// source is where a packet comes from, which tells the check it is of.
type source struct {
	addr  netip.AddrPort // of ICMP the port is the identifier
	proto uint8
}

// Open begins to carry packets, in the network namespace of the calling thread. It
// needs CAP_NET_ADMIN, CAP_NET_RAW and /dev/net/tun.
func Open(o Options) (*Carrier, error) {
	c := &Carrier{opt: o, done: make(chan struct{}), flows: make(map[source]*Path)}
	var err error
	if c.tun, err = openDevice(); err != nil {
		return nil, err
	}
	// Protocol 0: nothing is ever received.
	c.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket: %w", err), c.tun.Close())
	}
	if _, err = undivert(); err == nil {
		err = divert()
	}
	if err != nil {
		_, left := undivert()
		return nil, errors.Join(err, left, c.tun.Close(), unix.Close(c.socket))
	}
	go c.run()
	return c, nil
}

// Close ends it, in the network namespace of Open. Checks that are under way fail.
func (c *Carrier) Close() error {
	_, err := undivert()
	err = errors.Join(err, c.tun.Close())
	<-c.done
	return errors.Join(err, unix.Close(c.socket))
}

// room is before each packet, for what may be put in front of it.
const room = route.VLANLen + nat.MaxOverhead

// run carries until the device is closed.
func (c *Carrier) run() {
	defer close(c.done)
	buf := make([]byte, room+65536)
	for {
		n, err := c.tun.Read(buf[room:])
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			// Somebody has switched it off, perhaps for good.
			time.Sleep(100 * time.Millisecond)
			continue
		}
		c.carry(buf, room+n)
	}
}

// carry sends the packet buf[room:end] on its way, if it is one of a check and there is
// a way. Whoever waits for an answer finds out if not.
func (c *Carrier) carry(buf []byte, end int) {
	from, ok := sourceOf(buf[room:end])
	if !ok {
		return // the kernel's own, such as router solicitations
	}
	c.mu.Lock()
	p := c.flows[from]
	c.mu.Unlock()
	if p == nil {
		return
	}
	frame, port, ok := p.wrap(c.opt.Routes(), buf, end, from)
	if !ok {
		return
	}
	if index := c.opt.Interface(port); index != 0 {
		// A full queue is a lost packet, as on any wire.
		_ = unix.Sendto(c.socket, frame, 0, &unix.SockaddrLinklayer{Ifindex: index, Halen: 6, Addr: [8]byte(frame[:8])})
	}
}

// sourceOf reads what the kernel has made: no options, no extension headers, no
// fragments.
func sourceOf(ip []byte) (s source, ok bool) {
	var a netip.Addr
	head := packet.IPv4MinLen
	switch {
	case len(ip) >= packet.IPv4MinLen+8 && ip[0] == 0x45:
		a = netip.AddrFrom4([4]byte(ip[packet.IPv4Src:]))
		s.proto = ip[packet.IPv4Proto]
	case len(ip) >= packet.IPv6Len+8 && ip[0]>>4 == 6:
		a = netip.AddrFrom16([16]byte(ip[packet.IPv6Src:]))
		s.proto, head = ip[packet.IPv6NextHeader], packet.IPv6Len
	default:
		return s, false
	}
	at := head
	switch s.proto {
	case packet.ProtoTCP, packet.ProtoUDP:
	case packet.ProtoICMP, packet.ProtoICMPv6:
		at += 4 // the identifier of an echo request (RFC 792, RFC 4443 section 4.1)
	default:
		return s, false
	}
	s.addr = netip.AddrPortFrom(a, binary.BigEndian.Uint16(ip[at:]))
	return s, true
}
