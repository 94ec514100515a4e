package announce

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	macHere = net.HardwareAddr{2, 0, 0, 0, 2, 1}
	macPeer = net.HardwareAddr{2, 0, 0, 0, 2, 2}
	macOld  = net.HardwareAddr{2, 0, 0, 0, 2, 3}
	vip4    = netip.MustParseAddr("192.0.2.10")
	vip6    = netip.MustParseAddr("2001:db8::12:3456")
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// in runs fn on a thread in the namespace.
func in(t *testing.T, ns netns.NsHandle, fn func() error) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	must(t, err)
	defer home.Close()
	must(t, netns.Set(ns))
	err = fn()
	must(t, netns.Set(home))
	must(t, err)
}

// pair is a veth pair "data0" between two nameless namespaces.
func pair(t *testing.T) (here, peer netns.NsHandle, peerHandle *netlink.Handle) {
	t.Helper()
	home, err := netns.Get()
	must(t, err)
	defer home.Close()
	for _, ns := range []*netns.NsHandle{&here, &peer} {
		in(t, home, func() error { *ns, err = netns.New(); return err })
		t.Cleanup(func() { ns.Close() })
	}
	h, err := netlink.NewHandleAt(here, unix.NETLINK_ROUTE)
	must(t, err)
	defer h.Close()
	p, err := netlink.NewHandleAt(peer, unix.NETLINK_ROUTE)
	must(t, err)
	t.Cleanup(p.Close)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = "data0", macHere
	must(t, h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "data0", PeerHardwareAddr: macPeer, PeerNamespace: netlink.NsFd(int(peer))}))
	for _, s := range []*netlink.Handle{h, p} {
		l, err := s.LinkByName("data0")
		must(t, err)
		must(t, s.LinkSetUp(l))
	}
	return here, peer, p
}

func index(t *testing.T, ns netns.NsHandle) int {
	t.Helper()
	i := 0
	in(t, ns, func() error {
		l, err := netlink.LinkByName("data0")
		if err == nil {
			i = l.Attrs().Index
		}
		return err
	})
	return i
}

func open(t *testing.T, ns netns.NsHandle) *Announcer {
	t.Helper()
	a, err := OpenAt(ns, index(t, ns), macHere)
	must(t, err)
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	a.Spacing = 20 * time.Millisecond
	return a
}

// TestFrames lets gopacket judge.
func TestFrames(t *testing.T) {
	t.Run("ARP", func(t *testing.T) {
		frame, to := frameFor(Place{Addr: vip4}, [6]byte(macHere))
		p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
		if !ok || p.ErrorLayer() != nil || to != broadcast {
			t.Fatalf("%v", p)
		}
		want := layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: layers.ARPRequest,
			SourceHwAddress: macHere, SourceProtAddress: vip4.AsSlice(), DstHwAddress: make([]byte, 6), DstProtAddress: vip4.AsSlice(),
		}
		arp.BaseLayer = layers.BaseLayer{}
		if diff := cmp.Diff(want, *arp); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
	t.Run("NA", func(t *testing.T) {
		frame, to := frameFor(Place{Addr: vip6}, [6]byte(macHere))
		eth := &layers.Ethernet{SrcMAC: macHere, DstMAC: net.HardwareAddr(to[:]), EthernetType: layers.EthernetTypeIPv6}
		ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: vip6.AsSlice(), DstIP: net.ParseIP("ff02::1")}
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborAdvertisement, 0)}
		must(t, icmp.SetNetworkLayerForChecksum(ip))
		na := &layers.ICMPv6NeighborAdvertisement{
			Flags: 0x20, TargetAddress: vip6.AsSlice(),
			Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: macHere}},
		}
		want := gopacket.NewSerializeBuffer()
		must(t, gopacket.SerializeLayers(want, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, icmp, na))
		if diff := cmp.Diff(want.Bytes(), frame); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

// TestTagged: gopacket finds the tag, and behind it what an untagged frame has.
func TestTagged(t *testing.T) {
	for _, vip := range []netip.Addr{vip4, vip6} {
		plain, to := frameFor(Place{Addr: vip}, [6]byte(macHere))
		tagged, tooTo := frameFor(Place{vip, 0x8100<<16 | 4094}, [6]byte(macHere))
		p := gopacket.NewPacket(tagged, layers.LayerTypeEthernet, gopacket.Default)
		tag, ok := p.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q)
		if !ok || p.ErrorLayer() != nil || to != tooTo || tag.VLANIdentifier != 4094 || tag.Priority != 0 || tag.DropEligible {
			t.Fatalf("%v", p)
		}
		if diff := cmp.Diff(plain, append(tagged[:12:12], tagged[16:]...)); diff != "" {
			t.Errorf("%v (-untagged +tagged):\n%s", vip, diff)
		}
	}
}

