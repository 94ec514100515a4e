package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/internal/testbed"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// uoaSpec has UDP services with UOA in one form: IPv4, IPv6, NAT64, one of which every
// datagram gets a flow, and one that routes by connection ID too.
func uoaSpec(form nat.UOAForm) Spec {
	spec := testSpec()
	spec.Services = nil
	for _, s := range []struct{ vip, backend string }{
		{"192.0.2.15:5000", "10.0.1.20:5000"},
		{"[2001:db8::15]:5000", "[2001:db8:1::20]:5000"},
		{"[2001:db8::64]:5000", "10.0.1.20:5064"},
		{"192.0.2.16:53", "10.0.1.20:53"},
		{"192.0.2.17:443", "10.0.1.20:443"},
	} {
		svc := service(s.vip, s.vip, packet.ProtoUDP, conntrack.FullNAT, false, s.backend)
		svc.UOA, svc.UOADatagrams = form, 3
		svc.OnePacket = s.vip == "192.0.2.16:53"
		if s.vip == "192.0.2.17:443" {
			svc.QUIC.Layout = QUICDPVS
		}
		spec.Services = append(spec.Services, svc)
	}
	return spec
}

// uoaOf reads UOA in a frame.
func uoaOf(f []byte) (testbed.UOA, bool) {
	d := f[packet.EthLen:]
	n := 40 + int(binary.BigEndian.Uint16(d[4:]))
	if d[0]>>4 == 4 {
		n = int(binary.BigEndian.Uint16(d[2:]))
	}
	return testbed.ReadUOA(d[:n])
}

// plainFrame is frame without its UOA.
func plainFrame(frame []byte, u testbed.UOA) []byte {
	return append(bytes.Clone(frame[:packet.EthLen]), u.Plain...)
}

var uoaForms = map[string]nat.UOAForm{"separate": nat.UOASeparate, "protocol": nat.UOAProtocol, "option": nat.UOAOption}

// TestUOA: a flow's first datagrams tell the client's address, or ones ahead of them do,
// and are for the rest as without; later ones and replies are as ever.
func TestUOA(t *testing.T) {
	for _, c := range []struct {
		client, vip string
		noCsum, all bool
	}{
		{client: "198.51.100.7:40000", vip: "192.0.2.15:5000"},
		{client: "198.51.100.7:40001", vip: "192.0.2.15:5000", noCsum: true},
		{client: "[2001:db8:c::7]:40000", vip: "[2001:db8::15]:5000"},
		{client: "[2001:db8:c::7]:40000", vip: "[2001:db8::64]:5000"},
		{client: "198.51.100.7:40000", vip: "192.0.2.16:53", all: true},
		{client: "198.51.100.7:40000", vip: "192.0.2.17:443"},
	} {
		for name, form := range uoaForms {
			client := netip.MustParseAddrPort(c.client)
			if form == nat.UOAOption && client.Addr().Is6() {
				continue
			}
			for _, size := range []int{0, 1, 9, 500} {
				t.Run(fmt.Sprint(name, c.vip, c.noCsum, size), func(t *testing.T) {
					r := newRig(t, 2, uoaSpec(form))
					frame := build(t, seg{src: c.client, dst: c.vip, udp: true, payload: size, noCsum: c.noCsum})
					body := make([]byte, size) // as build has it; short frames are padded
					for i := range body {
						body[i] = byte(i*7 + 1)
					}
					var local, server string
					for i := range 6 {
						out := r.deliver(i%2, 0, frame)
						due := i < 3 || c.all
						if due != (len(out) == 2 && form == nat.UOASeparate || len(out) == 1 && form != nat.UOASeparate && hasUOA(out[0].bytes)) {
							t.Fatalf("datagram %d, due %v: %d frames, the first %x", i, due, len(out), out[0].bytes)
						}
						last := out[len(out)-1].bytes
						if due {
							u, ok := uoaOf(out[0].bytes)
							if !ok || u.Client != client || u.Apart != (form == nat.UOASeparate) {
								t.Fatalf("datagram %d: %+v, %v", i, u, ok)
							}
							plain := verify(t, plainFrame(out[0].bytes, u))
							if form != nat.UOASeparate {
								last = plainFrame(out[0].bytes, u)
							} else if a, b := ends(plain), ends(verify(t, last)); a != b || len(data(plain)) != 0 {
								t.Fatalf("datagram %d: %q for %v ahead of one for %v", i, data(plain), a, b)
							}
						}
						p := verify(t, last)
						src, dst := ipOf(p)
						u := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
						local, server = hostPort(src.String(), uint16(u.SrcPort)), hostPort(dst.String(), uint16(u.DstPort))
						if !bytes.Equal(u.Payload, body) || c.noCsum != (u.Checksum == 0) {
							t.Fatalf("datagram %d: %q, checksum %#x", i, u.Payload, u.Checksum)
						}
					}
					answer := build(t, seg{src: server, dst: local, udp: true, payload: 33})
					if got := data(verify(t, r.one(1, 1, 0, answer))); !bytes.Equal(got, answer[len(answer)-33:]) {
						t.Errorf("answered %q", got)
					}
				})
			}
		}
	}
}

