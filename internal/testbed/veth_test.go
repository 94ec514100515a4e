package testbed

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestOffloadsOff(t *testing.T) {
	for _, keep := range []bool{false, true} {
		a, b := pair(t, VethOptions{KeepOffloads: keep})
		for _, d := range []*Device{a, b} {
			f, err := d.NS.Features(d.Name)
			if err != nil {
				t.Fatal(err)
			}
			for name, on := range f {
				watched := strings.Contains(name, "checksum") || strings.Contains(name, "segmentation") ||
					strings.Contains(name, "gro") || strings.Contains(name, "scatter-gather") || strings.Contains(name, "vlan-hw")
				if on && watched && !keep {
					t.Errorf("%s: %s is on", d.Name, name)
				}
			}
			if !f["tx-checksum-ip-generic"] && keep {
				t.Error("offloads off although they were to be kept")
			}
		}
	}
}

func TestVethMTUAndStaticNeighbours(t *testing.T) {
	a, b := pair(t, VethOptions{MTU: 1400, StaticNeighbours: true,
		AddrsA: prefixes("10.9.0.1/24", "fd09::1/64"), AddrsB: prefixes("10.9.0.2/24", "fd09::2/64")})
	s := sniff(t, b, SnifferOptions{})
	for _, f := range Families {
		if _, err := a.NS.Ping(b.Addr(f), 56, patience); err != nil {
			t.Error(err)
		}
	}
	// 1400 + header in one frame; more is sent in fragments.
	if _, err := a.NS.Ping(b.Addr(V4), 3000, patience); err != nil {
		t.Error(err)
	}
	r, err := s.Stop()
	if err != nil || r.ARP != 0 || r.Bad != 0 || r.Fragments != 6 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := a.NS.Ping(netip.MustParseAddr("10.9.0.3"), 56, 200*time.Millisecond); err == nil {
		t.Error("nobody answered")
	}
}

func TestVethErrors(t *testing.T) {
	a, b := pair(t, VethOptions{})
	if _, _, err := Veth(a.NS, a.Name, b.NS, "other", VethOptions{}); err == nil || !strings.Contains(err.Error(), "a0 (a) - other (b)") {
		t.Errorf("name taken: %v", err)
	}
	if _, err := a.NS.Sniff("nosuch", SnifferOptions{}); err == nil {
		t.Error("sniffed a device that is not there")
	}
	if err := a.Delete(); err != nil {
		t.Error(err)
	}
	if err := b.Delete(); err == nil {
		t.Error("the peer outlived its veth")
	}
}

// queueCounter counts a device's packets by receive queue in a native XDP
// program, which is what l4fwd's own program will see.
func queueCounter(t *testing.T, d *Device) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	const rxQueueIndex = 16 // in struct xdp_md
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "Apache-2.0", Instructions: asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, rxQueueIndex, asm.Word),
		asm.StoreMem(asm.RFP, -4, asm.R6, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, 2).WithSymbol("out"), // XDP_PASS
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	var l link.Link
	err = d.NS.Do(func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: d.Index, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return m
}

// TestQueuesSpread: flows reach both queues of l4fwd's devices, directly and
// behind the bridge, and native XDP works on them.
func TestQueuesSpread(t *testing.T) {
	for _, oneArm := range []bool{false, true} {
		t.Run(fmt.Sprintf("oneArm=%t", oneArm), func(t *testing.T) {
			top := Up(t, TopologyOptions{Queues: 2, OneArm: oneArm})
			if err := top.Forwarding(true); err != nil {
				t.Fatal(err)
			}
			counters := map[string]*ebpf.Map{"l0": queueCounter(t, top.LBClient)}
			if !oneArm {
				counters["l1"] = queueCounter(t, top.LBServer)
			}
			servers, err := top.StartServers()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range Families {
				r, err := HTTPLoad{To: netip.AddrPortFrom(top.ServerAddr(f, 0), PortHTTP), Requests: 200}.Run(t.Context(), top.Client)
				if err != nil || r.OK != 200 {
					t.Errorf("%+v, %v", r, err)
				}
			}
			for name, m := range counters {
				var n [3]uint64
				for q := range n {
					if err := m.Lookup(uint32(q), &n[q]); err != nil {
						t.Fatal(err)
					}
				}
				t.Logf("%s: %d packets by queue", name, n)
				if n[0] < 500 || n[1] < 500 || n[2] != 0 {
					t.Errorf("%s: not spread", name)
				}
			}
			if err := CloseServers(servers); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestArmReturns: l4fwd's devices can be deleted and made again.
func TestArmReturns(t *testing.T) {
	top := Up(t, TopologyOptions{})
	if err := top.Forwarding(true); err != nil {
		t.Fatal(err)
	}
	to := top.ServerAddr(V6, 1)
	if err := errors.Join(top.LBClient.Delete(), top.LBServer.Delete()); err != nil {
		t.Fatal(err)
	}
	if _, err := top.Client.Ping(to, 56, 100*time.Millisecond); err == nil {
		t.Error("there is a way without the arms")
	}
	if err := errors.Join(top.ConnectLBClient(), top.ConnectLBServer()); err != nil {
		t.Fatal(err)
	}
	if _, err := top.Client.Ping(to, 56, patience); err != nil {
		t.Error(err)
	}
}

// TestVIPPath: who is asked for a VIP's MAC address.
func TestVIPPath(t *testing.T) {
	for name, path := range map[string]VIPPath{"routed": VIPRouted, "on-link": VIPOnLink} {
		t.Run(name, func(t *testing.T) {
			top := Up(t, TopologyOptions{VIPs: path})
			for _, f := range Families {
				s := sniff(t, top.LBClient, SnifferOptions{Direction: Incoming})
				// The first question for the gateway's MAC address may be too early: in IPv6 l4fwd's
				// kernel joins the group that is asked in its own time, and the next comes after 1 s.
				for end := time.Now().Add(patience); ; {
					if _, err := top.Client.Ping(top.VIP(f, 0), 56, 100*time.Millisecond); err == nil {
						t.Error("somebody owns the VIP")
					}
					if s.CatchUp(); path != VIPRouted || s.Saw(top.VIP(f, 0)) || time.Now().After(end) {
						break
					}
				}
				r, err := s.Stop()
				if err != nil || r.Bad > 0 {
					t.Errorf("%+v, %v", r, err)
				}
				// Routed: the echo request itself arrives, for the VIP.
				if s.Saw(top.VIP(f, 0)) != (path == VIPRouted) {
					t.Errorf("%v: saw %v", f, s.Addresses())
				}
			}
		})
	}
}