// TestAnnounceOnTheWire reads at the peer what was sent.
func TestAnnounceOnTheWire(t *testing.T) {
	here, peer, _ := pair(t)
	fd := -1
	in(t, peer, func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	})
	defer unix.Close(fd)
	must(t, open(t, here).Announce(context.Background(), []Place{{Addr: vip4}, {Addr: vip6}}))
	arp, _ := frameFor(Place{Addr: vip4}, [6]byte(macHere))
	na, _ := frameFor(Place{Addr: vip6}, [6]byte(macHere))
	count := [2]int{}
	b := make([]byte, 2048)
	for count != [2]int{Repeats, Repeats} {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			t.Fatalf("%v after %v announcements", err, count)
		}
		for i, want := range [][]byte{arp, na} {
			if bytes.Equal(b[:n], want) {
				count[i]++
			}
		}
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// TestPeerMovesOver: the peer's kernel knew the address elsewhere.
func TestPeerMovesOver(t *testing.T) {
	for _, vip := range []netip.Addr{vip4, vip6} {
		t.Run(vip.String(), func(t *testing.T) {
			here, peer, p := pair(t)
			i := index(t, peer)
			own := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1).To4(), Mask: net.CIDRMask(24, 32)}}
			must(t, p.AddrAdd(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: i}}, own))
			must(t, p.NeighSet(&netlink.Neigh{LinkIndex: i, IP: vip.AsSlice(), HardwareAddr: macOld, State: unix.NUD_REACHABLE}))
			must(t, open(t, here).Announce(context.Background(), []Place{{Addr: vip}}))
			var list []netlink.Neigh
			for range 100 {
				var err error
				list, err = p.NeighList(i, netlink.FAMILY_ALL)
				must(t, err)
				for _, n := range list {
					if n.IP.Equal(vip.AsSlice()) && bytes.Equal(n.HardwareAddr, macHere) {
						return
					}
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Errorf("the peer did not move over: %v", list)
		})
	}
}

// TestJoin reads the NIC's filter back.
func TestJoin(t *testing.T) {
	here, _, _ := pair(t)
	twin := netip.MustParseAddr("2001:db8:1::12:3456") // the same group
	listens := func() (yes bool) {
		in(t, here, func() error {
			b, err := os.ReadFile("/proc/thread-self/net/dev_mcast")
			yes = strings.Contains(string(b), "3333ff123456")
			return err
		})
		return yes
	}
	a := open(t, here)
	both := []netip.Addr{vip4, vip6, twin}
	must(t, a.Join(both))
	must(t, a.Join(both))
	if !listens() {
		t.Error("not joined")
	}
	must(t, a.Leave([]netip.Addr{vip6}))
	if !listens() {
		t.Error("left a group that another address needs")
	}
	must(t, a.Leave(both))
	if listens() {
		t.Error("not left")
	}
	must(t, a.Join(both))
	must(t, a.Close())
	if listens() {
		t.Error("not left on close")
	}
}

func TestErrors(t *testing.T) {
	here, _, _ := pair(t)
	a := open(t, here)
	for _, bad := range []netip.Addr{{}, netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("::"), netip.MustParseAddr("ff02::1")} {
		if err := a.Announce(context.Background(), []Place{{Addr: bad}}); err == nil {
			t.Errorf("announces %v", bad)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := a.Announce(ctx, []Place{{Addr: vip4}}); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancellation: %v", err)
	}
	must(t, a.Close())
	if err := a.Announce(context.Background(), []Place{{Addr: vip4}}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := a.Join([]netip.Addr{vip6}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Join after Close: %v", err)
	}
	if _, err := Open(1, net.HardwareAddr{1, 2}); err == nil {
		t.Error("opens with half a MAC address")
	}
	if _, err := OpenAt(here, 99999, macHere); !errors.Is(err, unix.ENODEV) {
		t.Errorf("interface that does not exist: %v", err)
	}
}
