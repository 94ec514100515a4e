package filter

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// identifier is the condition that a packet has the next address or number where q
// says; several may be joined in parentheses.
func (p *parser) identifier(q qualifiers) (node, error) {
	if _, ok := p.take("("); ok {
		return p.identifiers(q)
	}
	if q.kind == "proto" {
		return p.ipProtocol(q)
	}
	at, word := p.at(), p.peek()
	if p.pos >= len(p.toks) || !p.toks[p.pos].word {
		return nil, p.unexpected("want an address or a number")
	}
	p.pos++
	switch q.kind {
	case "port", "portrange":
		return p.ports(q, at, word)
	case "net":
		return p.net(q, at, word)
	}
	if q.proto == "ether" || q.proto == "link" {
		a, err := net.ParseMAC(word)
		if err != nil || len(a) != 6 {
			return nil, errorAt(at, "%q is no MAC address", word)
		}
		return p.mac(a, q.dir), nil
	}
	a, err := addr(at, word)
	if err != nil {
		return nil, err
	}
	return p.within(q, at, netip.PrefixFrom(a, a.BitLen()))
}

// identifiers is a list in parentheses, read as far as the first of them.
func (p *parser) identifiers(q qualifiers) (node, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	one := func() (node, error) {
		_, inverted := p.take("not", "!")
		n, err := p.identifier(q)
		if inverted {
			n = not{n}
		}
		return n, err
	}
	left, err := one()
	for err == nil {
		op, ok := p.take("and", "&&", "or", "||")
		if !ok {
			return left, p.expect(")")
		}
		var right node
		if right, err = one(); op == "and" || op == "&&" {
			left = and{left, right}
		} else {
			left = or{left, right}
		}
	}
	return nil, err
}

// net is a network, whose first word has been read: 10, 10.1, 10.0.0.0/8,
// 10.0.0.0 mask 255.0.0.0, 2001:db8::/32.
func (p *parser) net(q qualifiers, at int, word string) (node, error) {
	if strings.Contains(word, ":") {
		a, err := addr(at, word)
		if err != nil {
			return nil, err
		}
		bits := a.BitLen()
		if _, ok := p.take("/"); ok {
			n, err := p.number()
			if bits = int(n); err != nil || n > 128 {
				return nil, errorAt(at, "the prefix length of %s is none", word)
			}
		}
		return p.within(q, at, netip.PrefixFrom(a, bits))
	}
	var b [4]byte
	parts := strings.Split(word, ".")
	if len(parts) > 4 {
		return nil, noAddress(at, word)
	}
	for i, s := range parts {
		n, err := strconv.ParseUint(s, 10, 8)
		if err != nil {
			return nil, noAddress(at, word)
		}
		b[i] = byte(n)
	}
	bits := 8 * len(parts)
	if _, ok := p.take("/"); ok {
		n, err := p.number()
		if bits = int(n); err != nil || n > 32 {
			return nil, errorAt(at, "the prefix length of %s is none", word)
		}
	} else if _, ok := p.take("mask"); ok {
		m, err := addr(p.at(), p.peek())
		if err != nil {
			return nil, err
		}
		p.pos++
		var ones bool
		if bits, ones = contiguous(m); !ones {
			return nil, errorAt(at, "%s is no mask of a network", m)
		}
	}
	return p.within(q, at, netip.PrefixFrom(netip.AddrFrom4(b), bits))
}

// contiguous is the number of ones of a mask that has no zero before a one.
func contiguous(m netip.Addr) (int, bool) {
	if !m.Is4() {
		return 0, false
	}
	b := m.As4()
	ones, bits := net.IPMask(b[:]).Size()
	return ones, bits == 32
}

