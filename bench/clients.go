package bench

import (
	"errors"
	"net/netip"

	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/packet"
)

// Networks that clients may be in, the first one free of configured addresses
// is taken: those set aside for benchmarks (RFC 2544, RFC 5180), for carrier
// NAT (RFC 6598), for documentation (RFC 9637).
var (
	clientNets4 = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("100.64.0.0/15"), netip.MustParsePrefix("100.100.0.0/15")}
	clientNets6 = []netip.Prefix{netip.MustParsePrefix("2001:2::/48"), netip.MustParsePrefix("3fff:1::/48"), netip.MustParsePrefix("3fff:2::/48")}
)

// clientBits is how many addresses of a network are in use, as a power of two.
const clientBits = 17

// clients gives every flow an address and port of its own.
type clients struct{ base4, base6 packet.Addr }

var errNoClients = errors.New("every network that clients could be in holds a configured address")

// newClients chooses networks that hold no configured address.
func newClients(spec *dataplane.Spec) (c clients, err error) {
	var taken []netip.Addr
	for _, a := range spec.Locals {
		taken = append(taken, a.Netip())
	}
	for i := range spec.Services {
		s := &spec.Services[i]
		taken = append(taken, s.VIP.Addr.Netip())
		for _, b := range s.Backends {
			taken = append(taken, b.Endpoint.Addr.Netip())
		}
	}
	free := func(nets []netip.Prefix) (packet.Addr, error) {
	next:
		for _, n := range nets {
			for _, a := range taken {
				if n.Contains(a) {
					continue next
				}
			}
			return packet.AddrFrom(n.Addr()), nil
		}
		return packet.Addr{}, errNoClients
	}
	if c.base4, err = free(clientNets4); err != nil {
		return c, err
	}
	c.base6, err = free(clientNets6)
	return c, err
}

// maxClientFlows is how many flows get an address and port of their own: ports
// begin at 1024.
const maxClientFlows = 64512 << clientBits

// client is flow k's; neighbouring flows have addresses far apart.
func (c *clients) client(k int, v6 bool) (packet.Addr, uint16) {
	const spread = 0x9e3779b1 // odd: multiplying by it permutes the numbers below 2^clientBits
	host := uint64(k) * spread & (1<<clientBits - 1)
	port := uint16(1024 + k>>clientBits)
	a := c.base4
	if v6 {
		a = c.base6
	}
	a.Lo |= host
	return a, port
}
