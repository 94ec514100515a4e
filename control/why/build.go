package why

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/packet"
)

// Packet is what people say of a packet.
type Packet struct {
	Protocol            uint8 // packet.ProtoTCP or packet.ProtoUDP
	Source, Destination netip.AddrPort
	Flags               uint8 // of TCP, as packet.SYN
	Seq, Ack            uint32
	Payload             int // bytes
	TTL                 uint8
}

// maxPayload keeps an IP packet within its length field.
const maxPayload = 65000

// flagNames are TCP's flags by bit.
var flagNames = [...]string{"fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"}

// ParseFlags reads flags of TCP, separated by commas.
func ParseFlags(s string) (flags uint8, err error) {
	for name := range strings.SplitSeq(s, ",") {
		bit := uint8(0)
		for i, known := range flagNames {
			if strings.EqualFold(strings.TrimSpace(name), known) {
				bit = 1 << i
			}
		}
		if bit == 0 && name != "none" {
			return 0, fmt.Errorf("TCP flag %q: expected none, or some of %s", name, strings.Join(flagNames[:], ", "))
		}
		flags |= bit
	}
	return flags, nil
}

// Frame is the packet as it comes from the wire: with right checksums, behind an Ethernet
// header of so many bytes with these addresses and, where it has room for one, this
// VLAN tag's control information.
func (p *Packet) Frame(dst, src [6]byte, tag uint16, tagged bool) ([]byte, error) {
	from, to := p.Source.Addr().Unmap(), p.Destination.Addr().Unmap()
	switch {
	case !from.IsValid() || !to.IsValid() || from.Is4() != to.Is4() || from.Zone() != "" || to.Zone() != "":
		return nil, errors.New("source and destination: expected addresses of one family, without a zone")
	case p.Source.Port() == 0 || p.Destination.Port() == 0:
		return nil, errors.New("port 0 is none")
	case p.Payload < 0 || p.Payload > maxPayload:
		return nil, fmt.Errorf("payload of %d bytes: expected 0 to %d", p.Payload, maxPayload)
	}
	eth := &layers.Ethernet{SrcMAC: src[:], DstMAC: dst[:], EthernetType: layers.EthernetTypeIPv4}
	var network gopacket.NetworkLayer
	var all []gopacket.SerializableLayer
	proto := layers.IPProtocol(p.Protocol)
	if from.Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: p.TTL, Protocol: proto, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
		if p.Protocol == packet.ProtoTCP {
			ip.Flags = layers.IPv4DontFragment // as nearly all hosts send it
		}
		network, all = ip, append(all, ip)
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: p.TTL, NextHeader: proto, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
		eth.EthernetType = layers.EthernetTypeIPv6
		network, all = ip, append(all, ip)
	}
	head := []gopacket.SerializableLayer{eth}
	if tagged {
		head = append(head, &layers.Dot1Q{Priority: uint8(tag >> 13), VLANIdentifier: tag & 0xfff, Type: eth.EthernetType})
		eth.EthernetType = layers.EthernetTypeDot1Q
	}
	l4, err := p.transport(network)
	if err != nil {
		return nil, err
	}
	all = append(append(head, all...), l4, gopacket.Payload(make([]byte, p.Payload)))
	buffer := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		return nil, fmt.Errorf("packet: %w", err)
	}
	return buffer.Bytes(), nil
}

// transport is the header of TCP, in a SYN with an MSS as Ethernet has it, or UDP.
func (p *Packet) transport(network gopacket.NetworkLayer) (gopacket.SerializableLayer, error) {
	switch p.Protocol {
	case packet.ProtoUDP:
		u := &layers.UDP{SrcPort: layers.UDPPort(p.Source.Port()), DstPort: layers.UDPPort(p.Destination.Port())}
		return u, u.SetNetworkLayerForChecksum(network)
	case packet.ProtoTCP:
	default:
		return nil, fmt.Errorf("protocol %d: expected TCP or UDP", p.Protocol)
	}
	has := func(bit uint8) bool { return p.Flags&bit != 0 }
	t := &layers.TCP{
		SrcPort: layers.TCPPort(p.Source.Port()), DstPort: layers.TCPPort(p.Destination.Port()), Seq: p.Seq, Ack: p.Ack, Window: 64240,
		FIN: has(packet.FIN), SYN: has(packet.SYN), RST: has(packet.RST), PSH: has(packet.PSH), ACK: has(packet.ACK),
		URG: has(packet.URG), ECE: has(packet.ECE), CWR: has(packet.CWR),
	}
	if t.SYN {
		mss := []byte{0x05, 0xb4}
		if !p.Source.Addr().Unmap().Is4() {
			mss = []byte{0x05, 0xa0}
		}
		t.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: packet.OptMSSLen, OptionData: mss}}
	}
	return t, t.SetNetworkLayerForChecksum(network)
}
