package packet

import (
	"slices"
	"testing"
)

// checkInvariants parses frame twice and checks everything Parse promises for
// any bytes, and that nothing that takes its result panics.
func checkInvariants(t testing.TB, frame []byte) Packet {
	t.Helper()
	before := slices.Clone(frame)
	var p Packet
	q := poison
	e := Parse(frame, &p)
	if e2 := Parse(frame, &q); e != e2 || p != q || e != p.Err {
		t.Fatalf("not determined by the frame: %v %v\n%+v\n%+v\n%x", e, e2, p, q, frame)
	}
	if parseAny(frame, &q); p != q {
		t.Fatalf("short and long way differ:\n%+v\n%+v\n%x", p, q, frame)
	}
	if !slices.Equal(before, frame) {
		t.Fatalf("frame changed:\n%x\n%x", before, frame)
	}
	n := len(frame)
	if int(p.L3) > n || int(p.L4) > n || int(p.Payload) > n || int(p.End) > n || int(p.Inner4) > n || e >= NumErrs {
		t.Fatalf("%v, offsets beyond %d: %+v\n%x", e, n, p, frame)
	}
	if e != ErrNone {
		if p.Kind != KindOther {
			t.Fatalf("%v with kind %d\n%x", e, p.Kind, frame)
		}
		VerifyL4(frame, &p)
		VerifyIPv4(frame, &p)
		return p
	}
	if p.L3 >= p.L4 || p.L4 > p.Payload || p.Payload > p.End {
		t.Fatalf("offsets not ordered: %+v\n%x", p, frame)
	}
	need := [...]uint16{KindTCP: 20, KindUDP: 8, KindEcho: 8, KindICMPError: 8, KindFragment: 1, KindNS: 24}
	if p.Kind != KindARP && p.End-p.L4 < need[p.Kind] {
		t.Fatalf("header not within the datagram: %+v\n%x", p, frame)
	}
	if (p.Kind == KindICMPError) != (p.Inner4 != 0) || p.Inner4 != 0 && (p.Inner4 < p.Payload+20 || p.Inner4+8 > p.End) {
		t.Fatalf("embedded header: %+v\n%x", p, frame)
	}
	if p.V6 == p.Dst.Is4() || p.V6 == p.Src.Is4() {
		t.Fatalf("family: %+v\n%x", p, frame)
	}
	for it := Options(frame, &p); it.Next(); {
		if it.Off < int(p.L4)+TCPMinLen || it.Off+it.Len > int(p.Payload) || it.Len < 2 || len(it.Data()) != it.Len-2 {
			t.Fatalf("option outside: %+v of %+v\n%x", it, p, frame)
		}
	}
	ScanOptions(frame, &p)
	VerifyL4(frame, &p)
	VerifyIPv4(frame, &p)
	p.VLAN(frame)
	if p.Kind == KindFragment && (p.Proto == ProtoTCP || p.Proto == ProtoUDP) && p.Fragment(frame).Offset == 0 {
		q := p
		if e := q.FirstFragment(frame); e == ErrNone && (q.Kind == KindFragment || q.Payload > q.End || q.Payload < q.L4+need[q.Kind]) ||
			e != ErrNone && q.Kind != KindFragment {
			t.Fatalf("first fragment: %v %+v\n%x", e, q, frame)
		}
	}
	if p.Kind != KindARP {
		p.OuterAddrs(frame)
		p.TTL(frame)
		p.DontFragment(frame)
	}
	return p
}
