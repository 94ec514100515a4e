package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestNAT64: IPv6 clients get answers from IPv4 servers, beside IPv4 clients of
// the same servers by the same local addresses, and meet nobody but the VIP.
func TestNAT64(t *testing.T) {
	rows := []scene{{false, 1, fullNAT}, {true, 2, fullNAT}}
	if !testing.Short() {
		rows = append(rows, scene{true, 1, fullNAT}, scene{false, 2, fullNAT})
	}
	for _, s := range rows {
		t.Run(s.String(), func(t *testing.T) {
			z := load()
			r := network(t, testbed.TopologyOptions{OneArm: s.oneArm, Queues: s.workers}, testbed.SnifferOptions{Every: z.sampled})
			r.toa = true
			r.nat64(t, s, z)
		})
	}
}

func (r *rig) nat64(t *testing.T, s scene, z sizes) {
	all := r.services(kind{fullNAT, testbed.V6, testbed.V4, 0, ""}, weights...)
	all = append(all, r.services(kind{fullNAT, testbed.V4, testbed.V4, 0, ""}, weights...)...)
	d := program{args: []string{"--workers", fmt.Sprint(s.workers)}}.start(t, r.LB, r.Config(all))
	r.warmUp()
	before := d.stats()
	t.Run("http", func(t *testing.T) { r.http(t, s, testbed.V6) }) // TOA included
	t.Run("udp", func(t *testing.T) { r.echo(t, s, testbed.V6) })
	t.Run("http/v4", func(t *testing.T) { r.http(t, s, testbed.V4) })
	if diff := cmp.Diff(map[string]uint64{}, d.stats().drops(before)); diff != "" {
		t.Errorf("drops (-want +got)\n%s", diff)
	}
	t.Run("transfer", func(t *testing.T) {
		tr := testbed.Transfer{To: r.vip(testbed.V6, 0, testbed.PortHash), Up: z.bytes, Down: z.bytes, Seed: 1}
		res, err := tr.Run(t.Context(), r.Client)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d MiB each way in %s", z.bytes>>20, res.Duration)
	})
	// The MSS in the SYN-ACK leaves room, so nothing was too big on its way.
	if n := d.stats().Verdicts["too_big"]; n > 0 {
		t.Errorf("%d packets were too big", n)
	}
	r.checkAddresses(fullNAT)
	r.checkTOA(s)
	for i, b := range r.behind {
		six := false
		for _, clients := range b.TOA() {
			six = six || testbed.FamilyOf(clients[0].Addr()) == testbed.V6
		}
		if !six {
			t.Errorf("rs%d has seen no TOA option with an IPv6 address", i+1)
		}
		if n := b.Report(); n.V6 > n.ICMP {
			t.Errorf("rs%d has seen %d IPv6 packets", i+1, n.V6)
		}
	}
	d.stop()
}

// TestNAT64Fragments: datagrams of 4,000 bytes, which both ends' kernels cut and
// put together, pass between the families, and so do answers of a server without
// path MTU discovery that no longer fit as IPv6 packets.
func TestNAT64Fragments(t *testing.T) {
	for _, s := range []scene{{false, 1, fullNAT}, {true, 2, fullNAT}} {
		t.Run(s.String(), func(t *testing.T) {
			r := network(t, testbed.TopologyOptions{OneArm: s.oneArm, Queues: s.workers}, testbed.SnifferOptions{})
			r.farApart()
			free := testbed.Service{Name: "free", Family: testbed.V4, Address: r.VIP(testbed.V6, 0), Port: freely, BackendPort: freely, Protocol: "udp", Mode: fullNAT}
			for i, ns := range r.Topology.Servers {
				echoFreely(t, ns, netip.AddrPortFrom(r.ServerAddr(testbed.V4, i), freely))
			}
			all := append(r.services(kind{fullNAT, testbed.V6, testbed.V4, 0, ""}), r.services(kind{fullNAT, testbed.V4, testbed.V4, 0, ""})...)
			all = append(all, free)
			d := program{args: []string{"--workers", fmt.Sprint(s.workers)}}.start(t, r.LB, r.Config(all))
			r.warmUp()
			before := d.stats()
			for _, e := range []testbed.Echo{
				{To: r.vip(testbed.V6, 0, testbed.PortEcho), Size: 4000},
				{To: r.vip(testbed.V6, 0, freely), Size: 1440}, // 1,485 and more in IPv4
			} {
				was := d.stats().Split
				e.Sockets, e.Count, e.Timeout, e.AtATime = load().echoes, 2, 10*time.Second, 32
				res, err := e.Run(t.Context(), r.Client)
				if err != nil || res.OK != e.Sockets*e.Count || res.Wrong != 0 || res.Moved != 0 {
					t.Errorf("%d bytes: %+v, %v", e.Size, res, err)
				}
				d.until("all to be counted", func(s stats) bool { return s.Split-was >= uint64(res.OK) })
			}
			if diff := cmp.Diff(map[string]uint64{}, d.stats().drops(before)); diff != "" {
				t.Errorf("drops (-want +got)\n%s", diff)
			}
			r.checkAddresses(fullNAT)
			d.stop()
		})
	}
}

// freely is the port of servers that let routers fragment their answers.
const freely = 9099

// echoFreely is a Server's echo service at that port.
func echoFreely(t *testing.T, ns *testbed.Namespace, at netip.AddrPort) {
	t.Helper()
	c, err := ns.ListenPacket("udp4", at.String())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT),
				// All clients may ask at once.
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20))
		}), err)
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
		buf := make([]byte, 1<<16)
		for {
			n, peer, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			// A lost answer is the client's business.
			_, _ = c.WriteTo(fmt.Appendf(nil, "free %s\n%s", peer, buf[:n]), peer)
		}
	}()
}
