package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// TestDirectIsAHop: a TTL ends here and the client is told, unless l4fwd is no hop:
// then nothing but the MAC addresses changes.
func TestDirectIsAHop(t *testing.T) {
	for _, k := range directKinds {
		for _, keep := range []bool{false, true} {
			spec := directSpec()
			spec.KeepTTL = keep
			r := newRig(t, 1, spec)
			r.dp.PublishRoutes(directRoutes(2, 1500))
			last := build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: k.vip, udp: k.udp, syn: !k.udp, ttl: 1, payload: 30})
			if !keep {
				r.answered(0, 0, 0, DropTTL, last)
				if n := r.counts().Opened; n != 0 {
					t.Errorf("%s: %d flows", k.name, n)
				}
				continue
			}
			if out := r.one(0, 0, 1, last); !slices.Equal(out[12:], last[12:]) {
				t.Errorf("%s: %x became %x", k.name, last, out)
			}
		}
	}
}

// roundabout delivers a frame, has turn make a new arrival of each that leaves, and so
// on, and returns how often until none leaves.
func (r *rig) roundabout(frame []byte, turn func([]byte)) int {
	r.t.Helper()
	frames := [][]byte{frame}
	for round := 0; ; round++ {
		var next [][]byte
		for _, f := range frames {
			for _, out := range r.deliver(0, 0, f) {
				if out.nic == 1 {
					next = append(next, slices.Clone(out.bytes))
				}
			}
		}
		for _, f := range next {
			turn(f)
		}
		if frames = next; len(frames) == 0 {
			return round
		}
		if round > 64 || len(frames) > 100 {
			r.t.Fatalf("%d frames after %d rounds", len(frames), round)
		}
	}
}

// TestRingEnds: balancers on one link that have each other for servers.
func TestRingEnds(t *testing.T) {
	for _, k := range directKinds {
		r := newDirectRig(t, 1)
		// As if another one had sent it here.
		rounds := r.roundabout(build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: k.vip, udp: k.udp, syn: !k.udp, ttl: 40}), func(f []byte) {
			copy(f, nicMAC[0][:])
			copy(f[packet.EthSrc:], []byte{2, 0, 0, 0, 9, 9})
		})
		if rounds != 39 || r.counts().Verdicts[DropTTL] != 1 {
			t.Errorf("%s: %d rounds, %+v", k.name, rounds, r.counts())
		}
	}
}

// TestTunnelsIntoEachOtherEnd: two balancers each have the other's VIP for a server, and
// a UDP service at the port of the tunnel, so that each tunnel's packet goes into
// another one.
func TestTunnelsIntoEachOtherEnd(t *testing.T) {
	for name, tn := range tunnelKinds {
		if tn.Kind < nat.GUE {
			continue
		}
		for _, v6 := range []bool{false, true} {
			vip, server, client := "192.0.2.50:4789", "10.0.5.20:4789", "198.51.100.7:4000"
			if v6 {
				vip, server, client = "[2001:db8::50]:4789", "[2001:db8:5::20]:4789", "[2001:db8:c::7]:4000"
			}
			tn.Port = 4789
			s := service("turn", vip, packet.ProtoUDP, conntrack.DirectReturn, false, server)
			s.Tunnel = tn
			r := newRig(t, 1, Spec{Seed: 1, Services: []ServiceSpec{s}})
			r.dp.PublishRoutes(tunnelRoutes(2, 1600))
			turn := func(f []byte) {
				copy(f, nicMAC[0][:])
				readdress(t, f, vip)
			}
			rounds := r.roundabout(build(t, seg{src: client, dst: vip, udp: true, ttl: 20}), turn)
			if rounds != 19 || r.counts().Verdicts[DropTTL] == 0 {
				t.Errorf("%s, IPv6 %v: %d rounds, %+v", name, v6, rounds, r.counts())
			}
			if v6 {
				continue
			}
			// Grown too long they are divided, again and again.
			if rounds := r.roundabout(freely(build(t, seg{src: client, dst: vip, udp: true, ttl: 64})), turn); rounds != 63 {
				t.Errorf("%s: %d rounds, %+v", name, rounds, r.counts())
			}
		}
	}
}

// readdress makes a UDP packet one to a VIP.
func readdress(t *testing.T, f []byte, vip string) {
	t.Helper()
	to := netip.MustParseAddrPort(vip).Addr().AsSlice()
	ip := f[packet.EthLen:]
	if ip[0]>>4 == 4 {
		copy(ip[packet.IPv4Dst:], to)
		binary.BigEndian.PutUint16(ip[packet.IPv4Checksum:], 0)
		binary.BigEndian.PutUint16(ip[packet.IPv4Checksum:], packet.Checksum(ip[:packet.IPv4MinLen], 0))
		return // and no UDP checksum
	}
	udp := ip[packet.IPv6Len:]
	sum := packet.ApplyUDP(binary.BigEndian.Uint16(udp[packet.UDPChecksum:]), packet.DiffBytes(ip[packet.IPv6Dst:packet.IPv6Dst+16], to))
	binary.BigEndian.PutUint16(udp[packet.UDPChecksum:], sum)
	copy(ip[packet.IPv6Dst:], to)
}
