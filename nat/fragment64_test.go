package nat

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// fragments are the frames of s in pieces of at most size bytes of data, made by
// gopacket as a host would; before is whether IPv6 ones have an extension header
// before the fragment header.
func (s *shape64) fragments(t rapid.TB, id uint32, size int, before bool) (out [][]byte) {
	t.Helper()
	data := s.transport(t)
	for at := 0; at < len(data); at += size {
		piece, more := data[at:min(at+size, len(data))], at+size < len(data)
		var d []byte
		if s.src.Is4() {
			c := *s
			c.id, c.frag = uint16(id), uint16(at/8)
			if more {
				c.frag |= packet.IPv4MoreFragments
			}
			d = serialize(t, true, c.network(s.proto()), gopacket.Payload(piece))
		} else {
			h := []byte{byte(s.proto()), 0, byte(at >> 8), byte(at)}
			if more {
				h[3] |= 1
			}
			first := layers.IPProtocol(44)
			h = binary.BigEndian.AppendUint32(h, id)
			if before {
				h, first = append([]byte{44, 0, 1, 4, 0, 0, 0, 0}, h...), 60
			}
			d = serialize(t, true, s.network(first), gopacket.Payload(append(h, piece...)))
		}
		out = append(out, slices.Concat(ether(s.src.Is4(), s.vlan), d, s.pad))
	}
	return out
}

// joined puts IP fragments together as a host does, by what gopacket reads of
// them; each must fit the MTU. Its result is the datagram that was cut, without
// DF, and the identification of the fragments.
func joined(t rapid.TB, pieces [][]byte, mtu int) (datagram []byte, id uint32) {
	t.Helper()
	var head gopacket.SerializableLayer
	data := map[int]byte{}
	end := -1
	for i, b := range pieces {
		var at int
		var more bool
		var its uint32
		var payload []byte
		p := gopacket.NewPacket(b, layers.LayerTypeIPv4, gopacket.Default)
		if b[0]>>4 == 6 {
			p = gopacket.NewPacket(b, layers.LayerTypeIPv6, gopacket.Default)
			ip, f := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6), p.Layer(layers.LayerTypeIPv6Fragment).(*layers.IPv6Fragment)
			at, more, its, payload = int(f.FragmentOffset)*8, f.MoreFragments, f.Identification, f.LayerPayload()
			ip.NextHeader = f.NextHeader
			if int(ip.Length) != len(b)-40 {
				t.Fatalf("length %d in % x", ip.Length, b)
			}
			head = keep(head, ip)
		} else {
			ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
			at, more, its, payload = int(ip.FragOffset)*8, ip.Flags&layers.IPv4MoreFragments != 0, uint32(ip.Id), ip.Payload
			if slowSum(ip.Contents) != 0xffff || int(ip.Length) != len(b) {
				t.Fatalf("checksum or length of % x", b)
			}
			ip.Flags, ip.FragOffset = 0, 0
			head = keep(head, ip)
		}
		if i > 0 && its != id || len(b) > mtu || more && len(payload)%8 != 0 || len(payload) == 0 {
			t.Fatalf("piece %d, of %d bytes, MTU %d, id %d, not %d: % x", i, len(b), mtu, its, id, b)
		}
		id = its
		for j, c := range payload {
			if _, twice := data[at+j]; twice {
				t.Fatalf("byte %d comes twice", at+j)
			}
			data[at+j] = c
		}
		if !more {
			end = at + len(payload)
		}
	}
	whole := make([]byte, len(data))
	for at, c := range data {
		if end != len(data) || at >= end {
			t.Fatalf("%d bytes, the end is at %d", len(data), end)
		}
		whole[at] = c
	}
	return serialize(t, true, head, gopacket.Payload(whole)), id
}

// keep is the header of the first piece.
func keep(head, l gopacket.SerializableLayer) gopacket.SerializableLayer {
	if head == nil {
		return l
	}
	return head
}

// split is a packet in pieces of at most mtu bytes.
func split(t rapid.TB, frame []byte, p *packet.Packet, mtu int, from packet.Fragment) (out [][]byte) {
	t.Helper()
	s, n := NewSplit(frame, p, mtu, from)
	if n == 0 {
		t.Fatalf("MTU %d: %+v does not split", mtu, p)
	}
	for k := range n {
		b := make([]byte, mtu)
		out = append(out, b[:s.Put(b, frame, k)])
	}
	if s.Put(make([]byte, mtu), frame, n) != 0 || s.Put(make([]byte, 8), frame, 0) != 0 || s.Put(make([]byte, mtu), frame, -1) != 0 {
		t.Fatal("a piece of which there is none, or no room")
	}
	return out
}

// through64Fragment translates one fragment and cuts what comes out.
func through64Fragment(t rapid.TB, f *flow, frame []byte, d conntrack.Dir, mtu int, id uint32) [][]byte {
	t.Helper()
	chunk := inChunk(frame, headroom)
	p := parse(t, frame)
	from := p.Fragment(frame)
	from.ID = id
	off, n, ok := headroom, len(frame), false
	if !Divisible(frame, &p, &f.e) {
		t.Fatal("not divisible")
	}
	switch {
	case from.Offset != 0:
		off, n, ok = Readdress64(chunk, off, n, &p, &f.e, d, &f.dir, uint16(id))
	case p.FirstFragment(frame) != packet.ErrNone:
	case d == conntrack.Forward:
		off, n, ok = Forward64(chunk, off, n, &p, &f.e, &f.dir, uint16(id))
	default:
		off, n, ok = Reply64(chunk, off, n, &p, &f.e, &f.dir)
	}
	if !ok || n != int(p.End) || p.V6 != (d == conntrack.Reply) {
		t.Fatalf("refused, or %d bytes, %+v", n, p)
	}
	out := chunk[off : off+n]
	if !slices.Equal(ether(!p.V6, p.L3 == 18), out[:p.L3]) {
		t.Fatalf("Ethernet header % x", out[:p.L3])
	}
	return split(t, out, &p, mtu, from)
}

