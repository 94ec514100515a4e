package dataplane

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/packet"
)

// fullPort takes nothing into its TX ring.
type fullPort struct{ *memport.Port }

func (fullPort) Transmit([]unix.XDPDesc) int { return 0 }

// TestFullTXRingIsOneVerdict: a packet that found no room is dropped, and was
// not forwarded besides (newRig's clean-up adds the verdicts up).
func TestFullTXRingIsOneVerdict(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	w.queues[1].Port = fullPort{r.port[0][1]}
	var list [][]byte
	for i := range 60 {
		list = append(list, build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1000+i), dst: "192.0.2.11:5000", udp: true}))
	}
	r.deliver(0, 0, list...)
	c := r.counts()
	if c.Verdicts[DropTxFull] != 60 || c.Verdicts[Forwarded] != 0 || c.Sent != 0 {
		t.Errorf("%d dropped, %d forwarded, %d sent", c.Verdicts[DropTxFull], c.Verdicts[Forwarded], c.Sent)
	}
}

// TestShortAnswersArePadded: on veth a request may come without Ethernet's
// padding; the answer may leave by a wire that wants it.
func TestShortAnswersArePadded(t *testing.T) {
	r := newRig(t, 1, testSpec())
	arp := serialize(t,
		&layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: []byte{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{AddrType: 1, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
			SourceHwAddress: clientMAC[:], SourceProtAddress: []byte{198, 51, 100, 7}, DstHwAddress: make([]byte, 6), DstProtAddress: []byte{192, 0, 2, 10}})
	arp = arp[:42]
	for i := range r.dp.umem {
		r.dp.umem[i] = 0xee // somebody's packet was here
	}
	out := r.deliver(0, 0, arp)
	if len(out) != 1 || len(out[0].bytes) != minFrame {
		t.Fatalf("%+v", out)
	}
	for _, b := range out[0].bytes[42:] {
		if b != 0 {
			t.Fatalf("padding % x", out[0].bytes[42:])
		}
	}
}

// TestManyQueues: one worker may well have more than 127 queues.
func TestManyQueues(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	second := w.Detach(1)[0]
	for range 300 {
		if err := w.Attach(0, nicMAC[0], memport.New(r.dp.umem, testFrame, testRing)); err != nil {
			t.Fatal(err)
		}
	}
	w.Adopt(second.Held(nil))
	last := memport.New(r.dp.umem, testFrame, testRing)
	last.OnSend = r.port[0][1].OnSend
	if err := w.Attach(1, nicMAC[1], last); err != nil {
		t.Fatal(err)
	}
	r.one(0, 0, 1, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true}))
}

// between puts a VLAN tag before, and options or extension headers behind, the
// IP header of a frame that has none, and mends the IPv4 checksum.
func between(frame []byte, tag, more bool) []byte {
	b := append([]byte(nil), frame...)
	v6 := binary.BigEndian.Uint16(b[12:]) == packet.EtherTypeIPv6
	switch {
	case more && v6: // hop-by-hop and destination options, 8 bytes of padding each
		extra := []byte{60, 0, 1, 4, 0, 0, 0, 0, b[14+6], 0, 1, 4, 0, 0, 0, 0}
		b[14+6] = 0
		binary.BigEndian.PutUint16(b[14+4:], binary.BigEndian.Uint16(b[14+4:])+uint16(len(extra)))
		b = append(b[:54:54], append(extra, b[54:]...)...)
	case more: // router alert and padding
		b[14] = 0x47
		binary.BigEndian.PutUint16(b[14+2:], binary.BigEndian.Uint16(b[14+2:])+8)
		b = append(b[:34:34], append([]byte{148, 4, 0, 0, 1, 1, 1, 0}, b[34:]...)...)
		b[24], b[25] = 0, 0
		binary.BigEndian.PutUint16(b[24:], packet.Checksum(b[14:42], 0))
	}
	if tag {
		b = append(b[:12:12], append([]byte{0x81, 0, 0, 7}, b[12:]...)...)
	}
	return b
}

// TestHeadersInBetween sends conversations with a VLAN tag, IPv4 options and
// IPv6 extension headers through every rewrite, over memory full of rubbish.
func TestHeadersInBetween(t *testing.T) {
	for _, way := range [][2]string{
		{"198.51.100.7:40000", "192.0.2.10:80"}, {"198.51.100.7:40000", "192.0.2.11:80"},
		{"[2001:db8:c::7]:40000", "[2001:db8::10]:80"}, {"[2001:db8:c::7]:40000", "[2001:db8::11]:80"},
	} {
		for form := range 4 {
			t.Run(fmt.Sprintf("%s/%d", way[1], form), func(t *testing.T) {
				r := newRig(t, 2, testSpec())
				for i := range r.dp.umem {
					r.dp.umem[i] = 0xee
				}
				through := func(nic int, s seg) packet.Packet {
					t.Helper()
					out := r.deliver(form&1, nic, between(build(t, s), form&1 != 0, form&2 != 0))
					if len(out) != 1 || out[0].nic != 1-nic {
						t.Fatalf("%+v", out)
					}
					b, p := out[0].bytes, packet.Packet{}
					if err := packet.Parse(b, &p); err != packet.ErrNone || !packet.VerifyIPv4(b, &p) || !packet.VerifyL4(b, &p) {
						t.Fatalf("%v: %x", err, b)
					}
					if p.L3 != packet.EthLen || (p.L4-p.L3 != 20 && p.L4-p.L3 != 40) != (form&2 != 0) {
						t.Fatalf("headers at %d and %d", p.L3, p.L4)
					}
					for _, x := range b[p.End:] {
						if x != 0 {
							t.Fatalf("padding % x", b[p.End:])
						}
					}
					return p
				}
				there := seg{src: way[0], dst: way[1]}
				there.syn, there.seq, there.opts = true, 1000, []layers.TCPOption{mss(1460)}
				p := through(0, there)
				back := seg{src: hostPort(p.Dst.String(), p.DstPort), dst: hostPort(p.Src.String(), p.SrcPort)}
				back.syn, back.ack, back.seq, back.ackNum, back.opts = true, true, 9000, p.Seq+1, []layers.TCPOption{mss(1460)}
				if q := through(1, back); q.Ack != 1001 {
					t.Errorf("acknowledges %d", q.Ack)
				}
				for n := range 3 { // with TOA
					there = seg{src: way[0], dst: way[1], ack: true, seq: 1001, ackNum: 9001, payload: n}
					through(0, there)
				}
				back = seg{src: back.src, dst: back.dst, ack: true, seq: 9001, ackNum: p.Seq + 3, payload: 1}
				through(1, back)
			})
		}
	}
}
