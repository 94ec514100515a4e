package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// FuzzDirect feeds any bytes to two workers with services of direct return, on the
// link and through every tunnel. Nothing panics, no frame is lost (newRig's audit),
// and what goes to a server is what came: the same TCP or UDP payload, behind the
// same ports, in one piece or several.
func FuzzDirect(f *testing.F) {
	for n, k := range tunnelClients {
		client, vip := fmt.Sprintf(k.client, 4000), fmt.Sprintf(k.vip, n%2)
		syn := build(f, seg{src: client, dst: vip, udp: k.udp, syn: !k.udp, seq: 1000, payload: 30})
		data := build(f, seg{src: client, dst: vip, udp: k.udp, ack: !k.udp, seq: 1001, ackNum: 5, payload: 1500})
		answer := build(f, seg{src: vip, dst: client, udp: k.udp, ack: !k.udp, seq: 5, payload: 900})
		router := map[bool]string{true: "203.0.113.9", false: "2001:db8:ff::9"}[answer[14]>>4 == 4]
		all := []sentFrame{{0, 0, syn}, {1, 0, data}, {0, 0, freely(data)}, {1, 0, complaint(f, router, answer, 1300, 64)}}
		for _, p := range cut(freely(data), 7, 1000) {
			all = append(all, sentFrame{0, 0, p})
		}
		for kind := range nat.NumEncapsulations {
			f.Add(uint8(kind), script(all...))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		tn := nat.Tunnel{Kind: nat.Encapsulation(kind) % nat.NumEncapsulations, Port: 4789}
		r := newRig(t, 2, tunnelSpec(tn))
		routes := tunnelRoutes(2, 1500)
		if tn.Kind == nat.NoTunnel { // else servers are behind a router
			routes = routes.WithPeers(nil)
		}
		r.dp.PublishRoutes(routes)
		for len(b) >= 3 {
			worker, n := int(b[0]>>1&1), int(binary.BigEndian.Uint16(b[1:]))
			b = b[3:]
			n = min(n, len(b), testFrame-256)
			frame := b[:n:n]
			b = b[n:]
			before := r.counts()
			out := r.deliver(worker, 0, frame)
			after := r.counts()
			if after.Received != before.Received+1 {
				t.Fatal("not received")
			}
			r.now += 1e6
			if len(out) == 1 && out[0].nic == 1 && !fragment(frame) {
				sameWithin(t, &tn, frame, out[0].bytes)
			}
		}
	})
}

// sameWithin holds the packet in a tunnel, or on the link, against the one that came:
// ports and payload are the same.
func sameWithin(t *testing.T, tn *nat.Tunnel, in, out []byte) {
	t.Helper()
	var p, q packet.Packet
	if packet.Parse(in, &p) != packet.ErrNone {
		t.Fatalf("forwarded what does not parse: %x", in)
	}
	if tn.Kind != nat.NoTunnel {
		more := tn.Overhead(out[14]>>4 == 4)
		out = append(append([]byte(nil), in[:p.L3]...), out[14+more:]...)
	}
	if err := packet.Parse(out, &q); err != packet.ErrNone || p.Kind != q.Kind || p.Tuple != q.Tuple || !bytes.Equal(in[p.Payload:p.End], out[q.Payload:q.End]) {
		t.Fatalf("%v: %x became %x", err, in, out)
	}
}
