package packet

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// Frames are put together from hex so that they owe nothing to the code under
// test, nor to gopacket, which judges elsewhere. Checksums are 0 unless given.
const (
	macs  = "020000000001 020000000002 "
	tag   = "8100 6064 " // priority 3, id 100
	stag  = "88a8 0007 "
	fwd4  = "c6336407 c000020a "                                                 // 198.51.100.7 > 192.0.2.10
	rev4  = "c000020a c6336407 "                                                 // and back
	fwd6  = "20010db8000000000000000000000007 20010db8000000000000000000000010 " // 2001:db8::7 > 2001:db8::10
	rev6  = "20010db8000000000000000000000010 20010db8000000000000000000000007 "
	ack   = "c001 0050 01020304 05060708 5010 2000 0000 0000 " // ports 49153 > 80
	dns   = "c001 0035 000b 1234 616263 "                      // 3 bytes of data
	nsFor = "8700 0000 00000000 20010db8000000000000000000000099 "
)

var (
	client4 = AddrFrom(netip.MustParseAddr("198.51.100.7"))
	vip4    = AddrFrom(netip.MustParseAddr("192.0.2.10"))
	client6 = AddrFrom(netip.MustParseAddr("2001:db8::7"))
	vip6    = AddrFrom(netip.MustParseAddr("2001:db8::10"))
	addr    = func(s string) Addr { return AddrFrom(netip.MustParseAddr(s)) }
)

// hx joins hex strings, in which spaces mean nothing.
func hx(parts ...string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Join(parts, ""), " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// ip4 is a header and body: frag is the word of flags and offset.
func ip4(addrs string, proto uint8, frag uint16, opts string, body string) string {
	o, b := hx(opts), hx(body)
	h := make([]byte, 8, 1500)
	h[0] = 0x45 + uint8(len(o)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(o)+len(b)))
	binary.BigEndian.PutUint16(h[4:], 0xbeef)
	binary.BigEndian.PutUint16(h[6:], frag)
	h = append(h, 64, proto, 0, 0)
	return hex.EncodeToString(slices.Concat(h, hx(addrs), o, b))
}

// ip6 is a header and body with hop limit 64.
func ip6(addrs string, next uint8, body string) string {
	b := hx(body)
	h := []byte{0x60, 0, 0, 0, uint8(len(b) >> 8), uint8(len(b)), next, 64}
	return hex.EncodeToString(slices.Concat(h, hx(addrs), b))
}

// hl255 sets the hop limit of an ip6 to 255.
func hl255(s string) string { return s[:14] + "ff" + s[16:] }

func eth4(s string) []byte { return hx(macs, "0800", s) }
func eth6(s string) []byte { return hx(macs, "86dd", s) }

// with overwrites bytes of a copy of frame.
func with(frame []byte, at int, s string) []byte {
	f := slices.Clone(frame)
	copy(f[at:], hx(s))
	return f
}

// caseFrame is the frame of a case, to be read only.
func caseFrame(tb testing.TB, name string) []byte {
	for _, c := range parseCases {
		if c.name == name {
			return c.frame
		}
	}
	tb.Fatalf("no frame named %q", name)
	return nil
}
