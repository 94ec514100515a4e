package dataplane

import (
	"encoding/binary"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// TestSYNOptionsTakenOneByOne: what editOptions has to take out of a SYN goes also where it
// is the only option of the SYN.
func TestSYNOptionsTakenOneByOne(t *testing.T) {
	for _, o := range []layers.TCPOption{
		{OptionType: packet.OptTOA, OptionLength: 8, OptionData: []byte{1, 2, 3, 4, 5, 6}},
		stamps(7, 0),
		{OptionType: packet.OptFastOpen, OptionLength: 10, OptionData: []byte{1, 2, 3, 4, 5, 6, 7, 8}},
	} {
		r := newRig(t, 1, testSpec())
		_, syn := r.begin("198.51.100.7:40000", "192.0.2.10:80", 1000, o)
		for _, got := range tcpOf(syn).Options {
			if got.OptionType == o.OptionType {
				t.Errorf("option %d reaches the server", o.OptionType)
			}
		}
	}
	// Direct return, too.
	spec := testSpec()
	spec.Services = []ServiceSpec{service("direct", "192.0.2.10:80", packet.ProtoTCP, conntrack.DirectReturn, false, "10.0.1.20:80")}
	r := newRig(t, 1, spec)
	out := r.one(0, 0, 1, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true,
		opts: []layers.TCPOption{{OptionType: packet.OptTOA, OptionLength: 8, OptionData: []byte{1, 2, 3, 4, 5, 6}}}}))
	var p packet.Packet
	packet.Parse(out, &p)
	if packet.ScanSYN(out, &p).May(packet.OptTOA) {
		t.Error("direct return: TOA reaches the server")
	}
}

// TestSYNACKWithBlocks: the edges of SACK blocks are moved in a SYN-ACK as in any segment.
func TestSYNACKWithBlocks(t *testing.T) {
	r := newRig(t, 1, testSpec())
	c, _ := r.begin("198.51.100.7:40000", "192.0.2.10:80", 1000)
	edges := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, c.isn+11), c.isn+21)
	p := c.answer(mss(1400), layers.TCPOption{OptionType: layers.TCPOptionKindSACK, OptionLength: 10, OptionData: edges})
	for _, o := range tcpOf(p).Options {
		if o.OptionType == layers.TCPOptionKindSACK {
			if l, h := binary.BigEndian.Uint32(o.OptionData), binary.BigEndian.Uint32(o.OptionData[4:]); l != 1011 || h != 1021 {
				t.Errorf("block %d-%d, want 1011-1021", l, h)
			}
			return
		}
	}
	t.Error("the block is gone")
}
