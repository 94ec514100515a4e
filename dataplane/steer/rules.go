package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/l4fwd/l4fwd/packet"
)

// Rules say what the program takes. Addresses are unicast without a zone;
// IPv4-mapped IPv6 addresses count as IPv4. The lists may repeat themselves.
type Rules struct {
	// Addrs are VIPs and local addresses the host does not have: everything to
	// them is taken, ARP and ND for them included, but for what DHCP servers
	// send to port DHCPClient, unless Services or LocalRanges name it.
	Addrs []netip.Addr
	// Services are VIPs that are addresses of the host: only this is taken.
	Services []ServiceRule
	// LocalRanges are local addresses that are addresses of the host.
	LocalRanges []RangeRule
	// Backends are the real servers of DNAT services, as they are the source of
	// return traffic.
	Backends []ServiceRule
	// HostAddrs are all addresses of the host, on every interface: return
	// traffic to them (replies to the host's own health checks) passes.
	HostAddrs []netip.Addr
}

// DHCPClient is the UDP port at which a host hears what address it may have.
const DHCPClient = 68

// ServiceRule names an endpoint.
type ServiceRule struct {
	Addr  netip.Addr
	Proto uint8  // packet.ProtoTCP or packet.ProtoUDP
	Port  uint16 // host order, not 0
}

// RangeRule names the ports of one address that are l4fwd's, in TCP and UDP.
type RangeRule struct {
	Addr   netip.Addr
	Lo, Hi uint16 // host order, inclusive, Lo not 0
}

// endpointKey is struct endpoint of steer.c.
type endpointKey struct {
	Addr   [16]byte // IPv4 in its IPv4-mapped form
	Port   [2]byte  // network order
	Proto  uint8
	Family uint8 // 4 or 6
}

// ruleValue is struct rule of steer.c.
type ruleValue struct {
	Flags  uint32
	Lo, Hi uint16
}

// Flags of ruleValue, see steer.c.
const (
	addrOurs uint32 = 1 << iota
	addrHost
	addrServices
	addrRange
	addrTCP
	addrUDP
	endService
	endBackend
)

// table is what Rules come to in the program's map.
type table map[endpointKey]ruleValue

// compile checks r and turns it into a table; it reports every fault found.
func (r *Rules) compile() (table, error) {
	t := make(table)
	var errs []error
	fault := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	for _, a := range r.Addrs {
		fault(t.flag(a, addrOurs))
	}
	for _, s := range r.Services {
		fault(t.endpoint(s, endService, addrServices))
	}
	for _, s := range r.Backends {
		from := addrTCP
		if s.Proto == packet.ProtoUDP {
			from = addrUDP
		}
		fault(t.endpoint(s, endBackend, from))
	}
	for _, l := range r.LocalRanges {
		fault(t.portRange(l))
	}
	for _, a := range r.HostAddrs {
		fault(t.host(a))
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("steering rules: %w", errors.Join(errs...))
	}
	return t, nil
}

func (t table) flag(a netip.Addr, f uint32) error {
	k, err := addressKey(a)
	if err != nil {
		return err
	}
	v := t[k]
	v.Flags |= f
	t[k] = v
	return nil
}

// host notes an address of the host. What the kernel may hold and no rule can
// name (a zone, a multicast group) is taken as it comes.
func (t table) host(a netip.Addr) error {
	if !a.IsValid() {
		return fmt.Errorf("%w: invalid host address", ErrRule)
	}
	k := keyOf(a)
	v := t[k]
	v.Flags |= addrHost
	t[k] = v
	return nil
}

func (t table) endpoint(s ServiceRule, end, addr uint32) error {
	k, err := addressKey(s.Addr)
	if err != nil {
		return err
	}
	if s.Proto != packet.ProtoTCP && s.Proto != packet.ProtoUDP {
		return fmt.Errorf("%w: protocol %d of %s is neither TCP nor UDP", ErrRule, s.Proto, s.Addr)
	}
	if s.Port == 0 {
		return fmt.Errorf("%w: port 0 of %s", ErrRule, s.Addr)
	}
	k.Proto = s.Proto
	binary.BigEndian.PutUint16(k.Port[:], s.Port)
	v := t[k]
	v.Flags |= end
	t[k] = v
	return t.flag(s.Addr, addr)
}

func (t table) portRange(r RangeRule) error {
	k, err := addressKey(r.Addr)
	if err != nil {
		return err
	}
	if r.Lo == 0 || r.Lo > r.Hi {
		return fmt.Errorf("%w: ports %d-%d of %s", ErrRule, r.Lo, r.Hi, r.Addr)
	}
	v := t[k]
	if v.Flags&addrRange != 0 && (v.Lo != r.Lo || v.Hi != r.Hi) {
		return fmt.Errorf("%w: %s has two port ranges, %d-%d and %d-%d", ErrRule, r.Addr, v.Lo, v.Hi, r.Lo, r.Hi)
	}
	v.Flags |= addrRange
	v.Lo, v.Hi = r.Lo, r.Hi
	t[k] = v
	return nil
}

// hostOwned returns the addresses that are wholly ours and also the host's:
// taking all of such an address would cut off whoever uses it, ssh included.
func (t table) hostOwned() []netip.Addr {
	const both = addrOurs | addrHost
	var found []netip.Addr
	for k, v := range t {
		if v.Flags&both == both {
			found = append(found, netip.AddrFrom16(k.Addr).Unmap())
		}
	}
	return found
}

// addressKey is the key of the rule about address a.
func addressKey(a netip.Addr) (endpointKey, error) {
	switch {
	case !a.IsValid():
		return endpointKey{}, fmt.Errorf("%w: invalid address", ErrRule)
	case a.Zone() != "":
		return endpointKey{}, fmt.Errorf("%w: %s has a zone", ErrRule, a)
	case a.Unmap().IsUnspecified(), a.Unmap().IsMulticast(), a.Unmap() == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return endpointKey{}, fmt.Errorf("%w: %s is not a unicast address", ErrRule, a)
	}
	return keyOf(a), nil
}

func keyOf(a netip.Addr) endpointKey {
	k := endpointKey{Addr: a.As16(), Family: 6}
	if a.Unmap().Is4() {
		k.Family = 4
	}
	return k
}
