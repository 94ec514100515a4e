package liveframes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
)

// FrameLen is the length of every frame in bytes, without the FCS: "64-byte
// packets" in the words of benchmarks.
const FrameLen = 60

// Where the fields are that differ from frame to frame, and those the checksums
// need: Ethernet (14), IPv4 without options (20), UDP (8), payload.
const (
	offIP    = 14
	offIPSum = offIP + 10
	offSrc   = offIP + 12
	offDst   = offIP + 16
	offUDP   = offIP + 20
	offPort  = offUDP
	offSum   = offUDP + 6
	ttl      = 64
	protoUDP = 17
)

// FirstPort is the least source port, and portsOfAddress how many there are to
// each source address.
const (
	FirstPort      = 1024
	portsOfAddress = math.MaxUint16 + 1 - FirstPort
)

// Frames says what the packets look like.
type Frames struct {
	SrcMAC, DstMAC net.HardwareAddr // 6 bytes each
	// Src is the first source address, IPv4. Flow i comes from port
	// FirstPort + i mod 64512 of the (i / 64512)th address after it.
	Src   netip.Addr
	Dst   netip.AddrPort // IPv4
	Flows int            // at least 1; each packet's is drawn at random
}

var errFrames = errors.New("bad frames")

// check says what is wrong.
func (f *Frames) check() error {
	switch {
	case len(f.SrcMAC) != 6 || len(f.DstMAC) != 6:
		return fmt.Errorf("%w: MAC addresses %q and %q", errFrames, f.SrcMAC, f.DstMAC)
	case !f.Src.Is4() || !f.Dst.Addr().Is4():
		return fmt.Errorf("%w: from %s to %s: want IPv4", errFrames, f.Src, f.Dst)
	case f.Flows < 1 || f.Flows > math.MaxInt32:
		return fmt.Errorf("%w: %d flows", errFrames, f.Flows)
	case uint64(f.first())+uint64((f.Flows-1)/portsOfAddress) > math.MaxUint32:
		return fmt.Errorf("%w: no room for %d flows after %s", errFrames, f.Flows, f.Src)
	}
	return nil
}

// first is Src as a number.
func (f *Frames) first() uint32 {
	a := f.Src.As4()
	return binary.BigEndian.Uint32(a[:])
}

// template is a frame without the fields that differ: source address and port
// and both checksums are zero.
func (f *Frames) template() (t [FrameLen]byte) {
	copy(t[0:], f.DstMAC)
	copy(t[6:], f.SrcMAC)
	binary.BigEndian.PutUint16(t[12:], 0x0800)
	ip := t[offIP:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], FrameLen-offIP)
	ip[6] = 0x40 // do not fragment, so that identification 0 is right (RFC 6864 section 4.1)
	ip[8], ip[9] = ttl, protoUDP
	dst := f.Dst.Addr().As4()
	copy(t[offDst:], dst[:])
	udp := t[offUDP:]
	binary.BigEndian.PutUint16(udp[2:], f.Dst.Port())
	binary.BigEndian.PutUint16(udp[4:], FrameLen-offUDP)
	copy(t[offUDP+8:], "l4fwd live frame!!")
	return t
}

// sum adds up 16-bit words as this machine reads them. The Internet checksum
// comes out right in either byte order if all of it is done in one (RFC 1071
// section 2B).
func sum(b []byte) (s uint32) {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.NativeEndian.Uint16(b[i:]))
	}
	return s
}

// ipBase is the sum of the template's IPv4 header.
func ipBase(t *[FrameLen]byte) uint32 { return sum(t[offIP:offUDP]) }

// udpBase is the sum of the template's datagram and pseudo header (RFC 768).
func udpBase(t *[FrameLen]byte) uint32 {
	proto := [2]byte{1: protoUDP}
	return sum(t[offDst:offUDP]) + sum(proto[:]) + sum(t[offUDP+4:offUDP+6]) + sum(t[offUDP:])
}
