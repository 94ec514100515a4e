package filter

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/net/bpf"

	"github.com/l4fwd/l4fwd/dataplane/cbpf"
)

// tcpdump is tcpdump's own program for an expression; an error is what it says. Its
// optimizer is off: of what contradicts itself, as TCP's data and IPv6 do, it leaves out
// loads beyond a packet's end, at which the program would have said no to all of it.
func tcpdump(expr string) ([]bpf.RawInstruction, error) {
	var out, problem bytes.Buffer
	cmd := exec.Command("tcpdump", "-O", "-y", "EN10MB", "-ddd", "--", expr)
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil && strings.Contains(problem.String(), "rejects all packets") {
		return []bpf.RawInstruction{{Op: opRet}}, nil
	} else if err != nil {
		return nil, fmt.Errorf("%w: %s", err, problem.String())
	}
	in := bufio.NewScanner(&out)
	in.Scan() // their number
	var code []bpf.RawInstruction
	for in.Scan() {
		var raw bpf.RawInstruction
		if _, err := fmt.Sscan(in.Text(), &raw.Op, &raw.Jt, &raw.Jf, &raw.K); err != nil {
			return nil, err
		}
		code = append(code, raw)
	}
	return code, in.Err()
}

// machine runs a program by golang.org/x/net/bpf.
func machine(t testing.TB, code []bpf.RawInstruction) func(frame []byte) bool {
	t.Helper()
	in, ok := bpf.Disassemble(code)
	if !ok {
		t.Fatalf("cannot be disassembled: %v", code)
	}
	if slices.Contains(in, bpf.Instruction(bpf.NegateA{})) { // which it does not know
		p, err := cbpf.New(code)
		if err != nil {
			t.Fatal(err)
		}
		return func(frame []byte) bool { return p.Run(frame, uint32(len(frame))) > 0 }
	}
	vm, err := bpf.NewVM(in)
	if err != nil {
		t.Fatal(err)
	}
	return func(frame []byte) bool {
		n, err := vm.Run(frame)
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
}

// frame is one of the packets that filters are tried on.
type frame struct {
	name  string
	bytes []byte
}

func serialize(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, l...); err != nil {
		t.Fatal(err)
	}
	out := append([]byte(nil), b.Bytes()...)
	for len(out) < 60 {
		out = append(out, 0)
	}
	return out
}

