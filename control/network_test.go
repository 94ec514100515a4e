package control

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/l4fwd/l4fwd/config"
)

// TestTagOf: which devices are VLANs of a NIC, by what the kernel says of them and by
// what the configuration does.
func TestTagOf(t *testing.T) {
	d := &Daemon{cfg: &config.Config{Interfaces: []config.Interface{
		{Name: "eth1", VLANs: []config.VLAN{{ID: 20, Interface: "br20"}, {ID: 30, Interface: "eth2.40"}}}, {Name: "eth2"},
	}}}
	eth1, eth2 := &link{name: "eth1", id: 0, ifindex: 3}, &link{name: "eth2", id: 1, ifindex: 4}
	attrs := func(name string, parent int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Name: name, ParentIndex: parent}
	}
	for _, tt := range []struct {
		dev        netlink.Link
		one, other uint32 // of eth1 and eth2
	}{
		{&netlink.Vlan{LinkAttrs: attrs("eth1.10", 3), VlanId: 10, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}, 0x8100_000a, 0},
		{&netlink.Vlan{LinkAttrs: attrs("eth2.10", 4), VlanId: 10}, 0, 0x8100_000a},
		{&netlink.Vlan{LinkAttrs: attrs("q", 4), VlanId: 4094, VlanProtocol: netlink.VLAN_PROTOCOL_8021AD}, 0, 0x88a8_0ffe},
		{&netlink.Vlan{LinkAttrs: attrs("eth2.40", 4), VlanId: 40}, 0x8100_001e, 0}, // named otherwise
		{&netlink.Bridge{LinkAttrs: attrs("br20", 0)}, 0x8100_0014, 0},
		{&netlink.Bridge{LinkAttrs: attrs("br21", 3)}, 0, 0},
		{&netlink.Veth{LinkAttrs: attrs("v", 3)}, 0, 0}, // whose parent is its other end
	} {
		if one, other := d.tagOf(eth1, tt.dev), d.tagOf(eth2, tt.dev); one != tt.one || other != tt.other {
			t.Errorf("%s: %#x and %#x, want %#x and %#x", tt.dev.Attrs().Name, one, other, tt.one, tt.other)
		}
	}
}

// TestJoinNetworks: two interfaces of one VLAN are one network.
func TestJoinNetworks(t *testing.T) {
	a, b, c := netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("10.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")
	l := &link{}
	for _, n := range []network{{}, {7, []netip.Prefix{a}}, {8, []netip.Prefix{b}}, {7, []netip.Prefix{c}}} {
		l.join(n)
	}
	want := []network{{}, {7, []netip.Prefix{a, c}}, {8, []netip.Prefix{b}}}
	if diff := cmp.Diff(want, l.networks, cmp.AllowUnexported(network{}), cmp.Comparer(func(x, y netip.Prefix) bool { return x == y })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := want[1]; !n.reaches(netip.MustParseAddr("2001:db8::9")) || n.reaches(netip.MustParseAddr("10.0.2.9")) {
		t.Errorf("%+v reaches another's", n)
	}
}
