package dataplane

import (
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/dataplane/frag"
	"github.com/l4fwd/l4fwd/packet"
)

// TestFragmentsDoNotAllocate, whatever becomes of them.
func TestFragmentsDoNotAllocate(t *testing.T) {
	for _, c := range fragRows(t) {
		r := newFragRig(t, 2)
		for _, p := range r.port {
			p[0].OnSend, p[1].OnSend = nil, nil
		}
		n := 0
		if allocs := testing.AllocsPerRun(100, func() {
			n++
			r.now += int64(time.Second)
			r.port[n%2][c.nic].Feed(c.in, 1)
			r.step()
		}); allocs != 0 {
			t.Errorf("%s: %v allocations", c.name, allocs)
		}
	}
}

// fuzzed are the datagrams that FuzzFragments cuts: from clients and servers,
// of flows that take fragments and of others.
func fuzzed(t testing.TB) (out []sentFrame) {
	for nic, ends := range [][][2]string{
		{{"198.51.100.7:4000", "192.0.2.10:5000"}, {"[2001:db8:c::7]:4000", "[2001:db8::10]:5000"}, {"198.51.100.8:4000", "192.0.2.10:5000"},
			{"[2001:db8:c::7]:4000", "[2001:db8::64]:5000"}, {"198.51.100.7:4000", "192.0.2.10:5999"}},
		{{"10.0.1.20:5001", "10.0.1.10:1024"}, {"10.0.1.20:5000", "198.51.100.7:4000"}, {"10.0.1.20:99", "198.51.100.7:4000"}},
	} {
		for _, e := range ends {
			out = append(out, sentFrame{0, nic, build(t, seg{src: e[0], dst: e[1], udp: true, payload: 1300})})
		}
	}
	return out
}

// fragStep is one fragment of FuzzFragments, packed into four bytes: worker and
// what follows it; datagram and identification; offset and length in words.
func fragStep(worker int, more bool, which, id, from, words byte) []byte {
	b := byte(worker)
	if more {
		b |= 2
	}
	return []byte{b, which<<4 | id, from, words}
}

// placed is a fragment that left, told from those of other datagrams.
type placed struct {
	datagram frag.Key
	from, to int
}

// FuzzFragments feeds sequences of fragments to two workers. None is lost
// without a count (newRig's audit), and of no datagram that reaches a Full-NAT
// server do two fragments overlap, whatever came.
func FuzzFragments(f *testing.F) {
	f.Add(append(append(fragStep(0, true, 0, 1, 0, 20), fragStep(1, true, 0, 1, 20, 20)...), fragStep(0, false, 0, 1, 40, 9)...))
	f.Add(append(append(fragStep(1, false, 1, 2, 40, 9), fragStep(1, true, 1, 2, 20, 25)...), fragStep(0, true, 1, 2, 0, 20)...))
	f.Add(append(append(fragStep(4, true, 2, 1, 2, 20), fragStep(0x80, true, 2, 1, 0, 2)...), fragStep(0, false, 5, 1, 0, 4)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRigWith(t, 2, fragSpec(), func(*Options) {})
		from := fuzzed(t)
		var left []placed
		for ; len(b) >= 4; b = b[4:] {
			d := &from[int(b[1]>>4)%len(from)]
			s := span{int(b[2]) * 8, int(b[3]) * 8, b[0]&2 != 0}
			for _, out := range r.deliver(int(b[0]&1), d.nic, pieceOf(d.bytes, uint32(b[1]&15), s)) {
				left = judge(t, left, out)
			}
			r.now += int64(b[0]>>2) << 26 // up to 4 s
		}
	})
}

// judge notes what left.
func judge(t *testing.T, left []placed, out sentFrame) []placed {
	var p packet.Packet
	if err := packet.Parse(out.bytes, &p); err != packet.ErrNone || !packet.VerifyIPv4(out.bytes, &p) {
		t.Fatalf("%v: sent %x", err, out.bytes)
	}
	if p.Kind != packet.KindFragment || out.nic == 0 {
		return left
	}
	fr := p.Fragment(out.bytes)
	n := placed{frag.Key{Src: p.Src, Dst: p.Dst, ID: fr.ID, Proto: p.Proto}, int(fr.Offset), int(fr.Offset) + int(p.End-p.L4)}
	for _, o := range left {
		if o.datagram == n.datagram && o.from < n.to && n.from < o.to {
			t.Fatalf("%+v has left, and overlaps %+v", o, n)
		}
	}
	return append(left, n)
}
