package nat

import (
	"encoding/binary"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// proxied is a flow of a service with PROXY in a real flow table, driven as the
// pipeline would.
type proxied struct {
	*flow
	t       rapid.TB
	table   *conntrack.Table
	ref     conntrack.Ref
	version ProxyVersion
	header  []byte
	pol     conntrack.Policy
}

func newProxied(t rapid.TB, f *flow, version ProxyVersion) *proxied {
	table, err := conntrack.New(conntrack.Options{Flows: 16, Secret: [32]byte{1}, Lazy: true})
	if err != nil {
		t.Fatal(err)
	}
	c := &proxied{flow: f, t: t, table: table, version: version, pol: conntrack.Policy{Timeouts: conntrack.DefaultTimeouts()}}
	c.header = make([]byte, ProxyLen(&f.e, &f.dir, version))
	putProxy(c.header, &f.e, &f.dir, version)
	f.dir.Services[f.e.Service].Proto, f.dir.Backends[f.e.Backend].Proto = packet.ProtoTCP, packet.ProtoTCP
	up := f.fromClient(shape{})
	down := f.fromServer(shape{})
	tuple := func(s shape) *packet.Tuple {
		return &packet.Tuple{Src: s.src, Dst: s.dst, SrcPort: uint16(s.ports >> 16), DstPort: uint16(s.ports), Proto: packet.ProtoTCP}
	}
	ref, status, _ := table.Insert(&f.e, tuple(up), tuple(down), &f.dir, 100, &conntrack.Entry{})
	if status != conntrack.Inserted {
		t.Fatal(status)
	}
	c.ref = ref
	return c
}

func (c *proxied) close() {
	if err := c.table.Close(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *proxied) entry() *conntrack.Entry { return c.table.Entry(c.ref) }

// up sends a client's packet and returns what the server gets, nil if nothing.
func (c *proxied) up(s shape) ([]byte, ProxyResult) {
	c.t.Helper()
	s = c.fromClient(s)
	frame := s.frame()
	chunk := inChunk(frame, headroom)
	off, n := headroom, len(frame)
	p := parse(c.t, frame)
	e := c.entry()
	n = CutSYN(chunk[off:off+n], &p)
	mark := MarkProxy(e)
	if out := c.table.Track(c.ref, conntrack.Forward, &p, packet.ScanSYN(chunk[off:off+n], &p).Scale, 100, &c.pol); out != conntrack.Pass {
		return nil, ProxyRefused
	}
	mark.Tracked(e)
	off, n, res := InsertProxy(chunk, off, n, &p, e, &c.dir, c.version, 1500)
	if res.Drop() {
		return nil, res
	}
	got := chunk[off : off+n]
	if again := parse(c.t, got); again != p {
		c.t.Fatalf("p is not true any more: %+v, parsed %+v", p, again)
	}
	if !Forward(got, &p, e, &c.dir) {
		c.t.Fatal("Forward")
	}
	c.verify(got)
	return got, res
}

// down sends a server's packet and returns what the client gets.
func (c *proxied) down(s shape) []byte {
	c.t.Helper()
	s = c.fromServer(s)
	frame := s.frame()
	p := parse(c.t, frame)
	e := c.entry()
	if !ProxyReply(frame, &p, e, len(c.header)) {
		return nil
	}
	if again := parse(c.t, frame); again != p {
		c.t.Fatalf("p is not true any more: %+v, parsed %+v", p, again)
	}
	mark := MarkProxy(e)
	if c.table.Track(c.ref, conntrack.Reply, &p, packet.ScanSYN(frame, &p).Scale, 100, &c.pol) != conntrack.Pass {
		return nil
	}
	mark.Tracked(e)
	if !Reply(frame, &p, e, &c.dir) {
		c.t.Fatal("Reply")
	}
	c.verify(frame)
	return frame
}

func (c *proxied) verify(frame []byte) {
	c.t.Helper()
	p := parse(c.t, frame)
	if !packet.VerifyL4(frame, &p) || !packet.VerifyIPv4(frame, &p) {
		c.t.Fatalf("checksum\n% x", frame)
	}
	judgeRaw(c.t, frame)
}

// receiver is the server's end of one byte stream: what it holds of it, by
// distance from its first byte.
type receiver struct {
	start uint32 // sequence number of the first byte
	bytes map[int]byte
	fin   int // -1: not seen
	next  int // in order up to here
}

// take receives a segment; conflict is a byte that differs from what was there.
func (r *receiver) take(p *packet.Packet, frame []byte) (conflict bool) {
	at := int(int32(p.Seq - r.start))
	for i, b := range frame[p.Payload:p.End] {
		if at+i < r.next || at+i > r.next+8000 || r.fin >= 0 && at+i >= r.fin {
			continue
		}
		if was, ok := r.bytes[at+i]; ok && was != b {
			conflict = true
		}
		r.bytes[at+i] = b
	}
	if p.TCPFlags&packet.FIN != 0 && at >= 0 {
		r.fin = at + int(p.End-p.Payload)
	}
	for {
		if _, ok := r.bytes[r.next]; !ok {
			return conflict
		}
		r.next++
	}
}

// ack is the acknowledgement, FIN counted.
func (r *receiver) ack() uint32 {
	n := uint32(r.next)
	if r.fin >= 0 && r.next == r.fin {
		n++
	}
	return r.start + n
}

// sack is the first block of bytes held out of order, as an option.
func (r *receiver) sack() []byte {
	var at []int
	for k := range r.bytes {
		if k >= r.next {
			at = append(at, k)
		}
	}
	if len(at) == 0 {
		return nil
	}
	slices.Sort(at)
	to := at[0]
	for slices.Contains(at, to) {
		to++
	}
	o := binary.BigEndian.AppendUint32([]byte{1, 1, 5, 10}, r.start+uint32(at[0]))
	return binary.BigEndian.AppendUint32(o, r.start+uint32(to))
}

const serverISN = 0xfffffff0

// handshake sends SYN and SYN-ACK; nothing of it is lost.
func (c *proxied) handshake(isn uint32) (r *receiver) {
	syn, _ := c.up(shape{ttl: 9, flags: packet.SYN, seq: isn})
	p := parse(c.t, syn)
	r = &receiver{start: p.Seq + 1, bytes: map[int]byte{}, fin: -1}
	back := c.down(shape{ttl: 9, flags: packet.SYN | packet.ACK, seq: serverISN, ack: r.start})
	q := parse(c.t, back)
	if q.Ack != isn+1 || int(q.Window) != 0x2000-len(c.header) {
		c.t.Fatalf("SYN-ACK: acknowledges %d, window %d", q.Ack-isn, q.Window)
	}
	return r
}

// TestProxyStream sends a client's stream over a network that loses, doubles and
// reorders both ways, cut at random anew with every retransmission. The server
// must get the header and the stream, whole and nothing else; no acknowledgement
// or SACK block may show the client anything it did not send, or that the server
// has not got.
func TestProxyStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, cl := openProxied(t, 300)
		defer c.close()
		var wire [][]byte // on their way to the server
		var back [][]byte
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"send", "send", "send", "arrive", "arrive", "lose", "double", "back", "lose back", "speak"}).Draw(t, "step") {
			case "send":
				if b := cl.send(t); b != nil {
					wire = append(wire, b)
				}
			case "arrive":
				if i := pickOne(t, wire); i >= 0 {
					back = append(back, cl.arrive(wire[i]))
					wire = slices.Delete(wire, i, i+1)
				}
			case "lose":
				if i := pickOne(t, wire); i >= 0 {
					wire = slices.Delete(wire, i, i+1)
				}
			case "double":
				if i := pickOne(t, wire); i >= 0 {
					back = append(back, cl.arrive(wire[i]))
				}
			case "back":
				if i := pickOne(t, back); i >= 0 {
					cl.hear(back[i])
					back = slices.Delete(back, i, i+1)
				}
			case "lose back":
				if i := pickOne(t, back); i >= 0 {
					back = slices.Delete(back, i, i+1)
				}
			case "speak": // the server repeats its SYN-ACK, or its acknowledgement
				if cl.r.next == 0 && len(cl.r.bytes) == 0 {
					c.down(shape{ttl: 9, flags: packet.SYN | packet.ACK, seq: serverISN, ack: cl.r.start})
				} else {
					back = append(back, cl.acknowledge())
				}
			}
		}
		// Then everything arrives, in small steps.
		for range 1000 {
			if cl.r.fin >= 0 && cl.r.next == cl.r.fin && cl.una == len(cl.stream)+1 {
				break
			}
			cl.hear(cl.arrive(cl.segment(cl.una, min(len(cl.stream), cl.una+50))))
		}
		want := slices.Concat(c.header, cl.stream)
		got := make([]byte, cl.r.next)
		for i := range got {
			got[i] = cl.r.bytes[i]
		}
		if !slices.Equal(got, want) || cl.r.fin != len(want) {
			t.Fatalf("server has %d bytes, FIN at %d\n%q\nwant %d\n%q", len(got), cl.r.fin, got, len(want), want)
		}
		if !ProxyDone(c.entry()) || c.entry().SeqDelta != c.e.SeqDelta+uint32(len(c.header)) {
			t.Fatal("not done")
		}
	})
}

