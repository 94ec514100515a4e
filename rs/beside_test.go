package rs

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/l4fwd/l4fwd/dataplane/steer"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestBeside: UOA and Decap cannot have one interface, which the second is told with the
// name of the first, but one can have a macvlan device on the other's.
func TestBeside(t *testing.T) {
	group := enter(t)
	r := &uoaRig{network: newNetwork(t)}
	at := netip.MustParseAddr("10.0.1.30")
	var d *Decap
	s0MAC := r.to
	must(t, r.server.Do(func() error {
		s0, err := netlink.LinkByName("s0")
		must(t, err)
		m0 := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "m0", ParentIndex: s0.Attrs().Index}, Mode: netlink.MACVLAN_MODE_PRIVATE}
		must(t, netlink.LinkAdd(m0))
		must(t, netlink.AddrAdd(m0, &netlink.Addr{IPNet: &net.IPNet{IP: at.AsSlice(), Mask: net.CIDRMask(32, 32)}}))
		must(t, netlink.LinkSetUp(m0))
		if d, err = AttachDecap(tunnels); err != nil {
			return err
		}
		o := UOAOptions{Interfaces: []string{"s0"}, Cgroup: group.Path, From: balancers, Clients: 1000, Timeout: time.Hour}
		if _, err := AttachUOA(o); !errors.Is(err, steer.ErrAttached) || !strings.Contains(err.Error(), "l4fwd_decap") {
			t.Errorf("both at one interface: %v", err)
		}
		o.Interfaces = []string{"m0"}
		if r.u, err = AttachUOA(o); err != nil {
			return err
		}
		link, err := netlink.LinkByName("m0")
		r.to = link.Attrs().HardwareAddr
		return err
	}))
	t.Cleanup(func() { noError(t, d.Close()) })
	t.Cleanup(func() { noError(t, r.u.Close()) })
	c := r.listenUDP("udp4", ":5000")
	x := uoaFrame{by: "protocol", client: client4, from: uoaFrom[testbed.V4], to: netip.AddrPortFrom(at, 5000), payload: "x"}
	r.send(x)
	if got := r.receive(c, "x"); got != client4 {
		t.Errorf("from %s", got)
	}
	r.answer(c, client4, x.from)
	before, err := d.Stats()
	must(t, err)
	f := form{by: "ipip", outer: testbed.V4, inner: testbed.V4, src: balancer[testbed.V4]}
	f.mac = s0MAC
	frame, _ := f.build(t)
	r.put(frame)
	until(t, "the tunnel's packet", func() bool { return d.counted(t, before)[f.counter()] == 1 })
}
