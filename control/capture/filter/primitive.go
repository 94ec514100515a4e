package filter

import (
	"net"
	"net/netip"
	"strings"
)

// Where things are in a frame, and what they say there.
const (
	macDst, macSrc = 0, 6
	etherTypeAt    = 12
	etherLen       = 14
	vlanLen        = 4
	vlanIDMask     = 0x0fff

	ipv4FragmentAt   = 6
	ipv4FragmentMask = 0x1fff
	ipv4Protocol     = 9
	ipv4Src, ipv4Dst = 12, 16
	ipv6NextHeader   = 6
	ipv6Src, ipv6Dst = 8, 24
	ipv6Len          = 40
	arpSrc, arpDst   = 14, 24

	typeIPv4, typeARP, typeRARP, typeIPv6 = 0x0800, 0x0806, 0x8035, 0x86dd
	protoFragment, protoICMPv6            = 44, 58
)

// tagTypes are the EtherTypes of VLAN tags.
var tagTypes = [...]uint32{0x8100, 0x88a8, 0x9100}

// network is where the network header begins.
func (p *parser) network() uint32 { return etherLen + p.shift }

// etherType is true of frames of that type, behind so many bytes of tags.
func etherType(shift, t uint32) node {
	return relation{field{at: etherTypeAt + shift, size: 2}, jumpEq, constant(t)}
}

// byteIs is true if the byte at offset at of the network header is v.
func (p *parser) byteIs(at, v uint32) node {
	return relation{field{at: p.network() + at, size: 1}, jumpEq, constant(v)}
}

// unfragmented is true of an IPv4 packet or its first fragment.
func (p *parser) unfragmented() node {
	return not{relation{field{at: p.network() + ipv4FragmentAt, size: 2}, jumpSet, constant(ipv4FragmentMask)}}
}

// protocol is true of IP packets of protocol n: those of IPv4, IPv6, or both if family
// is empty.
func (p *parser) protocol(family string, n uint32) node {
	v4 := and{etherType(p.shift, typeIPv4), p.byteIs(ipv4Protocol, n)}
	v6 := and{etherType(p.shift, typeIPv6), or{
		and{p.byteIs(ipv6NextHeader, protoFragment), p.byteIs(ipv6Len, n)}, p.byteIs(ipv6NextHeader, n),
	}}
	switch family {
	case "ip":
		return v4
	case "ip6":
		return v6
	}
	return or{v4, v6}
}

// abbreviation is a protocol's name standing alone, nil if it is none.
func (p *parser) abbreviation(name string) node {
	if t, ok := etherTypes[name]; ok {
		return etherType(p.shift, t)
	}
	if t, ok := transports[name]; ok {
		return p.protocol(t.family, t.number)
	}
	return nil
}

// primitive is a condition that no arithmetic is written out for.
func (p *parser) primitive() (node, error) {
	p.last = qualifiers{}
	word, _ := p.take("vlan", "less", "greater", "broadcast", "multicast")
	switch word {
	case "vlan":
		return p.vlan()
	case "less", "greater":
		n, err := p.number()
		if err != nil {
			return nil, err
		}
		if word == "less" {
			return not{relation{length{}, jumpGt, constant(n)}}, nil
		}
		return relation{length{}, jumpGe, constant(n)}, nil
	case "broadcast":
		return p.mac(broadcast, "dst"), nil
	case "multicast":
		return p.groupMAC(), nil
	}
	q := p.qualify()
	switch {
	case q == (qualifiers{}):
		return nil, p.unexpected("want a condition, such as host, net or port")
	case q.proto != "" && q.kind == "":
		if word, ok := p.take("broadcast", "multicast"); ok {
			return p.group(q.proto, word)
		}
		if n := p.abbreviation(q.proto); n != nil {
			return n, nil
		}
		return nil, p.unexpected("want what " + q.proto + " is about")
	}
	p.last = q
	return p.identifier(q)
}

// qualify reads what is said of an identifier before it. Where nothing but a protocol
// is, or nothing at all, there is no kind.
func (p *parser) qualify() (q qualifiers) {
	if w := p.peek(); etherTypes[w] != 0 || transports[w].number != 0 || w == "ether" || w == "link" {
		q.proto = w
		p.pos++
	}
	if d, ok := p.take("src", "dst"); ok {
		q.dir, q.kind = d, "address"
		saved, other := p.pos, "dst"
		op, _ := p.take("or", "and", "||", "&&")
		if d == "dst" {
			other = "src"
		}
		if _, ok := p.take(other); !ok || op == "" {
			p.pos = saved
		} else if q.dir = "both"; op == "or" || op == "||" {
			q.dir = ""
		}
	}
	if k, ok := p.take("host", "net", "port", "portrange", "proto"); ok {
		q.kind = k
	}
	return q
}