// TestProxyForgery: a client sends whatever it likes, much of it damaged such that
// l4fwd believes it and the server does not, RSTs and SYNs in between. Whatever the
// server takes as the first bytes of a connection is the header.
func TestProxyForgery(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := flow4(conntrack.FullNAT)
		isn := edgy(t, "ISN")
		f.e.SeqDelta = ProxyDelta(edgy(t, "server's ISN"), isn)
		c := newProxied(t, f, ProxyVersion(rapid.IntRange(1, 2).Draw(t, "version")))
		defer c.close()
		r := c.handshake(isn)
		size := len(c.header)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			if rapid.IntRange(0, 3).Draw(t, "server") == 0 {
				c.down(shape{ttl: 9, flags: packet.ACK, seq: serverISN + 1, ack: r.ack(), opts: r.sack()})
				continue
			}
			s := shape{ttl: 9, ack: serverISN, flags: packet.ACK, payload: bytesOf(0xbd, rapid.SampledFrom([]int{0, 1, 3, 60, 200}).Draw(t, "length"))}
			s.ack++
			s.flags = rapid.SampledFrom([]uint8{packet.ACK, packet.ACK, packet.ACK, packet.ACK | packet.FIN, packet.RST, packet.RST | packet.ACK,
				packet.SYN, packet.SYN | packet.FIN, 0xff, 0, packet.ACK | packet.URG}).Draw(t, "flags")
			s.seq = isn + 1 + uint32(rapid.SampledFrom([]int{0, 0, 0, 1, 3, 60, -1, -2, -3, -60, -199, -size, 1 - size, -size - 1, -2 * size, 1 << 30, -1 << 30}).Draw(t, "seq"))
			b, _ := c.up(s)
			if b == nil || rapid.IntRange(0, 2).Draw(t, "damaged") == 0 {
				continue
			}
			p := parse(t, b)
			if p.TCPFlags&packet.SYN != 0 && p.Seq+1 != r.start {
				t.Fatalf("another SYN reaches the server: %+v", p)
			}
			if p.TCPFlags&(packet.RST|packet.SYN) == 0 {
				r.take(&p, b)
			}
			for k, v := range r.bytes {
				if k < size && v != c.header[k] {
					t.Fatalf("byte %d of the header is %#x", k, v)
				}
			}
		}
	})
}

