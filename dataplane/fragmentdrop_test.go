package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/dataplane/frag"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// fragRow is frames that come by one NIC, and what becomes of them.
type fragRow struct {
	name string
	nic  int
	in   [][]byte
	wait int64 // passes afterwards
	want map[string]uint64
}

// icmpIn is a ping of so many bytes.
func icmpIn(t testing.TB, src, dst string, n int) []byte {
	eth := &layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: nicMAC[0][:], EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: addr(src).Netip().AsSlice(), DstIP: addr(dst).Netip().AsSlice()}
	return serialize(t, eth, ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}, gopacket.Payload(make([]byte, n)))
}

func fragRows(t testing.TB) []fragRow {
	udp := func(src, dst string) []byte { return build(t, seg{src: src, dst: dst, udp: true, payload: 592}) } // 600 bytes with the header
	q := udp("198.51.100.7:4000", "192.0.2.10:5000")
	q6 := udp("[2001:db8:c::7]:4000", "[2001:db8::10]:5000")
	p := func(f []byte, from, size int, more bool) []byte { return pieceOf(f, 7, span{from, size, more}) }
	a, b, c := p(q, 0, 200, true), p(q, 200, 200, true), p(q, 400, 200, false)
	a6, b6, c6 := p(q6, 0, 200, true), p(q6, 200, 200, true), p(q6, 400, 200, false)
	stray := udp("10.0.1.20:999", "198.51.100.9:4000") // of a DNAT backend, and no flow
	syn := build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.10:80", syn: true, payload: 592, opts: []layers.TCPOption{mss(1460), mss(1460)}})
	proxy := build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.13:80", syn: true, payload: 592})
	nat64 := udp("[2001:db8:c::7]:4000", "[2001:db8::64]:5000")
	unknown := udp("198.51.100.7:4000", "192.0.2.10:5999")
	ours := udp("192.0.2.11:4000", "192.0.2.10:5000")
	ack := build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.10:80", ack: true, payload: 580})
	local := udp("10.0.1.20:5001", "10.0.1.10:4000")
	last := build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.10:5000", udp: true, payload: 592, ttl: 1})
	noUDP := slices.Clone(a)
	binary.BigEndian.PutUint16(noUDP[34+4:], 7)
	var many [][]byte
	for _, s := range spans(frag.MaxPieces*8+16, 8) {
		s.more = true
		many = append(many, p(q, s.from, s.size, true))
	}
	ping := icmpIn(t, "198.51.100.7", "192.0.2.10", 592)
	type w = map[string]uint64
	return []fragRow{
		{"in order", 0, [][]byte{a, b, c}, 0, w{"forwarded": 3}},
		{"backwards", 0, [][]byte{c, b, a}, 0, w{"forwarded": 3}},
		{"IPv6 backwards", 0, [][]byte{c6, b6, a6}, 0, w{"forwarded": 3}},
		{"one twice", 0, [][]byte{a, b, b, c}, 0, w{"forwarded": 3, "fragment_duplicate": 1}},
		{"one twice before the first", 0, [][]byte{b, b, a, c}, 0, w{"forwarded": 3, "fragment_duplicate": 1}},
		{"the first twice", 0, [][]byte{a, a, b, c}, 0, w{"forwarded": 3, "fragment_duplicate": 1}},
		{"overlap", 0, [][]byte{a, b, p(q, 192, 200, true), c, b}, 0, w{"forwarded": 2, "fragment_overlap": 1, "fragment_condemned": 2}},
		{"overlap before the first", 0, [][]byte{b, c, p(q, 192, 200, true), a}, 0, w{"fragment_overlap": 3, "fragment_condemned": 1}},
		{"IPv6 overlap", 0, [][]byte{a6, p(q6, 192, 200, true), c6}, 0, w{"forwarded": 1, "fragment_overlap": 1, "fragment_condemned": 1}},
		{"an end before another's place", 0, [][]byte{p(q, 400, 200, true), p(q, 200, 200, false)}, 0, w{"fragment_overlap": 2}},
		{"two ends", 0, [][]byte{a, c, p(q, 600, 200, false)}, 0, w{"forwarded": 2, "fragment_overlap": 1}},
		{"too many", 0, many, 0, w{"forwarded": frag.MaxPieces, "fragment_scattered": 1, "fragment_condemned": 1}},
		{"no first", 0, [][]byte{b, c}, frag.Wait, w{"fragment_expired": 2}},
		{"first too late", 0, [][]byte{b}, frag.Wait, w{"fragment_expired": 1}},
		{"waits", 0, [][]byte{b, c}, frag.Wait - 1, w{}},
		{"ping", 0, [][]byte{p(ping, 0, 200, true), p(ping, 200, 200, true)}, 0, w{"fragment": 2}},
		{"ping past us", 0, [][]byte{p(icmpIn(t, "10.0.1.20", "198.51.100.9", 592), 200, 200, true)}, 0, w{"passed": 1}},
		{"of a stranger's flow", 1, [][]byte{p(stray, 200, 200, true), p(stray, 0, 200, true), p(stray, 400, 200, false)}, 0, w{"passed": 3}},
		{"tiny", 0, [][]byte{p(build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.10:80", syn: true}), 0, 16, true)}, 0, w{"tiny_fragment": 1}},
		{"options in the next", 0, [][]byte{p(syn, 0, 24, true), p(syn, 24, 200, true)}, frag.Wait, w{"tiny_fragment": 1, "fragment_expired": 1}},
		{"UDP of no length", 0, [][]byte{noUDP}, 0, w{"bad_udp_length": 1}},
		{"PROXY", 0, [][]byte{p(proxy, 0, 200, true), p(proxy, 200, 200, true)}, 0, w{"fragment_proxy": 1, "no_flow": 1}},
		{"SYN", 0, [][]byte{p(syn, 0, 200, true), p(syn, 200, 200, true)}, 0, w{"fragment_syn": 1, "no_flow": 1}},
		{"NAT64", 0, [][]byte{p(nat64, 0, 200, true), p(nat64, 200, 200, true)}, 0, w{"forwarded": 2}},
		{"no service", 0, [][]byte{p(unknown, 0, 200, true), p(unknown, 200, 200, true)}, 0, w{"no_service": 1, "no_flow": 1}},
		{"from ourselves", 0, [][]byte{p(ours, 0, 200, true)}, 0, w{"martian_source": 1}},
		{"TCP without flow", 0, [][]byte{p(ack, 0, 200, true), p(ack, 200, 200, true)}, 0, w{"no_flow": 2}},
		{"to a local address without flow", 1, [][]byte{p(local, 0, 200, true), p(local, 200, 200, true)}, 0, w{"no_flow": 2}},
		{"TTL used up", 0, [][]byte{a, p(last, 200, 200, true)}, 0, w{"forwarded": 1, "ttl_exceeded": 1}},
		{"too big", 0, [][]byte{a, p(q, 200, 1504, true)}, 0, w{"forwarded": 2}},
		{"IPv6 too big", 0, [][]byte{a6, p(q6, 200, 1504, true)}, 0, w{"forwarded": 1, "too_big": 1}},
	}
}

// TestFragmentFates: what becomes of fragments, whichever worker gets them.
func TestFragmentFates(t *testing.T) {
	for workers := 1; workers <= 3; workers++ {
		for _, c := range fragRows(t) {
			t.Run(fmt.Sprintf("%d/%s", workers, c.name), func(t *testing.T) {
				r := newFragRig(t, workers)
				n := 0
				r.spread(c.nic, func() int { n++; return n % workers }, c.in)
				r.now += c.wait
				r.step()
				got := map[string]uint64{}
				for v, n := range r.counts().Verdicts {
					if v := Verdict(v); n > 0 && v != HandedOver {
						got[v.String()] = n
					}
				}
				if d := cmp.Diff(c.want, got); d != "" {
					t.Errorf("(-want +got)\n%s", d)
				}
			})
		}
	}
}

// TestFragmentsOfFlowsThatTakeNone: an open flow refuses them as a new one does.
func TestFragmentsOfFlowsThatTakeNone(t *testing.T) {
	r := newFragRig(t, 2)
	ack := seg{src: "198.51.100.7:4000", dst: "192.0.2.13:80", syn: true}
	r.one(0, 0, 1, build(t, ack))
	ack.payload = 592
	for i, f := range cut(build(t, ack), 1, 304) {
		r.refused(i%2, 0, DropFragmentProxy, f)
	}
	ack.dst = "192.0.2.10:80"
	r.one(0, 0, 1, build(t, ack))
	r.refused(0, 0, DropFragmentSYN, cut(build(t, ack), 1, 304)[0])
	q := seg{src: "[2001:db8:c::7]:4000", dst: "[2001:db8::64]:5000", udp: true, payload: 592, noCsum: true}
	out := r.one(0, 0, 1, build(t, seg{src: q.src, dst: q.dst, udp: true}))
	q.src, q.dst = dstOf(out), srcOf(out)
	r.refused(0, 1, DropFragmentNoChecksum, cut(build(t, q), 1, 304)[0])
	q.noCsum = false
	for i, f := range cut(build(t, q), 2, 304) {
		f[14+packet.IPv4TOS] ^= 4
		r.refused(i%2, 1, DropIPChecksum, f)
	}
}

// TestFragmentedTOA: what a client forged is gone, and what there is no room for
// is counted.
func TestFragmentedTOA(t *testing.T) {
	r := newFragRig(t, 2)
	c := r.open(0, "198.51.100.7:4000", "192.0.2.10:80")
	before := r.counts().TOA[nat.TOANoRoom]
	forged := layers.TCPOption{OptionType: 254, OptionLength: 8, OptionData: []byte{1, 2, 3, 4, 5, 6}}
	s := seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 592, opts: []layers.TCPOption{forged}}
	got, _ := whole(t, r.deliver(1, 0, cut(build(t, s), 1, 304)...))
	p := verify(t, got)
	if data := toa(p); data != nil {
		t.Errorf("the server has got TOA %x", data)
	}
	if n := r.counts().TOA[nat.TOANoRoom] - before; n != 1 || len(tcpOf(p).Payload) != 592 {
		t.Errorf("%d counted without room, %d bytes", n, len(tcpOf(p).Payload))
	}
	s.opts = nil
	if toa(verify(t, r.one(1, 0, 1, build(t, s)))) == nil {
		t.Error("no TOA afterwards")
	}
}

// TestForgedUOAInFragments: it goes from the first and from those that follow.
func TestForgedUOAInFragments(t *testing.T) {
	r := newFragRig(t, 2)
	f := uoaFrame(t, "192.0.2.10", layers.IPProtocolUDP, 0x0f, 0xa0, 0x13, 0x88, 0, 24, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8)
	f = f[:14+48+16]
	second := slices.Clone(f)
	f[14+packet.IPv4Frag], second[14+packet.IPv4Frag+1] = 0x20, 2
	for _, b := range [][]byte{f, second} {
		b[14+packet.IPv4Checksum], b[14+packet.IPv4Checksum+1] = 0, 0
		binary.BigEndian.PutUint16(b[14+packet.IPv4Checksum:], packet.Checksum(b[14:14+48], 0))
	}
	out := r.deliver(0, 0, second, f)
	if len(out) != 2 {
		t.Fatalf("%d frames out", len(out))
	}
	for _, o := range out {
		var p packet.Packet
		if err := packet.Parse(o.bytes, &p); err != packet.ErrNone || !packet.VerifyIPv4(o.bytes, &p) {
			t.Fatalf("%v: % x", err, o.bytes)
		}
		want := append([]byte{7, 8, 4, 0, 0, 0, 0, 0}, bytes.Repeat([]byte{1}, 20)...)
		if d := cmp.Diff(want, o.bytes[14+20:p.L4]); d != "" {
			t.Errorf("options (-want +got)\n%s", d)
		}
	}
}

// TestFragmentFloodKeepsNobodyOut: one source sends beginnings and ends without
// end; others' datagrams pass in any order, and in the end nothing is left.
func TestFragmentFloodKeepsNobodyOut(t *testing.T) {
	r := newFragRig(t, 2)
	flood := build(t, seg{src: "198.51.100.66:4000", dst: "192.0.2.10:5000", udp: true, payload: 592})
	for i := range uint32(3000) {
		r.deliver(int(i%2), 0, pieceOf(flood, i, span{200, 200, true}), pieceOf(flood, i+20000, span{0, 200, true}))
		r.now += 1e5
		if i%100 == 0 {
			q := build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 4000+i), dst: "192.0.2.10:5000", udp: true, payload: 592})
			all := cut(q, i, 200)
			slices.Reverse(all)
			if out := r.deliver(int(i%2), 0, all...); len(out) != len(all) {
				t.Fatalf("after %d: %d of %d fragments out", i, len(out), len(all))
			}
		}
	}
	n := r.counts()
	if n.Verdicts[DropFragmentSourceLimit] < 2500 || n.Verdicts[DropFragmentHoldLimit]+n.Verdicts[DropFragmentTableFull] > 0 {
		t.Errorf("%d over their source's limit, %d no room to wait, %d table full", n.Verdicts[DropFragmentSourceLimit],
			n.Verdicts[DropFragmentHoldLimit], n.Verdicts[DropFragmentTableFull])
	}
	r.now += frag.Life
	r.step()
	for _, w := range r.dp.Workers {
		for w.frags.table.Len() > 0 {
			w.Poll(r.now)
		}
		if w.FragmentsWaiting() > 0 {
			t.Errorf("worker %d: %d frames wait", w.ID(), w.FragmentsWaiting())
		}
	}
}

