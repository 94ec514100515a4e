package conntrack

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/l4fwd/l4fwd/packet"
)

// directory for tests: a few services, backends and local addresses of both
// families.
func testDirectory() *Directory {
	d := &Directory{}
	ep := func(s string, port uint16, proto uint8) Endpoint {
		return Endpoint{Addr: packet.AddrFrom(netip.MustParseAddr(s)), Port: port, Proto: proto}
	}
	d.Services = []Endpoint{
		ep("192.0.2.10", 80, packet.ProtoTCP),
		ep("192.0.2.10", 53, packet.ProtoUDP),
		ep("2001:db8::10", 80, packet.ProtoTCP),
	}
	d.Backends = []Endpoint{
		ep("10.0.1.20", 8080, packet.ProtoTCP),
		ep("10.0.1.21", 53, packet.ProtoUDP),
		ep("2001:db8:1::20", 8080, packet.ProtoTCP),
	}
	d.Locals = []packet.Addr{
		packet.AddrFrom(netip.MustParseAddr("10.0.1.10")),
		packet.AddrFrom(netip.MustParseAddr("10.0.1.11")),
		packet.AddrFrom(netip.MustParseAddr("2001:db8:1::10")),
	}
	return d
}

func addr4(v uint32) packet.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	return packet.Addr4(b[:])
}

// tuples of a template's two directions; rev is nil for DirectReturn.
func tuples(e *Entry, dir *Directory) (fwd packet.Tuple, rev *packet.Tuple) {
	s := dir.Services[e.Service]
	fwd = packet.Tuple{Src: e.Client, SrcPort: e.ClientPort, Dst: s.Addr, DstPort: s.Port, Proto: e.Proto}
	b := dir.Backends[e.Backend]
	switch e.Mode {
	case FullNAT:
		rev = &packet.Tuple{Src: b.Addr, SrcPort: b.Port, Dst: dir.Locals[e.Local], DstPort: e.LocalPort, Proto: e.Proto}
	case DNAT:
		rev = &packet.Tuple{Src: b.Addr, SrcPort: b.Port, Dst: e.Client, DstPort: e.ClientPort, Proto: e.Proto}
	}
	return fwd, rev
}

func newTest(tb testing.TB, o Options) *Table {
	tb.Helper()
	o.Lazy = true
	if o.Secret == [32]byte{} {
		o.Secret[0] = 1
	}
	t, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := t.Close(); err != nil {
			tb.Error(err)
		}
	})
	return t
}

// numbered is the template of the i-th of many Full-NAT flows.
func numbered(i int) Entry {
	return Entry{
		Client:     addr4(0xc6336400 + uint32(i)/60000),
		ClientPort: uint16(1024 + i%60000),
		LocalPort:  uint16(1024 + i%60000),
		Local:      uint16(i / 60000),
		Proto:      packet.ProtoTCP,
	}
}

func mustInsert(tb testing.TB, t *Table, e *Entry, dir *Directory, now uint32) Ref {
	tb.Helper()
	fwd, rev := tuples(e, dir)
	r, st, _ := t.Insert(e, &fwd, rev, dir, now, nil)
	if st != Inserted {
		tb.Fatalf("insert %+v: %v", fwd, st)
	}
	return r
}

func TestInsertFindRemove(tt *testing.T) {
	dir := testDirectory()
	for _, c := range []struct {
		name string
		e    Entry
	}{
		{"full-nat v4", Entry{Client: addr4(0xc0a80001), ClientPort: 1000, LocalPort: 2000, Proto: packet.ProtoTCP}},
		{"dnat udp", Entry{Client: addr4(0xc0a80001), ClientPort: 1000, Service: 1, Backend: 1, Proto: packet.ProtoUDP, Mode: DNAT}},
		{"full-nat v6", Entry{Client: packet.Addr{Hi: 1, Lo: 2}, ClientPort: 1000, LocalPort: 2000, Service: 2, Backend: 2, Local: 2, Proto: packet.ProtoTCP}},
		{"nat64", Entry{Client: packet.Addr{Hi: 1, Lo: 2}, ClientPort: 1000, LocalPort: 2000, Service: 2, Proto: packet.ProtoTCP}},
		{"direct return", Entry{Client: addr4(0xc0a80001), ClientPort: 1000, Proto: packet.ProtoTCP, Mode: DirectReturn}},
	} {
		tt.Run(c.name, func(tt *testing.T) {
			t := newTest(tt, Options{Flows: 10})
			fwd, rev := tuples(&c.e, dir)
			if _, _, ok := t.Lookup(&fwd, dir); ok {
				tt.Fatal("found in an empty table")
			}
			r := mustInsert(tt, t, &c.e, dir, 5)
			if got, d, ok := t.Lookup(&fwd, dir); !ok || got != r || d != Forward {
				tt.Errorf("forward: %v %v %v", got, d, ok)
			}
			if rev != nil {
				if got, d, ok := t.Lookup(rev, dir); !ok || got != r || d != Reply {
					tt.Errorf("reply: %v %v %v", got, d, ok)
				}
				if !t.Has(t.Hash(rev), rev, dir) {
					tt.Error("Has: false")
				}
			}
			if t.Len() != 1 || t.HalfOpenLen() != 1 {
				tt.Errorf("Len %d, HalfOpenLen %d", t.Len(), t.HalfOpenLen())
			}
			t.Remove(r)
			t.Remove(r) // a second time is harmless
			if _, _, ok := t.Lookup(&fwd, dir); ok {
				tt.Error("found after Remove")
			}
			if rev != nil && t.Has(t.Hash(rev), rev, dir) {
				tt.Error("reply found after Remove")
			}
			if t.Len() != 0 || t.HalfOpenLen() != 0 {
				tt.Errorf("Len %d, HalfOpenLen %d", t.Len(), t.HalfOpenLen())
			}
		})
	}
}