// TestProxySecondSYN: a client takes its port again while the flow stands. The
// server is asked, and either answer leads to a RST that ends the flow.
func TestProxySecondSYN(t *testing.T) {
	for _, alive := range []bool{true, false} {
		for _, done := range []bool{true, false} {
			f := flow4(conntrack.FullNAT)
			f.e.SeqDelta = 12345
			c := newProxied(t, f, ProxyV1)
			r := c.handshake(1000)
			b, _ := c.up(shape{ttl: 9, flags: packet.ACK, seq: 1001, ack: serverISN + 1, payload: []byte("data")})
			if p := parse(t, b); done {
				r.take(&p, b)
				c.down(shape{ttl: 9, flags: packet.ACK, seq: serverISN + 1, ack: r.ack()})
			}
			if ProxyDone(c.entry()) != done {
				t.Fatal("phase")
			}
			b, res := c.up(shape{ttl: 9, flags: packet.SYN, seq: 7_000_000, opts: []byte{2, 4, 5, 180}, payload: []byte("early")})
			p := parse(t, b)
			if res != ProxyProbe || p.TCPFlags != packet.ACK || p.End != p.Payload || int32(p.Seq-r.start) >= 0 || p.Ack != serverISN+1 {
				t.Fatalf("%v %+v", res, p)
			}
			if alive { // it says what it expects, and the client, being in SYN-SENT, resets just that
				b = c.down(shape{ttl: 9, flags: packet.ACK, seq: serverISN + 1, ack: r.ack()})
				q := parse(t, b)
				b, _ = c.up(shape{ttl: 9, flags: packet.RST, seq: q.Ack})
				if got := parse(t, b); got.Seq != r.ack() {
					t.Errorf("RST at %d, server expects %d", got.Seq, r.ack())
				}
			} else {
				c.down(shape{ttl: 9, flags: packet.RST, seq: p.Ack})
			}
			// With data that never arrived the server alone knows where it is.
			if e := c.entry(); e.State != conntrack.Closed && (done || !alive) {
				t.Errorf("alive %v, done %v: %v", alive, done, e.State)
			}
			if c.down(shape{ttl: 9, flags: packet.SYN | packet.ACK, seq: 99, ack: 5}) != nil {
				t.Error("a SYN-ACK of an unknown connection passes")
			}
			c.close()
		}
	}
}

func pickOne(t *rapid.T, from [][]byte) int {
	if len(from) == 0 {
		return -1
	}
	return rapid.IntRange(0, len(from)-1).Draw(t, "which")
}

