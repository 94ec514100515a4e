package dataplane

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/frag"
	"github.com/l4fwd/l4fwd/packet"
)

// fragSpec has UDP services of both modes and families too.
func fragSpec() Spec {
	s := testSpec()
	s.Services = append(s.Services,
		service("fnat6u", "[2001:db8::10]:5000", packet.ProtoUDP, conntrack.FullNAT, false, "[2001:db8:1::20]:5001"),
		service("dnat6u", "[2001:db8::11]:5000", packet.ProtoUDP, conntrack.DNAT, false, "[2001:db8:1::20]:5000"))
	return s
}

// newFragRig is a rig of which more frames can wait.
func newFragRig(t testing.TB, workers int) *rig {
	return newRigWith(t, workers, fragSpec(), func(o *Options) { o.UMEM = make([]byte, workers*1024*testFrame) })
}

// span is one fragment's place in its datagram.
type span struct {
	from, size int
	more       bool
}

// spans cuts n bytes into pieces of at most size.
func spans(n, size int) (out []span) {
	for at := 0; at < n; at += size {
		out = append(out, span{at, min(size, n-at), at+size < n})
	}
	return out
}

// pieceOf is the fragment s of the datagram in frame, which has neither VLAN tag
// nor options. What lies beyond the datagram's end is zeros.
func pieceOf(frame []byte, id uint32, s span) []byte {
	const eth = 14
	d := append(slices.Clone(frame[eth:]), make([]byte, 3000)...)
	if d[0]>>4 == 6 {
		h := append(slices.Clone(frame[:eth+40]), d[6], 0)
		h[eth+6] = 44
		w := uint16(s.from)
		if s.more {
			w |= 1
		}
		h = binary.BigEndian.AppendUint16(h, w)
		h = binary.BigEndian.AppendUint32(h, id)
		binary.BigEndian.PutUint16(h[eth+4:], uint16(8+s.size))
		return append(h, d[40+s.from:40+s.from+s.size]...)
	}
	w := uint16(s.from / 8)
	if s.more {
		w |= 0x2000
	}
	h := slices.Clone(frame[:eth+20])
	binary.BigEndian.PutUint16(h[eth+2:], uint16(20+s.size))
	binary.BigEndian.PutUint16(h[eth+4:], uint16(id))
	binary.BigEndian.PutUint16(h[eth+6:], w)
	binary.BigEndian.PutUint16(h[eth+10:], 0)
	binary.BigEndian.PutUint16(h[eth+10:], packet.Checksum(h[eth:], 0))
	return append(h, d[20+s.from:20+s.from+s.size]...)
}

// cut is a whole datagram in fragments.
func cut(frame []byte, id uint32, size int) (out [][]byte) {
	head := 34
	if frame[14]>>4 == 6 {
		head = 54
	}
	for _, s := range spans(len(frame)-head, size) {
		out = append(out, pieceOf(frame, id, s))
	}
	return out
}

// whole puts the fragments of one datagram together, whatever their order, and
// says which id they had: the frame that pieceOf would make them of. Every one
// must have the same headers and a right IPv4 header checksum.
func whole(t rapid.TB, frames []sentFrame) (frame []byte, id uint32) {
	t.Helper()
	var data []byte
	var head []byte
	covered, end := 0, -1
	for i, f := range frames {
		var p packet.Packet
		if err := packet.Parse(f.bytes, &p); err != packet.ErrNone || p.Kind != packet.KindFragment || !packet.VerifyIPv4(f.bytes, &p) {
			t.Fatalf("sent %v, kind %d: %x", err, p.Kind, f.bytes)
		}
		fr := p.Fragment(f.bytes)
		at, n := int(fr.Offset), int(p.End-p.L4)
		data = append(data, make([]byte, max(0, at+n-len(data)))...)
		copy(data[at:], f.bytes[p.L4:p.End])
		covered += n
		if !fr.More {
			end = at + n
		}
		h := slices.Clone(f.bytes[:p.L4])
		if p.V6 {
			h[20] = h[54] // the fragment header goes
			h = h[:54]
			binary.BigEndian.PutUint16(h[18:], 0)
		} else {
			binary.BigEndian.PutUint64(h[14:], binary.BigEndian.Uint64(h[14:])&0xffff000000000000)
			binary.BigEndian.PutUint16(h[24:], 0)
		}
		if i == 0 {
			head, id = h, fr.ID
		}
		if d := cmp.Diff(head, h); d != "" || fr.ID != id {
			t.Fatalf("fragment %d, id %d, not %d\n%s", i, fr.ID, id, d)
		}
	}
	if covered != end || len(data) != end {
		t.Fatalf("%d bytes in %d fragments, the end is at %d", covered, len(frames), end)
	}
	return finish(head, data), id
}

// finish makes the frame of a whole datagram without DF and with id 0.
func finish(head, data []byte) []byte {
	f := append(slices.Clone(head), data...)
	if f[14]>>4 == 6 {
		binary.BigEndian.PutUint16(f[18:], uint16(len(data)))
		return f
	}
	binary.BigEndian.PutUint16(f[16:], uint16(20+len(data)))
	binary.BigEndian.PutUint32(f[18:], 0)
	binary.BigEndian.PutUint16(f[24:], 0)
	binary.BigEndian.PutUint16(f[24:], packet.Checksum(f[14:34], 0))
	return f
}