// TestServersHaveRoom: a server's fragments all come from one source, and more
// of them wait than would for anybody else.
func TestServersHaveRoom(t *testing.T) {
	r := newFragRig(t, 1)
	count := func(src, dst string, nic int) (waiting int) {
		before := r.dp.Workers[0].FragmentsWaiting()
		f := build(t, seg{src: src, dst: dst, udp: true, payload: 592})
		for i := range uint32(1000) {
			r.deliver(0, nic, pieceOf(f, i, span{200, 200, true}))
		}
		return r.dp.Workers[0].FragmentsWaiting() - before
	}
	anybody, server := count("198.51.100.66:4000", "192.0.2.10:5000", 0), count("10.0.1.20:5001", "10.0.1.10:4000", 1)
	if anybody == 0 || server < 3*anybody || anybody+server > 256 {
		t.Errorf("%d frames of anybody wait, %d of a server", anybody, server)
	}
	r.now += frag.Wait
	for range 20 {
		r.dp.Workers[0].Poll(r.now)
	}
	if n := r.dp.Workers[0].FragmentsWaiting(); n != 0 {
		t.Errorf("%d still wait", n)
	}
}

// TestFragmentIDs: many clients use the same identification; behind one address
// no two datagrams do.
func TestFragmentIDs(t *testing.T) {
	r := newFragRig(t, 3)
	for _, f := range [][2]string{{"198.51.100.%d:4000", "192.0.2.10:5000"}, {"[2001:db8:c::%d]:4000", "[2001:db8::10]:5000"},
		{"[2001:db8:c::%d]:4000", "[2001:db8::64]:5000"}} {
		seen := map[uint32]bool{}
		for i := range 200 {
			q := build(t, seg{src: fmt.Sprintf(f[0], i+1), dst: f[1], udp: true, payload: 592})
			got, id := whole(t, r.deliver(i%3, 0, cut(q, 7, 304)...))
			if seen[id] {
				t.Fatalf("datagram %d: identification %d again", i, id)
			}
			seen[id] = true
			back := build(t, seg{src: dstOf(got), dst: srcOf(got), udp: true, payload: 592})
			_, id = whole(t, r.deliver(i%3, 1, cut(back, 7, 304)...))
			if seen[id] {
				t.Fatalf("reply %d: identification %d again", i, id)
			}
			seen[id] = true
		}
	}
	for _, w := range r.dp.Workers { // also once all have been given
		for range 70000 {
			w.ipID = w.idAfter(w.ipID)
			if int(w.ipID&0xffff)%3 != w.ID() {
				t.Fatalf("worker %d gives %d", w.ID(), w.ipID)
			}
		}
		if a, b := w.idAfter(0x1ffff), w.idAfter(0xffffffff); a != 0x20000+uint32(w.ID()) || b != uint32(w.ID()) {
			t.Errorf("worker %d gives %#x, %#x", w.ID(), a, b)
		}
	}
}

