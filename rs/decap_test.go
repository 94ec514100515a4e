package rs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

var (
	vips = map[testbed.Family]netip.Addr{testbed.V4: netip.MustParseAddr("192.0.2.10"), testbed.V6: netip.MustParseAddr("2001:db8::10")}
	// tunnels are the options of the tests; w is what the twin makes of them.
	tunnels = DecapOptions{
		Interfaces: []string{"s0"}, VIPs: []netip.Addr{vips[testbed.V4], vips[testbed.V6]}, From: balancers, GUEPort: 6080, FOUPort: 5555,
	}
	w = twin{vips: tunnels.VIPs, hosts: []netip.Addr{serverNet[testbed.V4].Addr(), serverNet[testbed.V6].Addr()}, from: tunnels.From, gue: 6080, fou: 5555}

	peerMAC, serverMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

// form is a tunnel's packet, good in all that is not said to be otherwise.
type form struct {
	by           string // ipip, gre, gue, gue1 (variant 1), fou
	outer, inner testbed.Family
	ecn, within  byte // fields of the outer and the inner header
	vlan         bool
	options      bool // IPv4 options or an IPv6 destination option in front
	fragment     bool // the first of a datagram in two
	private      int  // words of GUE's private data
	src, dst     netip.Addr
	mac          net.HardwareAddr // where to; nil = serverMAC
	vip          netip.Addr
	payload      int
	padding      int // behind the datagram
}

// build makes the frame with gopacket, and the packet in it.
func (f form) build(t testing.TB) (frame, inside []byte) {
	t.Helper()
	var in []gopacket.SerializableLayer
	tcp := &layers.TCP{SrcPort: 4000, DstPort: 80, Seq: 1, Ack: 2, ACK: true, Window: 100}
	if f.inner == testbed.V4 {
		l := &layers.IPv4{Version: 4, TOS: 0x28 | f.within, TTL: 61, Protocol: 6, SrcIP: client4.Addr().AsSlice(), DstIP: orElse(f.vip, vips[testbed.V4])}
		must(t, tcp.SetNetworkLayerForChecksum(l))
		in = append(in, l)
	} else {
		l := &layers.IPv6{Version: 6, TrafficClass: 0x28 | f.within, FlowLabel: 0x12345, HopLimit: 61, NextHeader: 6, SrcIP: client6.Addr().AsSlice(), DstIP: orElse(f.vip, vips[testbed.V6])}
		must(t, tcp.SetNetworkLayerForChecksum(l))
		in = append(in, l)
	}
	inside = serial(t, append(in, tcp, gopacket.Payload(bytes.Repeat([]byte("l4"), (f.payload+1)/2)[:f.payload]))...)
	return append(f.around(t, inside), make([]byte, f.padding)...), inside
}

// around makes the frame of a tunnel around a packet of the inner family.
func (f form) around(t testing.TB, inside []byte) []byte {
	t.Helper()
	next, ethertype := byte(4), layers.EthernetTypeIPv4
	if f.inner == testbed.V6 {
		next, ethertype = 41, layers.EthernetTypeIPv6
	}
	head, proto := f.head(next, ethertype, len(inside))
	body := gopacket.Payload(slices.Concat(head, inside))
	mac := f.mac
	if mac == nil {
		mac = serverMAC
	}
	eth := &layers.Ethernet{SrcMAC: peerMAC, DstMAC: mac, EthernetType: layers.EthernetTypeIPv4}
	var ip []gopacket.SerializableLayer
	if f.outer == testbed.V4 {
		l := &layers.IPv4{Version: 4, TOS: f.ecn, TTL: 64, Protocol: layers.IPProtocol(proto), SrcIP: orElse(f.src, balancer[testbed.V4]), DstIP: orElse(f.dst, w.hosts[0])}
		if f.options {
			l.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
		}
		if f.fragment {
			l.Flags = layers.IPv4MoreFragments
		}
		ip = append(ip, l)
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		l := &layers.IPv6{Version: 6, TrafficClass: f.ecn, HopLimit: 64, NextHeader: layers.IPProtocol(proto), SrcIP: orElse(f.src, balancer[testbed.V6]), DstIP: orElse(f.dst, w.hosts[1])}
		if f.options {
			l.NextHeader = layers.IPProtocolIPv6Destination
			body = slices.Concat(gopacket.Payload{proto, 0, 4, 1, 4, 1, 1, 0}, body) // RFC 2473 section 4.1.1
		}
		if f.fragment {
			body = slices.Concat(gopacket.Payload{byte(l.NextHeader), 0, 0, 1, 0, 0, 0, 7}, body)
			l.NextHeader = layers.IPProtocolIPv6Fragment
		}
		ip = append(ip, l)
	}
	all := []gopacket.SerializableLayer{eth}
	if f.vlan {
		all = append(all, &layers.Dot1Q{VLANIdentifier: 7, Type: eth.EthernetType})
		eth.EthernetType = layers.EthernetTypeDot1Q
	}
	return serial(t, append(append(all, ip...), body)...)
}

// head are the bytes between the outer IP header and n bytes of inner packet.
func (f form) head(next byte, ethertype layers.EthernetType, n int) (b []byte, proto byte) {
	udp := func(port uint16, rest []byte) []byte {
		b := []byte{0xc0, 0x01, byte(port >> 8), byte(port), 0, 0, 0, 0}
		binary.BigEndian.PutUint16(b[4:], uint16(8+len(rest)+n))
		return append(b, rest...)
	}
	switch f.by {
	case "gre":
		return []byte{0, 0, byte(ethertype >> 8), byte(ethertype)}, 47
	case "gue":
		return udp(6080, append([]byte{byte(f.private), next, 0, 0}, make([]byte, 4*f.private)...)), 17
	case "gue1":
		return udp(6080, nil), 17
	case "fou":
		return udp(5555, nil), 17
	}
	return nil, next
}

// orElse is a, or b if a is none.
func orElse(a, b netip.Addr) net.IP {
	if a.IsValid() {
		b = a
	}
	return b.AsSlice()
}

func serial(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...))
	return slices.Clone(b.Bytes())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program loads the program, attached to nothing, on a host with w's addresses.
