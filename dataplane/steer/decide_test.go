package steer

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// shape is how a datagram of the tests is fragmented.
type shape struct {
	off  uint16 // bytes
	more bool
	id   uint32
}

// datagram is an IP packet of the tests; payload follows the IP header as is.
type datagram struct {
	src, dst netip.Addr
	proto    uint8
	payload  []byte
	ext      []byte // IPv6 extension headers, ready made, the first of kind extKind
	extKind  uint8
	frag     *shape
	mac      net.HardwareAddr // nicMAC if nil
}

func (d datagram) frame(t testing.TB) []byte {
	t.Helper()
	mac := d.mac
	if mac == nil {
		mac = nicMAC
	}
	// Without the padding gopacket gives short frames.
	if d.dst.Is4() {
		return frame(t, eth(mac, layers.EthernetTypeIPv4), d.ipv4(), gopacket.Payload(d.payload))[:14+20+len(d.payload)]
	}
	ip := d.ipv6()
	return frame(t, eth(mac, layers.EthernetTypeIPv6), gopacket.Payload(ip))[:14+len(ip)]
}

// ip is the packet without an Ethernet header.
func (d datagram) ip(t testing.TB) []byte { return d.frame(t)[14:] }

func (d datagram) ipv4() *layers.IPv4 {
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocol(d.proto),
		SrcIP: d.src.AsSlice(), DstIP: d.dst.AsSlice()}
	if d.frag != nil {
		ip.Id, ip.FragOffset = uint16(d.frag.id), d.frag.off/8
		if d.frag.more {
			ip.Flags = layers.IPv4MoreFragments
		}
	}
	return ip
}

// ipv6 is written out by hand: gopacket does not serialize every chain.
func (d datagram) ipv6() []byte {
	first, rest := d.proto, d.payload
	if d.frag != nil {
		h := make([]byte, 8, 8+len(rest))
		h[0] = first
		off := d.frag.off
		if d.frag.more {
			off |= 1
		}
		binary.BigEndian.PutUint16(h[2:], off)
		binary.BigEndian.PutUint32(h[4:], d.frag.id)
		first, rest = 44, append(h, rest...)
	}
	if d.ext != nil {
		first, rest = d.extKind, append(append([]byte{}, d.ext...), rest...)
	}
	b := make([]byte, 40, 40+len(rest))
	b[0], b[6], b[7] = 0x60, first, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
	src, dst := d.src.As16(), d.dst.As16()
	copy(b[8:], src[:])
	copy(b[24:], dst[:])
	return append(b, rest...)
}

// l4 is the start of a TCP or UDP header with some payload; the program looks
// at nothing but the ports.
func l4(src, dst uint16) []byte {
	b := make([]byte, 32)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	b[12] = 5 << 4
	return b
}

func icmp(v6 bool, typ uint8, rest []byte) (proto uint8, b []byte) {
	proto = 1
	if v6 {
		proto = 58
	}
	return proto, append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, rest...)
}

type decision struct {
	frame []byte
	want  Counter
}

func (f family) tcp(t testing.TB, src netip.Addr, sport uint16, dst netip.Addr, dport uint16) []byte {
	return datagram{src: src, dst: dst, proto: 6, payload: l4(sport, dport)}.frame(t)
}

func (f family) udp(t testing.TB, src netip.Addr, sport uint16, dst netip.Addr, dport uint16) []byte {
	return datagram{src: src, dst: dst, proto: 17, payload: l4(sport, dport)}.frame(t)
}

func (f family) other(t testing.TB, src, dst netip.Addr, proto uint8) []byte {
	return datagram{src: src, dst: dst, proto: proto, payload: make([]byte, 24)}.frame(t)
}

func (f family) echo(t testing.TB, src, dst netip.Addr) []byte {
	typ := uint8(8)
	if f.v6 {
		typ = 128
	}
	proto, b := icmp(f.v6, typ, []byte("ping"))
	return datagram{src: src, dst: dst, proto: proto, payload: b}.frame(t)
}

// icmpError is an error from src to dst that quotes the first bytes of inner.
func (f family) icmpError(t testing.TB, typ uint8, src, dst netip.Addr, inner []byte) []byte {
	proto, b := icmp(f.v6, typ, inner)
	return datagram{src: src, dst: dst, proto: proto, payload: b}.frame(t)
}

func (f family) unreachable() uint8 {
	if f.v6 {
		return 1
	}
	return 3
}

