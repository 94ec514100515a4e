package liveframes

import (
	"encoding/binary"
	"errors"
	"math"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"
)

var (
	macA = net.HardwareAddr{2, 0, 0, 0, 0, 0xa}
	macB = net.HardwareAddr{2, 0, 0, 0, 0, 0xb}
)

func someFrames(flows int) Frames {
	return Frames{
		SrcMAC: macA, DstMAC: macB, Flows: flows,
		Src: netip.MustParseAddr("10.1.0.2"), Dst: netip.MustParseAddrPort("10.1.0.100:53"),
	}
}

// maker runs the program on frames of garbage, not live, so that what comes out
// can be looked at.
type maker struct {
	prog *ebpf.Program
	out  []byte
}

// cleaner is *testing.T and *rapid.T.
type cleaner interface {
	rapid.TB
	Cleanup(func())
}

func newMaker(t cleaner, f Frames, pps int) *maker {
	t.Helper()
	p, state, err := newProgram(&f, 1, pps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(p.Close(), state.Close()); err != nil {
			t.Error(err)
		}
	})
	return &maker{prog: p, out: make([]byte, FrameLen+64)}
}

const xdpRedirect = 4

func (m *maker) run(t rapid.TB, garbage byte) (verdict uint32, frame []byte) {
	t.Helper()
	in := make([]byte, FrameLen)
	for i := range in {
		in[i] = garbage
	}
	o := ebpf.RunOptions{Data: in, DataOut: m.out}
	verdict, err := m.prog.Run(&o)
	if err != nil {
		t.Fatal(err)
	}
	return verdict, o.DataOut
}

// reference is the frame of a flow as gopacket builds it.
func reference(t rapid.TB, f *Frames, flow int) []byte {
	t.Helper()
	var src [4]byte
	binary.BigEndian.PutUint32(src[:], f.first()+uint32(flow/portsOfAddress))
	eth := &layers.Ethernet{SrcMAC: f.SrcMAC, DstMAC: f.DstMAC, EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{
		Version: 4, TTL: 64, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolUDP,
		SrcIP: src[:], DstIP: f.Dst.Addr().AsSlice(),
	}
	udp := &layers.UDP{SrcPort: layers.UDPPort(FirstPort + flow%portsOfAddress), DstPort: layers.UDPPort(f.Dst.Port())}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	o := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(b, o, eth, ip, udp, gopacket.Payload("l4fwd live frame!!")); err != nil {
		t.Fatal(err)
	}
	frame := b.Bytes()
	if binary.BigEndian.Uint16(frame[offSum:]) == 0 {
		// gopacket leaves out the last step of RFC 768.
		binary.BigEndian.PutUint16(frame[offSum:], 0xffff)
	}
	return frame
}

// flowOf is the flow that a frame says it is of.
func flowOf(f *Frames, frame []byte) int {
	return int(binary.BigEndian.Uint32(frame[offSrc:])-f.first())*portsOfAddress +
		int(binary.BigEndian.Uint16(frame[offPort:])) - FirstPort
}

// Whatever a frame held before, it comes out as gopacket would build it.
func TestFrames(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		mac := rapid.SliceOfN(rapid.Byte(), 6, 6)
		addr := rapid.Custom(func(rt *rapid.T) netip.Addr {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], rapid.Uint32Max(math.MaxUint32-40_000).Draw(rt, "address"))
			return netip.AddrFrom4(b)
		})
		f := Frames{
			SrcMAC: mac.Draw(rt, "from"), DstMAC: mac.Draw(rt, "to"), Src: addr.Draw(rt, "src"),
			Dst:   netip.AddrPortFrom(addr.Draw(rt, "dst"), rapid.Uint16().Draw(rt, "port")),
			Flows: rapid.SampledFrom([]int{1, 2, 256, 50_000, portsOfAddress, portsOfAddress + 1, 1_000_000, math.MaxInt32}).Draw(rt, "flows"),
		}
		m := newMaker(rt, f, 0)
		for range 20 {
			v, frame := m.run(rt, rapid.Byte().Draw(rt, "garbage"))
			flow := flowOf(&f, frame)
			if v != xdpRedirect || flow < 0 || flow >= f.Flows {
				rt.Fatalf("verdict %d, flow %d of %d", v, flow, f.Flows)
			}
			if d := cmp.Diff(reference(rt, &f, flow), frame); d != "" {
				rt.Fatalf("flow %d: (-gopacket +program)\n%s", flow, d)
			}
		}
	})
}

// A datagram whose checksum comes to zero says 0xffff.
func TestZeroChecksum(t *testing.T) {
	f := someFrames(1)
	f.Dst = netip.AddrPortFrom(f.Dst.Addr(), 0)
	// One more in the port is one less in the checksum.
	f.Dst = netip.AddrPortFrom(f.Dst.Addr(), binary.BigEndian.Uint16(reference(t, &f, 0)[offSum:]))
	_, frame := newMaker(t, f, 0).run(t, 0)
	if got := binary.BigEndian.Uint16(frame[offSum:]); got != 0xffff {
		t.Fatalf("checksum %#04x, want 0xffff", got)
	}
	if d := cmp.Diff(reference(t, &f, 0), frame); d != "" {
		t.Error(d)
	}
}

// Flows are drawn evenly.
func TestSpread(t *testing.T) {
	const flows, each = 256, 100
	f := someFrames(flows)
	m := newMaker(t, f, 0)
	var hits [flows]int
	for range flows * each {
		_, frame := m.run(t, 0)
		hits[flowOf(&f, frame)]++
	}
	for flow, n := range hits {
		// Six standard deviations.
		if n < each-60 || n > each+60 {
			t.Errorf("flow %d: %d packets of about %d", flow, n, each)
		}
	}
}

// A frame that is too early for the rate is dropped, not sent.
func TestPace(t *testing.T) {
	m := newMaker(t, someFrames(1), 1) // one a second
	var got [2]uint32
	for i := range got {
		got[i], _ = m.run(t, 0)
	}
	if got != [2]uint32{xdpRedirect, xdpDrop} {
		t.Errorf("verdicts %v", got)
	}
}

func TestBadFrames(t *testing.T) {
	cases := map[string]func(*Frames){
		"short MAC":     func(f *Frames) { f.SrcMAC = macA[:5] },
		"no MAC":        func(f *Frames) { f.DstMAC = nil },
		"no source":     func(f *Frames) { f.Src = netip.Addr{} },
		"IPv6":          func(f *Frames) { f.Dst = netip.MustParseAddrPort("[2001:db8::1]:53") },
		"no flow":       func(f *Frames) { f.Flows = 0 },
		"past the end":  func(f *Frames) { f.Src, f.Flows = netip.MustParseAddr("255.255.255.255"), portsOfAddress+1 },
		"too many":      func(f *Frames) { f.Flows = math.MaxInt32 + 1 },
		"mapped source": func(f *Frames) { f.Src = netip.MustParseAddr("::ffff:10.1.0.2") },
	}
	for name, spoil := range cases {
		f := someFrames(1)
		if err := f.check(); err != nil {
			t.Fatal(err)
		}
		if spoil(&f); !errors.Is(f.check(), errFrames) {
			t.Errorf("%s: %v", name, f.check())
		}
	}
}