// TestICMPErrorAboutAFragment: of the first one, it finds its flow.
func TestICMPErrorAboutAFragment(t *testing.T) {
	r := newFragRig(t, 2)
	q := build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.10:5000", udp: true, payload: 592})
	out := r.deliver(0, 0, cut(q, 7, 304)...)
	src, _ := ipOf(gopacket.NewPacket(out[0].bytes, layers.LayerTypeEthernet, gopacket.Default))
	e := icmpError(t, "10.0.1.20", src.String(), out[0].bytes[14:])
	r.one(1, 1, 0, e)
}

// TestFragmentsThatMayWait: whoever sends them, and to however many workers, those
// that wait never take more than a quarter of one worker's frames.
func TestFragmentsThatMayWait(t *testing.T) {
	for workers := 1; workers <= 3; workers++ {
		r := newFragRig(t, workers)
		var late [][]byte
		for i := range 1200 {
			q := build(t, seg{src: fmt.Sprintf("198.51.100.%d:4000", 1+i%100), dst: "192.0.2.10:5000", udp: true, payload: 592})
			late = append(late, pieceOf(q, uint32(i), span{200, 200, true}))
		}
		n, wait := 0, 0
		r.spread(0, func() int { n++; return n % workers }, late)
		for _, w := range r.dp.Workers {
			wait += w.FragmentsWaiting()
		}
		if wait > 1024/4 || wait < 1024/4-workers {
			t.Errorf("%d workers: %d of 1024 frames wait", workers, wait)
		}
	}
}

