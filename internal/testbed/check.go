package testbed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// TCP flag bits, byte 13 of the header (RFC 9293 section 3.1).
const (
	flagSYN = 0x02
	flagRST = 0x04
)

// IPv6 extension headers that precede a transport header (RFC 8200 section 4).
const (
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extDestination = 60
)

// frame is what the checker learns of a frame.
type frame struct {
	family   Family // 0 = not IP
	arp      bool
	src, dst netip.AddrPort // ports 0 where there are none
	proto    uint8          // of the transport header
	flags    uint8          // TCP
	fragment bool
	toa      []netip.AddrPort
	// inner are the addresses of the packet embedded in an ICMP error.
	inner [2]netip.Addr
}

// checker decodes frames with gopacket and has gopacket compute the checksums
// anew. It reuses its layers: one goroutine.
type checker struct {
	toaKind uint8
	cut     truncated
	eth     layers.Ethernet
	vlan    layers.Dot1Q
	ip4     layers.IPv4
	ip6     layers.IPv6
	tcp     layers.TCP
	udp     layers.UDP
	icmp4   layers.ICMPv4
	icmp6   layers.ICMPv6
	buf     gopacket.SerializeBuffer
}

func newChecker(toaKind uint8) *checker {
	return &checker{toaKind: toaKind, buf: gopacket.NewSerializeBuffer()}
}

// truncated implements gopacket.DecodeFeedback.
type truncated bool

// SetTruncated implements gopacket.DecodeFeedback.
func (t *truncated) SetTruncated() { *t = true }

// Errors of frames whose lengths contradict each other.
var (
	errTruncated = errors.New("shorter than its headers say")
	errNoLength  = errors.New("IPv4 total length is 0")
	errZeroUDP6  = errors.New("UDP over IPv6 without a checksum")
)

// errChecksum is a wrong checksum.
type errChecksum struct {
	what      string
	got, want uint16
}

// Error implements error.
func (e errChecksum) Error() string {
	return fmt.Sprintf("%s checksum %#04x, gopacket computes %#04x", e.what, e.got, e.want)
}

// CheckFrame judges one Ethernet frame: whole, with right IPv4 header, TCP, UDP,
// ICMP and ICMPv6 checksums, as far as it has them. Fragments are judged by
// their IP header only.
func CheckFrame(data []byte) error {
	_, err := newChecker(DefaultTOAKind).check(data, true)
	return err
}

// check decodes a frame and, if sums is set, verifies its checksums and that it
// is whole. What was decoded before an error is returned with it.
func (c *checker) check(data []byte, sums bool) (f frame, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("gopacket panics: %v", r)
		}
	}()
	c.cut = false
	if err := c.eth.DecodeFromBytes(data, &c.cut); err != nil {
		return f, fmt.Errorf("ethernet: %w", err)
	}
	kind, rest := c.eth.EthernetType, c.eth.Payload
	for kind == layers.EthernetTypeDot1Q {
		if err := c.vlan.DecodeFromBytes(rest, &c.cut); err != nil {
			return f, fmt.Errorf("vlan: %w", err)
		}
		kind, rest = c.vlan.Type, c.vlan.Payload
	}
	switch kind {
	case layers.EthernetTypeARP:
		f.arp = true
	case layers.EthernetTypeIPv4:
		err = c.check4(&f, rest, sums)
	case layers.EthernetTypeIPv6:
		err = c.check6(&f, rest, sums)
	}
	if err == nil && sums && bool(c.cut) {
		err = errTruncated
	}
	return f, err
}

func (c *checker) check4(f *frame, data []byte, sums bool) error {
	if len(data) >= 4 && binary.BigEndian.Uint16(data[2:]) == 0 {
		return errNoLength
	}
	if err := c.ip4.DecodeFromBytes(data, &c.cut); err != nil {
		return fmt.Errorf("IPv4: %w", err)
	}
	ip := &c.ip4
	f.family, f.proto = V4, uint8(ip.Protocol)
	f.src, f.dst = bare(ip.SrcIP), bare(ip.DstIP)
	f.fragment = ip.Flags&layers.IPv4MoreFragments != 0 || ip.FragOffset != 0
	if sums {
		if err := c.sum4("IPv4 header", ip); err != nil {
			return err
		}
	}
	if f.fragment {
		return nil
	}
	return c.check4L4(f, ip.Payload, sums)
}

