package nat

import (
	"encoding/binary"
	"encoding/hex"
	"net"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// udpFlow makes f one of UDP.
func udpFlow(f *flow) *flow {
	f.e.Proto = packet.ProtoUDP
	return f
}

// TestProxyHeader is the header on the wire, byte for byte.
func TestProxyHeader(t *testing.T) {
	nat64 := newFlow("[2001:db8:9::7]:49153", "[2001:db8::10]:80", "10.0.1.10:20001", "10.0.1.20:8080", conntrack.FullNAT)
	longest := newFlow("[2001:db81:1111:2222:3333:4444:5555:6666]:65535", "[2001:db81:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
		"10.0.1.10:20001", "10.0.1.20:8080", conntrack.FullNAT)
	shortest := newFlow("1.2.3.4:5", "6.7.8.9:0", "10.0.1.10:20001", "10.0.1.20:8080", conntrack.FullNAT)
	const signature = "0d0a0d0a000d0a515549540a"
	for _, c := range []struct {
		name    string
		f       *flow
		version ProxyVersion
		want    string
	}{
		{"v1", flow4(conntrack.FullNAT), ProxyV1, "PROXY TCP4 198.51.100.7 192.0.2.10 49153 80\r\n"},
		{"v1, IPv6", flow6(conntrack.FullNAT), ProxyV1, "PROXY TCP6 2001:db8:9::7 2001:db8::10 49153 80\r\n"},
		{"v1, IPv6 before IPv4", nat64, ProxyV1, "PROXY TCP6 2001:db8:9::7 2001:db8::10 49153 80\r\n"},
		{"v1, shortest", shortest, ProxyV1, "PROXY TCP4 1.2.3.4 6.7.8.9 5 0\r\n"},
		{"v1, longest", longest, ProxyV1, "PROXY TCP6 2001:db81:1111:2222:3333:4444:5555:6666 2001:db81:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"},
		{"v2", flow4(conntrack.FullNAT), ProxyV2, signature + "2111000cc6336407c000020ac0010050"},
		{"v2, IPv6", flow6(conntrack.FullNAT), ProxyV2, signature + "2121002420010db800090000000000000000000720010db8000000000000000000000010c0010050"},
		{"v2, IPv6 before IPv4", nat64, ProxyV2, signature + "2121002420010db800090000000000000000000720010db8000000000000000000000010c0010050"},
		{"v2, UDP", udpFlow(flow4(conntrack.FullNAT)), ProxyV2, signature + "2112000cc6336407c000020ac0010050"},
		{"v2, UDP over IPv6", udpFlow(flow6(conntrack.FullNAT)), ProxyV2, signature + "2122002420010db800090000000000000000000720010db8000000000000000000000010c0010050"},
		{"v1, UDP", udpFlow(flow4(conntrack.FullNAT)), ProxyV1, ""},
		{"no version", flow4(conntrack.FullNAT), 0, ""},
		{"version 3", flow4(conntrack.FullNAT), 3, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := c.want
			if c.version == ProxyV2 {
				want = string(unhex(t, want))
			}
			b := bytesOf(0xee, 200)
			n := putProxy(b, &c.f.e, &c.f.dir, c.version)
			if string(b[:n]) != want || n != ProxyLen(&c.f.e, &c.f.dir, c.version) || n > MaxProxyLen || b[n] != 0xee {
				t.Errorf("got %q, want %q", b[:n], want)
			}
		})
	}
	if n := ProxyLen(&longest.e, &longest.dir, ProxyV1); n != MaxProxyLen {
		t.Errorf("longest %d, want %d", n, MaxProxyLen)
	}
}

// putProxy writes the header to b, as far as it fits, and returns its length.
func putProxy(b []byte, e *conntrack.Entry, dir *conntrack.Directory, version ProxyVersion) int {
	var h [MaxProxyLen]byte
	return copy(b, h[:proxyHeader(&h, e, dir, version)])
}

func TestProxyHeaderRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(f *flow)
	}{
		{"neither TCP nor UDP", func(f *flow) { f.e.Proto = 132 }},
		{"service unknown", func(f *flow) { f.e.Service = 9 }},
		{"VIP of another family", func(f *flow) { f.dir.Services[1].Addr = addr("2001:db8::1") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := flow4(conntrack.FullNAT)
			c.edit(f)
			if ProxyLen(&f.e, &f.dir, ProxyV1)+ProxyLen(&f.e, &f.dir, ProxyV2) != 0 {
				t.Error("a header all the same")
			}
		})
	}
}

// readProxy is a receiver that knows the format and nothing of the code.
func readProxy(t rapid.TB, h []byte) (src, dst string) {
	t.Helper()
	if strings.HasPrefix(string(h), "PROXY ") {
		line, ok := strings.CutSuffix(string(h), "\r\n")
		w := strings.Split(line, " ")
		if !ok || len(w) != 6 {
			t.Fatalf("%q", h)
		}
		for i, s := range w[2:4] {
			ip := net.ParseIP(s)
			if ip == nil || (w[1] == "TCP4") != (ip.To4() != nil) || w[1] != "TCP4" && w[1] != "TCP6" || ip.String() != s {
				t.Fatalf("%q: address %d", h, i)
			}
		}
		for _, s := range w[4:] {
			if n, err := strconv.ParseUint(s, 10, 16); err != nil || strconv.FormatUint(n, 10) != s {
				t.Fatalf("%q: port %q", h, s)
			}
		}
		return net.JoinHostPort(w[2], w[4]), net.JoinHostPort(w[3], w[5])
	}
	if len(h) < 16 || hex.EncodeToString(h[:13]) != "0d0a0d0a000d0a515549540a21" || int(binary.BigEndian.Uint16(h[14:])) != len(h)-16 {
		t.Fatalf("% x", h)
	}
	n := map[byte]int{0x11: 4, 0x21: 16}[h[13]]
	a := h[16:]
	if n == 0 || len(a) != 2*n+4 {
		t.Fatalf("% x", h)
	}
	p := a[2*n:]
	str := func(ip, port []byte) string {
		return net.JoinHostPort(net.IP(ip).String(), strconv.Itoa(int(binary.BigEndian.Uint16(port))))
	}
	return str(a[:n], p), str(a[n:2*n], p[2:])
}

func TestProxyHeaderTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFlow(t, rapid.Bool().Draw(t, "v6"), false)
		b := make([]byte, MaxProxyLen)
		n := putProxy(b, &f.e, &f.dir, ProxyVersion(rapid.IntRange(1, 2).Draw(t, "version")))
		src, dst := readProxy(t, b[:n])
		vip := f.dir.Services[0]
		wantSrc := net.JoinHostPort(f.e.Client.String(), strconv.Itoa(int(f.e.ClientPort)))
		wantDst := net.JoinHostPort(vip.Addr.String(), strconv.Itoa(int(vip.Port)))
		if src != wantSrc || dst != wantDst {
			t.Fatalf("%s to %s, want %s to %s", src, dst, wantSrc, wantDst)
		}
	})
}