func program(t testing.TB) *Decap {
	t.Helper()
	d, err := loadDecapProgram(tunnels)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	for _, h := range w.hosts {
		must(t, d.objs.Hosts.Put(h.As16(), uint8(1)))
	}
	return d
}

// through runs the program over a frame: what passes (nil = dropped) and what was
// counted.
func through(t testing.TB, d *Decap, frame []byte) (out []byte, counted map[string]uint64) {
	t.Helper()
	before, err := d.Stats()
	must(t, err)
	verdict, out, err := d.objs.L4fwdDecap.Test(frame)
	must(t, err)
	if verdict == 1 { // XDP_DROP
		out = nil
	}
	return out, d.counted(t, before)
}

// counted is what has been counted since, zeros left out.
func (d *Decap) counted(t testing.TB, since []Count) map[string]uint64 {
	t.Helper()
	now, err := d.Stats()
	must(t, err)
	return difference(since, now)
}

// difference is what has been counted between, zeros left out.
func difference(since, now []Count) map[string]uint64 {
	out := make(map[string]uint64)
	for i, c := range now {
		if n := c.Value - since[i].Value; n > 0 {
			out[c.Name] = n
		}
	}
	return out
}

// forms are all ways to wrap.
func forms() (out []form) {
	for _, by := range []string{"ipip", "gre", "gue", "gue1", "fou"} {
		for _, o := range testbed.Families {
			for _, i := range testbed.Families {
				out = append(out, form{by: by, outer: o, inner: i, payload: 100})
			}
		}
	}
	return out
}

func (f form) String() string { return fmt.Sprintf("%s/%s in %s", f.by, f.inner, f.outer) }

// counter is what a good packet of the form is counted as.
func (f form) counter() string {
	if f.by == "gue1" {
		return "gue"
	}
	return f.by
}

