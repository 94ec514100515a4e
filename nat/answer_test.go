package nat

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

var ourMAC = [6]byte{2, 0, 0, 0xaa, 0xbb, 0xcc}

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestAnswerARP(t *testing.T) {
	const rest = "0001 0800 0604 "
	for _, c := range []struct{ name, in, want string }{
		{
			"request", "ffffffffffff 020000000002 0806" + rest + "0001 020000000002 c0000201 000000000000 c000020a",
			"020000000002 020000aabbcc 0806" + rest + "0002 020000aabbcc c000020a 020000000002 c0000201",
		}, {
			"behind a VLAN tag, padded", "ffffffffffff 020000000002 8100 0064 0806" + rest + "0001 020000000002 c0000201 000000000000 c000020a 0000",
			"020000000002 020000aabbcc 8100 0064 0806" + rest + "0002 020000aabbcc c000020a 020000000002 c0000201 0000",
		}, {
			"probe", "ffffffffffff 020000000002 0806" + rest + "0001 020000000002 00000000 000000000000 c000020a",
			"020000000002 020000aabbcc 0806" + rest + "0002 020000aabbcc c000020a 020000000002 00000000",
		},
		{"reply", "020000aabbcc 020000000002 0806" + rest + "0002 020000000002 c0000201 020000aabbcc c000020a", ""},
		{"group sender", "ffffffffffff 020000000002 0806" + rest + "0001 010000000002 c0000201 000000000000 c000020a", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame := unhex(t, c.in)
			p := parse(t, frame)
			ok := AnswerARP(frame, &p, ourMAC)
			if ok != (c.want != "") {
				t.Fatalf("answered: %v", ok)
			}
			if !ok {
				c.want = c.in
			}
			if d := cmp.Diff(unhex(t, c.want), frame); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// solicitation builds a neighbour solicitation by gopacket.
func solicitation(tb testing.TB, vlan bool, src string, opts layers.ICMPv6Options) []byte {
	tb.Helper()
	eth := &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 2}, DstMAC: []byte{0x33, 0x33, 0xff, 0, 0, 0x10}, EthernetType: layers.EthernetTypeIPv6}
	ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6,
		SrcIP: addrBytes(addr(src)), DstIP: addrBytes(addr("ff02::1:ff00:10"))}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, 0)}
	ns := &layers.ICMPv6NeighborSolicitation{TargetAddress: addrBytes(addr("2001:db8::10")), Options: opts}
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		tb.Fatal(err)
	}
	all := []gopacket.SerializableLayer{eth, ip, icmp, ns}
	if vlan {
		eth.EthernetType = layers.EthernetTypeDot1Q
		all = slices.Insert(all, 1, gopacket.SerializableLayer(&layers.Dot1Q{VLANIdentifier: 100, Type: layers.EthernetTypeIPv6}))
	}
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		tb.Fatal(err)
	}
	return slices.Clone(out.Bytes())
}

func TestAnswerNS(t *testing.T) {
	link := func(mac ...byte) layers.ICMPv6Option {
		return layers.ICMPv6Option{Type: layers.ICMPv6OptSourceAddress, Data: mac}
	}
	nonce := layers.ICMPv6Option{Type: 14, Data: []byte{1, 2, 3, 4, 5, 6}}
	const na = "20010db8000000000000000000000010 0201 020000aabbcc"
	for _, c := range []struct {
		name  string
		vlan  bool
		src   string
		opts  layers.ICMPv6Options
		to    string // destination MAC; empty: no answer
		dst   string
		flags string
	}{
		{"with link-layer option", false, "2001:db8::1", layers.ICMPv6Options{nonce, link(2, 0, 0, 0, 0, 3)}, "020000000003", "2001:db8::1", "60000000"},
		{"behind a VLAN tag", true, "fe80::1", layers.ICMPv6Options{link(2, 0, 0, 0, 0, 2)}, "020000000002", "fe80::1", "60000000"},
		{"without", false, "2001:db8::1", nil, "020000000002", "2001:db8::1", "60000000"},
		{"duplicate address detection", false, "::", layers.ICMPv6Options{nonce}, "333300000001", "ff02::1", "20000000"},
		{"group sender", false, "2001:db8::1", layers.ICMPv6Options{link(3, 0, 0, 0, 0, 2)}, "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			chunk := inChunk(solicitation(t, c.vlan, c.src, c.opts), headroom)
			n := len(solicitation(t, c.vlan, c.src, c.opts))
			frame := chunk[headroom : headroom+n]
			p := parse(t, frame)
			if p.Kind != packet.KindNS {
				t.Fatalf("%+v", p)
			}
			got := AnswerNS(frame, &p, ourMAC)
			if c.to == "" {
				if got != 0 {
					t.Error("answered")
				}
				return
			}
			frame = chunk[headroom : headroom+got]
			head := c.to + "020000aabbcc"
			if c.vlan {
				head += "8100 0064"
			}
			want := unhex(t, head+"86dd 60000000 0020 3a ff 20010db8000000000000000000000010")
			want = append(want, addrBytes(addr(c.dst))...)
			want = append(want, unhex(t, "88 00 0000"+c.flags+na)...)
			recompute(want[p.L3:], 40, packet.ProtoICMPv6, false)
			if d := cmp.Diff(want, frame); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			pkt := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
			if _, ok := pkt.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement); !ok {
				t.Error("gopacket sees no advertisement")
			}
		})
	}
	frame := slices.Clip(solicitation(t, false, "2001:db8::1", nil))
	p := parse(t, frame)
	if n := AnswerNS(frame, &p, ourMAC); n != 0 {
		t.Errorf("answered without room: %d", n)
	}
}

