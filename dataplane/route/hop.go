package route

import (
	"encoding/binary"
	"unsafe"

	"github.com/l4fwd/l4fwd/packet"
)

// HopID names a next hop of a Table. 0 is "no route". An id keeps its meaning
// as long as its (NIC, VLAN, gateway address) is in use, over any number of
// tables.
type HopID uint16

// HopState says what may be done with a packet whose route leads to a hop.
// Only Resolved permits sending; every other state is the name of a drop.
type HopState uint8

// The states. The zero value drops.
const (
	NoRoute     HopState = iota // no route to the destination
	Resolved                    // Header is complete
	Unresolved                  // neighbour not known yet: tell the control plane the destination
	NotOurs                     // leaves by an interface that is no data NIC, or in a way we cannot send
	Local                       // an address of this host, or a broadcast or multicast one
	Blackhole                   // route of type blackhole
	Unreachable                 // route of type unreachable
	Prohibited                  // route of type prohibit
	NumHopStates
)

var hopStateNames = [NumHopStates]string{
	NoRoute:     "no_route",
	Resolved:    "resolved",
	Unresolved:  "unresolved",
	NotOurs:     "not_ours",
	Local:       "local",
	Blackhole:   "blackhole",
	Unreachable: "unreachable",
	Prohibited:  "prohibited",
}

// String is the state's name as metrics label it.
func (s HopState) String() string {
	if s >= NumHopStates {
		return "invalid"
	}
	return hopStateNames[s]
}

// Hop is a next hop, ready to be put in front of an IP packet.
//
// The header's last two bytes, the EtherType, are zero here: one hop carries
// both families (a gateway of one family may serve routes of the other), so
// the packet decides. Put writes them.
type Hop struct {
	Port      uint16   // index of the data NIC; meaningless unless Resolved or Unresolved
	MTU       uint16   // largest IP packet in bytes, 65535 if larger; 0 where nothing is sent
	HeaderLen uint8    // EtherLen, or VLANLen with a tag; 0 where nothing is sent
	State     HopState // what may be done
	// Header is destination MAC, source MAC, the tag if any (TPID and TCI in
	// network order) and room for the EtherType, HeaderLen bytes in all.
	Header [VLANLen]byte
}

// Peer is what is to be known of a hop beside the header: who is at its two ends.
type Peer struct {
	Addr packet.Addr    // the neighbour's; zero where it is the packet's own destination
	Own  [2]packet.Addr // the host's on that link, IPv4 and IPv6; zero where it has none
}

var _ [24 - unsafe.Sizeof(Hop{})]byte
var _ [unsafe.Sizeof(Hop{}) - 24]byte

// Lengths of the Ethernet header in bytes (IEEE 802.3, IEEE 802.1Q).
const (
	EtherLen = 14
	VLANLen  = 18
)

// EtherTypes (IEEE 802 numbers), host order.
const (
	EtherIPv4 = 0x0800
	EtherIPv6 = 0x86dd
)

// Put writes the hop's header, the EtherType of the packet's family included,
// to b and returns its length, HeaderLen. b must have room for VLANLen bytes;
// bytes beyond the returned length are left alone. A hop that is not Resolved
// writes nothing and returns 0.
func (h *Hop) Put(b []byte, v6 bool) int {
	_ = b[VLANLen-1]
	if h.State != Resolved {
		return 0
	}
	etherType := uint16(EtherIPv4)
	if v6 {
		etherType = EtherIPv6
	}
	if h.HeaderLen == VLANLen {
		copy(b[:VLANLen], h.Header[:])
		binary.BigEndian.PutUint16(b[VLANLen-2:], etherType)
		return VLANLen
	}
	copy(b[:EtherLen-2], h.Header[:])
	binary.BigEndian.PutUint16(b[EtherLen-2:], etherType)
	return EtherLen
}

// PutBefore is Put for a Resolved hop: the header ends where b does. etherType is
// EtherIPv4 or EtherIPv6.
func (h *Hop) PutBefore(b *[VLANLen]byte, etherType uint16) {
	// The last eight bytes in the order of memory; those of the type are zero.
	last := uint64(etherType&0xff)<<56 | uint64(etherType>>8)<<48
	if h.HeaderLen == VLANLen {
		copy(b[:10], h.Header[:])
		last |= binary.LittleEndian.Uint64(h.Header[VLANLen-8:])
	} else {
		binary.LittleEndian.PutUint64(b[VLANLen-EtherLen:], binary.LittleEndian.Uint64(h.Header[:]))
		last |= binary.LittleEndian.Uint64(h.Header[EtherLen-8:])
	}
	binary.LittleEndian.PutUint64(b[VLANLen-8:], last)
}

// NewHop returns a Resolved hop: dst and src are MAC addresses, tag is the
// 802.1Q tag as TPID<<16 | TCI (0: untagged), mtu the largest IP packet in
// bytes.
func NewHop(port uint16, dst, src [6]byte, tag uint32, mtu int) Hop {
	h := Hop{Port: port, State: Resolved, MTU: clampMTU(mtu), HeaderLen: EtherLen}
	copy(h.Header[0:6], dst[:])
	copy(h.Header[6:12], src[:])
	if tag != 0 {
		h.HeaderLen = VLANLen
		binary.BigEndian.PutUint32(h.Header[12:16], tag)
	}
	return h
}

func clampMTU(mtu int) uint16 {
	return uint16(max(0, min(mtu, 0xffff)))
}
