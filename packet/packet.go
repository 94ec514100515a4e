package packet

import "unsafe"

// Kind is what the rest of the program distinguishes a packet by.
type Kind uint8

// The kinds. The zero value is whatever Parse accepts as IP but nobody
// forwards by flow (GRE, OSPF, ICMP other than below, ...).
const (
	KindOther     Kind = iota
	KindTCP            // whole TCP header present
	KindUDP            // whole UDP header present
	KindEcho           // ICMP or ICMPv6 echo request
	KindICMPError      // ICMP or ICMPv6 error with a usable embedded packet
	KindFragment       // any fragment of a datagram, the first included
	KindARP            // ARP, Ethernet/IPv4
	KindNS             // ICMPv6 neighbour solicitation
)

// TCP flag bits as they stand in byte 13 of the header (RFC 9293 section 3.1).
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// IP protocol numbers used here (IANA).
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoUOA    = 248 // DPVS's, unassigned: says who the client is of the UDP packet behind it
	ProtoICMPv6 = 58
)

// Tuple names one direction of a flow. Ports are numbers in host order. For
// KindICMPError it is the tuple of the embedded packet *reversed*, that is, of
// a packet travelling the way the error travels, so that one lookup serves
// both. For KindARP and KindNS, Src is the sender and Dst the target asked for.
type Tuple struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
	Proto            uint8
	_                [3]byte
}

// Packet is what Parse learns from a frame: offsets from the frame's first
// byte and the few fields every later stage wants. It points to nothing.
type Packet struct {
	Tuple
	Seq, Ack uint32 // TCP only
	L3       uint16 // IP (or ARP) header: 14, or 18 behind a VLAN tag
	L4       uint16 // transport header
	Payload  uint16 // first byte after the transport header (ICMP error: the embedded IP header)
	End      uint16 // first byte after the IP datagram; Ethernet padding lies beyond
	Kind     Kind
	TCPFlags uint8
	V6       bool
	Err      Err
	Inner4   uint16 // ICMP error: transport header of the embedded packet, else 0
	Window   uint16 // TCP window, unscaled
}

// One cache line: a burst of 64 is 4 KiB and stays in L1.
var _ [64 - unsafe.Sizeof(Packet{})]byte
var _ [unsafe.Sizeof(Packet{}) - 64]byte