// addressed are the decisions that fall on addresses and ports.
func (f family) addressed(t testing.TB) map[string]decision {
	foreign := datagram{src: f.client, dst: f.vip, proto: 6, payload: l4(4000, 80), mac: otherMAC}
	broadcast := foreign
	broadcast.mac = layers.EthernetBroadcast
	lease := PassOther
	if f.v6 {
		lease = TakeAddress // DHCPv6 has other ports and answers link-local addresses
	}
	return map[string]decision{
		"tcp to a VIP":                        {f.tcp(t, f.client, 4000, f.vip, 80), TakeAddress},
		"ssh to a VIP":                        {f.tcp(t, f.client, 4000, f.vip, 22), TakeAddress},
		"udp to a VIP":                        {f.udp(t, f.client, 4000, f.vip, 80), TakeAddress},
		"ping to a VIP":                       {f.echo(t, f.client, f.vip), TakeAddress},
		"gre to a VIP":                        {f.other(t, f.client, f.vip, 47), TakeAddress},
		"DHCP's answer to a VIP":              {f.udp(t, f.client, 67, f.vip, 68), lease},
		"DHCP's answer to a local address":    {f.udp(t, f.client, 67, f.local, 68), lease},
		"DHCP's answer to the host":           {f.udp(t, f.client, 67, f.host, 68), PassOther},
		"DHCP's question to a VIP":            {f.udp(t, f.client, 68, f.vip, 67), TakeAddress},
		"DHCP's port to another of a VIP":     {f.udp(t, f.client, 67, f.vip, 69), TakeAddress},
		"another port to DHCP's of a VIP":     {f.udp(t, f.client, 4000, f.vip, 68), TakeAddress},
		"DHCP's ports, but tcp":               {f.tcp(t, f.client, 67, f.vip, 68), TakeAddress},
		"tcp to a local address":              {f.tcp(t, f.backend, 8080, f.local, 4000), TakeAddress},
		"error to a VIP":                      {f.icmpError(t, f.unreachable(), f.client, f.vip, nil), TakeAddress},
		"error to a local address":            {f.icmpError(t, f.unreachable(), f.backend, f.local, nil), TakeAddress},
		"VIP with a foreign MAC":              {foreign.frame(t), PassForeignMAC},
		"VIP with the broadcast MAC":          {broadcast.frame(t), PassOther},
		"tcp to nobody we know":               {f.tcp(t, f.client, 4000, f.stranger, 80), PassOther},
		"tcp to a service of the host":        {f.tcp(t, f.client, 4000, f.host, 80), TakeService},
		"udp to a service of the host":        {f.udp(t, f.client, 4000, f.host, 53), TakeService},
		"ssh to the host":                     {f.tcp(t, f.client, 4000, f.host, 22), PassOther},
		"bgp to the host":                     {f.tcp(t, f.client, 4000, f.host, 179), PassOther},
		"udp to the port of a tcp service":    {f.udp(t, f.client, 4000, f.host, 80), PassOther},
		"tcp to the port of a udp service":    {f.tcp(t, f.client, 4000, f.host, 53), PassOther},
		"service port at another address":     {f.tcp(t, f.client, 4000, f.stranger, 80), PassOther},
		"ping to the host":                    {f.echo(t, f.client, f.host), PassOther},
		"ospf to the host":                    {f.other(t, f.client, f.host, 89), PassOther},
		"tcp to the first port of the range":  {f.tcp(t, f.backend, 80, f.host, rangeLo), TakeRange},
		"udp to the last port of the range":   {f.udp(t, f.backend, 80, f.host, rangeHi), TakeRange},
		"tcp below the range":                 {f.tcp(t, f.backend, 80, f.host, rangeLo-1), PassOther},
		"udp above the range":                 {f.udp(t, f.backend, 80, f.host, rangeHi+1), PassOther},
		"sctp is in no range":                 {datagram{src: f.backend, dst: f.host, proto: 132, payload: l4(80, rangeLo)}.frame(t), PassOther},
		"DNAT return":                         {f.tcp(t, f.backend, 8080, f.client, 4000), TakeReturn},
		"DNAT return udp":                     {f.udp(t, f.backend, 53, f.client, 4000), TakeReturn},
		"backend answers a health check":      {f.tcp(t, f.backend, 8080, f.host, 40000), PassOther},
		"backend answers a udp health check":  {f.udp(t, f.backend, 53, f.host, 40000), PassOther},
		"backend from another port":           {f.tcp(t, f.backend, 22, f.client, 4000), PassOther},
		"backend with another protocol":       {f.udp(t, f.backend, 8080, f.client, 4000), PassOther},
		"backend pings a client":              {f.echo(t, f.backend, f.client), PassOther},
		"backend's port is the destination's": {f.tcp(t, f.client, 4000, f.backend, 8080), PassOther},
		"backend calls a service of the host": {f.tcp(t, f.backend, 8080, f.host, 80), TakeService},
	}
}

