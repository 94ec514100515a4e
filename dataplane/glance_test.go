package dataplane

import (
	"encoding/binary"
	"testing"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/packet"
)

// glanceFrames are frames to begin with: of both families, both protocols, with and
// without a tag, timestamps, data.
func glanceFrames(t testing.TB) (frames [][]byte) {
	stamps := []layers.TCPOption{{OptionType: 1}, {OptionType: 1}, {OptionType: 8, OptionLength: 10, OptionData: make([]byte, 8)}}
	for _, s := range []seg{
		{src: "198.51.100.1:1024", dst: "192.0.2.10:80", ack: true, seq: 7, ackNum: 9},
		{src: "198.51.100.1:1024", dst: "192.0.2.10:80", ack: true, payload: 40, opts: stamps},
		{src: "198.51.100.1:1024", dst: "192.0.2.10:80", syn: true, opts: stamps[2:]},
		{src: "198.51.100.1:1024", dst: "192.0.2.10:80", udp: true, payload: 1},
		{src: "198.51.100.1:1024", dst: "192.0.2.10:80", udp: true, vlan: 77},
		{src: "[2001:db8::1]:1024", dst: "[2001:db8::10]:80", fin: true, ack: true},
		{src: "[2001:db8::1]:1024", dst: "[2001:db8::10]:80", ack: true, payload: 9, vlan: 77},
		{src: "[2001:db8::1]:1024", dst: "[2001:db8::10]:80", udp: true, payload: 3},
	} {
		frames = append(frames, build(t, s))
	}
	return frames
}

// unseen are the faults of a packet that glance does not look for: plain sees them, or that
// no flow can be the packet's.
var unseen = map[packet.Err]bool{
	packet.ErrMartianSource: true, packet.ErrMartianDest: true, packet.ErrMapped: true, packet.ErrLand: true,
	packet.ErrTruncated: true, packet.ErrTCPOffset: true, packet.ErrUDPLength: true, packet.ErrUDPZeroChecksum: true,
}

// glanceTwin compares glance, and what plain reads of headers, with packet.Parse. behind is
// what lies in the chunk after the frame: it must not count.
func glanceTwin(t interface{ Fatalf(string, ...any) }, table *conntrack.Table, frame []byte, behind byte) {
	const chunk = 4096
	umem := make([]byte, 2*chunk)
	for i := range umem {
		umem[i] = behind
	}
	d := unix.XDPDesc{Addr: memport.Headroom, Len: uint32(copy(umem[memport.Headroom:chunk], frame))}
	frame = umem[d.Addr : d.Addr+uint64(d.Len)]
	var p packet.Packet
	err := packet.Parse(frame, &p)
	hash, ip := glance(umem, &d, table)
	flow := err == packet.ErrNone && (p.Kind == packet.KindTCP || p.Kind == packet.KindUDP)
	bare := !p.V6 && p.L4-p.L3 == packet.IPv4MinLen || p.V6 && p.L4-p.L3 == packet.IPv6Len
	switch {
	case ip == 0 && flow && bare && p.TCPFlags&deciding == 0:
		t.Fatalf("not known: %+v\n%x", p, frame)
	case ip == 0:
		return
	case err != packet.ErrNone && !unseen[err], err == packet.ErrNone && (!flow || !bare):
		t.Fatalf("known: %+v\n%x", p, frame)
	}
	h := headersIn(umem, ip&^isV6)
	n, l4, ttl := h.whole()
	segment := (*[packet.TCPMinLen + 4]byte)(h[18+l4:])
	data, plainTCP := plainSegment(segment, n-l4)
	if err != packet.ErrNone {
		wrongTCP := frame[p.L3:][9] == packet.ProtoTCP && (err == packet.ErrTruncated || err == packet.ErrTCPOffset) && !p.V6
		wrongUDP := err == packet.ErrUDPLength || err == packet.ErrUDPZeroChecksum
		if wrongTCP && plainTCP || wrongUDP && h.wholeUDP(n, l4) {
			t.Fatalf("taken for whole: %+v\n%x", p, frame)
		}
		return
	}
	dst, port := h.destination(ip >= isV6)
	switch {
	case ip&^isV6 != d.Addr+uint64(p.L3) || ip >= isV6 != p.V6:
		t.Fatalf("IP header at %#x: %+v\n%x", ip, p, frame)
	case hash != table.Hash(&p.Tuple):
		t.Fatalf("hash: %+v\n%x", p, frame)
	case n != p.IPLen() || l4 != int(p.L4-p.L3) || dst != p.Dst || port != p.DstPort:
		t.Fatalf("%d bytes, header of %d, to %v %d: %+v\n%x", n, l4, dst, port, p, frame)
	case p.V6 && ttl != frame[p.L3+packet.IPv6HopLimit] || !p.V6 && ttl != frame[p.L3+packet.IPv4TTL]:
		t.Fatalf("TTL %d: %+v\n%x", ttl, p, frame)
	case p.Kind == packet.KindUDP && !h.wholeUDP(n, l4):
		t.Fatalf("datagram not whole: %+v\n%x", p, frame)
	case p.Kind == packet.KindTCP:
		size := p.Payload - p.L4
		known := size == packet.TCPMinLen || size == packet.TCPMinLen+12 && binary.BigEndian.Uint32(frame[p.L4+packet.TCPMinLen:]) == 0x0101080a
		want := known && p.TCPFlags&(packet.ACK|packet.SYN|packet.FIN|packet.RST) == packet.ACK
		if plainTCP != want || want && data != uint32(p.End-p.Payload) {
			t.Fatalf("plain %v with %d bytes: %+v\n%x", plainTCP, data, p, frame)
		}
	}
}

func glanceTable(t testing.TB) *conntrack.Table {
	table, err := conntrack.New(conntrack.Options{Flows: 16, Lazy: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = table.Close() })
	return table
}

func FuzzGlance(f *testing.F) {
	for _, frame := range glanceFrames(f) {
		f.Add(frame, byte(0))
		f.Add(frame[:len(frame)-1], byte(0x45))
	}
	table := glanceTable(f)
	f.Fuzz(func(t *testing.T, frame []byte, behind byte) {
		if len(frame) <= 3000 {
			glanceTwin(t, table, frame, behind)
		}
	})
}

// TestGlanceTwin changes single bytes of good frames: of those at random nearly none is one.
func TestGlanceTwin(t *testing.T) {
	table, frames := glanceTable(t), glanceFrames(t)
	rapid.Check(t, func(rt *rapid.T) {
		frame := append([]byte(nil), rapid.SampledFrom(frames).Draw(rt, "frame")...)
		for range rapid.IntRange(0, 3).Draw(rt, "changes") {
			frame[rapid.IntRange(12, len(frame)-1).Draw(rt, "at")] = rapid.Byte().Draw(rt, "byte")
		}
		frame = frame[:rapid.SampledFrom([]int{len(frame), len(frame), len(frame), rapid.IntRange(0, len(frame)).Draw(rt, "length")}).Draw(rt, "cut")]
		glanceTwin(rt, table, frame, rapid.SampledFrom([]byte{0, 0x45, 0x60, 0xff}).Draw(rt, "behind"))
	})
}