func (c *checker) check4L4(f *frame, data []byte, sums bool) error {
	if layers.IPProtocol(f.proto) != layers.IPProtocolICMPv4 {
		return c.checkL4(f, &c.ip4, data, sums)
	}
	if err := c.icmp4.DecodeFromBytes(data, &c.cut); err != nil {
		return fmt.Errorf("ICMP: %w", err)
	}
	if sums {
		got := c.icmp4.Checksum
		if err := c.serialize(&c.icmp4, c.icmp4.Payload); err != nil {
			return err
		}
		if got != c.icmp4.Checksum {
			return errChecksum{"ICMP", got, c.icmp4.Checksum}
		}
	}
	switch c.icmp4.TypeCode.Type() {
	case layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4TypeRedirect,
		layers.ICMPv4TypeTimeExceeded, layers.ICMPv4TypeParameterProblem:
		var in layers.IPv4
		var cut truncated // by the sender, as it must be
		if err := in.DecodeFromBytes(c.icmp4.Payload, &cut); err != nil {
			return fmt.Errorf("packet in ICMP error: %w", err)
		}
		f.inner = [2]netip.Addr{bare(in.SrcIP).Addr(), bare(in.DstIP).Addr()}
		if sums {
			return c.sum4("embedded IPv4 header", &in)
		}
	}
	return nil
}

// sum4 verifies an IPv4 header's checksum. gopacket pads options in its own
// way, so a header with options is summed as it stands (RFC 1071).
func (c *checker) sum4(what string, ip *layers.IPv4) error {
	got := ip.Checksum
	if ip.IHL > 5 {
		var s uint32
		for i := 0; i+1 < len(ip.Contents); i += 2 {
			s += uint32(binary.BigEndian.Uint16(ip.Contents[i:]))
		}
		s = s>>16 + s&0xffff
		if s = s>>16 + s&0xffff; s != 0xffff {
			return errChecksum{what, got, ^uint16(s - uint32(got))}
		}
		return nil
	}
	if err := c.serialize(ip, nil); err != nil {
		return err
	}
	if got != ip.Checksum {
		return errChecksum{what, got, ip.Checksum}
	}
	return nil
}

func (c *checker) check6(f *frame, data []byte, sums bool) error {
	// gopacket calls every packet with a hop-by-hop header truncated; the
	// lengths are compared below.
	var misled truncated
	if err := c.ip6.DecodeFromBytes(data, &misled); err != nil {
		return fmt.Errorf("IPv6: %w", err)
	}
	ip := &c.ip6
	f.family = V6
	f.src, f.dst = bare(ip.SrcIP), bare(ip.DstIP)
	end := 40 + int(ip.Length)
	if end > len(data) {
		if sums {
			return errTruncated
		}
		end = len(data)
	}
	rest, next := data[40:end], data[6]
	for next == extHopByHop || next == extRouting || next == extDestination || next == extFragment {
		size := 8
		if len(rest) >= 2 && next != extFragment {
			size += int(rest[1]) * 8
		}
		if len(rest) < size {
			return errTruncated
		}
		if next == extFragment {
			f.fragment = true
			f.proto = rest[0]
			return nil
		}
		next, rest = rest[0], rest[size:]
	}
	f.proto = next
	if layers.IPProtocol(next) != layers.IPProtocolICMPv6 {
		return c.checkL4(f, ip, rest, sums)
	}
	return c.checkICMP6(f, rest, sums)
}

