package steer

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/l4fwd/l4fwd/packet"
)

// Decision is what the program makes of a frame.
type Decision struct {
	Counter Counter
	// Addr, and where Port is not 0 Port and Proto, is the address or endpoint of the rule
	// that it is taken by, or that a DHCP server's answer passes by. Of a range Port is the
	// one in it.
	Addr  netip.Addr
	Proto uint8
	Port  uint16
}

// Taken reports whether the frame is l4fwd's.
func (d *Decision) Taken() bool { return d.Counter >= TakeAddress }

// Decide says what the program does, under these rules, with a frame that a NIC with this
// MAC receives, and by which rule, for people to be told. It is the program again, in
// Go; tests compare the two. What it cannot know: whether the first fragment of a later
// one was taken, where the destination is an address of the host.
func (r *Rules) Decide(frame []byte, mac [6]byte) Decision {
	if len(frame) < packet.EthLen {
		return Decision{Counter: PassMalformed}
	}
	mine := bytes.Equal(frame[:6], mac[:])
	if !mine && frame[0]&1 == 0 {
		return Decision{Counter: PassForeignMAC}
	}
	typ, l3 := binary.BigEndian.Uint16(frame[packet.EthType:]), packet.EthLen
	if typ == packet.EtherTypeVLAN || typ == packet.EtherTypeSTAG {
		if len(frame) < packet.VLANEthLen {
			return Decision{Counter: PassMalformed}
		}
		typ, l3 = binary.BigEndian.Uint16(frame[packet.VLANType:]), packet.VLANEthLen
	}
	switch typ {
	case packet.EtherTypeIPv4, packet.EtherTypeIPv6:
		v, ok := readIP(frame, l3, typ == packet.EtherTypeIPv6, false)
		if !ok {
			return Decision{Counter: PassMalformed}
		}
		return r.ip(frame, &v, mine)
	case packet.EtherTypeARP:
		return r.arp(frame[l3:])
	}
	return Decision{}
}

// Where a datagram stands in a fragmented one.
const (
	whole = iota
	firstFragment
	laterFragment
	opaque // extension headers that hide it
)

// ipView is what an IP header says.
type ipView struct {
	src, dst   netip.Addr
	v6         bool
	l4, left   int // where the transport header begins in the frame, bytes from there on
	proto      uint8
	shape      int
	sport, dpt uint16 // 0 until ports
}

// dhcpServer is the port from which servers answer at DHCPClient.
const dhcpServer = 67

// The headers that the program follows, and how many of them.
const (
	hopByHop, routing, fragment, destination = 0, 43, 44, 60
	maxExtensions                            = 8
	maxOffset                                = 0x3fff
	minL4                                    = 8
)

// readIP reads the header at off. Of one that is quoted, its length is not believed.
func readIP(f []byte, off int, v6, quoted bool) (v ipView, ok bool) {
	if off > maxOffset {
		return v, false
	}
	if v6 {
		return readIP6(f, off, quoted)
	}
	h := f[min(off, len(f)):]
	if len(h) < packet.IPv4MinLen || h[0]>>4 != 4 {
		return v, false
	}
	head, total := int(h[0]&15)*4, int(binary.BigEndian.Uint16(h[packet.IPv4TotalLen:]))
	if head < packet.IPv4MinLen || !quoted && (total < head || total > len(h)) {
		return v, false
	}
	v = ipView{
		src: netip.AddrFrom4([4]byte(h[packet.IPv4Src:])), dst: netip.AddrFrom4([4]byte(h[packet.IPv4Dst:])),
		l4: off + head, left: total - head, proto: h[packet.IPv4Proto],
	}
	switch frag := binary.BigEndian.Uint16(h[packet.IPv4Frag:]); {
	case frag&packet.IPv4OffsetMask != 0:
		v.shape = laterFragment
	case frag&packet.IPv4MoreFragments != 0:
		v.shape = firstFragment
	}
	if quoted {
		v.left = minL4
	}
	return v, true
}

