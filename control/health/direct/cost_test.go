package direct

import (
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
	"github.com/l4fwd/l4fwd/nat"
)

// BenchmarkCarry is what a packet of a check costs this process on its way, from the
// socket by the device and a VXLAN tunnel to a veth, all CPU time taken together.
func BenchmarkCarry(b *testing.B) {
	ns, err := testbed.NewNamespace("direct")
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := ns.Close(); err != nil {
			b.Error(err)
		}
	}()
	if err := ns.Do(func() error { return carry(b) }); err != nil {
		b.Fatal(err)
	}
}

func carry(b *testing.B) error {
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	for _, name := range []string{"v0", "v1"} {
		dev, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(dev); err != nil {
			return err
		}
		if name == "v0" {
			pair.Index = dev.Attrs().Index
		}
	}
	own := netip.MustParseAddr("10.5.5.5") // of 127.0.0.0/8 nothing leaves by a device
	if err := netlink.AddrAdd(pair, &netlink.Addr{IPNet: netlink.NewIPNet(own.AsSlice())}); err != nil {
		return err
	}
	o := options(new(atomic.Int32))
	o.Interface = func(uint16) int { return pair.Index }
	c, err := Open(o)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	p := c.Path(nat.Tunnel{Kind: nat.VXLAN, Port: 4789, MAC: mac2}, beyond, own)
	if err := p.Prepare("udp4", fd, 0); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 10}, Port: 53}); err != nil {
		return err
	}
	var before, after unix.Rusage
	payload := make([]byte, 64)
	b.ResetTimer()
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		return err
	}
	for i := range b.N {
		if _, err := unix.Write(fd, payload); err != nil {
			return os.NewSyscallError("write", err)
		}
		if i%100 == 99 {
			time.Sleep(time.Millisecond) // no more than the device holds
		}
	}
	time.Sleep(50 * time.Millisecond)
	b.StopTimer()
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		return err
	}
	used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	dev, err := netlink.LinkByIndex(pair.Index)
	if err != nil {
		return err
	}
	b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/packet")
	b.ReportMetric(100*float64(dev.Attrs().Statistics.TxPackets)/float64(b.N), "%sent")
	return nil
}