// fragmented are the decisions on fragments.
func (f family) fragmented(t testing.TB) map[string]decision {
	frag := func(src, dst netip.Addr, proto uint8, payload []byte, s shape) []byte {
		return datagram{src: src, dst: dst, proto: proto, payload: payload, frag: &s}.frame(t)
	}
	first, later := shape{more: true, id: 1}, shape{off: 1400, id: 2}
	noPorts := make([]byte, 40)
	return map[string]decision{
		"first to a VIP":                       {frag(f.client, f.vip, 17, l4(4000, 53), first), TakeAddress},
		"first of DHCP's ports to a VIP":       {frag(f.client, f.vip, 17, l4(67, 68), first), TakeAddress},
		"later to a VIP":                       {frag(f.client, f.vip, 17, noPorts, later), TakeAddress},
		"first to a service of the host":       {frag(f.client, f.host, 17, l4(4000, 53), first), TakeService},
		"first to the host":                    {frag(f.client, f.host, 17, l4(4000, 54), first), PassOther},
		"later to the host, first not seen":    {frag(f.client, f.host, 17, l4(4000, 53), later), PassFragment},
		"first of a DNAT return":               {frag(f.backend, f.client, 17, l4(53, 4000), first), TakeReturn},
		"first of a backend's other port":      {frag(f.backend, f.client, 17, l4(54, 4000), first), TakeReturn},
		"first of a backend's other protocol":  {frag(f.backend, f.client, 47, l4(53, 4000), first), PassOther},
		"first of a backend to the host":       {frag(f.backend, f.host, 17, l4(54, 4000), first), PassOther},
		"later of a DNAT return":               {frag(f.backend, f.client, 17, noPorts, later), TakeReturn},
		"later of a DNAT return, tcp":          {frag(f.backend, f.client, 6, noPorts, later), TakeReturn},
		"later of a backend's other protocol":  {frag(f.backend, f.client, 47, noPorts, later), PassOther},
		"later from a backend to the host":     {frag(f.backend, f.host, 17, noPorts, later), PassFragment},
		"later from a stranger to a client":    {frag(f.stranger, f.client, 17, noPorts, later), PassOther},
		"error in fragments quotes nobody":     {frag(f.client, f.host, 1, noPorts, first), PassOther},
		"first too short for a transport head": {frag(f.client, f.host, 17, l4(4000, 53)[:4], first), PassOther},
	}
}

