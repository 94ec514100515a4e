package testbed

import (
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// fates are those of n segments of the kinds in turn.
func fates(p Plan, way Way, n int, kinds ...Segment) (out []fate) {
	d := newDice(p, way)
	for i := range n {
		out = append(out, d.next(kinds[i%len(kinds)]))
	}
	return out
}

var sameFate = cmp.AllowUnexported(fate{})

// TestPlanRepeats: a seed decides, and neither the kinds of segments nor rules
// change what chance has for the others.
func TestPlanRepeats(t *testing.T) {
	p := Plan{Seed: 7, Lose: 0.1, Duplicate: 0.1, Delay: 0.2, Mark: 0.3, MaxDelay: 10 * time.Millisecond}
	want := fates(p, ToServer, 1000, Data)
	if diff := cmp.Diff(want, fates(p, ToServer, 1000, SYN, Data, FIN), sameFate); diff != "" {
		t.Errorf("other kinds, other fates\n%s", diff)
	}
	for name, other := range map[string][]fate{
		"way":  fates(p, ToClient, 1000, Data),
		"seed": fates(Plan{Seed: 8, Lose: 0.1, Duplicate: 0.1, Delay: 0.2, Mark: 0.3, MaxDelay: 10 * time.Millisecond}, ToServer, 1000, Data),
	} {
		if cmp.Equal(want, other, sameFate) {
			t.Errorf("another %s changes nothing", name)
		}
	}
	p.Rules = []Rule{{Way: ToServer, Segment: SYN, Action: Lose, Count: 1}}
	got := fates(p, ToServer, 1000, SYN, Data)
	got[0].lose = want[0].lose
	if diff := cmp.Diff(want, got, sameFate); diff != "" {
		t.Errorf("a rule for the first changes others\n%s", diff)
	}
}

// TestPlanRates: chance does as often as it is told, and not too much at once.
func TestPlanRates(t *testing.T) {
	const n = 20000
	p := Plan{Seed: 1, Lose: 0.5, Duplicate: 0.1, Delay: 0.2, Mark: 0.3, MaxDelay: 10 * time.Millisecond}
	var lost, row, copied, late, marked int
	for _, f := range fates(p, ToClient, n, Data) {
		if row++; !f.lose {
			row = 0
		} else if lost++; row > lossesInRow {
			t.Fatalf("%d lost in a row", row)
		}
		if f.copied {
			copied++
		}
		if f.mark {
			marked++
		}
		if f.delay > 0 {
			late++
		}
		if f.delay > p.MaxDelay || f.copyDelay > p.MaxDelay {
			t.Fatalf("too late: %+v", f)
		}
	}
	for name, c := range map[string]struct{ got, want float64 }{
		"lost":       {float64(lost), n * 3. / 7}, // 1/2+1/4 of every 1+1/2+1/4 get the chance and take it
		"duplicated": {float64(copied), n * p.Duplicate},
		"delayed":    {float64(late), n * p.Delay},
		"marked":     {float64(marked), n * p.Mark},
	} {
		if c.got < 0.9*c.want || c.got > 1.1*c.want {
			t.Errorf("%.0f of %d %s, want %.0f", c.got, n, name, c.want)
		}
	}
}

func TestPlanRules(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		rules []Rule
		want  []fate // of SYN, Data, Data, Data to the server
	}{
		"none":      {nil, make([]fate, 4)},
		"other way": {[]Rule{{Way: ToClient, Segment: Data, Action: Lose}}, make([]fate, 4)},
		"first":     {[]Rule{{Segment: Data, Count: 1, Action: Lose}}, []fate{{}, {lose: true}, {}, {}}},
		"from":      {[]Rule{{Segment: Data, From: 1, Action: Delay, Delay: ms}}, []fate{{}, {}, {delay: ms}, {delay: ms}}},
		"range":     {[]Rule{{Segment: Data, From: 1, Count: 1, Action: Duplicate}}, []fate{{}, {}, {copied: true}, {}}},
		"two": {[]Rule{{Segment: SYN, Action: Duplicate, Delay: 2 * ms}, {Segment: SYN, Action: Delay, Delay: ms}},
			[]fate{{copied: true, copyDelay: 2 * ms, delay: ms}, {}, {}, {}}},
	} {
		d := newDice(Plan{Rules: c.rules}, ToServer)
		var got []fate
		for _, s := range []Segment{SYN, Data, Data, Data} {
			got = append(got, d.next(s))
		}
		if diff := cmp.Diff(c.want, got, sameFate); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}

// tcpFrame is a segment from port 1000 to port 2000 with options and an ECN field.
func tcpFrame(t *testing.T, f Family, tcp layers.TCP, ecn uint8, data []byte) []byte {
	t.Helper()
	eth := layers.Ethernet{SrcMAC: make(net.HardwareAddr, 6), DstMAC: make(net.HardwareAddr, 6), EthernetType: layers.EthernetTypeIPv4}
	var ip gopacket.SerializableLayer
	ip4 := layers.IPv4{Version: 4, TTL: 9, TOS: 0x10 | ecn, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{10, 0, 0, 1}, DstIP: net.IP{10, 0, 0, 2}}
	tcp.SrcPort, tcp.DstPort = 1000, 2000
	tcp.Options = []layers.TCPOption{{OptionType: 5, OptionLength: 10, OptionData: make([]byte, 8)}}
	err := tcp.SetNetworkLayerForChecksum(&ip4)
	if ip = &ip4; f == V6 {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip6 := layers.IPv6{Version: 6, HopLimit: 9, TrafficClass: 0x10 | ecn, NextHeader: layers.IPProtocolTCP, SrcIP: net.ParseIP("fd::1"), DstIP: net.ParseIP("fd::2")}
		err, ip = tcp.SetNetworkLayerForChecksum(&ip6), &ip6
	}
	buf := gopacket.NewSerializeBuffer()
	if err == nil {
		err = gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, &eth, ip, &tcp, gopacket.Payload(data))
	}
	if err != nil {
		t.Fatal(err)
	}
	return append(buf.Bytes(), make([]byte, 6)...) // Ethernet padding
}

