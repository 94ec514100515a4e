package dataplane

import (
	"encoding/binary"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/packet"
)

// script packs frames for FuzzPipeline: worker and NIC in the bits of one
// byte, length in two, the bytes.
func script(frames ...sentFrame) (b []byte) {
	for _, f := range frames {
		b = append(b, byte(f.worker<<1|f.nic))
		b = binary.BigEndian.AppendUint16(b, uint16(len(f.bytes)))
		b = append(b, f.bytes...)
	}
	return b
}

// withPolicies marks a script for services with every policy.
func withPolicies(b []byte) []byte {
	b[0] |= 4
	return b
}

// seeds are conversations worth changing: the handshake teaches the fuzzer
// which local ports and sequence numbers live.
func seeds(f *testing.F) {
	r := newRig(f, 2, testSpec())
	for _, vip := range []string{"192.0.2.10:80", "192.0.2.11:80"} {
		var all []sentFrame
		add := func(nic int, s seg) []sentFrame {
			b := build(f, s)
			all = append(all, sentFrame{0, nic, b})
			return r.deliver(0, nic, b)
		}
		client := "198.51.100.7:40000"
		out := add(0, seg{src: client, dst: vip, syn: true, seq: 1000, opts: []layers.TCPOption{mss(1460)}})
		p := gopacket.NewPacket(out[0].bytes, layers.LayerTypeEthernet, gopacket.Default)
		src, dst := ipOf(p)
		local, backend := hostPort(src.String(), uint16(tcpOf(p).SrcPort)), hostPort(dst.String(), uint16(tcpOf(p).DstPort))
		isn := tcpOf(p).Seq
		add(1, seg{src: backend, dst: local, syn: true, ack: true, seq: 9000, ackNum: isn + 1, opts: []layers.TCPOption{mss(1460)}})
		add(0, seg{src: client, dst: vip, ack: true, seq: 1001, ackNum: 9001})
		add(0, seg{src: client, dst: vip, ack: true, seq: 1001, ackNum: 9001, payload: 20})
		add(1, seg{src: backend, dst: local, ack: true, fin: true, seq: 9001, ackNum: isn + 21, payload: 20})
		f.Add(script(all...))
		f.Add(withPolicies(script(all...)))
	}
	f.Add(script(sentFrame{1, 0, build(f, seg{src: "[2001:db8:c::7]:1", dst: "[2001:db8::10]:80", syn: true})},
		sentFrame{0, 0, build(f, seg{src: "198.51.100.7:1", dst: "192.0.2.10:5000", udp: true, noCsum: true})}))
}

// FuzzPipeline feeds any bytes to two workers. Whatever they are, nothing may
// panic and no frame may be lost (newRig's audit); and what leaves must be as
// sound as what came, gopacket and packet.Verify agreeing.
func FuzzPipeline(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		spec := testSpec()
		if len(b) > 0 && b[0]&4 != 0 {
			spec = everyPolicy()
		}
		r := newRig(t, 2, spec)
		for len(b) >= 3 {
			worker, nic, n := int(b[0]>>1&1), int(b[0]&1), int(binary.BigEndian.Uint16(b[1:]))
			b = b[3:]
			n = min(n, len(b), testFrame-256)
			frame := b[:n:n]
			b = b[n:]
			before := r.counts()
			out := r.deliver(worker, nic, frame)
			after := r.counts()
			if after.Received != before.Received+1 || len(out) > 1 && !fragment(frame) {
				t.Fatalf("one frame in: %d received, %d out", after.Received-before.Received, len(out))
			}
			r.now += 1e6
			if len(out) == 1 {
				compare(t, frame, out[0].bytes)
			}
		}
	})
}

// fragment reports whether others may have waited for this frame.
func fragment(frame []byte) bool {
	var p packet.Packet
	packet.Parse(frame, &p)
	return p.Kind == packet.KindFragment
}

// compare holds what left against what came: a packet with right checksums
// must not have lost them.
func compare(t *testing.T, in, out []byte) {
	var p, q packet.Packet
	if packet.Parse(in, &p) != packet.ErrNone {
		t.Fatalf("forwarded what does not parse: %x", in)
	}
	if err := packet.Parse(out, &q); err != packet.ErrNone && p.Kind != packet.KindARP && p.Kind != packet.KindNS {
		t.Fatalf("%v: sent %x for %x", err, out, in)
	}
	if p.Kind != packet.KindTCP && p.Kind != packet.KindUDP || !packet.VerifyIPv4(in, &p) || !packet.VerifyL4(in, &p) {
		return
	}
	if !packet.VerifyIPv4(out, &q) || !packet.VerifyL4(out, &q) {
		t.Fatalf("checksum: sent %x for %x", out, in)
	}
	verifyQuiet(t, out)
}

// verifyQuiet asks gopacket too, where it can read the packet at all: it
// refuses options and payloads that are legal to forward.
func verifyQuiet(t *testing.T, frame []byte) {
	g := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	ip, _ := g.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	tcp, _ := g.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if ip == nil || tcp == nil || g.ErrorLayer() != nil {
		return
	}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		return
	}
	if sum, err := tcp.ComputeChecksum(); err == nil && sum != tcp.Checksum && sum != 0 {
		t.Fatalf("gopacket computes %#x, sent %#x: %x", sum, tcp.Checksum, frame)
	}
}
