package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// TestTunnel: in every encapsulation, either family in either, each flow's packets
// reach one server by any worker, with the entropy that is the flow's.
func TestTunnel(t *testing.T) {
	for name, tn := range tunnelKinds {
		for outer := range 2 {
			for _, k := range tunnelClients {
				vip := fmt.Sprintf(k.vip, outer)
				t.Run(fmt.Sprint(name, "/", vip, " in ", 4+2*outer), func(t *testing.T) {
					const workers, flows = 2, 24
					r := newTunnelRig(t, workers, tn)
					met, ports, labels := map[string]int{}, map[uint16]bool{}, map[uint32]bool{}
					for n := range flows {
						s := seg{src: fmt.Sprintf(k.client, 4000+n), dst: vip, udp: k.udp, syn: !k.udp, seq: 1000}
						first := r.byTunnel(0, &tn, build(t, s))
						met[first.dst]++
						ports[first.sport], labels[first.label] = true, true
						s.syn, s.ack, s.seq, s.ackNum = false, !k.udp, 1001, 9001
						for w := range workers {
							s.payload++ // odd and even
							u := r.byTunnel(w, &tn, build(t, s))
							if u.dst != first.dst || u.src != first.src || u.sport != first.sport || u.label != first.label {
								t.Fatalf("%+v, then %+v", first, u)
							}
							if own := []string{"10.0.1.1", "2001:db8:1::1"}[outer]; u.src != own || !u.df || u.id != 0 {
								t.Fatalf("%+v", u)
							}
						}
					}
					udp := tn.Kind >= nat.GUE
					if len(met) != 2 || udp && len(ports) < flows-3 || outer == 1 && len(labels) < flows-3 {
						t.Errorf("%v; %d source ports, %d flow labels", met, len(ports), len(labels))
					}
					if c := r.counts(); c.Opened != flows || c.Drops() != 0 {
						t.Errorf("%+v", c)
					}
				})
			}
		}
	}
}

// TestHasSent: a worker knows which packets its flows can have sent through a tunnel: of
// TCP those of either connection that a client may have begun.
func TestHasSent(t *testing.T) {
	tn := tunnelKinds["gue"]
	r := newTunnelRig(t, 1, tn)
	w := r.dp.Workers[0]
	const client, vip = "198.51.100.7:4000", "192.0.2.20:80"
	syn := seg{src: client, dst: vip, syn: true, seq: 1000}
	server := addr(r.byTunnel(0, &tn, build(t, syn)).dst)
	r.byTunnel(0, &tn, build(t, seg{src: client, dst: vip, ack: true, seq: 1001, ackNum: 1, payload: 500}))
	syn.seq = 0x50000000
	r.byTunnel(0, &tn, build(t, syn))
	other := addr(map[string]string{"10.0.5.20": "10.0.5.21", "10.0.5.21": "10.0.5.20"}[server.String()])
	u := seg{src: "198.51.100.7:4000", dst: "192.0.2.20:5000", udp: true}
	udpServer := addr(r.byTunnel(0, &tn, build(t, u)).dst)
	tuple := func(src, dst string, proto uint8) *packet.Tuple {
		a, b := endpoint(src, proto), endpoint(dst, proto)
		return &packet.Tuple{Src: a.Addr, SrcPort: a.Port, Dst: b.Addr, DstPort: b.Port, Proto: proto}
	}
	const tcp, udp = packet.ProtoTCP, packet.ProtoUDP
	for name, c := range map[string]struct {
		tuple  *packet.Tuple
		seq    uint32
		server packet.Addr
		want   bool
	}{
		"SYN":              {tuple(client, vip, tcp), 1000, server, true},
		"data":             {tuple(client, vip, tcp), 1001, server, true},
		"the next":         {tuple(client, vip, tcp), 1501, server, true},
		"after that":       {tuple(client, vip, tcp), 1502, server, false},
		"another SYN":      {tuple(client, vip, tcp), 0x50000000, server, true},
		"between":          {tuple(client, vip, tcp), 0x20000000, server, false},
		"other server":     {tuple(client, vip, tcp), 1001, other, false},
		"other port":       {tuple("198.51.100.7:4001", vip, tcp), 1001, server, false},
		"backwards":        {tuple(vip, client, tcp), 1001, server, false},
		"datagram":         {tuple(u.src, u.dst, udp), 4711, udpServer, true},
		"other's datagram": {tuple("198.51.100.8:4000", u.dst, udp), 0, udpServer, false},
	} {
		if got := w.HasSent(c.tuple, c.seq, c.server); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestTunnelMarks: DSCP and ECN are copied, and so is DF, without which a packet has an
// identification of its own.
func TestTunnelMarks(t *testing.T) {
	tn := tunnelKinds["gue"]
	for outer := range 2 {
		r := newTunnelRig(t, 1, tn)
		ids := map[uint16]bool{}
		for tos := range 256 {
			for _, six := range []bool{false, true} {
				k := tunnelClients[map[bool]int{false: 1, true: 3}[six]]
				f := freely(build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: fmt.Sprintf(k.vip, outer), udp: true, payload: 20}))
				if ip := f[14:]; six {
					ip[0], ip[1] = 0x60|byte(tos>>4), byte(tos<<4)|ip[1]&15
				} else {
					ip[1] = byte(tos)
					binary.BigEndian.PutUint16(ip[10:], 0)
					binary.BigEndian.PutUint16(ip[10:], packet.Checksum(ip[:20], 0))
				}
				u := r.byTunnel(0, &tn, f)
				if u.tos != byte(tos) {
					t.Errorf("%#x became %#x", tos, u.tos)
				}
				if outer == 0 && u.df != six {
					t.Errorf("DF %v", u.df)
				}
				if outer == 0 && !six {
					if ids[u.id] {
						t.Errorf("identification %d again", u.id)
					}
					ids[u.id] = true
				}
			}
		}
	}
}