// plainly is a frame as finish makes it.
func plainly(f []byte) []byte {
	head := 34
	if f[14]>>4 == 6 {
		head = 54
	}
	return finish(f[:head], f[head:])
}

// spread delivers frames in order, each to some worker.
func (r *rig) spread(nic int, workerOf func() int, frames [][]byte) []sentFrame {
	r.sent = nil
	for _, f := range frames {
		r.port[workerOf()][nic].Feed([][]byte{f}, 1)
		r.step()
	}
	return r.sent
}

// vips are services for all that fragments are forwarded for.
var fragVIPs = []string{"192.0.2.10:5000", "192.0.2.11:5000", "[2001:db8::10]:5000", "[2001:db8::11]:5000",
	"192.0.2.10:80", "192.0.2.11:80", "[2001:db8::10]:80", "[2001:db8::11]:80", "[2001:db8::64]:5000", "[2001:db8::64]:80"}

// TestFragmentsInAnyOrder: a datagram in fragments, in any order, by any queue,
// some of them twice, comes out as it would have in one piece.
func TestFragmentsInAnyOrder(t *testing.T) {
	for workers := 1; workers <= 4; workers++ {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			r := newFragRig(t, workers)
			port := 2000
			rapid.Check(t, func(t *rapid.T) {
				port++
				r.now += frag.Life
				vip := rapid.SampledFrom(fragVIPs).Draw(t, "vip")
				client := fmt.Sprintf("198.51.100.7:%d", port)
				if vip[0] == '[' {
					client = fmt.Sprintf("[2001:db8:c::7]:%d", port)
				}
				s := seg{src: client, dst: vip, udp: vip[len(vip)-4:] == "5000", payload: rapid.IntRange(1, 1400).Draw(t, "payload"),
					noCsum: rapid.Bool().Draw(t, "no checksum")}
				s.noCsum = s.noCsum && s.udp && vip[0] != '['
				id := rapid.Uint32Range(0, 0xffff).Draw(t, "id")
				size := 8 * rapid.IntRange(16, 60).Draw(t, "size")
				in := func(nic int) *fragInput {
					return &fragInput{r: r, t: t, workers: workers, nic: nic, id: id, size: size}
				}
				if s.udp {
					first := in(0).pass(build(r.t, s)) // opens the flow
					s.src, s.dst = dstOf(first), srcOf(first)
					in(1).pass(build(r.t, s))
					return
				}
				c := r.open(0, client, vip)
				c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1, payload: 9})
				c.fromClient(seg{ack: true, seq: 1001, ackNum: 9010}) // no TOA from here on
				s.ack, s.seq, s.ackNum = true, 1001, 9010
				in(0).pass(build(r.t, s))
				s.src, s.dst, s.seq, s.ackNum = c.backend, c.local, 9010, c.isn+1
				in(1).pass(build(r.t, s))
			})
			n := r.counts()
			for v := range numDrops {
				if n.Verdicts[v] > 0 && v != DropFragmentDuplicate && v != DropFragmentExpired {
					t.Errorf("%v: %d", v, n.Verdicts[v])
				}
			}
		})
	}
}

// fragInput is how a datagram is delivered.
type fragInput struct {
	r            *rig
	t            *rapid.T
	workers, nic int
	id           uint32
	size         int
}

// pass delivers a datagram in fragments, then as a whole, and compares; it
// returns what came out.
func (f *fragInput) pass(frame []byte) []byte {
	f.t.Helper()
	worker := func() int { return rapid.IntRange(0, f.workers-1).Draw(f.t, "worker") }
	all := rapid.Permutation(cut(frame, f.id, f.size)).Draw(f.t, "order")
	if len(all) == 1 {
		return f.r.one(worker(), f.nic, 1-f.nic, frame)
	}
	if rapid.Bool().Draw(f.t, "twice") { // before it is complete
		all = append([][]byte{all[0]}, all...)
	}
	got, id := whole(f.t, f.r.spread(f.nic, worker, all))
	want := f.r.one(worker(), f.nic, 1-f.nic, frame)
	if d := cmp.Diff(plainly(want), got); d != "" {
		f.t.Fatalf("(-in one piece +in fragments)\n%s", d)
	}
	verify(f.r.t, got)
	if kept := f.nic == 0 && string(frame[26:30]) == string(want[26:30]) && frame[14]>>4 == 4; kept && id != f.id {
		f.t.Fatalf("id %d, came with %d", id, f.id)
	}
	return want
}

// srcOf and dstOf are address and port of a frame that is sent.
func srcOf(f []byte) string { return endOf(f, true) }
func dstOf(f []byte) string { return endOf(f, false) }

func endOf(f []byte, src bool) string {
	var p packet.Packet
	packet.Parse(f, &p)
	if src {
		return hostPort(p.Src.String(), p.SrcPort)
	}
	return hostPort(p.Dst.String(), p.DstPort)
}
