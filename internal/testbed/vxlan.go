package testbed

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// VXLAN makes an interface by which the namespace's kernel unwraps what comes to the
// device's first address of a family in VXLAN (RFC 7348), and brings it up. mac is its
// address, which the Ethernet frame within must bear. Families and names differ where
// one namespace has several. It stays until the namespace is closed.
func (d *Device) VXLAN(name string, f Family, vni int, port uint16, mac net.HardwareAddr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	link := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, VtepDevIndex: d.Index, Port: int(port), SrcAddr: d.Addr(f).AsSlice()}
	if err := d.NS.nl.LinkAdd(link); err != nil {
		return fmt.Errorf("VXLAN interface %s in %s: %w", name, d.NS.role, err)
	}
	if err := d.NS.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("VXLAN interface %s in %s up: %w", name, d.NS.role, err)
	}
	return nil
}
