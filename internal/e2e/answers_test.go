package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// claims collects who has said by ARP or ND what MAC address an IP address has.
type claims struct {
	ear *testbed.Sniffer

	mu sync.Mutex
	by map[claim]int
}

type claim struct {
	addr      netip.Addr
	mac       string
	announced bool // unasked, to everybody
}

// watch reads ARP packets and neighbour advertisements that come in.
func (c *claims) watch(frame []byte, outgoing bool) {
	if outgoing || len(frame) < 42 {
		return
	}
	toAll := frame[0]&1 != 0
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0806: // RFC 826: operation at 20, sender at 22 and 28, target at 38
		sender := netip.AddrFrom4([4]byte(frame[28:]))
		target := netip.AddrFrom4([4]byte(frame[38:]))
		if reply := frame[21] == 2; reply || sender == target {
			c.add(claim{sender, net.HardwareAddr(frame[22:28]).String(), toAll && sender == target})
		}
	case 0x86dd: // RFC 4861 section 4.4: target at 8 of ICMPv6, options from 24
		if len(frame) < 14+40+24 || frame[14+6] != 58 || frame[14+40] != 136 {
			return
		}
		na := frame[14+40:]
		if len(na) >= 32 && na[24] == 2 {
			c.add(claim{netip.AddrFrom16([16]byte(na[8:])), net.HardwareAddr(na[26:32]).String(), toAll})
		}
	}
}

func (c *claims) add(k claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by[k]++
}

// of are the MAC addresses claimed for an address, announced or asked for.
func (c *claims) of(a netip.Addr, announced bool) map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]int)
	for k, n := range c.by {
		if k.addr == a && k.announced == announced {
			out[k.mac] += n
		}
	}
	return out
}

func newClaims() *claims { return &claims{by: make(map[claim]int)} }

// TestAnswersForAddresses: VIPs and local addresses exist while l4fwd runs, by
// ARP, ND and ping, are announced when it comes, and are nobody's without it:
// no ARP or ND reply, no RST, no ICMP.
func TestAnswersForAddresses(t *testing.T) {
	r := network(t, testbed.TopologyOptions{VIPs: testbed.VIPOnLink}, testbed.SnifferOptions{})
	// So that the VIPs are on-link for l4fwd too, which announces only those.
	for _, f := range testbed.Families {
		net := testbed.VIPNet[f]
		if err := r.LBClient.AddAddr(netip.PrefixFrom(net.Addr().Next(), net.Bits())); err != nil {
			t.Fatal(err)
		}
	}
	places := []place{
		{"VIP", r.ClientDev, newClaims(), r.VIP, r.LBClient.MAC},
		{"local address", r.ServerDevs[0], newClaims(), r.LocalAddr, r.LBServer.MAC},
	}
	for _, p := range places {
		p.claims.ear = sniff(t, p.dev.NS, p.dev.Name, testbed.SnifferOptions{Watch: p.claims.watch})
	}
	heard := r.hearAll()
	config := r.Config(testbed.Services(0, fullNAT, "toa", "wrr"))
	r.toa = true
	silent := func(when string) {
		t.Helper()
		var wg sync.WaitGroup
		for _, p := range places {
			wg.Go(func() { p.silent(t, when) })
		}
		wg.Wait()
		noneReset(t, heard)
	}
	silent("before the start")
	d := program{}.start(t, r.LB, config)
	for _, p := range places {
		p.answers(t)
	}
	r.warmUp()
	d.stop()
	silent("after the stop")
	d = program{}.start(t, r.LB, config)
	for _, p := range places {
		p.answers(t)
	}
	d.Kill()
	silent("after kill -9")
}

// place is where somebody asks for an address of ours.
type place struct {
	what   string
	dev    *testbed.Device // of who asks
	claims *claims
	addr   func(testbed.Family, int) netip.Addr
	mac    net.HardwareAddr // that must answer
}

// answers expects announcements, replies to ARP and ND, and echo replies.
func (p place) answers(t *testing.T) {
	t.Helper()
	for _, f := range testbed.Families {
		a := p.addr(f, 0)
		for _, size := range []int{0, 56, 1400} {
			if _, err := p.dev.NS.Ping(a, size, limit); err != nil {
				t.Errorf("%s: %v", p.what, err)
			}
		}
		for _, announced := range []bool{true, false} {
			await(t, fmt.Sprintf("%s %s claimed by %s (announced: %t)", p.what, a, p.mac, announced), func() error {
				if by := p.claims.of(a, announced); by[p.mac.String()] == 0 || len(by) != 1 {
					return fmt.Errorf("claimed by %v", by)
				}
				return nil
			})
		}
	}
}

// quiet is how long nothing must come back.
const quiet = time.Second

// silent expects that nothing at all comes back, neither to who asks for the
// MAC address nor to who remembers it.
func (p place) silent(t *testing.T, when string) {
	t.Helper()
	p.forgetAll(t)
	p.claims.clear()
	p.knock(t, when+", MAC address unknown", false)
	p.claims.ear.CatchUp()
	for _, f := range testbed.Families {
		a := p.addr(f, 0)
		for _, announced := range []bool{true, false} {
			if by := p.claims.of(a, announced); len(by) > 0 {
				t.Errorf("%s: %s %s is claimed by %v", when, p.what, a, by)
			}
		}
		if err := p.dev.AddNeighbour(a, p.mac); err != nil {
			t.Error(err)
		}
	}
	p.knock(t, when+", MAC address remembered", true)
	p.forgetAll(t)
}

// timedOut reports whether a dial got no answer at all.
func timedOut(err error) bool {
	var slow net.Error
	return errors.As(err, &slow) && slow.Timeout()
}

// forgetAll removes the addresses from the asker's neighbour table.
func (p place) forgetAll(t *testing.T) {
	t.Helper()
	for _, f := range testbed.Families {
		if err := forget(p.dev, p.addr(f, 0)); err != nil {
			t.Error(err)
		}
	}
}

// knock tries ping and TCP in both families at once; both must time out. Where the MAC
// address is unknown the kernel that asks for it may give up before who waits for it has
// a turn: that, too, is silence.
func (p place) knock(t *testing.T, when string, known bool) {
	t.Helper()
	var wg sync.WaitGroup
	for _, f := range testbed.Families {
		a := p.addr(f, 0)
		wg.Go(func() {
			if _, err := p.dev.NS.Ping(a, 56, quiet); err == nil {
				t.Errorf("%s: %s %s answers ping", when, p.what, a)
			}
		})
		wg.Go(func() {
			c, err := p.dev.NS.Dialer(quiet).Dial("tcp", netip.AddrPortFrom(a, testbed.VIPPortHTTP).String())
			if err == nil {
				_ = c.Close()
			}
			if gaveUp := !known && errors.Is(err, unix.EHOSTUNREACH); !timedOut(err) && !gaveUp {
				t.Errorf("%s: TCP to %s %s: %v, want silence", when, p.what, a, err)
			}
		})
	}
	wg.Wait()
}

// forget removes an address from a device's neighbour table.
func forget(dev *testbed.Device, a netip.Addr) error {
	nl := dev.NS.Netlink()
	all, err := nl.NeighList(dev.Index, 0)
	if err != nil {
		return fmt.Errorf("neighbours: %w", err)
	}
	for _, n := range all {
		if n.IP.String() != a.String() {
			continue
		}
		if err := nl.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget %s: %w", a, err)
		}
	}
	return nil
}

// clear forgets all of before the call.
func (c *claims) clear() {
	c.ear.CatchUp()
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.by)
}