// vlan is what the keyword is followed by; all that comes after it in the expression
// looks behind the tag.
func (p *parser) vlan() (node, error) {
	var n node
	for _, t := range tagTypes {
		if e := etherType(p.shift, t); n == nil {
			n = e
		} else {
			n = or{n, e}
		}
	}
	if id, ok := number(p.peek()); ok {
		if id > vlanIDMask {
			return nil, errorAt(p.at(), "VLAN %d: at most %d", id, vlanIDMask)
		}
		p.pos++
		n = and{n, relation{field{at: p.network(), size: 2, mask: vlanIDMask}, jumpEq, constant(id)}}
	}
	p.shift += vlanLen
	return n, nil
}

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// mac is true of frames from, to, or either from or to an address.
func (p *parser) mac(a net.HardwareAddr, dir string) node {
	at := func(off uint32) node {
		word := func(i uint32, size int) node {
			var k uint32
			for _, b := range a[i : int(i)+size] {
				k = k<<8 | uint32(b)
			}
			return relation{field{at: off + i, size: uint32(size)}, jumpEq, constant(k)}
		}
		return and{word(2, 4), word(0, 2)}
	}
	return ends(dir, at(macSrc), at(macDst))
}

// ends joins what is asked of a packet's source and of its destination.
func ends(dir string, src, dst node) node {
	switch dir {
	case "src":
		return src
	case "dst":
		return dst
	case "both":
		return and{src, dst}
	}
	return or{src, dst}
}

// groupMAC is true of frames to several stations.
func (p *parser) groupMAC() node {
	return not{relation{field{at: macDst, size: 1, mask: 1}, jumpEq, constant(0)}}
}

// group is broadcast or multicast of a protocol.
func (p *parser) group(proto, word string) (node, error) {
	switch {
	case proto == "ether" && word == "broadcast":
		return p.mac(broadcast, "dst"), nil
	case proto == "ether":
		return p.groupMAC(), nil
	case proto == "ip" && word == "multicast":
		return and{etherType(p.shift, typeIPv4), relation{field{at: p.network() + ipv4Dst, size: 1}, jumpGe, constant(224)}}, nil
	case proto == "ip6" && word == "multicast":
		return and{etherType(p.shift, typeIPv6), p.byteIs(ipv6Dst, 255)}, nil
	}
	return nil, errorAt(p.toks[p.pos-1].at, "%s %s is not known here", proto, word)
}

// ipProtocol is proto with its number or name.
func (p *parser) ipProtocol(q qualifiers) (node, error) {
	if q.dir != "" {
		return nil, p.unexpected("proto has no " + q.dir)
	}
	at := p.at()
	p.take("\\")
	word := p.peek()
	p.pos++
	n, isNumber := number(word)
	switch q.proto {
	case "", "ip", "ip6":
		if t, ok := transports[word]; ok {
			n = t.number
		} else if !isNumber || n > 255 {
			return nil, errorAt(at, "%q is no protocol of IP", word)
		}
		return p.protocol(q.proto, n), nil
	case "ether", "link":
		if t, ok := etherTypes[word]; ok {
			n = t
		} else if !isNumber || n <= 1500 || n > 0xffff {
			return nil, errorAt(at, "%q is no EtherType", word)
		}
		return etherType(p.shift, n), nil
	}
	return nil, errorAt(at, "%s has no protocols", q.proto)
}

func (p *parser) number() (uint32, error) {
	n, ok := number(p.peek())
	if !ok {
		return 0, p.unexpected("want a number")
	}
	p.pos++
	return n, nil
}

// isIdentifier reports whether what comes next can only be an address, a number, or a
// name of either.
func (p *parser) isIdentifier() bool {
	if p.pos >= len(p.toks) {
		return false
	}
	t := p.toks[p.pos]
	if !t.word || keywords[t.text] || p.abbreviation(t.text) != nil || p.pos+1 < len(p.toks) && p.toks[p.pos+1].text == "[" {
		return false
	}
	_, constant := constants[t.text]
	if _, isNumber := number(t.text); isNumber && p.pos+1 < len(p.toks) {
		saved := *p
		_, compared := p.relation()
		*p = saved
		return !compared
	}
	return !constant
}

// noAddress is the error about a word that should be one.
func noAddress(at int, word string) error {
	if strings.Trim(word, "0123456789.") != "" && !strings.Contains(word, ":") {
		return errorAt(at, "%q is no address: names of hosts are not resolved", word)
	}
	return errorAt(at, "%q is no address", word)
}

// addr reads an IP address.
func addr(at int, word string) (netip.Addr, error) {
	a, err := netip.ParseAddr(word)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, noAddress(at, word)
	}
	return a, nil
}
