package e2e

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// kind is a way of forwarding, at a VIP of its own.
type kind struct {
	mode   string
	client testbed.Family // and the VIP's
	server testbed.Family
	vip    int
	proxy  string // version of the PROXY protocol, as the configuration calls it; "" = none
}

// kinds are all of them. Those of warmUp are at the first VIPs.
var kinds = []kind{
	{fullNAT, testbed.V4, testbed.V4, 0, ""},
	{fullNAT, testbed.V6, testbed.V6, 0, ""},
	{dnat, testbed.V4, testbed.V4, 1, ""},
	{dnat, testbed.V6, testbed.V6, 1, ""},
	{fullNAT, testbed.V6, testbed.V4, 2, ""},
}

// proxyKinds are those of Full-NAT once more, for servers that expect PROXY.
var proxyKinds = []kind{
	{fullNAT, testbed.V4, testbed.V4, 3, "proxy-v1"},
	{fullNAT, testbed.V6, testbed.V6, 3, "proxy-v2"},
	{fullNAT, testbed.V6, testbed.V4, 4, "proxy-v1"},
	{fullNAT, testbed.V4, testbed.V4, 4, "proxy-v2"},
	{fullNAT, testbed.V6, testbed.V6, 5, "proxy-v1"},
	{fullNAT, testbed.V6, testbed.V4, 6, "proxy-v2"},
}

// translated reports whether packets change family.
func (k kind) translated() bool { return k.client != k.server }

func (k kind) String() string {
	way := k.mode + "/" + k.client.String()
	if k.translated() {
		way = "nat64"
	}
	if k.proxy != "" {
		return k.proxy + "/" + strings.TrimPrefix(way, fullNAT+"/")
	}
	return way
}

// service is a TCP service of a kind on a port of its own, with all servers.
func (r *rig) service(k kind, name string, port, backend uint16) testbed.Service {
	s := testbed.Service{Name: strings.ReplaceAll(k.String(), "/", "-") + "-" + name, Family: k.server, Address: r.VIP(k.client, k.vip),
		Port: port, BackendPort: backend, Protocol: "tcp", Mode: k.mode, ClientAddress: k.proxy}
	if k.mode == fullNAT && k.proxy == "" {
		s.ClientAddress = "toa"
	}
	return s
}

// services are a kind's web, hash and echo, TOA where there can be one.
func (r *rig) services(k kind, weights ...int) []testbed.Service {
	toa := ""
	if k.mode == fullNAT {
		toa = "toa"
	}
	var out []testbed.Service
	for _, s := range testbed.Services(k.vip, k.mode, toa, "wrr", weights...) {
		if s.Family != k.server {
			continue
		}
		s.Name = strings.ReplaceAll(k.String(), "/", "-") + "-" + s.Name
		s.Address = r.VIP(k.client, k.vip)
		out = append(out, s)
	}
	return out
}

// allKinds are the services of every kind.
func (r *rig) allKinds(weights ...int) []testbed.Service {
	var out []testbed.Service
	for _, k := range kinds {
		out = append(out, r.services(k, weights...)...)
	}
	return out
}

// datagram is what an ear has to know of an IP packet, also one in an ICMP
// error, that has neither options nor extension headers.
type datagram struct {
	src, dst netip.AddrPort // ports 0 where there are none
	proto    byte
	size     int    // bytes, IP header included
	l4       []byte // as far as it is there
}

// Protocols in datagram.proto.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// datagramOf reads a packet that begins with its IP header.
func datagramOf(ip []byte) (d datagram, ok bool) {
	var src, dst netip.Addr
	switch {
	case len(ip) >= 20 && ip[0] == 0x45:
		src, _ = netip.AddrFromSlice(ip[12:16])
		dst, _ = netip.AddrFromSlice(ip[16:20])
		d.proto, d.size, d.l4 = ip[9], int(binary.BigEndian.Uint16(ip[2:])), ip[20:]
	case len(ip) >= 40 && ip[0]>>4 == 6:
		src, _ = netip.AddrFromSlice(ip[8:24])
		dst, _ = netip.AddrFromSlice(ip[24:40])
		d.proto, d.size, d.l4 = ip[6], 40+int(binary.BigEndian.Uint16(ip[4:])), ip[40:]
	default:
		return d, false
	}
	var from, to uint16
	if (d.proto == protoTCP || d.proto == protoUDP) && len(d.l4) >= 4 {
		from, to = binary.BigEndian.Uint16(d.l4), binary.BigEndian.Uint16(d.l4[2:])
	}
	d.src, d.dst = netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to)
	return d, true
}

// ethernet is the length of a header without VLAN tag.
const ethernet = 14

// icmpError is what an ICMP or ICMPv6 error says.
type icmpError struct {
	from, to netip.Addr
	tooBig   bool // "fragmentation needed" or "packet too big"
	timeOut  bool // time exceeded
	mtu      int  // of tooBig
	about    datagram
}

// errorOf reads the ICMP error in a packet.
func errorOf(d datagram) (e icmpError, ok bool) {
	if len(d.l4) < 8 {
		return e, false
	}
	kind, code := d.l4[0], d.l4[1]
	switch {
	case d.proto == protoICMP && (kind == 3 || kind == 11): // RFC 792
		e.tooBig, e.timeOut = kind == 3 && code == 4, kind == 11
		e.mtu = int(binary.BigEndian.Uint16(d.l4[6:])) // RFC 1191
	case d.proto == protoICMPv6 && kind < 128: // RFC 4443
		e.tooBig, e.timeOut = kind == 2, kind == 3
		e.mtu = int(binary.BigEndian.Uint32(d.l4[4:]))
	default:
		return e, false
	}
	e.from, e.to = d.src.Addr(), d.dst.Addr()
	e.about, ok = datagramOf(d.l4[8:])
	e.about.l4 = nil // the frame's
	return e, ok
}