func (c *checker) checkICMP6(f *frame, data []byte, sums bool) error {
	if err := c.icmp6.DecodeFromBytes(data, &c.cut); err != nil {
		return fmt.Errorf("ICMPv6: %w", err)
	}
	if sums {
		got := c.icmp6.Checksum
		if err := c.icmp6.SetNetworkLayerForChecksum(&c.ip6); err != nil {
			return err
		}
		if err := c.serialize(&c.icmp6, c.icmp6.Payload); err != nil {
			return err
		}
		if got != c.icmp6.Checksum {
			return errChecksum{"ICMPv6", got, c.icmp6.Checksum}
		}
	}
	// Errors are types below 128; four bytes precede the packet (RFC 4443).
	if c.icmp6.TypeCode.Type() < 128 && len(c.icmp6.Payload) >= 4+40 {
		in := c.icmp6.Payload[4:]
		f.inner = [2]netip.Addr{bare(in[8:24]).Addr(), bare(in[24:40]).Addr()}
	}
	return nil
}

// checkL4 judges TCP and UDP over either family.
func (c *checker) checkL4(f *frame, ip gopacket.NetworkLayer, data []byte, sums bool) error {
	switch layers.IPProtocol(f.proto) {
	case layers.IPProtocolTCP:
		if err := c.tcp.DecodeFromBytes(data, &c.cut); err != nil {
			return fmt.Errorf("TCP: %w", err)
		}
		f.flags = data[13]
		f.src = netip.AddrPortFrom(f.src.Addr(), uint16(c.tcp.SrcPort))
		f.dst = netip.AddrPortFrom(f.dst.Addr(), uint16(c.tcp.DstPort))
		for _, o := range c.tcp.Options {
			if uint8(o.OptionType) == c.toaKind {
				f.toa = append(f.toa, parseTOA(o.OptionData))
			}
		}
		if !sums {
			return nil
		}
		if err := c.tcp.SetNetworkLayerForChecksum(ip); err != nil {
			return err
		}
		// Over a right checksum the sum is all ones, its complement 0.
		left, err := c.tcp.ComputeChecksum()
		if err == nil && left != 0 {
			err = errChecksum{"TCP", c.tcp.Checksum, addOnes(left, c.tcp.Checksum)}
		}
		return err
	case layers.IPProtocolUDP:
		return c.checkUDP(f, ip, data, sums)
	}
	return nil
}

func (c *checker) checkUDP(f *frame, ip gopacket.NetworkLayer, data []byte, sums bool) error {
	if err := c.udp.DecodeFromBytes(data, &c.cut); err != nil {
		return fmt.Errorf("UDP: %w", err)
	}
	f.src = netip.AddrPortFrom(f.src.Addr(), uint16(c.udp.SrcPort))
	f.dst = netip.AddrPortFrom(f.dst.Addr(), uint16(c.udp.DstPort))
	got := c.udp.Checksum
	if got == 0 && f.family == V6 {
		return errZeroUDP6
	}
	if !sums || got == 0 { // 0: the sender computed none (RFC 768)
		return nil
	}
	if err := c.udp.SetNetworkLayerForChecksum(ip); err != nil {
		return err
	}
	if err := c.serialize(&c.udp, c.udp.Payload); err != nil {
		return err
	}
	want := c.udp.Checksum
	if want == 0 {
		want = 0xffff
	}
	if got != want {
		return errChecksum{"UDP", got, want}
	}
	return nil
}

// serialize writes a layer anew over payload, whereby gopacket stores the
// checksum it computed in the layer.
func (c *checker) serialize(l gopacket.SerializableLayer, payload []byte) error {
	if err := c.buf.Clear(); err != nil {
		return err
	}
	b, err := c.buf.AppendBytes(len(payload))
	if err != nil {
		return err
	}
	copy(b, payload)
	return l.SerializeTo(c.buf, gopacket.SerializeOptions{ComputeChecksums: true})
}

// addOnes adds in ones' complement.
func addOnes(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}

// DefaultTOAKind is the TCP option kind that carries the client's address.
const DefaultTOAKind = 254

// parseTOA reads a TOA option's data: port and address in network byte order.
// The result is invalid if the length fits no family.
func parseTOA(b []byte) netip.AddrPort {
	if len(b) != 6 && len(b) != 18 {
		return netip.AddrPort{}
	}
	a, _ := netip.AddrFromSlice(b[2:])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b))
}

// bare is an address with port 0.
func bare(ip []byte) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a, 0)
}