// ends are the addresses and ports of a UDP packet.
func ends(p gopacket.Packet) string {
	src, dst := ipOf(p)
	u := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	return hostPort(src.String(), uint16(u.SrcPort)) + " " + hostPort(dst.String(), uint16(u.DstPort))
}

func hasUOA(f []byte) bool {
	_, ok := uoaOf(f)
	return ok
}

// TestUOANoRoom: what UOA makes too big, what is to leave in fragments and what came in
// some goes as it is, and UOA ahead of it.
func TestUOANoRoom(t *testing.T) {
	const client, vip = "198.51.100.7:40000", "192.0.2.15:5000"
	for name, form := range uoaForms {
		size := map[nat.UOAForm]int{nat.UOAProtocol: 12, nat.UOAOption: 8, nat.UOASeparate: 12}[form]
		for _, c := range []struct {
			name   string
			frames [][]byte
			pieces int
			inside bool
		}{
			{"just fits", [][]byte{build(t, seg{src: client, dst: vip, udp: true, payload: 1472 - size})}, 1, form != nat.UOASeparate},
			{"one byte more", [][]byte{build(t, seg{src: client, dst: vip, udp: true, payload: 1473 - size})}, 1, false},
			{"full", [][]byte{build(t, seg{src: client, dst: vip, udp: true, payload: 1472})}, 1, false},
			{"in fragments", cut(build(t, seg{src: client, dst: vip, udp: true, payload: 900}), 7, 400), 3, false},
		} {
			t.Run(name+" "+c.name, func(t *testing.T) {
				r := newRig(t, 1, uoaSpec(form))
				out := r.deliver(0, 0, c.frames...)
				u, ok := uoaOf(out[0].bytes)
				if !ok || u.Client.String() != client || u.Apart == c.inside {
					t.Fatalf("%+v, %v", u, ok)
				}
				if !c.inside {
					out = out[1:]
				}
				if len(out) != c.pieces {
					t.Errorf("%d frames, want %d", len(out), c.pieces)
				}
				want := Counts{}
				want.UOA[nat.UOASent]++
				if c.inside {
					want = Counts{}
					want.UOA[nat.UOAInserted]++
				}
				if got := r.counts().UOA; got != want.UOA {
					t.Errorf("counted %v", got)
				}
			})
		}
		t.Run(name+" in our fragments", func(t *testing.T) {
			r := newRig(t, 1, uoaSpec(form))
			r.dp.PublishRoutes(testRoutesOf(2, 1400))
			out := r.deliver(0, 0, mayFragment(build(t, seg{src: client, dst: vip, udp: true, payload: 1472})))
			if u, ok := uoaOf(out[0].bytes); !ok || !u.Apart || len(out) != 3 {
				t.Errorf("%d frames, the first %+v", len(out), u)
			}
		})
	}
}

// TestUOAForged: what a client says of itself is not believed, nor is what it sends by
// protocol 248.
func TestUOAForged(t *testing.T) {
	const client, vip = "198.51.100.7:40000", "192.0.2.15:5000"
	r := newRig(t, 1, uoaSpec(nat.UOAProtocol))
	f := build(t, seg{src: client, dst: vip, udp: true, payload: 40})
	d := append(bytes.Clone(f[:34]), 31, 8, 0, 99, 9, 9, 9, 9)
	d = append(d, f[34:]...)
	d[14] += 2
	binary.BigEndian.PutUint16(d[16:], uint16(len(d)-14))
	clear(d[24:26])
	binary.BigEndian.PutUint16(d[24:], packet.Checksum(d[14:42], 0))
	for i := range 5 {
		out := r.deliver(0, 0, d)
		u, ok := uoaOf(out[0].bytes)
		if ok != (i < 3) || ok && u.Client.String() != client {
			t.Errorf("datagram %d: %+v, %v", i, u, ok)
		}
		if bytes.Contains(out[0].bytes, []byte{31, 8, 0, 99}) {
			t.Errorf("datagram %d: the forged option is there", i)
		}
	}
	d = bytes.Clone(f)
	d[14+packet.IPv4Proto] = 248
	clear(d[24:26])
	binary.BigEndian.PutUint16(d[24:], packet.Checksum(d[14:34], 0))
	r.refused(0, 0, DropUnsupported, d)
}