// TestDecap: what comes out is the packet that was put in, whatever is around it;
// what is not ours passes as it came.
func TestDecap(t *testing.T) {
	d := program(t)
	for _, f := range forms() {
		for name, change := range map[string]func(*form){
			"plain":            func(*form) {},
			"VLAN":             func(f *form) { f.vlan = true },
			"options":          func(f *form) { f.options = true },
			"VLAN and options": func(f *form) { f.vlan, f.options = true, true },
			"private data":     func(f *form) { f.private = 3 },
			"empty":            func(f *form) { f.payload = 0 },
			"padded":           func(f *form) { f.payload, f.padding = 0, 12 },
			"large":            func(f *form) { f.payload = 1300 },
		} {
			g := f
			change(&g)
			frame, inside := g.build(t)
			out, counted := through(t, d, frame)
			l2 := 14
			if g.vlan {
				l2 = 18
			}
			want := slices.Concat(frame[:l2], inside, make([]byte, g.padding))
			binary.BigEndian.PutUint16(want[l2-2:], map[testbed.Family]uint16{testbed.V4: 0x0800, testbed.V6: 0x86dd}[g.inner])
			if !bytes.Equal(out, want) {
				t.Errorf("%s, %s:\n%x came out, not\n%x", f, name, out, want)
			}
			if diff := cmp.Diff(map[string]uint64{f.counter(): 1}, counted); diff != "" {
				t.Errorf("%s, %s (-want +got)\n%s", f, name, diff)
			}
		}
		for name, c := range map[string]struct {
			change func(*form)
			count  map[string]uint64
		}{
			"no VIP":            {func(f *form) { f.vip = stranger[f.inner] }, nil},
			"another host":      {func(f *form) { f.dst = stranger[f.outer] }, nil},
			"from a stranger":   {func(f *form) { f.src = stranger[f.outer] }, map[string]uint64{"refused": 1}},
			"fragment":          {func(f *form) { f.fragment = true }, map[string]uint64{"fragment": 1}},
			"stranger and none": {func(f *form) { f.src, f.vip = stranger[f.outer], stranger[f.inner] }, nil},
		} {
			g := f
			c.change(&g)
			frame, _ := g.build(t)
			out, counted := through(t, d, frame)
			if !bytes.Equal(out, frame) {
				t.Errorf("%s, %s: %x became %x", f, name, frame, out)
			}
			if diff := cmp.Diff(orNone(c.count), counted); diff != "" {
				t.Errorf("%s, %s (-want +got)\n%s", f, name, diff)
			}
		}
	}
}

func orNone(m map[string]uint64) map[string]uint64 {
	if m == nil {
		return map[string]uint64{}
	}
	return m
}

// TestDecapECN is the whole figure of RFC 6040, and that checksums stay right.
func TestDecapECN(t *testing.T) {
	d := program(t)
	for _, f := range forms() {
		for ecn := range byte(4) {
			for within := range byte(4) {
				g := f
				g.ecn, g.within = ecn, within
				frame, _ := g.build(t)
				out, counted := through(t, d, frame)
				is, legal := rfc6040(within, ecn)
				want := map[string]uint64{f.counter(): 1}
				switch {
				case !legal:
					want = map[string]uint64{"drop_ecn": 1}
				case is != within:
					want["marked"] = 1
				}
				if diff := cmp.Diff(want, counted); diff != "" {
					t.Errorf("%s, %d in %d (-want +got)\n%s", f, within, ecn, diff)
				}
				if !legal {
					if out != nil {
						t.Errorf("%s, %d in %d: passed", f, within, ecn)
					}
					continue
				}
				g.within = is
				_, inside := g.build(t) // gopacket computes its checksum
				if !bytes.Equal(out[14:], inside) {
					t.Errorf("%s, %d in %d:\n%x came out, not\n%x", f, within, ecn, out[14:], inside)
				}
			}
		}
	}
}

// TestDecapTwin compares the program with its twin over tunnels that are whole,
// damaged, cut short and what else.
func TestDecapTwin(t *testing.T) {
	d := program(t)
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		for range rapid.IntRange(1, 40).Draw(rt, "frames") {
			outcome := compare(rt, t, d)
			seen[outcome]++
		}
	})
	t.Logf("outcomes: %v", seen)
}

