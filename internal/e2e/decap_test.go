package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// wrapping is an encapsulation as the configuration calls it, and what else a service
// says of it.
type wrapping struct {
	name  string
	extra string // lines of a service
	port  uint16 // of the server's UDP socket, if it is one
	size  [2]int // bytes that it adds, over IPv4 and IPv6
}

// wrappings are all of them.
var wrappings = []wrapping{
	{"vxlan", "vni: 7", 4789, [2]int{50, 70}},
	{"ipip", "", 0, [2]int{20, 40}},
	{"gre", "", 0, [2]int{24, 44}},
	{"gue", "", 6080, [2]int{32, 52}},
	{"fou", "encapsulation_port: 5555", 5555, [2]int{28, 48}},
}

// unwrap makes a real server, whose device is d, take packets out of the tunnel that
// comes to its address of a family: the kernel's VXLAN, or for what this kernel has
// no module the test itself, with the kernel's sockets before and its TCP behind.
func (wr wrapping) unwrap(t *testing.T, ns *testbed.Namespace, d *testbed.Device, f testbed.Family) {
	t.Helper()
	if wr.name == "vxlan" {
		// With the MAC address that l4fwd sends to.
		if err := d.VXLAN("vx"+f.String(), f, 7, wr.port, net.HardwareAddr{0x02, 0x6c, 0x34, 0x66, 0x77, 0x64}); err != nil {
			t.Fatal(err)
		}
		return
	}
	tun := openTun(t, ns)
	at := d.Addr(f)
	networks := []string{fmt.Sprintf("udp:%d", wr.port)}
	switch wr.name {
	case "ipip":
		networks = []string{"4", "41"}
	case "gre":
		networks = []string{"47"}
	}
	for _, n := range networks {
		network, address := "ip4:"+n, at.String()
		if f == testbed.V6 {
			network = "ip6:" + n
		}
		if wr.port != 0 {
			network, address = "udp", netip.AddrPortFrom(at, wr.port).String()
		}
		c, err := ns.ListenPacket(network, address)
		if err == nil {
			err = roomFor(c.(syscall.Conn))
		}
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		t.Cleanup(func() {
			_ = c.Close()
			<-done
		})
		go func() {
			defer close(done)
			wr.carry(t, c, tun)
		}()
	}
}

// roomFor lets a socket hold what all clients send at once.
func roomFor(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	})
	return errors.Join(err, set)
}

// byRS has `l4fwd rs decap` unwrap instead.
func (wr wrapping) byRS(t *testing.T, r *rig, i int) {
	t.Helper()
	path, err := testbed.Build(t.Context(), "./cmd/l4fwd", false)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"rs", "decap", "--dev", r.ServerDevs[i].Name, "--fou-port", "5555"}
	for _, f := range testbed.Families {
		args = append(args, "--from", r.LBServer.Addr(f).String())
		for i := range r.Options.ServerVIPs {
			args = append(args, "--vip", r.VIP(f, i).String())
		}
	}
	// It has to live until the cleanup, at which t's context is over.
	p, err := r.Topology.Servers[i].StartProcess(context.Background(), testbed.ProcessOptions{Path: path, Args: args, Ready: "ready"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Terminate(limit); err != nil {
			t.Error(err)
		}
	})
}

// carry writes what the tunnel's packets hold to the kernel. A raw IPv4 socket gives
// packets with their header to ReadFrom's callers without it.
func (wr wrapping) carry(t *testing.T, c net.PacketConn, tun *os.File) {
	buf := make([]byte, 1<<16)
	for {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		b := buf[:n]
		switch wr.name {
		case "gre":
			g := &layers.GRE{}
			if err := g.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil || len(g.Contents) != 4 {
				t.Errorf("GRE: %v, %x", err, b[:min(n, 8)])
				continue
			}
			b = g.Payload
		case "gue":
			if n < 4 || b[0] != 0 || b[1] != map[byte]byte{4: 4, 6: 41}[b[4]>>4] || b[2]|b[3] != 0 {
				t.Errorf("GUE: %x", b[:min(n, 8)])
				continue
			}
			b = b[4:]
		}
		if _, err := tun.Write(b); err != nil {
			t.Errorf("%s: %v, %x", wr.name, err, b[:min(len(b), 40)])
		}
	}
}

// openTun makes an interface by which the test gives a namespace's kernel packets.
func openTun(t *testing.T, ns *testbed.Namespace) *os.File {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "tun0"
	link := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN, NonPersist: true, Queues: 1,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_ONE_QUEUE}
	err := ns.Do(func() error { return netlink.LinkAdd(link) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = link.Fds[0].Close() })
	if err := ns.Netlink().LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	return link.Fds[0]
}