// client is the sending end.
type client struct {
	c      *proxied
	r      *receiver // what it must never see
	isn1   uint32
	stream []byte
	una    int // acknowledged
	most   int // sent, FIN counted
}

// openProxied opens a connection drawn at random, its header sent, for a client
// with up to most bytes to send.
func openProxied(t *rapid.T, most int) (*proxied, *client) {
	f := drawFlow(t, rapid.Bool().Draw(t, "v6"), false)
	f.e.Mode = conntrack.FullNAT
	Prepare(&f.e, &f.dir)
	isn := edgy(t, "ISN")
	f.e.SeqDelta = ProxyDelta(edgy(t, "server's ISN"), isn)
	c := newProxied(t, f, ProxyVersion(rapid.IntRange(1, 2).Draw(t, "version")))
	stream := rapid.SliceOfN(rapid.Byte(), 0, most).Draw(t, "stream")
	return c, &client{c: c, r: c.handshake(isn), isn1: isn + 1, stream: stream}
}

// send sends something that is not acknowledged: a bare ACK, data from anywhere,
// perhaps with FIN, or a keep-alive.
func (cl *client) send(t *rapid.T) []byte {
	end := len(cl.stream)
	switch rapid.SampledFrom([]string{"ack", "data", "data", "keep-alive"}).Draw(t, "segment") {
	case "ack":
		return cl.packet(shape{flags: packet.ACK, seq: cl.isn1 + uint32(max(cl.una, cl.most))})
	case "keep-alive":
		if cl.most == cl.una {
			return cl.packet(shape{flags: packet.ACK, seq: cl.isn1 + uint32(cl.una) - 1, payload: []byte{0xbd}[:rapid.IntRange(0, 1).Draw(t, "garbage")]})
		}
		return nil
	}
	from := rapid.IntRange(min(cl.una, end), min(max(cl.una, cl.most), end)).Draw(t, "from") // no gaps
	return cl.segment(from, rapid.IntRange(from, end).Draw(t, "to"))
}

// segment sends bytes from..to of the stream, with FIN if that is its end.
func (cl *client) segment(from, to int) []byte {
	from = min(from, len(cl.stream))
	s := shape{flags: packet.ACK, seq: cl.isn1 + uint32(from), payload: cl.stream[from:to]}
	cl.most = max(cl.most, to)
	if to == len(cl.stream) {
		s.flags |= packet.FIN
		cl.most = to + 1
	}
	return cl.packet(s)
}

func (cl *client) packet(s shape) []byte {
	s.ttl, s.ack = 9, serverISN
	s.ack++
	b, res := cl.c.up(s)
	if b == nil && res != ProxyEarly {
		cl.c.t.Fatalf("%v", res)
	}
	if b == nil && s.seq != cl.isn1-1 {
		cl.c.t.Fatalf("honest segment at %d refused: %+v", s.seq-cl.isn1, *cl.c.entry())
	}
	return b
}

// arrive lets the server receive a packet and returns its answer, as the client
// gets it.
func (cl *client) arrive(b []byte) []byte {
	p := parse(cl.c.t, b)
	if cl.r.take(&p, b) {
		cl.c.t.Fatalf("server gets two different bytes at one place: % x", b)
	}
	return cl.acknowledge()
}

func (cl *client) acknowledge() []byte {
	return cl.c.down(shape{ttl: 9, flags: packet.ACK, seq: serverISN + 1, ack: cl.r.ack(), opts: cl.r.sack()})
}

// hear checks an acknowledgement against what the server really has.
func (cl *client) hear(b []byte) {
	t := cl.c.t
	p := parse(t, b)
	ack := int(int32(p.Ack - cl.isn1))
	size := len(cl.c.header)
	if ack > cl.most || ack > 0 && ack > cl.r.next-size+1 || ack < -size || ack < 0 && !ProxyDone(cl.c.entry()) {
		t.Fatalf("acknowledges %d; sent %d, server has %d", ack, cl.most, cl.r.next-size)
	}
	cl.una = max(cl.una, ack)
	if at := packet.ScanOptions(b, &p).SACKOff; at > 0 {
		from := int(int32(binary.BigEndian.Uint32(b[at+2:]) - cl.isn1))
		to := int(int32(binary.BigEndian.Uint32(b[at+6:]) - cl.isn1))
		if from < 0 || to > cl.most || from > to {
			t.Fatalf("SACK %d to %d; sent %d", from, to, cl.most)
		}
		for i := from; i < to; i++ {
			if _, ok := cl.r.bytes[i+size]; !ok {
				t.Fatalf("SACK %d to %d, but %d is not there", from, to, i)
			}
		}
	}
}