// TestTunnelSource: outer sources come from the network that is given, one for each
// flow; without one, and without an address on the interface, nothing is sent.
func TestTunnelSource(t *testing.T) {
	tn := nat.Tunnel{Kind: nat.IPIP, Source: addr("172.16.0.0"), Spread: 16}
	r := newTunnelRig(t, 1, tn)
	seen := map[string]bool{}
	for n := range 50 {
		s := seg{src: fmt.Sprintf("198.51.100.7:%d", 4000+n), dst: "192.0.2.20:5000", udp: true}
		first, again := r.byTunnel(0, &tn, build(t, s)), r.byTunnel(0, &tn, build(t, s))
		if a := netip.MustParseAddr(first.src); !netip.MustParsePrefix("172.16.0.0/16").Contains(a) || first.src != again.src {
			t.Errorf("%s, then %s", first.src, again.src)
		}
		seen[first.src] = true
	}
	if len(seen) < 48 {
		t.Errorf("%d sources for 50 flows", len(seen))
	}
	tn = tunnelKinds["gre"]
	r = newTunnelRig(t, 1, tn)
	r.dp.PublishRoutes(tunnelRoutes(3, 1600).WithPeers(nil))
	r.refused(0, 0, DropNoSource, build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.20:80", syn: true}))
}

// TestTunnelTooBig: a packet that does not fit together with its tunnel is told to the
// client with what does fit; without DF it leaves in fragments, each in a tunnel of
// its own, which put together give the packet.
func TestTunnelTooBig(t *testing.T) {
	const mtu = 1500
	for name, tn := range tunnelKinds {
		for outer := range 2 {
			for _, k := range tunnelClients {
				vip := fmt.Sprintf(k.vip, outer)
				t.Run(fmt.Sprint(name, "/", vip), func(t *testing.T) {
					r := newTunnelRig(t, 1, tn)
					r.dp.PublishRoutes(tunnelRoutes(3, mtu))
					fits := mtu - tn.Overhead(outer == 0)
					of := func(size int) []byte {
						s := seg{src: fmt.Sprintf(k.client, 4000), dst: vip, udp: k.udp, ack: !k.udp, seq: 1001}
						s.payload = 1000
						s.payload += size - (len(build(t, s)) - 14)
						return build(t, s)
					}
					large := of(fits + 1)
					if k.udp { // it would open the flow, and must not
						if got := toldMTU(r.answered(0, 0, 0, DropTooBig, large)); got != fits || r.counts().Opened != 0 {
							t.Errorf("told %d, want %d; %d flows", got, fits, r.counts().Opened)
						}
					}
					r.byTunnel(0, &tn, build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: vip, udp: k.udp, syn: !k.udp, seq: 1000}))
					r.byTunnel(0, &tn, of(fits))
					if got := toldMTU(r.answered(0, 0, 0, DropTooBig, large)); got != fits {
						t.Errorf("told %d, want %d", got, fits)
					}
					if large[14]>>4 == 6 {
						return
					}
					out := r.deliver(0, 0, freely(large))
					var inner []sentFrame
					ids := map[uint16]bool{}
					for _, f := range out {
						u := unwrap(t, &tn, f.bytes)
						ids[u.id] = true
						if len(f.bytes) > 14+mtu || u.df != (outer == 1) {
							t.Errorf("%d bytes, DF %v", len(f.bytes), u.df)
						}
						inner = append(inner, sentFrame{bytes: append(slices.Clone(large[:14]), u.inner...)})
					}
					if len(out) != 2 || r.counts().Split != 1 || outer == 0 && len(ids) != 2 {
						t.Fatalf("%d pieces, identifications %v", len(out), ids)
					}
					whole, id := whole(t, inner)
					want := plainly(append(slices.Clone(large[:14]), routed(large)...))
					if !bytes.Equal(whole, want) || id != 0xbeef {
						t.Errorf("put together, id %x\n%x\nwant\n%x", id, whole, want)
					}
				})
			}
		}
	}
}