func echo(s *icmpError, v6 bool) []byte {
	s.kind = packet.ICMPEchoRequest
	if v6 {
		s.kind = packet.ICMPv6EchoRequest
	}
	return s.frame()
}

func TestAnswerEcho(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		f := drawFlow(t, v6, false)
		m := icmpError{src: f.e.Client, dst: f.dir.Services[0].Addr, vlan: rapid.Bool().Draw(t, "vlan"),
			ttl: rapid.Byte().Draw(t, "ttl"), rest: edgy(t, "id and sequence"),
			inner: rapid.SliceOfN(rapid.SampledFrom([]byte{0, 255}), 0, 9).Draw(t, "data")}
		frame := echo(&m, v6)
		p := parse(t, frame)
		if !AnswerEcho(frame, &p) {
			t.Fatal("refused")
		}
		want := m
		want.src, want.dst, want.ttl = m.dst, m.src, 64
		want.kind = packet.ICMPEchoReply
		if v6 {
			want.kind = packet.ICMPv6EchoReply
		}
		w := want.frame()
		copy(w, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
		if w[p.L4+2] == 0 && w[p.L4+3] == 0 {
			w[p.L4+2], w[p.L4+3] = 255, 255 // the zero that is always right
		}
		if d := cmp.Diff(w, frame); d != "" {
			t.Fatalf("(-want +got):\n%s", d)
		}
		if !packet.VerifyL4(frame, &p) {
			t.Fatal("checksum")
		}
	})
}

func TestAnswerEchoRefuses(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		m := icmpError{src: addr("198.51.100.7"), dst: addr("192.0.2.10"), ttl: 9}
		if v6 {
			m.src, m.dst = addr("2001:db8::7"), addr("2001:db8::10")
		}
		for name, edit := range map[string]func(b []byte, p *packet.Packet){
			"to a group":      func(b []byte, _ *packet.Packet) { b[0] |= 1 },
			"from a group":    func(b []byte, _ *packet.Packet) { b[6] |= 1 },
			"another kind":    func(_ []byte, p *packet.Packet) { p.Kind = packet.KindTCP },
			"header overlaps": func(_ []byte, p *packet.Packet) { p.V6, p.L4 = true, p.L3+20 },
		} {
			frame := echo(&m, v6)
			p := parse(t, frame)
			edit(frame, &p)
			before := slices.Clone(frame)
			if AnswerEcho(frame, &p) || !slices.Equal(frame, before) {
				t.Errorf("v6 %v, %s: answered or changed", v6, name)
			}
		}
	}
}

func TestAnswersAllocateNothing(t *testing.T) {
	arp := unhex(t, "ffffffffffff 020000000002 0806 0001 0800 0604 0001 020000000002 c0000201 000000000000 c000020a")
	ns := solicitation(t, false, "2001:db8::1", nil)
	m := icmpError{src: addr("198.51.100.7"), dst: addr("192.0.2.10"), ttl: 9}
	ping := echo(&m, false)
	buf := make([]byte, 2048)
	pa, pn, pp := parse(t, arp), parse(t, ns), parse(t, ping)
	if n := testing.AllocsPerRun(100, func() {
		ok := AnswerARP(buf[:copy(buf, arp)], &pa, ourMAC)
		ok = AnswerNS(buf[:copy(buf, ns)], &pn, ourMAC) != 0 && ok
		if !AnswerEcho(buf[:copy(buf, ping)], &pp) || !ok {
			panic("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