// TestUOAErrors: an ICMP "fragmentation needed" about a datagram with UOA tells its client
// what leaves room for that; about one of protocol 248 nothing else goes on, which servers
// without UOA send, nor what is about the datagram ahead.
func TestUOAErrors(t *testing.T) {
	const client, vip = "198.51.100.7:40000", "192.0.2.15:5000"
	for name, c := range map[string]struct {
		form nat.UOAForm
		code byte
		mtu  uint16
	}{
		"option": {nat.UOAOption, 4, 1292}, "protocol": {nat.UOAProtocol, 4, 1288},
		"protocol unreachable": {nat.UOAProtocol, 2, 0}, "separate": {nat.UOASeparate, 4, 0}, "separate, protocol unreachable": {nat.UOASeparate, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1, uoaSpec(c.form))
			sent := build(t, seg{src: client, dst: vip, udp: true, payload: 1400})
			out := r.deliver(0, 0, sent)
			about := out[0].bytes[packet.EthLen:]
			src, _ := netip.AddrFromSlice(about[12:16])
			icmp := icmpError(t, "10.0.1.1", src.String(), about[:min(len(about), 100)])
			u := icmp[34:]
			u[1], u[6], u[7] = c.code, 1300>>8, 1300&0xff
			clear(u[2:4])
			binary.BigEndian.PutUint16(u[2:], packet.Checksum(u, 0))
			if c.mtu == 0 {
				r.refused(0, 1, DropUnsupported, icmp)
				return
			}
			got := verify(t, r.one(0, 1, 0, icmp)).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
			if got.Seq != c.mtu {
				t.Errorf("MTU %d, want %d", got.Seq, c.mtu)
			}
			if q := got.Payload; c.form == nat.UOAProtocol {
				// What the client sent, but for the TTL and the checksums that cover it.
				want := bytes.Clone(sent[14 : 14+len(q)])
				want[8], q[8] = 0, 0
				copy(want[10:12], q[10:12])
				if !bytes.Equal(q, want) {
					t.Errorf("it is about\n%x, not\n%x", q, want)
				}
			}
		})
	}
}

// TestUOANoFrame: without a free frame the client's datagram goes on all the same.
func TestUOANoFrame(t *testing.T) {
	r := newRig(t, 1, uoaSpec(nat.UOASeparate))
	w := r.dp.Workers[0]
	r.deliver(0, 0, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.15:5000", udp: true, payload: 9}))
	held := w.pool.free
	frame := build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.15:5000", udp: true, payload: 9})
	w.pool.free = nil
	out := r.deliver(0, 0, frame)
	w.pool.free = append(held, w.pool.free...)
	if got := r.counts().UOA; len(out) != 1 || got[nat.UOAFailed] != 1 || got[nat.UOASent] != 1 {
		t.Errorf("%d frames, counted %v", len(out), got)
	}
}

// TestUOAAllocatesNothing, and what comes after the first datagrams is plain.
func TestUOAAllocatesNothing(t *testing.T) {
	for name, form := range uoaForms {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1, uoaSpec(form))
			r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
			frames := make([][]byte, 400)
			for i := range frames {
				frames[i] = build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 2000+i), dst: "192.0.2.15:5000", udp: true, payload: 20})
			}
			n := 0
			if allocs := testing.AllocsPerRun(100, func() {
				for range 5 {
					r.port[0][0].Feed(frames[n:n+1], 1)
					r.dp.Workers[0].Poll(r.now)
				}
				n++
			}); allocs != 0 {
				t.Errorf("%g allocations", allocs)
			}
			if v := r.plain(frames[0]); v != Forwarded {
				t.Errorf("the sixth of a flow: verdict %d", v)
			}
			r.port[0][0].Feed(frames[n:n+1], 1)
			r.dp.Workers[0].Poll(r.now)
			if v := r.plain(frames[n]); v != undecided {
				t.Errorf("the second of a flow: verdict %d", v)
			}
		})
	}
}