// TestTunnelAside: ICMP errors about a server's packets, and fragments, go where the
// flow goes.
func TestTunnelAside(t *testing.T) {
	for name, tn := range tunnelKinds {
		for outer := range 2 {
			t.Run(fmt.Sprint(name, "/", 4+2*outer), func(t *testing.T) {
				const workers = 2
				r := newTunnelRig(t, workers, tn)
				for n := range 8 {
					k := tunnelClients[n%4]
					client, vip := fmt.Sprintf(k.client, 4000+n), fmt.Sprintf(k.vip, outer)
					first := r.byTunnel(0, &tn, build(t, seg{src: client, dst: vip, udp: k.udp, syn: !k.udp, seq: 1000}))
					answer := build(t, seg{src: vip, dst: client, udp: k.udp, ack: !k.udp, seq: 9001, ackNum: 1001, payload: 900})
					router := map[bool]string{true: "203.0.113.9", false: "2001:db8:ff::9"}[answer[14]>>4 == 4]
					for w := range workers {
						u := r.byTunnel(w, &tn, complaint(t, router, answer, 1300, 64))
						if u.dst != first.dst || u.sport != first.sport {
							t.Errorf("the flow goes to %s, the error to %s", first.dst, u.dst)
						}
					}
					data := seg{src: client, dst: vip, udp: k.udp, ack: !k.udp, seq: 1001, payload: 3000}
					pieces := cut(freely(build(t, data)), uint32(100+n), 1000)
					pieces = append(pieces[2:], pieces[:2]...)
					var out []sentFrame
					for i, f := range pieces {
						out = append(out, r.deliver(i%workers, 0, f)...)
					}
					var inner []sentFrame
					for _, f := range out {
						u := unwrap(t, &tn, f.bytes)
						if u.dst != first.dst || u.sport != first.sport {
							t.Errorf("the flow goes to %s, a fragment to %s", first.dst, u.dst)
						}
						inner = append(inner, sentFrame{bytes: append(slices.Clone(f.bytes[:12]), map[byte]string{4: "\x08\x00", 6: "\x86\xdd"}[u.inner[0]>>4]...)})
						inner[len(inner)-1].bytes = append(inner[len(inner)-1].bytes, u.inner...)
					}
					if len(out) != len(pieces) {
						t.Fatalf("%d of %d pieces", len(out), len(pieces))
					}
					whole(t, inner)
				}
				if c := r.counts(); c.Drops() != 0 {
					t.Errorf("%+v", c)
				}
			})
		}
	}
}