func TestSegmentOf(t *testing.T) {
	for _, f := range Families {
		for _, c := range []struct {
			name string
			tcp  layers.TCP
			data string
			want Segment
		}{
			{"SYN", layers.TCP{SYN: true}, "", SYN},
			{"Fast Open", layers.TCP{SYN: true}, "data", SYN},
			{"SYN-ACK", layers.TCP{SYN: true, ACK: true}, "", SYNACK},
			{"RST", layers.TCP{RST: true}, "", RST},
			{"RST-ACK", layers.TCP{RST: true, ACK: true}, "", RST},
			{"FIN", layers.TCP{FIN: true, ACK: true}, "data", FIN},
			{"data", layers.TCP{ACK: true}, "x", Data},
			{"ACK", layers.TCP{ACK: true}, "", BareACK},
		} {
			frame := tcpFrame(t, f, c.tcp, 2, []byte(c.data))
			src, dst, got, ok := segmentOf(frame)
			if !ok || src != 1000 || dst != 2000 || got != c.want {
				t.Errorf("%s %s: %d, %d, kind %d, %t; want kind %d", f, c.name, src, dst, got, ok, c.want)
			}
			for n := range frame[:len(frame)-6] {
				if _, _, _, ok := segmentOf(frame[:n]); ok {
					t.Errorf("%s %s: read from %d bytes", f, c.name, n)
				}
			}
			for range 100 { // whatever it says, it does not panic
				frame[14+rand.IntN(len(frame)-14)] ^= byte(rand.Uint32())
				segmentOf(frame)
			}
		}
	}
}

// TestMarkCE: only who knows ECN is told, and the frame stays right.
func TestMarkCE(t *testing.T) {
	for _, f := range Families {
		for ecn := range uint8(4) {
			frame := tcpFrame(t, f, layers.TCP{ACK: true}, ecn, []byte("data"))
			done := markCE(frame)
			want := tcpFrame(t, f, layers.TCP{ACK: true}, ecn, []byte("data"))
			if ecn != 0 {
				want = tcpFrame(t, f, layers.TCP{ACK: true}, 3, []byte("data"))
			}
			if diff := cmp.Diff(want, frame); diff != "" || done != (ecn != 0) {
				t.Errorf("%s, ECN field %d: %t (-want +got)\n%s", f, ecn, done, diff)
			}
		}
	}
}
