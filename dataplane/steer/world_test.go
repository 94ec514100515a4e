package steer

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// enterNamespace moves the test's goroutine into a new network namespace
// without a name: it is gone with its last user, also when the test dies.
func enterNamespace(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	orig, err := netns.Get()
	if err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("new network namespace (the tests need root): %v", err)
	}
	_ = ns.Close()
	// The kernel's own solicitations and reports would move the counters.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil {
		t.Fatalf("silence IPv6: %v", err)
	}
	t.Cleanup(func() {
		if err := netns.Set(orig); err != nil {
			t.Errorf("back to the old network namespace: %v", err)
			return // the thread stays locked and dies with the goroutine
		}
		_ = orig.Close()
		runtime.UnlockOSThread()
	})
}

// vethQueues is how many queues each end has, each way.
const vethQueues = 2

// newVeth makes a veth pair in the current namespace, both ends up.
func newVeth(t testing.TB, mtu int) (a, b netlink.Link) {
	t.Helper()
	name := fmt.Sprintf("steer%d", os.Getpid()%100000)
	err := netlink.LinkAdd(&netlink.Veth{PeerName: name + "b", PeerNumTxQueues: vethQueues, PeerNumRxQueues: vethQueues,
		LinkAttrs: netlink.LinkAttrs{Name: name + "a", MTU: mtu, NumTxQueues: vethQueues, NumRxQueues: vethQueues}})
	if err != nil {
		t.Fatalf("add veth: %v", err)
	}
	ends := make([]netlink.Link, 2)
	for i, end := range []string{name + "a", name + "b"} {
		l, err := netlink.LinkByName(end)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err == nil {
			l, err = netlink.LinkByName(end)
		}
		if err != nil {
			t.Fatalf("veth %s: %v", end, err)
		}
		ends[i] = l
	}
	return ends[0], ends[1]
}

func load(t testing.TB, o Options) *Steer {
	t.Helper()
	s, err := Load(o)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// family are the addresses the tests talk about, of one IP version.
type family struct {
	v6                                          bool
	vip, local, host, client, backend, stranger netip.Addr
}

var families = map[string]family{
	"ipv4": {
		vip: netip.MustParseAddr("192.0.2.10"), local: netip.MustParseAddr("10.0.1.10"),
		host: netip.MustParseAddr("192.0.2.1"), client: netip.MustParseAddr("198.51.100.7"),
		backend: netip.MustParseAddr("10.0.1.20"), stranger: netip.MustParseAddr("192.0.2.99"),
	},
	"ipv6": {v6: true,
		vip: netip.MustParseAddr("2001:db8::10"), local: netip.MustParseAddr("2001:db8:1::10"),
		host: netip.MustParseAddr("2001:db8::1"), client: netip.MustParseAddr("2001:db8:ff::7"),
		backend: netip.MustParseAddr("2001:db8:1::20"), stranger: netip.MustParseAddr("2001:db8::99"),
	},
}

const (
	rangeLo = 61000
	rangeHi = 61999
)

// testRules are about both families: VIP and local address the host does not
// have, a host address with two services and a port range, two DNAT backends.
func testRules() Rules {
	var r Rules
	for _, f := range families {
		r.Addrs = append(r.Addrs, f.vip, f.local)
		r.Services = append(r.Services,
			ServiceRule{Addr: f.host, Proto: 6, Port: 80}, ServiceRule{Addr: f.host, Proto: 17, Port: 53})
		r.LocalRanges = append(r.LocalRanges, RangeRule{Addr: f.host, Lo: rangeLo, Hi: rangeHi})
		r.Backends = append(r.Backends,
			ServiceRule{Addr: f.backend, Proto: 6, Port: 8080}, ServiceRule{Addr: f.backend, Proto: 17, Port: 53})
		r.HostAddrs = append(r.HostAddrs, f.host)
	}
	return r
}

var (
	nicMAC   = net.HardwareAddr{0x02, 0x11, 0x22, 0x33, 0x44, 0x55}
	otherMAC = net.HardwareAddr{0x02, 0x11, 0x22, 0x33, 0x44, 0x56}
	peerMAC  = net.HardwareAddr{0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee}
)

// frame serializes layers, lengths and checksums filled in.
func frame(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatalf("serialize: %v", err)
	}
	return bytes.Clone(buf.Bytes())
}

