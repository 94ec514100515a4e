package dataplane

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/l4fwd/l4fwd/packet"
)

// FuzzReturnHalf feeds any bytes to two workers with return halves, by either NIC.
// Nothing panics, no frame is lost (newRig's audit), nobody's flow begins but that of
// the DNAT service beside them; and what goes on whole is what came: to the same
// client, with the same payload, and from where it came or, if a server has sent it,
// from its VIP.
func FuzzReturnHalf(f *testing.F) {
	for _, s := range []seg{
		{src: "10.0.1.20:8080", dst: "198.51.100.7:40000", ack: true, seq: 5, payload: 900},
		{src: "[2001:db8:1::20]:8080", dst: "[2001:db8:c::7]:40000", syn: true, ack: true, seq: 5},
		{src: "10.0.1.20:53", dst: "198.51.100.7:40000", udp: true, payload: 1200},
		{src: "10.0.1.30:80", dst: "198.51.100.7:40000", ack: true, seq: 5, payload: 30},
		{src: "10.0.1.20:8081", dst: "198.51.100.7:40000", ack: true, seq: 5, payload: 30},
	} {
		answer := build(f, s)
		all := []sentFrame{{0, 1, answer}, {1, 1, freely(answer)}}
		for _, p := range cut(freely(answer), 7, 400) {
			all = append(all, sentFrame{1, 1, p})
		}
		from := endpoint(s.src, 6).Addr.String()
		sent := build(f, seg{src: s.dst, dst: s.src, udp: s.udp, ack: !s.udp, seq: 41})
		all = append(all, sentFrame{0, 1, complaint(f, from, sent, 1300, 64)},
			sentFrame{0, 0, complaint(f, from, answer, 1300, 64)}) // as of a router, about an answer
		f.Add(script(all...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRig(t, 2, snatSpec())
		vips := map[string]string{}
		for _, s := range snatSpec().Services {
			for _, b := range s.Backends {
				vips[hostPort(b.Endpoint.Addr.String(), b.Endpoint.Port)] = hostPort(s.VIP.Addr.String(), s.VIP.Port)
			}
		}
		for len(b) >= 3 {
			worker, nic, n := int(b[0]>>1&1), int(b[0]&1), int(binary.BigEndian.Uint16(b[1:]))
			b = b[3:]
			n = min(n, len(b), testFrame-256)
			frame := b[:n:n]
			b = b[n:]
			out := r.deliver(worker, nic, frame)
			r.now += 1e6
			var was, is packet.Packet
			if packet.Parse(frame, &was) != packet.ErrNone || len(out) != 1 || fragment(frame) || was.Kind > packet.KindUDP {
				continue
			}
			if err := packet.Parse(out[0].bytes, &is); err != packet.ErrNone {
				t.Fatalf("%v: %x", err, out[0].bytes)
			}
			if is.Kind != was.Kind { // an error of our own about it
				continue
			}
			from := hostPort(was.Src.String(), was.SrcPort)
			if is.Src != was.Src && hostPort(is.Src.String(), is.SrcPort) != vips[from] {
				t.Fatalf("from %s came %x, from another left %x", from, frame, out[0].bytes)
			}
			if same := is.Dst == was.Dst && is.DstPort == was.DstPort; !same && r.counts().Opened == 0 && is.TCPFlags&packet.RST == 0 ||
				!bytes.Equal(frame[was.Payload:was.End], out[0].bytes[is.Payload:is.End]) && is.TCPFlags&packet.RST == 0 {
				t.Fatalf("%x became %x", frame, out[0].bytes)
			}
		}
	})
}
