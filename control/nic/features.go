package nic

import (
	"encoding/binary"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// XDPZeroCopy is the bit of XDPFeatures that says that AF_XDP sockets need no copy
// (NETDEV_XDP_ACT_XSK_ZEROCOPY in linux/netdev.h).
const XDPZeroCopy = 8

// The netdev family of generic netlink (linux/netdev.h).
const (
	netdevFamily      = "netdev"
	netdevCmdGet      = 1
	netdevAttrIfindex = 1
	netdevAttrXDP     = 3
)

// XDPFeatures is what the driver of an interface says it can do with XDP, as bits; known
// is false where the kernel does not tell, as those before 6.3. It works in the network
// namespace of the calling thread.
func XDPFeatures(ifindex int) (features uint64, known bool) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if err != nil {
		return 0, false
	}
	q := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	q.AddData(&nl.Genlmsg{Command: netdevCmdGet, Version: 1})
	q.AddData(nl.NewRtAttr(netdevAttrIfindex, nl.Uint32Attr(uint32(ifindex))))
	all, err := q.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, false
	}
	for _, m := range all {
		if len(m) < nl.SizeofGenlmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return 0, false
		}
		for _, a := range attrs {
			if a.Attr.Type == netdevAttrXDP && len(a.Value) >= 8 {
				return binary.NativeEndian.Uint64(a.Value), true
			}
		}
	}
	return 0, false
}