func readIP6(f []byte, off int, quoted bool) (v ipView, ok bool) {
	h := f[min(off, len(f)):]
	if len(h) < packet.IPv6Len || h[0]>>4 != 6 {
		return v, false
	}
	end := packet.IPv6Len + int(binary.BigEndian.Uint16(h[packet.IPv6PayloadLen:]))
	if !quoted && end > len(h) {
		return v, false
	}
	v = ipView{
		src: netip.AddrFrom16([16]byte(h[packet.IPv6Src:])), dst: netip.AddrFrom16([16]byte(h[packet.IPv6Dst:])),
		v6: true, l4: off + packet.IPv6Len, proto: h[packet.IPv6NextHeader],
	}
	v.extensions(f)
	v.left = max(0, off+end-v.l4)
	if quoted {
		v.left = minL4
	}
	return v, true
}

// extensions goes on to the transport header.
func (v *ipView) extensions(f []byte) {
	for range maxExtensions + 1 {
		switch v.proto {
		case hopByHop, routing, fragment, destination:
		default:
			return
		}
		if v.l4 > maxOffset || v.l4+8 > len(f) {
			break
		}
		h := f[v.l4:]
		if v.proto == fragment {
			at := binary.BigEndian.Uint16(h[2:])
			if at&0xfff8 != 0 {
				v.shape, v.proto = laterFragment, h[0]
				return
			}
			if at&1 != 0 {
				v.shape = firstFragment
			}
			v.l4 += 8
		} else {
			if v.proto == routing && h[3] != 0 {
				break // not at its destination yet
			}
			v.l4 += (int(h[1]) + 1) * 8
		}
		v.proto = h[0]
	}
	v.shape = opaque
}

// ports reads them; false if there are none.
func (v *ipView) ports(f []byte) bool {
	if v.proto != packet.ProtoTCP && v.proto != packet.ProtoUDP || v.shape >= laterFragment ||
		v.left < minL4 || v.l4 > maxOffset || v.l4+4 > len(f) {
		return false
	}
	v.sport, v.dpt = binary.BigEndian.Uint16(f[v.l4:]), binary.BigEndian.Uint16(f[v.l4+2:])
	return true
}

// takenBy is a decision for an endpoint's rule.
func takenBy(c Counter, a netip.Addr, proto uint8, port uint16) Decision {
	return Decision{Counter: c, Addr: a, Proto: proto, Port: port}
}

func (r *Rules) ip(f []byte, v *ipView, mine bool) Decision {
	if mine && r.ours(v.dst) {
		if r.leases(f, v) {
			return takenBy(PassOther, v.dst, v.proto, v.dpt)
		}
		return Decision{Counter: TakeAddress, Addr: v.dst}
	}
	if a, ok := v.solicited(f); ok && r.ours(a) {
		return Decision{Counter: TakeNeighbour, Addr: a}
	}
	switch {
	case !mine:
		return Decision{}
	case v.shape == laterFragment:
		return r.later(v)
	case v.ports(f):
		return r.byPort(v)
	case v.shape == whole && v.left >= packet.ICMPLen && v.proto == map[bool]uint8{false: packet.ProtoICMP, true: packet.ProtoICMPv6}[v.v6]:
		return r.icmpError(f, v)
	}
	return Decision{}
}

// leases reports whether it is for the kernel's DHCP client, who may be getting the
// address back.
func (r *Rules) leases(f []byte, v *ipView) bool {
	return !v.v6 && v.proto == packet.ProtoUDP && v.shape == whole && v.ports(f) && v.sport == dhcpServer && v.dpt == DHCPClient &&
		!r.service(v.dst, v.proto, v.dpt) && !r.inRange(v.dst, v.dpt)
}

// solicited is what a neighbour solicitation asks for.
func (v *ipView) solicited(f []byte) (netip.Addr, bool) {
	const length = packet.NDTarget + 16
	if !v.v6 || v.proto != packet.ProtoICMPv6 || v.shape != whole || v.left < length || v.l4 > maxOffset || v.l4+length > len(f) ||
		f[v.l4] != packet.ICMPv6NeighborSolicit {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(f[v.l4+packet.NDTarget:])), true
}

// later is about a fragment without ports.
func (r *Rules) later(v *ipView) Decision {
	if d, ok := r.returning(v); ok {
		return d
	}
	if slices.ContainsFunc(r.Services, func(s ServiceRule) bool { return same(s.Addr, v.dst) }) ||
		slices.ContainsFunc(r.LocalRanges, func(l RangeRule) bool { return same(l.Addr, v.dst) }) {
		return Decision{Counter: PassFragment, Addr: v.dst}
	}
	return Decision{}
}