// compare draws a frame and gives it to both.
func compare(rt *rapid.T, t *testing.T, d *Decap) (outcome string) {
	f := rapid.SampledFrom(forms()).Draw(rt, "form")
	ecn := rapid.ByteRange(0, 3)
	f.ecn, f.within = ecn.Draw(rt, "outer ECN"), ecn.Draw(rt, "inner ECN")
	f.vlan, f.options = rapid.Bool().Draw(rt, "VLAN"), rapid.Bool().Draw(rt, "options")
	f.fragment = rapid.IntRange(0, 9).Draw(rt, "fragment") == 0
	f.private = rapid.IntRange(0, 31).Draw(rt, "private")
	f.payload, f.padding = rapid.IntRange(0, 200).Draw(rt, "payload"), rapid.SampledFrom([]int{0, 0, 6}).Draw(rt, "padding")
	if rapid.IntRange(0, 9).Draw(rt, "stranger") == 0 {
		f.src = stranger[f.outer]
	}
	frame, _ := f.build(t)
	for range rapid.IntRange(0, 3).Draw(rt, "damages") {
		// Most of what is looked at is at the front.
		i := rapid.IntRange(0, min(len(frame), rapid.SampledFrom([]int{24, 80, len(frame)}).Draw(rt, "where"))-1).Draw(rt, "byte")
		frame[i] = rapid.OneOf(rapid.Byte(), rapid.SampledFrom([]byte{0, 1, 4, 6, 17, 41, 44, 47, 60, 0x45, 0x60, 0xff})).Draw(rt, "value")
	}
	if rapid.IntRange(0, 4).Draw(rt, "cut") == 0 {
		frame = frame[:rapid.IntRange(14, len(frame)).Draw(rt, "length")]
	}
	out, counted := through(t, d, frame)
	want, outcome, marked := w.unwrap(frame)
	counts := map[string]uint64{}
	if outcome != "" {
		counts[outcome]++
	}
	if marked {
		counts["marked"]++
	}
	if diff := cmp.Diff(counts, counted); diff != "" || !bytes.Equal(out, want) {
		rt.Fatalf("%x (-twin +program)\n%s\n%x is what the twin has, not\n%x", frame, diff, want, out)
	}
	return outcome
}

// FuzzDecap gives the program and its twin whatever comes to its mind.
func FuzzDecap(f *testing.F) {
	for _, by := range forms() {
		frame, _ := by.build(f)
		f.Add(frame)
	}
	d := program(f)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 2000 { // the kernel runs no program over them
			return
		}
		out, counted := through(t, d, frame)
		want, outcome, marked := w.unwrap(frame)
		counts := map[string]uint64{}
		if outcome != "" {
			counts[outcome]++
		}
		if marked {
			counts["marked"]++
		}
		if diff := cmp.Diff(counts, counted); diff != "" || !bytes.Equal(out, want) {
			t.Fatalf("%x (-twin +program)\n%s\n%x is what the twin has, not\n%x", frame, diff, want, out)
		}
	})
}

// TestDecapOptionsRefused lists what cannot be asked for.
func TestDecapOptionsRefused(t *testing.T) {
	for name, change := range map[string]func(*DecapOptions){
		"no interface":           func(o *DecapOptions) { o.Interfaces = nil },
		"no VIP":                 func(o *DecapOptions) { o.VIPs = nil },
		"everything as a VIP":    func(o *DecapOptions) { o.VIPs = []netip.Addr{netip.IPv4Unspecified()} },
		"a mapped VIP":           func(o *DecapOptions) { o.VIPs = []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1")} },
		"GUE and FOU on a port":  func(o *DecapOptions) { o.FOUPort = o.GUEPort },
		"a source that is none":  func(o *DecapOptions) { o.From = []netip.Prefix{{}} },
		"multicast for a VIP":    func(o *DecapOptions) { o.VIPs = []netip.Addr{netip.MustParseAddr("ff02::1")} },
		"a VIP that is no VIP":   func(o *DecapOptions) { o.VIPs = []netip.Addr{{}} },
		"a VIP of one interface": func(o *DecapOptions) { o.VIPs = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} },
	} {
		o := tunnels
		change(&o)
		if d, err := AttachDecap(o); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v %v", name, d, err)
		}
	}
}

// TestObjectsAreCurrent compares the sources with what the committed objects were
// compiled from; generate.sh -check compares the objects themselves.
func TestObjectsAreCurrent(t *testing.T) {
	want, err := os.ReadFile("sources.sha256")
	must(t, err)
	var got bytes.Buffer
	for _, name := range []string{"toa.c", "decap.c", "uoa.c", "abi.h", "maps.h", "option.h", "../dataplane/steer/abi.h", "generate.sh"} {
		b, err := os.ReadFile(name)
		must(t, err)
		fmt.Fprintf(&got, "%x  %s\n", sha256.Sum256(b), name)
	}
	if got.String() != string(want) {
		t.Errorf("a source changed: run go generate ./rs\nnow:\n%sgenerated from:\n%s", &got, want)
	}
}
