package nat

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// piece is the frame of a fragment from the middle of a datagram with s's
// addresses and TTL.
func piece(s shape, id uint32, data []byte) []byte {
	const offset = 1400
	d := s.datagram()
	if d[0]>>4 == 6 {
		proto := d[6]
		d = append(d[:40:40], proto, 0, offset>>8, offset&0xf8|1)
		d = binary.BigEndian.AppendUint32(d, id)
		d = append(d, data...)
		d[6] = 44
		binary.BigEndian.PutUint16(d[4:], uint16(len(d)-40))
		return append(ether(false, s.vlan), d...)
	}
	n := int(d[0]&15) * 4
	d = append(d[:n:n], data...)
	binary.BigEndian.PutUint16(d[2:], uint16(len(d)))
	binary.BigEndian.PutUint16(d[4:], uint16(id))
	binary.BigEndian.PutUint16(d[6:], 0x2000|offset/8)
	d[10], d[11] = 0, 0
	binary.BigEndian.PutUint16(d[10:], ^uint16(slowSum(d[:n])))
	return append(ether(true, s.vlan), d...)
}

// TestReaddressTwin compares Readdress and RenewID, byte by byte, with fragments
// built the way they should leave.
func TestReaddressTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow(t, v6, udp)
		s := drawShape(t, v6, udp)
		id, newID := edgy(t, "id"), edgy(t, "new id")
		data := bytesOf('x', 8*rapid.IntRange(1, 9).Draw(t, "words"))
		for d, c := range map[conntrack.Dir][2]shape{
			conntrack.Forward: {f.fromClient(s), f.toServer(s)},
			conntrack.Reply:   {f.fromServer(s), f.toClient(s)},
		} {
			got := piece(c[0], id, data)
			p := parse(t, got)
			RenewID(got, &p, newID)
			if !Readdress(got, &p, &f.e, d, &f.dir) {
				t.Fatal("refused")
			}
			if d := cmp.Diff(piece(c[1], newID, data), got); d != "" {
				t.Fatalf("(-want +got)\n%s", d)
			}
		}
	})
}

func TestReaddressRefuses(t *testing.T) {
	s := shape{ttl: 9, flags: packet.ACK}
	for _, c := range []struct {
		name string
		edit func(f *flow, p *packet.Packet, frame *[]byte)
	}{
		{"backend unknown", func(f *flow, _ *packet.Packet, _ *[]byte) { f.e.Backend = 3; f.e.Service = 9 }},
		{"other family", func(_ *flow, p *packet.Packet, _ *[]byte) { p.V6 = !p.V6 }},
		{"cut", func(_ *flow, p *packet.Packet, frame *[]byte) { *frame = (*frame)[:p.L3+19] }},
	} {
		for _, f := range []*flow{flow4(conntrack.FullNAT), flow6(conntrack.DNAT)} {
			for d, in := range map[conntrack.Dir]shape{conntrack.Forward: f.fromClient(s), conntrack.Reply: f.fromServer(s)} {
				g := *f
				frame := piece(in, 1, []byte("12345678"))
				p := parse(t, frame)
				c.edit(&g, &p, &frame)
				was := slices.Clone(frame)
				if Readdress(frame, &p, &g.e, d, &g.dir) || !slices.Equal(was, frame) {
					t.Errorf("%s, direction %d: not refused, or changed", c.name, d)
				}
			}
		}
	}
}