// returning is about fragments of a backend's protocol, whatever their ports.
func (r *Rules) returning(v *ipView) (Decision, bool) {
	ok := !r.host(v.dst) && slices.ContainsFunc(r.Backends, func(b ServiceRule) bool { return same(b.Addr, v.src) && b.Proto == v.proto })
	return takenBy(TakeReturn, v.src, v.proto, 0), ok
}

func (r *Rules) byPort(v *ipView) Decision {
	switch {
	case r.service(v.dst, v.proto, v.dpt):
		return takenBy(TakeService, v.dst, v.proto, v.dpt)
	case r.inRange(v.dst, v.dpt):
		return takenBy(TakeRange, v.dst, v.proto, v.dpt)
	case !r.host(v.dst) && r.backend(v.src, v.proto, v.sport):
		return takenBy(TakeReturn, v.src, v.proto, v.sport)
	case v.shape == firstFragment:
		if d, ok := r.returning(v); ok {
			return d
		}
	}
	return Decision{}
}

// icmpError is about one whose quoted packet l4fwd sent.
func (r *Rules) icmpError(f []byte, v *ipView) Decision {
	if v.l4 > maxOffset || v.l4+packet.ICMPLen > len(f) {
		return Decision{}
	}
	kinds := []uint8{packet.ICMPUnreachable, 4, packet.ICMPTimeExceeded, packet.ICMPParameterProblem}
	if v.v6 {
		kinds = []uint8{packet.ICMPv6Unreachable, packet.ICMPv6PacketTooBig, packet.ICMPv6TimeExceeded, packet.ICMPv6ParameterProblem}
	}
	if !slices.Contains(kinds, f[v.l4]) {
		return Decision{}
	}
	q, ok := readIP(f, v.l4+packet.ICMPLen, v.v6, true)
	if !ok || !q.ports(f) {
		return Decision{}
	}
	if q.src == v.dst && (r.service(q.src, q.proto, q.sport) || r.inRange(q.src, q.sport)) {
		return takenBy(TakeICMPError, q.src, q.proto, q.sport)
	}
	if !r.host(v.dst) && r.backend(q.dst, q.proto, q.dpt) {
		return takenBy(TakeICMPError, q.dst, q.proto, q.dpt)
	}
	return Decision{}
}

// arp is about requests for our addresses.
func (r *Rules) arp(h []byte) Decision {
	if len(h) < packet.ARPLen {
		return Decision{Counter: PassMalformed}
	}
	if !bytes.Equal(h[:8], []byte{0, 1, 8, 0, 6, 4, 0, packet.ARPRequest}) {
		return Decision{}
	}
	if a := netip.AddrFrom4([4]byte(h[packet.ARPTargetIP:])); r.ours(a) {
		return Decision{Counter: TakeNeighbour, Addr: a}
	}
	return Decision{}
}

// same reports whether a rule's address is a packet's: an IPv4-mapped one in a rule is
// IPv4, in a packet of IPv6 it is not.
func same(rule, a netip.Addr) bool { return rule.WithZone("").Unmap() == a }

func (r *Rules) ours(a netip.Addr) bool {
	return slices.ContainsFunc(r.Addrs, func(o netip.Addr) bool { return same(o, a) })
}

func (r *Rules) host(a netip.Addr) bool {
	return slices.ContainsFunc(r.HostAddrs, func(o netip.Addr) bool { return same(o, a) })
}

func (r *Rules) service(a netip.Addr, proto uint8, port uint16) bool {
	return slices.ContainsFunc(r.Services, func(s ServiceRule) bool { return s.Proto == proto && s.Port == port && same(s.Addr, a) })
}

func (r *Rules) backend(a netip.Addr, proto uint8, port uint16) bool {
	return slices.ContainsFunc(r.Backends, func(s ServiceRule) bool { return s.Proto == proto && s.Port == port && same(s.Addr, a) })
}

func (r *Rules) inRange(a netip.Addr, port uint16) bool {
	return slices.ContainsFunc(r.LocalRanges, func(l RangeRule) bool { return l.Lo <= port && port <= l.Hi && same(l.Addr, a) })
}