// TestFragments64Twin: a datagram that gopacket has built and a twin cut, its
// fragments translated each on its own, cut again and put together, is the
// datagram that gopacket builds for the other side.
func TestFragments64Twin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow64(t, udp)
		s := drawShape64(t, v6, udp)
		s.ext, s.noCsum = nil, false
		s.payload = rapid.SliceOfN(rapid.Byte(), 100, 4000).Draw(t, "data")
		id, newID := edgy(t, "id"), edgy(t, "new id")
		size := 8 * rapid.IntRange(8, 180).Draw(t, "words")
		var want shape64
		d, least := conntrack.Forward, 68
		if v6 {
			s.shape = f.fromClient(s.shape)
			want = f.toServer64(s, uint16(newID))
			want.frag, newID = 0, newID&0xffff
		} else {
			d, least = conntrack.Reply, 1280
			s.shape = f.fromServer(s.shape)
			want = f.toClient64(s)
		}
		mtu := rapid.IntRange(least, 1500).Draw(t, "mtu")
		in := s.fragments(t, id, size, rapid.Bool().Draw(t, "extension"))
		if len(in) == 1 {
			return
		}
		var all [][]byte
		for _, b := range rapid.Permutation(in).Draw(t, "order") {
			all = append(all, through64Fragment(t, f, b, d, mtu, newID)...)
		}
		got, gotID := joined(t, all, mtu)
		if d := cmp.Diff(want.whole(t), got); d != "" || gotID != newID {
			t.Fatalf("id %#x, want %#x (-want +got)\n%s", gotID, newID, d)
		}
	})
}

// TestReaddress64Refuses: what is no later fragment of the flow stays untouched.
func TestReaddress64Refuses(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(f *flow, p *packet.Packet, off, n *int)
	}{
		{"ids unknown", func(f *flow, _ *packet.Packet, _, _ *int) { f.e.Backend, f.e.Service = 9, 9 }},
		{"no NAT64", func(f *flow, _ *packet.Packet, _, _ *int) { f.e.Flags |= conntrack.V6Server }},
		{"other family", func(_ *flow, p *packet.Packet, _, _ *int) { p.V6 = !p.V6 }},
		{"whole", func(_ *flow, p *packet.Packet, _, _ *int) { p.Kind = packet.KindUDP }},
		{"cut", func(_ *flow, p *packet.Packet, _, n *int) { *n = int(p.End) - 1 }},
		{"outside", func(_ *flow, _ *packet.Packet, off, _ *int) { *off = 4000 }},
		{"no header", func(_ *flow, p *packet.Packet, _, _ *int) { p.L4 = p.L3 + 12 }},
	} {
		for _, d := range []conntrack.Dir{conntrack.Forward, conntrack.Reply} {
			f := flow64()
			s := shape64{shape: f.fromServer(shape{ttl: 9, udp: true, payload: bytesOf(1, 99)})}
			if d == conntrack.Forward {
				s.shape = f.fromClient(s.shape)
			}
			frame := s.fragments(t, 1, 64, false)[1]
			p := parse(t, frame)
			chunk, off, n := inChunk(frame, headroom), headroom, len(frame)
			c.edit(f, &p, &off, &n)
			was, before := slices.Clone(chunk), p
			if _, _, ok := Readdress64(chunk, off, n, &p, &f.e, d, &f.dir, 1); ok || p != before || !slices.Equal(was, chunk) {
				t.Errorf("%s, direction %d: not refused, or changed", c.name, d)
			}
		}
	}
	f := flow64()
	s := shape64{shape: f.fromServer(shape{ttl: 9, udp: true, payload: bytesOf(1, 99)})}
	frames := s.fragments(t, 1, 64, false)
	for i, room := range []int{headroom, 19} { // a first fragment; no headroom
		p := parse(t, frames[i])
		chunk := inChunk(frames[i], room)
		if _, _, ok := Readdress64(chunk, room, len(frames[i]), &p, &f.e, conntrack.Reply, &f.dir, 1); ok {
			t.Errorf("%d: not refused", i)
		}
	}
}

// TestDivisible: what routers may cut, as it is or will be.
func TestDivisible(t *testing.T) {
	f, four, six := flow64(), flow4(conntrack.FullNAT), flow6(conntrack.FullNAT)
	long := bytesOf(1, 1300)
	for _, c := range []struct {
		name string
		flow *flow
		s    shape64
		want bool
	}{
		{"IPv4", four, shape64{shape: four.fromClient(shape{udp: true})}, true},
		{"IPv4, DF", four, shape64{shape: four.fromClient(shape{udp: true}), frag: packet.IPv4DontFragment}, false},
		{"IPv6", six, shape64{shape: six.fromClient(shape{udp: true})}, false},
		{"NAT64, short", f, shape64{shape: f.fromClient(shape{udp: true, payload: long[:1232]})}, true},
		{"NAT64, long", f, shape64{shape: f.fromClient(shape{udp: true, payload: long[:1233]})}, false},
		{"NAT64, reply", f, shape64{shape: f.fromServer(shape{udp: true, payload: long})}, true},
	} {
		c.s.ttl = 9
		frame := c.s.frame64(t)
		p := parse(t, frame)
		if got := Divisible(frame, &p, &c.flow.e); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