// TestSharedIDs: datagrams of several hosts that leave with one address must not
// keep the identifications their hosts gave them.
func TestSharedIDs(t *testing.T) {
	r := newFragRig(t, 2)
	for _, vip := range []string{"192.0.2.10:5000", "192.0.2.11:5000", "[2001:db8::10]:5000", "[2001:db8::11]:5000"} {
		s := seg{src: "198.51.100.7:4000", dst: vip, udp: true, payload: 592}
		if vip[0] == '[' {
			s.src = "[2001:db8:c::7]:4000"
		}
		q := r.one(0, 0, 1, build(t, s))
		_, id := whole(t, r.deliver(0, 0, cut(build(t, s), 0x7777, 304)...))
		if kept := srcOf(q) == s.src; kept != (id == 0x7777) { // DNAT: the client is the source still
			t.Errorf("%s: a client's datagram got id %#x", vip, id)
		}
		s.src, s.dst = dstOf(q), srcOf(q)
		if _, id = whole(t, r.deliver(1, 1, cut(build(t, s), 0x7777, 304)...)); id == 0x7777 {
			t.Errorf("%s: a server's datagram kept its id", vip)
		}
	}
}

// TestFragmentsKeepTTL: where l4fwd is no hop, of fragments neither.
func TestFragmentsKeepTTL(t *testing.T) {
	spec := fragSpec()
	spec.KeepTTL = true
	r := newRig(t, 1, spec)
	for _, f := range r.deliver(0, 0, cut(build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.10:5000", udp: true, payload: 592}), 1, 304)...) {
		if ttl := f.bytes[14+packet.IPv4TTL]; ttl != 64 {
			t.Errorf("TTL %d", ttl)
		}
		verify(t, f.bytes)
	}
	if n := r.counts().Verdicts[Forwarded]; n != 2 {
		t.Errorf("%d forwarded", n)
	}
}