// TestTunnelIsAHop: the TTL of what goes into a tunnel is decremented, and where it
// ends the client is told, unless l4fwd is no hop.
func TestTunnelIsAHop(t *testing.T) {
	tn := tunnelKinds["ipip"]
	for _, keep := range []bool{false, true} {
		spec := tunnelSpec(tn)
		spec.KeepTTL = keep
		r := newRig(t, 1, spec)
		r.dp.PublishRoutes(tunnelRoutes(2, 1600))
		last := build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.20:80", syn: true, ttl: 1})
		if !keep {
			r.answered(0, 0, 0, DropTTL, last)
			if n := r.counts().Opened; n != 0 {
				t.Errorf("%d flows", n)
			}
			continue
		}
		out := r.deliver(0, 0, last)
		if len(out) != 1 || !bytes.HasPrefix(last[14:], unwrap(t, &tn, out[0].bytes).inner) {
			t.Errorf("%+v", out)
		}
	}
}

// TestTunnelFarewell: the server of a flow that idles out is reset by its tunnel.
func TestTunnelFarewell(t *testing.T) {
	for name, tn := range tunnelKinds {
		r := newTunnelRig(t, 1, tn)
		client := "198.51.100.7:4000"
		r.byTunnel(0, &tn, build(t, seg{src: client, dst: "192.0.2.21:80", syn: true, seq: 1000}))
		first := r.byTunnel(0, &tn, build(t, seg{src: client, dst: "192.0.2.21:80", ack: true, seq: 1001, ackNum: 5}))
		r.sent = nil
		r.now += 3 * int64(time.Hour)
		for range 100 {
			r.step()
		}
		if len(r.sent) != 1 {
			t.Fatalf("%s: %+v", name, r.sent)
		}
		u := unwrap(t, &tn, r.sent[0].bytes)
		tcp := tcpOf(verify(t, append(slices.Concat(r.sent[0].bytes[:12], []byte{8, 0}), u.inner...)))
		if u.dst != first.dst || !tcp.RST || tcp.Seq != 1001 || tcp.DstPort != 80 {
			t.Errorf("%s: %+v %+v", name, u, tcp)
		}
	}
}

// TestTunnelMSS: with mss_clamp: mtu a SYN announces no more than fits the tunnel.
func TestTunnelMSS(t *testing.T) {
	for name, tn := range tunnelKinds {
		for outer := range 2 {
			for _, k := range tunnelClients {
				if k.udp {
					continue
				}
				spec := tunnelSpec(tn)
				for i := range spec.Services {
					spec.Services[i].MSSClamp = ClampToMTU
				}
				r := newRig(t, 1, spec)
				r.dp.PublishRoutes(tunnelRoutes(2, 1500))
				syn := build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: fmt.Sprintf(k.vip, outer), syn: true, opts: []layers.TCPOption{mss(1460)}})
				u := unwrap(t, &tn, r.deliver(0, 0, syn)[0].bytes)
				header := map[byte]int{4: 40, 6: 60}[u.inner[0]>>4]
				want := 1500 - tn.Overhead(outer == 0) - header
				if got := int(binary.BigEndian.Uint16(u.inner[header+2:])); got != want {
					t.Errorf("%s, %s: MSS %d, want %d", name, k.vip, got, want)
				}
			}
		}
	}
}

// TestTunnelAllocatesNothing.
func TestTunnelAllocatesNothing(t *testing.T) {
	for name, tn := range tunnelKinds {
		r := newTunnelRig(t, 1, tn)
		w := r.dp.Workers[0]
		for _, p := range r.port[0] {
			p.OnSend = nil
		}
		var frames [][]byte
		for outer := range 2 {
			for _, k := range tunnelClients {
				frames = append(frames, build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: fmt.Sprintf(k.vip, outer), udp: k.udp, syn: !k.udp, payload: 100}))
				frames = append(frames, freely(build(t, seg{src: fmt.Sprintf(k.client, 4000), dst: fmt.Sprintf(k.vip, outer), udp: k.udp, ack: !k.udp, payload: 1540})))
			}
		}
		before := r.counts().Verdicts[Forwarded]
		if a := testing.AllocsPerRun(100, func() {
			r.port[0][0].Feed(frames, 1)
			w.Poll(r.now)
		}); a != 0 {
			t.Errorf("%s: %v allocations", name, a)
		}
		if r.counts().Verdicts[Forwarded] == before || r.counts().Split == 0 {
			t.Errorf("%s: nothing forwarded", name)
		}
	}
}
