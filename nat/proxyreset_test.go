package nat

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// farewell is what an end of the connection gets when the flow idles out.
func (c *proxied) farewell(d conntrack.Dir) packet.Packet {
	c.t.Helper()
	header := 0
	if !ProxyDone(c.entry()) {
		header = len(c.header)
	}
	chunk := bytesOf(0xee, 2048)
	off, n, ok := BuildReset(chunk, c.entry(), d, &c.dir, header)
	if !ok {
		c.t.Fatalf("no RST: %v", c.entry().State)
	}
	c.verify(chunk[off : off+n])
	return parse(c.t, chunk[off:off+n])
}

// TestProxyReset lets a flow idle out whose server's acknowledgements were lost,
// all of them or the last ones, or which never got what the client sent last. A
// server that has everything must believe the RST at once: its number is exactly
// what it expects. One that misses some of it asks back from where it is, which
// belongs to no flow by then, and the answer to that is exact.
func TestProxyReset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, cl := openProxied(t, 200)
		defer c.close()
		var lost []byte
		arrives := func(b []byte) []byte {
			if rapid.IntRange(0, 4).Draw(t, "lost") == 0 {
				lost = b
				return nil
			}
			lost = nil
			return cl.arrive(b)
		}
		arrives(cl.packet(shape{flags: packet.ACK, seq: cl.isn1}))
		for cl.most < len(cl.stream) && lost == nil && rapid.IntRange(0, 5).Draw(t, "stop") > 0 {
			back := arrives(cl.segment(cl.most, rapid.IntRange(cl.most+1, len(cl.stream)).Draw(t, "to")))
			if back != nil && rapid.Bool().Draw(t, "acknowledged") {
				cl.hear(back)
			}
		}
		if e := c.entry(); e.State < conntrack.Established || e.State > conntrack.LastAck {
			t.Fatal(e.State)
		}
		all := cl.r.start + uint32(len(c.header)+cl.most)
		rst := c.farewell(conntrack.Forward)
		if rst.TCPFlags != packet.RST|packet.ACK || rst.Seq != all || rst.Ack != serverISN+1 {
			t.Fatalf("%+v, want RST at %d", rst, all)
		}
		if lost == nil && rst.Seq != cl.r.ack() {
			t.Fatalf("RST at %d, server expects %d", rst.Seq, cl.r.ack())
		}
		challenge := c.fromServer(shape{ttl: 9, flags: packet.ACK, seq: serverISN + 1, ack: cl.r.ack()})
		frame := challenge.frame()
		p := parse(t, frame)
		if _, _, ok := ResetFor(inChunk(frame, headroom), headroom, len(frame), &p); !ok || p.Seq != cl.r.ack() {
			t.Fatalf("answer to the challenge: %v, RST at %d, want %d", ok, p.Seq, cl.r.ack())
		}
		rst = c.farewell(conntrack.Reply)
		if rst.Seq != serverISN+1 || rst.Ack != cl.isn1+uint32(cl.most) {
			t.Fatalf("client's RST: %+v", rst)
		}
	})
}
