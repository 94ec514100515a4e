package nat

import (
	"encoding/binary"
	"strconv"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// ProxyVersion is a version of the PROXY protocol, as HAProxy's
// doc/proxy-protocol.txt defines it.
type ProxyVersion uint8

// The versions: none, one line of text, or binary.
const (
	NoProxy ProxyVersion = 0
	ProxyV1 ProxyVersion = 1
	ProxyV2 ProxyVersion = 2
)

// MaxProxyLen is the longest header: version 1, two IPv6 addresses without
// zeros, ports of five digits.
const MaxProxyLen = 104

// Version 2 (section 2.2): signature, version and command, family and transport,
// length of what follows, then source and destination address, source and
// destination port, in network order.
const (
	proxySignature = "\r\n\r\n\x00\r\nQUIT\n"
	proxyCommand   = 0x21 // version 2, PROXY
	proxyTCP4      = 0x11 // AF_INET, STREAM
	proxyTCP6      = 0x21 // AF_INET6, STREAM
	proxyDatagram  = 1    // DGRAM in place of STREAM
	proxyAddrs4    = 12
	proxyAddrs6    = 36
	proxyFixed     = len(proxySignature) + 4
)

// ProxyLen returns the length in bytes of the flow's PROXY header, at most
// MaxProxyLen, and 0 where it has none. In version 1 it varies with the
// digits of addresses and ports. What the client may send in one segment is
// lowered by it (LowerMSS on the SYN-ACK).
func ProxyLen(e *conntrack.Entry, dir *conntrack.Directory, version ProxyVersion) int {
	var h [MaxProxyLen]byte
	return proxyHeader(&h, e, dir, version)
}

// proxyHeader writes the header of flow e to h: the connection is from the client to
// the VIP, whatever family the real server has. It returns the length, or 0, with h
// untouched, if the version is unknown, or the flow is no flow of a service in dir
// that has the client's family. Version 1 is for TCP only.
func proxyHeader(h *[MaxProxyLen]byte, e *conntrack.Entry, dir *conntrack.Directory, version ProxyVersion) int {
	tcp := e.Proto == packet.ProtoTCP
	if !tcp && e.Proto != packet.ProtoUDP || int(e.Service) >= len(dir.Services) {
		return 0
	}
	vip := &dir.Services[e.Service]
	switch {
	case e.Client.Is4() != vip.Addr.Is4():
		return 0
	case version == ProxyV1 && tcp:
		return proxyText(h, e, vip)
	case version == ProxyV2:
		return proxyBinary(h, e, vip)
	}
	return 0
}

func proxyText(h *[MaxProxyLen]byte, e *conntrack.Entry, vip *conntrack.Endpoint) int {
	family := "PROXY TCP4 "
	if !e.Client.Is4() {
		family = "PROXY TCP6 "
	}
	b := append(h[:0], family...) // never longer than h: no allocation
	b = e.Client.Netip().AppendTo(b)
	b = vip.Addr.Netip().AppendTo(append(b, ' '))
	b = strconv.AppendUint(append(b, ' '), uint64(e.ClientPort), 10)
	b = strconv.AppendUint(append(b, ' '), uint64(vip.Port), 10)
	return len(append(b, '\r', '\n'))
}

func proxyBinary(h *[MaxProxyLen]byte, e *conntrack.Entry, vip *conntrack.Endpoint) int {
	at := copy(h[:], proxySignature)
	h[at], h[at+1] = proxyCommand, proxyTCP4
	size := proxyAddrs4
	if !e.Client.Is4() {
		h[at+1], size = proxyTCP6, proxyAddrs6
	}
	if e.Proto == packet.ProtoUDP {
		h[at+1] += proxyDatagram
	}
	binary.BigEndian.PutUint16(h[at+2:], uint16(size))
	a := h[proxyFixed:]
	if size == proxyAddrs4 {
		e.Client.Put4(a)
		vip.Addr.Put4(a[4:])
	} else {
		e.Client.Put16(a)
		vip.Addr.Put16(a[16:])
	}
	binary.BigEndian.PutUint16(a[size-4:], e.ClientPort)
	binary.BigEndian.PutUint16(a[size-2:], vip.Port)
	return proxyFixed + size
}
