package bench_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/bench"
)

// tcpFrame builds a segment with gopacket, after change has been at it.
func tcpFrame(t testing.TB, seq uint32, change func(ip *layers.IPv4, tcp *layers.TCP)) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 1}, DstMAC: []byte{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}}
	tcp := &layers.TCP{SrcPort: 1024, DstPort: 80, Seq: seq, Ack: 7, ACK: true, Window: 100, Options: []layers.TCPOption{
		{OptionType: 254, OptionLength: 8, OptionData: []byte{4, 0, 192, 0, 2, 1}},
	}}
	if change != nil {
		change(ip, tcp)
	}
	_ = tcp.SetNetworkLayerForChecksum(ip)
	b := gopacket.NewSerializeBuffer()
	payload := gopacket.Payload(binary.BigEndian.AppendUint32([]byte("payload number "), seq))
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, tcp, payload); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func diff(t testing.TB, a, b [][]byte) (string, bench.DiffSummary) {
	t.Helper()
	ca, cb := read(t, writePcap(t, a...)), read(t, writePcap(t, b...))
	ca.Name, cb.Name = "a", "b"
	var words strings.Builder
	sum, err := bench.Diff(&words, ca, cb, 0)
	if err != nil {
		t.Fatal(err)
	}
	return words.String(), sum
}

// Each field has its name, and nothing else is said to differ but checksums.
func TestDiffFields(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(ip *layers.IPv4, tcp *layers.TCP)
		patch  func(f []byte)
		want   []string // lines without checksums
	}{
		{"TTL", func(ip *layers.IPv4, _ *layers.TCP) { ip.TTL = 63 }, nil, []string{"TTL: 64 in a, 63 in b"}},
		{"source", func(ip *layers.IPv4, _ *layers.TCP) { ip.SrcIP = []byte{10, 0, 0, 9} }, nil, []string{"source address: 10.0.0.1 in a, 10.0.0.9 in b"}},
		{"destination", func(ip *layers.IPv4, _ *layers.TCP) { ip.DstIP = []byte{10, 0, 0, 9} }, nil, []string{"destination address: 10.0.0.2 in a, 10.0.0.9 in b"}},
		{"source port", func(_ *layers.IPv4, tcp *layers.TCP) { tcp.SrcPort = 9 }, nil, []string{"source port: 1024 in a, 9 in b"}},
		{"destination port", func(_ *layers.IPv4, tcp *layers.TCP) { tcp.DstPort = 9 }, nil, []string{"destination port: 80 in a, 9 in b"}},
		{"seq", func(_ *layers.IPv4, tcp *layers.TCP) { tcp.Seq = 9 }, nil, []string{"seq: 1 in a, 9 in b"}},
		{"ack", func(_ *layers.IPv4, tcp *layers.TCP) { tcp.Ack = 9 }, nil, []string{"ack: 7 in a, 9 in b"}},
		{"flags", func(_ *layers.IPv4, tcp *layers.TCP) { tcp.PSH = true }, nil, []string{"flags: ACK in a, PSH ACK in b"}},
		{"window", func(_ *layers.IPv4, tcp *layers.TCP) { tcp.Window = 9 }, nil, []string{"window: 100 in a, 9 in b"}},
		{"TOA", func(_ *layers.IPv4, tcp *layers.TCP) { tcp.Options[0].OptionData = []byte{4, 1, 192, 0, 2, 2} }, nil,
			[]string{"option TOA: 192.0.2.1:1024 in a, 192.0.2.2:1025 in b"}},
		{"no TOA", func(_ *layers.IPv4, tcp *layers.TCP) { tcp.Options = nil }, nil,
			[]string{"IP length: 67 in a, 59 in b", "option TOA: 192.0.2.1:1024 in a, none in b"}},
		{"another option", func(_ *layers.IPv4, tcp *layers.TCP) {
			tcp.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 180}}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}, {OptionType: 1}}
		}, nil, []string{"option TOA: 192.0.2.1:1024 in a, none in b", "option MSS: none in a, 1460 in b"}},
		{"checksum", nil, func(f []byte) { f[14+20+16] ^= 0xff }, nil},
		{"MAC", nil, func(f []byte) { f[5] = 9 }, []string{"destination MAC: 02:00:00:00:00:02 in a, 02:00:00:00:00:09 in b"}},
		{"payload", nil, func(f []byte) { f[14+20+28+3] = 'X' }, []string{"payload from byte 3: 6c6f6164206e756d in a, 586f6164206e756d in b"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := tcpFrame(t, 1, nil), tcpFrame(t, 1, tt.change)
			if tt.name == "seq" { // the payload has the number in it
				copy(b[len(b)-4:], a[len(a)-4:])
			}
			if tt.patch != nil {
				tt.patch(b)
			}
			words, sum := diff(t, [][]byte{a}, [][]byte{b})
			if sum.Different != 1 || sum.Same() {
				t.Errorf("counted %+v", sum)
			}
			var got []string
			sums := 0
			for line := range strings.Lines(words) {
				line, field := strings.CutPrefix(line, "    ")
				switch {
				case field && strings.Contains(line, "checksum"):
					sums++
				case field:
					got = append(got, strings.TrimSpace(line))
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if sums == 0 && tt.patch == nil {
				t.Error("no checksum differs")
			}
			if tt.name == "checksum" && !strings.Contains(words, "(wrong) in b") {
				t.Errorf("not called wrong:\n%s", words)
			}
		})
	}
}

