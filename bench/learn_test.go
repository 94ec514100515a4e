package bench_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/bench"
)

var (
	macClient = []byte{2, 0x46, 0, 0, 0, 7}
	macServer = []byte{2, 0x52, 0, 0, 0, 7}
	macNIC    = []byte{2, 0, 0, 0, 1, 0}
)

// tcp makes a frame between two IPv4 addresses.
func tcp(t testing.TB, mac []byte, src, dst [4]byte, h layers.TCP, payload string) []byte {
	t.Helper()
	ip := layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: src[:], DstIP: dst[:]}
	_ = h.SetNetworkLayerForChecksum(&ip)
	h.Window = 65535
	return serialize(t, &layers.Ethernet{SrcMAC: mac, DstMAC: macNIC, EthernetType: layers.EthernetTypeIPv4}, &ip, &h, gopacket.Payload(payload))
}

func serialize(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var (
	client = [4]byte{198, 51, 100, 7}
	vip    = [4]byte{192, 0, 2, 10}
	vipD   = [4]byte{192, 0, 2, 11}
	local  = [4]byte{10, 0, 1, 10}
	rs     = [4]byte{10, 0, 1, 20}
)

// conversation is a whole connection as a generated capture shows it.
func conversation(t testing.TB) [][]byte {
	sack := layers.TCPOption{OptionType: layers.TCPOptionKindSACK, OptionLength: 10, OptionData: []byte{0, 0, 3, 243, 0, 0, 3, 248}}
	nop := layers.TCPOption{OptionType: layers.TCPOptionKindNop}
	up := func(h layers.TCP, payload string) []byte {
		h.SrcPort, h.DstPort = 4000, 80
		return tcp(t, macClient, client, vip, h, payload)
	}
	down := func(h layers.TCP, payload string) []byte {
		h.SrcPort, h.DstPort = 8080, 0
		return tcp(t, macServer, rs, local, h, payload)
	}
	return [][]byte{
		up(layers.TCP{SYN: true, Seq: 1000}, ""),
		down(layers.TCP{SYN: true, ACK: true, Seq: 9000, Ack: 1001}, ""),
		up(layers.TCP{ACK: true, Seq: 1001, Ack: 9001}, ""),
		up(layers.TCP{ACK: true, PSH: true, Seq: 1001, Ack: 9001}, "hello"),
		up(layers.TCP{ACK: true, PSH: true, Seq: 1011, Ack: 9001}, "world"),
		down(layers.TCP{ACK: true, Seq: 9001, Ack: 1006, Options: []layers.TCPOption{nop, nop, sack}}, ""),
		up(layers.TCP{ACK: true, FIN: true, Seq: 1016, Ack: 9001}, ""),
		down(layers.TCP{ACK: true, FIN: true, Seq: 9001, Ack: 1017}, ""),
		up(layers.TCP{ACK: true, Seq: 1017, Ack: 9002}, ""),
	}
}

// A client sees ACK and SACK numbers of its own space.
func TestSACK(t *testing.T) {
	spec := loadSpec(t, "all.yaml", "fnat4")
	pcap := writePcap(t, conversation(t)...)
	var b bytes.Buffer
	allForwarded(t, replay(t, pcap, bench.Options{Spec: spec, Output: &b}))
	in, out := frames(t, pcap), frames(t, b.Bytes())
	for i := range in {
		checksums(t, out[i])
		if in[i].tcp().DstPort != 0 {
			continue
		}
		a, z := in[i].tcp(), out[i].tcp()
		if a.Ack != z.Ack || a.Seq != z.Seq || !bytes.Equal(a.LayerContents()[20:], z.LayerContents()[20:]) {
			t.Errorf("packet %d: ack %d options %v became %d %v", i, a.Ack, a.Options, z.Ack, z.Options)
		}
	}
}

// What ends connections is fed if there is one loop, else not.
func TestClosing(t *testing.T) {
	spec := loadSpec(t, "all.yaml", "fnat4")
	for _, tt := range []struct {
		loops   int
		packets uint64
		flows   int
	}{
		{1, 9, 1},
		// The handshake is three packets, two have a FIN; the rest twice.
		{3, 3 + 3*4, 1},
	} {
		rep := replay(t, writePcap(t, conversation(t)...), bench.Options{Spec: spec, Loops: tt.loops})
		allForwarded(t, rep)
		if rep.Packets != tt.packets || rep.Flows != tt.flows {
			t.Errorf("%d loops: %d packets, %d flows, want %d and %d", tt.loops, rep.Packets, rep.Flows, tt.packets, tt.flows)
		}
	}
}

// Replies that come first wait until their flow is open.
func TestHeldBack(t *testing.T) {
	spec := loadSpec(t, "all.yaml", "fnat4")
	c := conversation(t)
	order := [][]byte{c[1], c[5], c[0], c[2], c[3], c[4]}
	rep := replay(t, writePcap(t, order...), bench.Options{Spec: spec})
	allForwarded(t, rep)
	if rep.HeldBack != 2 || rep.Unmatched != 0 || rep.Verdicts["replied"] != 2 {
		t.Errorf("%d held back, %d unmatched, %v", rep.HeldBack, rep.Unmatched, rep.Verdicts)
	}
	// Without the SYN they wait in vain: l4fwd will have none of them.
	rep = replay(t, writePcap(t, c[1], c[3], c[5]), bench.Options{Spec: spec})
	if rep.Forwarded != 0 || rep.HeldBack != 2 || rep.Unmatched != 2 || rep.Packets != 3 || rep.Dropped["no_flow"] != 3 {
		t.Errorf("without SYN: %+v", rep)
	}
}

// Replies of DNAT flows are known by the client's address in any capture, from
// whatever backend of the service they came.
func TestForeignCapture(t *testing.T) {
	spec := loadSpec(t, "all.yaml", "dnat4")
	any1, any2 := []byte{0, 1, 2, 3, 4, 5}, []byte{0, 1, 2, 3, 4, 6}
	var list [][]byte
	for port := range layers.TCPPort(10) {
		list = append(list,
			tcp(t, any1, client, vipD, layers.TCP{SrcPort: 5000 + port, DstPort: 80, SYN: true, Seq: 5}, ""),
			tcp(t, any2, rs, client, layers.TCP{SrcPort: 80, DstPort: 5000 + port, SYN: true, ACK: true, Seq: 8, Ack: 6}, ""),
			tcp(t, any1, client, vipD, layers.TCP{SrcPort: 5000 + port, DstPort: 80, ACK: true, Seq: 6, Ack: 9}, "x"))
	}
	rep := replay(t, writePcap(t, list...), bench.Options{Spec: spec})
	allForwarded(t, rep)
	if rep.Verdicts["replied"] != 10 || rep.Verdicts["forwarded"] != 20 {
		t.Errorf("%v", rep.Verdicts)
	}
}

// What matches no service is fed as it is and meets its verdict.
func TestAsItIs(t *testing.T) {
	spec := loadSpec(t, "all.yaml", "fnat4", "dnat4")
	arp := serialize(t, &layers.Ethernet{SrcMAC: macClient, DstMAC: macNIC, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: layers.ARPRequest, SourceHwAddress: macClient, SourceProtAddress: client[:],
			DstHwAddress: make([]byte, 6), DstProtAddress: vip[:]})
	rep := replay(t, writePcap(t, arp,
		tcp(t, macClient, client, vip, layers.TCP{SrcPort: 1, DstPort: 81, SYN: true}, ""),
		tcp(t, macClient, client, vip, layers.TCP{SrcPort: 1, DstPort: 80, ACK: true}, ""),
		make([]byte, 60)), bench.Options{Spec: spec})
	if diff := cmp.Diff(map[string]uint64{"no_service": 1, "no_flow": 1, "unknown_ethertype": 1}, rep.Dropped); diff != "" {
		t.Errorf("dropped (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]uint64{"answered": 1}, rep.Verdicts); diff != "" {
		t.Errorf("verdicts (-want +got):\n%s", diff)
	}
}

func TestRefused(t *testing.T) {
	spec := loadSpec(t, "bench.yaml")
	ok := conversation(t)[0]
	_, err := bench.Replay(context.Background(), read(t, writePcap(t, ok, make([]byte, 1793))), bench.Options{Spec: spec})
	if err == nil || !strings.Contains(err.Error(), "test.pcap: packet 2: 1793 bytes are more than frames of 2048 can take (1792)") {
		t.Errorf("long packet: %v", err)
	}
	for _, o := range []bench.Options{{Workers: -1}, {Workers: 256}, {Loops: -1}} {
		o.Spec = spec
		if _, err := bench.Replay(context.Background(), read(t, writePcap(t, ok)), o); err == nil {
			t.Errorf("%d workers, %d loops are no error", o.Workers, o.Loops)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := bench.Replay(ctx, read(t, writePcap(t, ok)), bench.Options{Spec: spec}); err == nil {
		t.Error("a cancelled replay is no error")
	}
}
