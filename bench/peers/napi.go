package peers

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Of linux/netdev.h: the generic netlink family of network devices.
const (
	netdevFamily      = "netdev"
	netdevCmdNAPIGet  = 11 // NETDEV_CMD_NAPI_GET
	netdevNAPIIfindex = 1  // NETDEV_A_NAPI_IFINDEX
	netdevNAPIPID     = 4  // NETDEV_A_NAPI_PID
)

// genlHeader is struct genlmsghdr: command, version, two bytes of zero. That of
// package nl leaves the last two to chance, which the kernel refuses.
type genlHeader [4]byte

// Len and Serialize implement nl.NetlinkRequestData.
func (h genlHeader) Len() int          { return len(h) }
func (h genlHeader) Serialize() []byte { return h[:] }

// napiThreads are the process ids of the threads that run a device's NAPI. Their
// names say the device's too, but other namespaces have devices of that name.
func napiThreads(d *testbed.Device) (pids []int, err error) {
	err = d.NS.Do(func() error {
		family, err := netlink.GenlFamilyGet(netdevFamily)
		if err != nil {
			return fmt.Errorf("netlink family %s: %w", netdevFamily, err)
		}
		req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_DUMP)
		req.AddData(genlHeader{netdevCmdNAPIGet, uint8(family.Version)})
		req.AddData(nl.NewRtAttr(netdevNAPIIfindex, nl.Uint32Attr(uint32(d.Index))))
		msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
			if err != nil {
				return err
			}
			for _, a := range attrs {
				if a.Attr.Type == netdevNAPIPID && len(a.Value) == 4 {
					pids = append(pids, int(binary.NativeEndian.Uint32(a.Value)))
				}
			}
		}
		return nil
	})
	return pids, err
}
