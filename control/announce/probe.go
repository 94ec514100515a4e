package announce

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// MaxProbes bounds the addresses of one Probe.
const MaxProbes = 256

// Probe asks on an interface who has addresses, by ARP probes (RFC 5227 section 2.1.1)
// and neighbour solicitations as of duplicate address detection (RFC 4862 section
// 5.4.2), which tell nobody an address of the asker's, and returns who has answered
// within wait. It works in the network namespace of the calling thread and needs
// CAP_NET_RAW. mac is the interface's own.
func Probe(ctx context.Context, ifindex int, mac net.HardwareAddr, addrs []netip.Addr, wait time.Duration) (map[netip.Addr]net.HardwareAddr, error) {
	if len(addrs) > MaxProbes || len(mac) != 6 {
		return nil, fmt.Errorf("probing on interface %d: %d addresses, MAC address %v: at most %d, and an Ethernet one", ifindex, len(addrs), mac, MaxProbes)
	}
	found := make(map[netip.Addr]net.HardwareAddr)
	var v4, v6 []netip.Addr
	for _, a := range addrs {
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	end := time.Now().Add(wait)
	ears := make([]unix.PollFd, 0, 2)
	defer func() {
		for _, e := range ears {
			_ = unix.Close(int(e.Fd)) // nothing was written that could be lost
		}
	}()
	for _, ask := range []struct {
		addrs []netip.Addr
		proto uint16
	}{{v4, unix.ETH_P_ARP}, {v6, unix.ETH_P_IPV6}} {
		if len(ask.addrs) == 0 {
			continue
		}
		fd, err := listenTo(ifindex, ask.proto)
		if err != nil {
			return nil, fmt.Errorf("probing on interface %d: %w", ifindex, err)
		}
		ears = append(ears, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		for _, a := range ask.addrs {
			frame := probeFor(a, [6]byte(mac))
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifindex, Halen: 6, Addr: [8]byte(frame[:8])}); err != nil {
				return nil, fmt.Errorf("probing for %v on interface %d: %w", a, ifindex, err)
			}
		}
	}
	for left := wait; left > 0 && ctx.Err() == nil; left = time.Until(end) {
		n, err := unix.Poll(ears, int(min(left, 100*time.Millisecond).Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("probing on interface %d: %w", ifindex, err)
		}
		for i := 0; n > 0 && i < len(ears); i++ {
			if ears[i].Revents != 0 {
				hear(int(ears[i].Fd), addrs, found)
			}
		}
	}
	return found, ctx.Err()
}

// listenTo opens a packet socket that does not block.
func listenTo(ifindex int, proto uint16) (int, error) {
	wire := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, proto))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifindex, Protocol: wire}); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// hear reads what has come, and notes who has an address.
func hear(fd int, addrs []netip.Addr, found map[netip.Addr]net.HardwareAddr) {
	var b [256]byte
	for {
		n, from, err := unix.Recvfrom(fd, b[:], 0)
		if err != nil {
			return
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if a, mac, ok := claimIn(b[:n]); ok && slices.Contains(addrs, a) {
			found[a] = mac
		}
	}
}

// claimIn is the address that a frame says somebody has, and who: an ARP packet with a
// sender, or a neighbour advertisement.
func claimIn(f []byte) (a netip.Addr, mac net.HardwareAddr, ok bool) {
	if len(f) < 14 {
		return a, nil, false
	}
	switch h := f[14:]; binary.BigEndian.Uint16(f[12:]) {
	case unix.ETH_P_ARP:
		if len(h) < 28 || binary.BigEndian.Uint16(h) != 1 || binary.BigEndian.Uint16(h[2:]) != unix.ETH_P_IP {
			return a, nil, false
		}
		a = netip.AddrFrom4([4]byte(h[14:]))
		return a, slices.Clone(net.HardwareAddr(h[8:14])), !a.IsUnspecified()
	case unix.ETH_P_IPV6:
		const advertisement = 136
		if len(h) < 40+24 || h[6] != unix.IPPROTO_ICMPV6 || h[7] != 255 || h[40] != advertisement {
			return a, nil, false
		}
		return netip.AddrFrom16([16]byte(h[48:])), slices.Clone(net.HardwareAddr(f[6:12])), true
	}
	return a, nil, false
}

// probeFor asks who has an address, in the name of nobody.
func probeFor(a netip.Addr, mac [6]byte) []byte {
	if a.Is4() {
		f := gratuitousARP(a, mac)
		clear(f[14+14:][:4]) // the sender's address
		return f
	}
	const icmpLen = 24
	ip, to := a.As16(), solicitedNodeHW(a)
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], ip[13:])
	b := ethernet(to, mac, unix.ETH_P_IPV6, 40+icmpLen)
	b = append(b, 0x60, 0, 0, 0, 0, icmpLen, unix.IPPROTO_ICMPV6, 255)
	b = append(b, make([]byte, 16)...)
	b = append(b, group[:]...)
	b = append(b, 135, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, ip[:]...)
	icmp := b[14+40:]
	binary.BigEndian.PutUint16(icmp[2:], checksum([16]byte{}, group, icmp))
	return b
}