func eth(dst net.HardwareAddr, typ layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: peerMAC, DstMAC: dst, EthernetType: typ}
}

// tagged returns frame behind VLAN tags of the given types.
func tagged(frame []byte, types ...uint16) []byte {
	out := bytes.Clone(frame[:12])
	for i, typ := range types {
		out = append(out, byte(typ>>8), byte(typ), 0x20, byte(100+i))
	}
	return append(out, frame[12:]...)
}

// bench is a loaded program with a socket on queue 0, for test runs.
type bench struct {
	*Steer
	nic *NIC
	x   *xsk
}

func newBench(t testing.TB, o Options) *bench {
	t.Helper()
	enterNamespace(t)
	a, _ := newVeth(t, 1500)
	b := &bench{Steer: load(t, o)}
	nic, err := b.Attach(a.Attrs().Index, nicMAC, Generic)
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	b.nic, b.x = nic, newXSK(t, a.Attrs().Index, 0)
	if err := nic.SetSocket(0, b.x.fd); err != nil {
		t.Fatalf("SetSocket: %v", err)
	}
	return b
}

const (
	xdpDrop     = 1
	xdpPass     = 2
	xdpRedirect = 4
)

// run gives one frame to the program and returns its action.
func (b *bench) run(f []byte) (uint32, error) { return b.runWith(f, nil) }

// runOn is run as if the frame had come in on a queue of an interface.
func (b *bench) runOn(f []byte, ifindex int, queue uint32) (uint32, error) {
	return b.runWith(f, xdpMD{DataEnd: uint32(len(f)), Ifindex: uint32(ifindex), Queue: queue})
}

// xdpMD is struct xdp_md of the kernel.
type xdpMD struct{ Data, DataEnd, Meta, Ifindex, Queue, Egress uint32 }

func (b *bench) runWith(f []byte, md any) (uint32, error) {
	out := make([]byte, len(f)+256)
	opts := ebpf.RunOptions{Data: f, DataOut: out, Repeat: 1, Context: md}
	action, err := b.nic.objs.L4fwdSteer.Run(&opts)
	if err != nil {
		return 0, fmt.Errorf("test run of %d bytes: %w", len(f), err)
	}
	if !bytes.Equal(f, opts.DataOut) {
		return 0, fmt.Errorf("frame changed from %x to %x", f, opts.DataOut)
	}
	return action, nil
}

// outcome runs one frame and returns the counter it moved, having checked that
// the action fits and that no other counter moved.
func (b *bench) outcome(t testing.TB, f []byte) Counter {
	t.Helper()
	before, err := b.nic.Stats()
	if err != nil {
		t.Fatal(err)
	}
	action, err := b.run(f)
	if err != nil {
		t.Fatal(err)
	}
	after, err := b.nic.Stats()
	if err != nil {
		t.Fatal(err)
	}
	moved := Counter(NumCounters)
	for c := range after {
		switch after[c] - before[c] {
		case 0:
		case 1:
			if moved != Counter(NumCounters) {
				t.Fatalf("two counters moved: %s and %s", moved, Counter(c))
			}
			moved = Counter(c)
		default:
			t.Fatalf("%s moved by %d", Counter(c), after[c]-before[c])
		}
	}
	want := uint32(xdpRedirect)
	switch {
	case moved < TakeAddress:
		want = xdpPass
	case moved == DropNoSocket:
		want = xdpDrop
	}
	if action != want {
		t.Fatalf("%s with action %d, want %d", moved, action, want)
	}
	return moved
}