// within is the condition that a packet's source, destination, or either lies in a
// network.
func (p *parser) within(q qualifiers, at int, n netip.Prefix) (node, error) {
	if n.Masked().Addr() != n.Addr() {
		return nil, errorAt(at, "%s has bits beyond its length: %s is meant?", n, n.Masked())
	}
	v4 := n.Addr().Is4()
	ends := func(etype, src, dst uint32) node {
		ip := etherType(p.shift, etype)
		return ends(q.dir, and{ip, p.inPrefix(src, n)}, and{ip, p.inPrefix(dst, n)})
	}
	switch {
	case v4 && q.proto == "":
		return either(ends(typeIPv4, ipv4Src, ipv4Dst), ends(typeARP, arpSrc, arpDst), ends(typeRARP, arpSrc, arpDst)), nil
	case v4 && q.proto == "ip":
		return ends(typeIPv4, ipv4Src, ipv4Dst), nil
	case v4 && (q.proto == "arp" || q.proto == "rarp"):
		return ends(etherTypes[q.proto], arpSrc, arpDst), nil
	case !v4 && (q.proto == "" || q.proto == "ip6"):
		return ends(typeIPv6, ipv6Src, ipv6Dst), nil
	}
	return nil, errorAt(at, "%s packets have no address like %s", q.proto, n.Addr())
}

// inPrefix is true if the address at offset off of the network header lies in n.
func (p *parser) inPrefix(off uint32, n netip.Prefix) node {
	b := n.Addr().AsSlice()
	var out node
	for i := 0; i < len(b); i += 4 {
		bits := min(max(n.Bits()-8*i, 0), 32)
		if bits == 0 && out != nil {
			break
		}
		f := field{at: p.network() + off + uint32(i), size: 4}
		if bits < 32 {
			f.mask = ^uint32(0) << (32 - bits)
		}
		var c node = relation{f, jumpEq, constant(binary.BigEndian.Uint32(b[i:]))}
		if bits == 0 {
			c = always{}
		}
		if out == nil {
			out = c
		} else {
			out = and{out, c}
		}
	}
	return out
}

// ports is the condition that a packet has a port, or one of a range.
func (p *parser) ports(q qualifiers, at int, word string) (node, error) {
	numbers := []uint32{6, 17, 132} // TCP, UDP, SCTP
	switch q.proto {
	case "":
	case "tcp", "udp", "sctp":
		numbers = []uint32{transports[q.proto].number}
	default:
		return nil, errorAt(at, "%s has no ports", q.proto)
	}
	first, last := word, word
	if q.kind == "portrange" {
		if a, b, ok := strings.Cut(word, "-"); ok {
			first, last = a, b
		}
	}
	lo, err := port(at, first)
	if err != nil {
		return nil, err
	}
	hi, err := port(at, last)
	if err != nil {
		return nil, err
	}
	lo, hi = min(lo, hi), max(lo, hi)
	var v6, v4 node
	for _, n := range numbers {
		six := and{p.byteIs(ipv6NextHeader, n), ends(q.dir,
			between(field{at: p.network() + ipv6Len, size: 2}, lo, hi), between(field{at: p.network() + ipv6Len + 2, size: 2}, lo, hi))}
		four := all(p.byteIs(ipv4Protocol, n), p.unfragmented(), ends(q.dir,
			between(computed{base: p.network(), behind: true, header: p.network(), size: 2}, lo, hi),
			between(computed{base: p.network() + 2, behind: true, header: p.network(), size: 2}, lo, hi)))
		if v6 == nil {
			v6, v4 = six, four
		} else {
			v6, v4 = or{v6, six}, or{v4, four}
		}
	}
	return or{and{etherType(p.shift, typeIPv6), v6}, and{etherType(p.shift, typeIPv4), v4}}, nil
}

// between is true if v is lo, hi, or between them.
func between(v value, lo, hi uint32) node {
	if lo == hi {
		return relation{v, jumpEq, constant(lo)}
	}
	return and{relation{v, jumpGe, constant(lo)}, not{relation{v, jumpGt, constant(hi)}}}
}

// port is the number of a port.
func port(at int, word string) (uint32, error) {
	n, ok := number(word)
	switch {
	case !ok:
		return 0, errorAt(at, "%q is no port: names of services are not known", word)
	case n > 65535:
		return 0, errorAt(at, "port %d: at most 65535", n)
	}
	return n, nil
}