var (
	mac1 = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	mac2 = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

// transportsOf are payloads with the ports and kinds that expressions ask for.
func transportsOf() map[string][]gopacket.SerializableLayer {
	body := gopacket.Payload("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	return map[string][]gopacket.SerializableLayer{
		"syn":     {&layers.TCP{SrcPort: 40000, DstPort: 80, SYN: true, Options: []layers.TCPOption{{OptionType: 2, OptionLength: 4, OptionData: []byte{5, 180}}}}},
		"synack":  {&layers.TCP{SrcPort: 80, DstPort: 40000, SYN: true, ACK: true}},
		"get":     {&layers.TCP{SrcPort: 40000, DstPort: 8080, ACK: true, PSH: true}, body},
		"rst":     {&layers.TCP{SrcPort: 443, DstPort: 22, RST: true}},
		"fin":     {&layers.TCP{SrcPort: 22, DstPort: 53, FIN: true, ACK: true}},
		"dns":     {&layers.UDP{SrcPort: 53, DstPort: 5353}, body},
		"udp":     {&layers.UDP{SrcPort: 8080, DstPort: 443}, body},
		"udp80":   {&layers.UDP{SrcPort: 80, DstPort: 80}},
		"sctp":    {&layers.SCTP{SrcPort: 80, DstPort: 443}},
		"nothing": nil,
		"data":    {gopacket.Payload(bytes.Repeat([]byte{7}, 1200))},
	}
}

// protocolOf is the IP protocol of a payload.
func protocolOf(l []gopacket.SerializableLayer) layers.IPProtocol {
	if len(l) == 0 {
		return layers.IPProtocolESP
	}
	switch l[0].(type) {
	case *layers.TCP:
		return layers.IPProtocolTCP
	case *layers.UDP:
		return layers.IPProtocolUDP
	case *layers.SCTP:
		return layers.IPProtocolSCTP
	case *layers.ICMPv4:
		return layers.IPProtocolICMPv4
	case *layers.ICMPv6:
		return layers.IPProtocolICMPv6
	}
	return 103 // PIM
}

// frames are what filters are tried on: every protocol they know of, whole, in
// fragments, with IP options, behind no, one and two VLAN tags.
func frames(t testing.TB) (out []frame) {
	t.Helper()
	add := func(name string, e layers.EthernetType, l ...gopacket.SerializableLayer) {
		for _, dst := range []net.HardwareAddr{mac2, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {1, 0, 0x5e, 0, 0, 1}} {
			eth := &layers.Ethernet{SrcMAC: mac1, DstMAC: dst, EthernetType: e}
			out = append(out, frame{name, serialize(t, append([]gopacket.SerializableLayer{eth}, l...)...)})
		}
		for _, id := range []uint16{5, 100} {
			outer := &layers.Ethernet{SrcMAC: mac2, DstMAC: mac1, EthernetType: layers.EthernetTypeDot1Q}
			tag := &layers.Dot1Q{VLANIdentifier: id, Priority: 3, Type: e}
			out = append(out, frame{fmt.Sprintf("%s in VLAN %d", name, id), serialize(t, append([]gopacket.SerializableLayer{outer, tag}, l...)...)})
		}
		outer := &layers.Ethernet{SrcMAC: mac2, DstMAC: mac1, EthernetType: layers.EthernetTypeQinQ}
		tags := []gopacket.SerializableLayer{outer, &layers.Dot1Q{VLANIdentifier: 7, Type: layers.EthernetTypeDot1Q}, &layers.Dot1Q{VLANIdentifier: 100, Type: e}}
		out = append(out, frame{name + " in two VLANs", serialize(t, append(tags, l...)...)})
	}
	four := [][2]string{{"10.0.0.1", "192.0.2.10"}, {"192.0.2.10", "10.0.0.1"}, {"10.1.2.3", "224.0.0.251"}, {"172.16.5.4", "10.0.0.1"}}
	six := [][2]string{{"2001:db8::1", "2001:db8:1::10"}, {"fe80::1", "ff02::fb"}, {"2001:db8:1::10", "2001:db8::1"}}
	for name, l := range transportsOf() {
		for _, a := range four {
			add4(t, add, name, a, l)
		}
		for _, a := range six {
			ip := &layers.IPv6{Version: 6, HopLimit: 9, SrcIP: net.ParseIP(a[0]), DstIP: net.ParseIP(a[1]), NextHeader: protocolOf(l)}
			add(name+" 6", layers.EthernetTypeIPv6, append([]gopacket.SerializableLayer{ip}, l...)...)
			frag := append([]byte{byte(protocolOf(l)), 0, 0, 1, 0, 0, 0, 9}, 0, 80, 0, 80)
			ip = &layers.IPv6{Version: 6, HopLimit: 9, SrcIP: net.ParseIP(a[0]), DstIP: net.ParseIP(a[1]), NextHeader: layers.IPProtocolIPv6Fragment}
			add(name+" 6 fragment", layers.EthernetTypeIPv6, ip, gopacket.Payload(frag))
		}
	}
	for _, kind := range []uint8{0, 3, 8, 11} {
		add4(t, add, fmt.Sprintf("icmp %d", kind), four[0], []gopacket.SerializableLayer{&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 1)}})
	}
	for _, kind := range []uint8{1, 128, 129, 135} {
		ip := &layers.IPv6{Version: 6, SrcIP: net.ParseIP(six[0][0]), DstIP: net.ParseIP(six[0][1]), NextHeader: layers.IPProtocolICMPv6}
		add(fmt.Sprintf("icmp6 %d", kind), layers.EthernetTypeIPv6, ip, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)})
	}
	mapped := &layers.IPv6{Version: 6, SrcIP: net.ParseIP("::ffff:10.0.0.1"), DstIP: net.ParseIP(six[0][1]), NextHeader: layers.IPProtocolNoNextHeader}
	add("mapped", layers.EthernetTypeIPv6, mapped)
	for _, a := range four {
		arp := &layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
			SourceHwAddress: mac1, SourceProtAddress: net.ParseIP(a[0]).To4(), DstHwAddress: mac2, DstProtAddress: net.ParseIP(a[1]).To4()}
		add("arp", layers.EthernetTypeARP, arp)
		add("rarp", 0x8035, arp)
	}
	return append(out, frame{"unknown", serialize(t, &layers.Ethernet{SrcMAC: mac1, DstMAC: mac2, EthernetType: 0x88cc})})
}

// add4 adds IPv4 packets: plain, with an option, the first of two fragments, the second.
func add4(t testing.TB, add func(string, layers.EthernetType, ...gopacket.SerializableLayer), name string, a [2]string, l []gopacket.SerializableLayer) {
	t.Helper()
	plain := layers.IPv4{Version: 4, IHL: 5, TTL: 9, Protocol: protocolOf(l), SrcIP: net.ParseIP(a[0]).To4(), DstIP: net.ParseIP(a[1]).To4()}
	option, first, second := plain, plain, plain
	option.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
	first.Flags, second.FragOffset = layers.IPv4MoreFragments, 100
	for suffix, ip := range map[string]*layers.IPv4{"": &plain, " option": &option, " first": &first, " second": &second} {
		add(name+suffix, layers.EthernetTypeIPv4, append([]gopacket.SerializableLayer{ip}, l...)...)
	}
}

// differs compares an expression's program with tcpdump's on all packets; "" if they
// agree.
func differs(t testing.TB, expr string, frames []frame) string {
	t.Helper()
	theirs, err := tcpdump(expr)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	ours, err := Compile(expr)
	if err != nil {
		return err.Error()
	}
	a, b := machine(t, theirs), machine(t, ours)
	var out strings.Builder
	for _, f := range frames {
		if want, got := a(f.bytes), b(f.bytes); got != want {
			fmt.Fprintf(&out, "%s: tcpdump %v, here %v\n", f.name, want, got)
		}
	}
	return out.String()
}