// A packet that is lost or doubled does not make those behind it differ.
func TestDiffMissing(t *testing.T) {
	var all [][]byte
	for i := range 9 {
		all = append(all, tcpFrame(t, uint32(i*19), nil))
	}
	// Every packet differs in TTL besides.
	older := func(keep ...int) (out [][]byte) {
		for _, i := range keep {
			out = append(out, tcpFrame(t, uint32(i*19), func(ip *layers.IPv4, _ *layers.TCP) { ip.TTL = 9 }))
		}
		return out
	}
	words, sum := diff(t, all, older(0, 1, 2, 4, 5, 6, 7, 8))
	if sum.Missing != 1 || sum.Different != 8 || sum.Extra != 0 || sum.Fields["TTL"] != 8 || sum.Fields["seq"] != 0 {
		t.Errorf("%+v\n%s", sum, words)
	}
	if want := "tcp 10.0.0.1:1024 > 10.0.0.2:80, packet 4: only in a (packet 4)\n"; !strings.Contains(words, want) {
		t.Errorf("want %q in\n%s", want, words)
	}
	if words, sum = diff(t, older(0, 1, 2), all[:2]); sum.Missing != 1 || sum.Different != 2 {
		t.Errorf("%+v\n%s", sum, words)
	}
	if words, sum = diff(t, all[:1], append(slices.Clone(all[:1]), make([]byte, 60))); sum.Extra != 1 || sum.Alike != 1 {
		t.Errorf("%+v\n%s", sum, words)
	}
}

func TestDiffOrder(t *testing.T) {
	other := tcpFrame(t, 5, func(_ *layers.IPv4, tcp *layers.TCP) { tcp.SrcPort = 2000 })
	one := tcpFrame(t, 1, nil)
	words, sum := diff(t, [][]byte{one, other}, [][]byte{other, one})
	if sum.Moved != 1 || sum.Alike != 2 || sum.Same() || !strings.Contains(words, "another order: packet 2 of a") {
		t.Errorf("%+v\n%s", sum, words)
	}
}

// Whatever is taken out of a capture, put in or changed, the counts add up, and
// a capture is the same as itself.
func TestDiffProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(name string) (out [][]byte) {
			for _, b := range rapid.SliceOfN(rapid.IntRange(0, 40), 1, 40).Draw(rt, name) {
				if b == 40 {
					out = append(out, rapid.SliceOfN(rapid.Byte(), 1, 80).Draw(rt, "noise"))
					continue
				}
				out = append(out, tcpFrame(t, uint32(b/4), func(_ *layers.IPv4, tcp *layers.TCP) { tcp.SrcPort = layers.TCPPort(1 + b%4) }))
			}
			return out
		}
		a, b := draw("a"), draw("b")
		if _, sum := diff(t, a, a); !sum.Same() || sum.Alike != len(a) {
			rt.Fatalf("not the same as itself: %+v", sum)
		}
		_, sum := diff(t, a, b)
		if sum.Alike+sum.Different+sum.Missing != len(a) || sum.Alike+sum.Different+sum.Extra != len(b) {
			rt.Fatalf("%d and %d packets: %+v", len(a), len(b), sum)
		}
		same := slices.EqualFunc(a, b, bytes.Equal)
		if sum.Same() != same {
			rt.Fatalf("same is %v, counted %+v", same, sum)
		}
	})
}

type fullDisk struct{}

var errDiffFull = errors.New("disk full")

func (fullDisk) Write([]byte) (int, error) { return 0, errDiffFull }

func TestDiffWriteError(t *testing.T) {
	c := read(t, writePcap(t, tcpFrame(t, 1, nil)))
	if _, err := bench.Diff(fullDisk{}, c, c, 0); !errors.Is(err, errDiffFull) {
		t.Errorf("got %v", err)
	}
}