// errors are the decisions on ICMP errors to addresses that are not ours whole.
func (f family) errors(t testing.TB) map[string]decision {
	quote := func(proto uint8, src netip.Addr, sport uint16, dst netip.Addr, dport uint16) []byte {
		return datagram{src: src, dst: dst, proto: proto, payload: l4(sport, dport)}.ip(t)
	}
	sent := quote(6, f.host, 80, f.client, 4000)
	onward := quote(6, f.client, 4000, f.backend, 8080)
	cut := len(sent) - 32 + 8 // as much as RFC 792 promises
	m := map[string]decision{
		"about a service":                {f.icmpError(t, f.unreachable(), f.stranger, f.host, sent), TakeICMPError},
		"about a service, 8 bytes":       {f.icmpError(t, f.unreachable(), f.stranger, f.host, sent[:cut]), TakeICMPError},
		"about a service, too short":     {f.icmpError(t, f.unreachable(), f.stranger, f.host, sent[:cut-5]), PassOther},
		"about ssh":                      {f.icmpError(t, f.unreachable(), f.stranger, f.host, quote(6, f.host, 22, f.client, 4000)), PassOther},
		"about the wrong protocol":       {f.icmpError(t, f.unreachable(), f.stranger, f.host, quote(17, f.host, 80, f.client, 4000)), PassOther},
		"about a port of the range":      {f.icmpError(t, f.unreachable(), f.stranger, f.host, quote(17, f.host, rangeLo, f.backend, 53)), TakeICMPError},
		"about a port beyond the range":  {f.icmpError(t, f.unreachable(), f.stranger, f.host, quote(17, f.host, rangeHi+1, f.backend, 9)), PassOther},
		"to one about another":           {f.icmpError(t, f.unreachable(), f.stranger, f.client, sent), PassOther},
		"to a client about DNAT":         {f.icmpError(t, f.unreachable(), f.backend, f.client, onward), TakeICMPError},
		"to a client about another port": {f.icmpError(t, f.unreachable(), f.backend, f.client, quote(6, f.client, 4000, f.backend, 22)), PassOther},
		"to the host about health":       {f.icmpError(t, f.unreachable(), f.backend, f.host, quote(6, f.host, 40000, f.backend, 8080)), PassOther},
		"about an error":                 {f.icmpError(t, f.unreachable(), f.stranger, f.host, f.echo(t, f.host, f.client)[14:]), PassOther},
		"about nothing":                  {f.icmpError(t, f.unreachable(), f.stranger, f.host, nil), PassOther},
		"about garbage":                  {f.icmpError(t, f.unreachable(), f.stranger, f.host, make([]byte, 60)), PassOther},
	}
	types := map[uint8]Counter{3: TakeICMPError, 4: TakeICMPError, 11: TakeICMPError, 12: TakeICMPError, 0: PassOther, 5: PassOther, 8: PassOther, 13: PassOther}
	if f.v6 {
		types = map[uint8]Counter{1: TakeICMPError, 2: TakeICMPError, 3: TakeICMPError, 4: TakeICMPError, 0: PassOther, 5: PassOther, 128: PassOther, 137: PassOther}
	}
	for typ, want := range types {
		m[fmt.Sprintf("of type %d", typ)] = decision{f.icmpError(t, typ, f.stranger, f.host, sent), want}
	}
	fragment := datagram{src: f.host, dst: f.client, proto: 6, payload: l4(80, 4000), frag: &shape{off: 1480}}.ip(t)
	m["about a later fragment"] = decision{f.icmpError(t, f.unreachable(), f.stranger, f.host, fragment), PassOther}
	fragment = datagram{src: f.host, dst: f.client, proto: 6, payload: l4(80, 4000), frag: &shape{more: true}}.ip(t)
	m["about a first fragment"] = decision{f.icmpError(t, f.unreachable(), f.stranger, f.host, fragment), TakeICMPError}
	return m
}

// extended are the decisions on extension headers.
func (f family) extended(t testing.TB) map[string]decision {
	chain := func(kind uint8, exts ...[]byte) []byte {
		d := datagram{src: f.client, dst: f.host, proto: 6, payload: l4(4000, 80), extKind: kind}
		for i, e := range exts {
			if e[0] = 6; i+1 < len(exts) {
				e[0] = exts[i+1][1] // kinds travel in the length byte until here
			}
			d.ext = append(d.ext, e...)
		}
		off := 0
		for _, e := range exts { // now set the real lengths
			d.ext[off+1] = uint8(len(e)/8 - 1)
			if e[1] == 51 {
				d.ext[off+1] = uint8(len(e)/4 - 2)
			}
			off += len(e)
		}
		return d.frame(t)
	}
	ext := func(kind uint8, size int) []byte { e := make([]byte, size); e[1] = kind; return e }
	eight := make([][]byte, 8)
	for i := range eight {
		eight[i] = ext(60, 8)
	}
	unfinished := ext(43, 24)
	unfinished[3] = 1
	atomic := ext(44, 8)
	mapped := netip.MustParseAddr("::ffff:192.0.2.10")
	esp := datagram{src: f.client, dst: f.host, proto: 50, payload: l4(4000, 80)}
	overrun := chain(60, ext(60, 8))
	overrun[14+41] = 255
	return map[string]decision{
		"hop by hop":                 {chain(0, ext(0, 8)), TakeService},
		"destination options, long":  {chain(60, ext(60, 264)), TakeService},
		"routing header done":        {chain(43, ext(43, 24)), TakeService},
		"routing header not done":    {chain(43, unfinished), PassOther},
		"authentication header":      {chain(51, ext(51, 24)), PassOther},
		"atomic fragment":            {chain(44, atomic), TakeService},
		"mixed chain":                {chain(0, ext(0, 16), ext(60, 8), ext(43, 8), ext(44, 8)), TakeService},
		"eight headers":              {chain(60, eight...), TakeService},
		"nine headers":               {chain(60, append(eight, ext(60, 8))...), PassOther},
		"esp hides ports":            {esp.frame(t), PassOther},
		"length beyond the packet":   {overrun, PassOther},
		"mapped address is not IPv4": {datagram{src: f.client, dst: mapped, proto: 6, payload: l4(1, 80)}.frame(t), PassOther},
	}
}
