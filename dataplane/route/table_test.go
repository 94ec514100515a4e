package route

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// naive is the slow, obvious twin of Table.
func naive(prefixes []Prefix, hops int, a netip.Addr) HopID {
	best, hop := -1, HopID(0)
	for _, p := range prefixes {
		if p.Prefix.Masked().Contains(a) && p.Bits() >= best {
			best, hop = p.Bits(), p.Hop
		}
	}
	if int(hop) >= hops {
		return 0
	}
	return hop
}

func mk(prefix string, hop HopID) Prefix {
	return Prefix{netip.MustParsePrefix(prefix), hop}
}

func lookup(t *Table, a string) HopID {
	return t.Lookup(packet.AddrFrom(netip.MustParseAddr(a)))
}

func TestLookup(t *testing.T) {
	tests := []struct {
		name     string
		prefixes []Prefix
		want     map[string]HopID
	}{
		{"empty", nil, map[string]HopID{"10.0.0.1": 0, "::": 0, "2001:db8::1": 0, "0.0.0.0": 0, "255.255.255.255": 0}},
		{
			"default routes are of one family",
			[]Prefix{mk("0.0.0.0/0", 1), mk("::/0", 2)},
			map[string]HopID{"0.0.0.0": 1, "255.255.255.255": 1, "::": 2, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": 2},
		},
		{
			"nested, ending at one point",
			[]Prefix{mk("10.0.0.0/8", 1), mk("10.255.0.0/16", 2), mk("10.255.255.0/24", 3), mk("10.255.255.255/32", 4)},
			map[string]HopID{
				"9.255.255.255": 0, "10.0.0.0": 1, "10.254.255.255": 1, "10.255.0.0": 2,
				"10.255.255.0": 3, "10.255.255.254": 3, "10.255.255.255": 4, "11.0.0.0": 0,
			},
		},
		{
			"ends of the space",
			[]Prefix{mk("0.0.0.0/32", 1), mk("255.255.255.255/32", 2), mk("::/128", 3), mk("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", 4)},
			map[string]HopID{
				"0.0.0.0": 1, "0.0.0.1": 0, "255.255.255.254": 0, "255.255.255.255": 2, "::": 3, "::1": 0,
				"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe": 0, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": 4,
			},
		},
		{"host bits are masked", []Prefix{mk("10.1.2.3/8", 1)}, map[string]HopID{"10.0.0.0": 1, "11.0.0.0": 0}},
		{"the later one counts", []Prefix{mk("10.0.0.0/8", 1), mk("10.0.0.0/8", 2)}, map[string]HopID{"10.0.0.0": 2}},
		{"hop out of range", []Prefix{mk("0.0.0.0/0", 1), mk("10.0.0.0/8", 99)}, map[string]HopID{"10.0.0.0": 0, "11.0.0.0": 1}},
		{"inner prefix without a route", []Prefix{mk("0.0.0.0/0", 1), mk("10.0.0.0/8", 0)}, map[string]HopID{"10.0.0.0": 0, "11.0.0.0": 1}},
		{"mapped prefixes are ignored", []Prefix{mk("::ffff:0:0/96", 1), {}}, map[string]HopID{"10.0.0.0": 0}},
		{"IPv6 around 64 bits", []Prefix{mk("2001:db8::/63", 1), mk("2001:db8:0:1::/64", 2), mk("2001:db8:0:1:8000::/65", 3)},
			map[string]HopID{"2001:db8::": 1, "2001:db8:0:1::": 2, "2001:db8:0:1:8000::": 3, "2001:db8:0:2::": 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table := New(1, make([]Hop, 5), tt.prefixes)
			got := map[string]HopID{}
			for a := range tt.want {
				got[a] = lookup(table, a)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("hops (-want +got):\n%s", diff)
			}
		})
	}
}

func genPrefix(rt *rapid.T) Prefix {
	// Few distinct bytes, so that prefixes nest and collide.
	few := rapid.SampledFrom([]byte{0, 1, 0x20, 0x7f, 0x80, 0xff})
	hop := HopID(rapid.IntRange(0, 6).Draw(rt, "hop"))
	if rapid.Bool().Draw(rt, "v4") {
		var b [4]byte
		for i := range b {
			b[i] = few.Draw(rt, "byte")
		}
		return Prefix{netip.PrefixFrom(netip.AddrFrom4(b), rapid.IntRange(0, 32).Draw(rt, "bits")), hop}
	}
	var b [16]byte
	b[0] = 0x20
	for i := range b[1:] {
		b[1+i] = few.Draw(rt, "byte")
	}
	return Prefix{netip.PrefixFrom(netip.AddrFrom16(b), rapid.IntRange(0, 128).Draw(rt, "bits")), hop}
}

// TestLookupIsLongestPrefix compares with the twin at both ends of every
// prefix, one beyond, and somewhere inside.
func TestLookupIsLongestPrefix(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		prefixes := make([]Prefix, rapid.IntRange(0, 40).Draw(rt, "n"))
		for i := range prefixes {
			prefixes[i] = genPrefix(rt)
		}
		const hops = 6 // hop 6 is out of range
		table := New(7, make([]Hop, hops), prefixes)
		for _, p := range prefixes {
			s, ok := spanOf(p)
			if !ok {
				rt.Fatalf("%v has no span", p)
			}
			first, last := s.first.Netip(), s.last.Netip()
			for _, a := range []netip.Addr{first, last, first.Prev(), last.Next(), p.Addr()} {
				if !a.IsValid() || a.Is4() != p.Addr().Is4() {
					continue
				}
				if got, want := table.Lookup(packet.AddrFrom(a)), naive(prefixes, hops, a); got != want {
					rt.Fatalf("Lookup(%v) = %d, want %d", a, got, want)
				}
			}
		}
		for i := 1; i < len(table.start4); i++ {
			if table.start4[i-1] >= table.start4[i] || table.hop4[i-1] == table.hop4[i] {
				rt.Fatalf("IPv4 ranges %d and %d are not sorted or not merged", i-1, i)
			}
		}
	})
}

// TestLargeTable has enough ranges for both indices.
func TestLargeTable(t *testing.T) {
	prefixes := manyPrefixes(20000, 20000)
	table := New(1, make([]Hop, 100), prefixes)
	if len(table.index4) == 0 || len(table.index6) == 0 {
		t.Fatalf("no index: %d and %d ranges", len(table.start4), len(table.start6))
	}
	small := *table // the same without
	small.index4, small.index6 = nil, nil
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 200000 {
		a := randomAddr(r, i%2 == 0)
		if i%3 == 0 {
			s, _ := spanOf(prefixes[r.IntN(len(prefixes))])
			a = s.first
			if i%2 == 0 {
				a = s.last
			}
		}
		if got, want := table.Lookup(a), small.Lookup(a); got != want {
			t.Fatalf("Lookup(%v) = %d with the index, %d without", a, got, want)
		}
	}
	for range 200 {
		a := randomAddr(r, true)
		if got, want := table.Lookup(a), naive(prefixes, 100, a.Netip()); got != want {
			t.Fatalf("Lookup(%v) = %d, want %d", a, got, want)
		}
	}
}

func randomAddr(r *rand.Rand, v4 bool) packet.Addr {
	if v4 {
		return packet.AddrFrom(netip.AddrFrom4([4]byte{byte(r.IntN(224)), byte(r.IntN(256)), byte(r.IntN(256)), byte(r.IntN(256))}))
	}
	return packet.Addr{Hi: 1<<61 + r.Uint64()>>3, Lo: r.Uint64()}
}

// manyPrefixes is roughly a table of BGP routes and host routes.
func manyPrefixes(n4, n6 int) []Prefix {
	r := rand.New(rand.NewPCG(3, 4))
	out := []Prefix{mk("0.0.0.0/0", 1), mk("::/0", 2)}
	for range n4 {
		out = append(out, Prefix{netip.PrefixFrom(randomAddr(r, true).Netip(), 12+r.IntN(21)).Masked(), HopID(1 + r.IntN(99))})
	}
	for range n6 {
		out = append(out, Prefix{netip.PrefixFrom(randomAddr(r, false).Netip(), 24+r.IntN(105)).Masked(), HopID(1 + r.IntN(99))})
	}
	return out
}

func TestGeneration(t *testing.T) {
	prefixes := []Prefix{mk("10.0.0.0/8", 1), mk("2001:db8::/32", 2)}
	table := New(9, make([]Hop, 3), prefixes)
	moved := NewHop(0, [6]byte{2, 0, 0, 0, 0, 2}, [6]byte{2, 0, 0, 0, 0, 1}, 0, 1500)
	neighbour := table.WithHops([]Hop{{}, moved, {}})
	if neighbour.Gen != 9 || !neighbour.SameRoutes(table) || *neighbour.Hop(1) != moved || table.Hop(1).State != NoRoute {
		t.Errorf("WithHops: %+v", neighbour)
	}
	split := New(9, make([]Hop, 3), []Prefix{mk("10.0.0.0/9", 1), mk("10.128.0.0/9", 1), prefixes[1]})
	if !split.SameRoutes(table) {
		t.Error("two halves of a prefix are another mapping")
	}
	other := New(9, make([]Hop, 3), []Prefix{mk("10.0.0.0/8", 1), mk("2001:db8::/32", 1)})
	if other.SameRoutes(table) {
		t.Error("another hop is the same mapping")
	}
	if *table.Hop(40000) != (Hop{}) || *New(1, nil, nil).Hop(0) != (Hop{}) || *table.WithHops(nil).Hop(1) != (Hop{}) {
		t.Error("a hop the table lacks is a route")
	}
}

func TestPut(t *testing.T) {
	dst, src := [6]byte{2, 0, 0, 0, 0, 0xd}, [6]byte{2, 0, 0, 0, 0, 0x5}
	tests := []struct {
		name string
		hop  Hop
		v6   bool
		want []byte
	}{
		{"untagged IPv4", NewHop(1, dst, src, 0, 1500), false, []byte{2, 0, 0, 0, 0, 0xd, 2, 0, 0, 0, 0, 5, 8, 0}},
		{"untagged IPv6", NewHop(1, dst, src, 0, 1500), true, []byte{2, 0, 0, 0, 0, 0xd, 2, 0, 0, 0, 0, 5, 0x86, 0xdd}},
		{"tagged IPv4", NewHop(1, dst, src, 0x8100<<16|7, 1500), false, []byte{2, 0, 0, 0, 0, 0xd, 2, 0, 0, 0, 0, 5, 0x81, 0, 0, 7, 8, 0}},
		{"tagged IPv6", NewHop(1, dst, src, 0x88a8<<16|0xfff, 1500), true, []byte{2, 0, 0, 0, 0, 0xd, 2, 0, 0, 0, 0, 5, 0x88, 0xa8, 0xf, 0xff, 0x86, 0xdd}},
		{"unresolved", Hop{Port: 1, State: Unresolved, HeaderLen: 14}, false, nil},
		{"no route", Hop{}, false, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b, untouched [VLANLen]byte
			for i := range b {
				b[i], untouched[i] = 0xaa, 0xaa
			}
			n := tt.hop.Put(b[:], tt.v6)
			if diff := cmp.Diff(tt.want, b[:n], cmp.Transformer("nil", func(b []byte) string { return string(b) })); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(untouched[n:], b[n:]); diff != "" {
				t.Errorf("written beyond the header:\n%s", diff)
			}
			if tt.hop.State != Resolved {
				return
			}
			before, etherType := untouched, uint16(EtherIPv4)
			if tt.v6 {
				etherType = EtherIPv6
			}
			tt.hop.PutBefore(&before, etherType)
			if want := append(untouched[n:len(untouched):len(untouched)], tt.want...); string(before[:]) != string(want) {
				t.Errorf("before the IP header:\n%x, want\n%x", before, want)
			}
		})
	}
	if got := NewHop(0, dst, src, 0, 70000).MTU; got != 65535 {
		t.Errorf("MTU = %d", got)
	}
}

func TestStateNames(t *testing.T) {
	seen := map[string]bool{"": true, "invalid": true}
	for s := range NumHopStates {
		if seen[s.String()] {
			t.Errorf("state %d has name %q", s, s)
		}
		seen[s.String()] = true
	}
	if NumHopStates.String() != "invalid" {
		t.Error("a name beyond the last state")
	}
}

func TestNoAllocation(t *testing.T) {
	table := New(1, make([]Hop, 100), manyPrefixes(5000, 5000))
	hop := NewHop(0, [6]byte{1}, [6]byte{2}, 0, 1500)
	r := rand.New(rand.NewPCG(5, 6))
	a4, a6 := randomAddr(r, true), randomAddr(r, false)
	b := make([]byte, VLANLen)
	if n := testing.AllocsPerRun(1000, func() {
		sink += table.Lookup(a4) + table.Lookup(a6) + HopID(hop.Put(b, true)) + HopID(table.Hop(1).Port)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

var sink HopID

func BenchmarkLookup(b *testing.B) {
	r := rand.New(rand.NewPCG(7, 8))
	host := func(n int) []Prefix {
		out := []Prefix{mk("0.0.0.0/0", 1), mk("::/0", 2), mk("10.0.0.0/16", 3), mk("2001:db8::/64", 4)}
		for i := range n {
			out = append(out, mk(fmt.Sprintf("10.0.%d.%d/32", i/100, i%100*2), HopID(5+i%90)),
				mk(fmt.Sprintf("2001:db8::%x/128", 2*i), HopID(5+i%90)))
		}
		return out
	}
	for _, bb := range []struct {
		name     string
		prefixes []Prefix
	}{{"300hosts", host(300)}, {"1M", manyPrefixes(900000, 200000)}} {
		table := New(1, make([]Hop, 100), bb.prefixes)
		ranges, bytes := table.Size()
		for _, v4 := range []bool{true, false} {
			addrs := make([]packet.Addr, 1<<18)
			for i := range addrs {
				addrs[i] = randomAddr(r, v4)
				if i%2 == 0 { // half of them inside some prefix's family
					if s, _ := spanOf(bb.prefixes[r.IntN(len(bb.prefixes))]); s.first.Is4() == v4 {
						addrs[i] = s.first
					}
				}
			}
			b.Run(fmt.Sprintf("%s/v4=%t", bb.name, v4), func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					sink += table.Lookup(addrs[i&(1<<18-1)])
				}
				b.ReportMetric(float64(bytes), "B")
				b.ReportMetric(float64(ranges), "ranges")
			})
		}
	}
}

func BenchmarkNew(b *testing.B) {
	prefixes := manyPrefixes(900000, 200000)
	for b.Loop() {
		New(1, make([]Hop, 100), prefixes)
	}
}

// TestOnLink: a hop is on the link of its neighbour's address alone, and of any
// address where the neighbour is not known.
func TestOnLink(t *testing.T) {
	a, b := packet.AddrFrom(netip.MustParseAddr("10.0.1.20")), packet.AddrFrom(netip.MustParseAddr("2001:db8:1::20"))
	plain := New(1, make([]Hop, 3), nil)
	table := plain.WithPeers([]Peer{{}, {Addr: a}})
	for _, row := range []struct {
		id   HopID
		addr packet.Addr
		want bool
	}{{0, a, true}, {1, a, true}, {1, b, false}, {2, b, true}, {9, b, true}} {
		if got := table.OnLink(row.id, row.addr); got != row.want {
			t.Errorf("%+v: %v", row, got)
		}
		if !plain.OnLink(row.id, row.addr) {
			t.Errorf("%+v: nothing is known, and it is not on the link", row)
		}
	}
	own := plain.WithPeers([]Peer{{}, {Own: [2]packet.Addr{a, b}}})
	if own.Source(1, true) != a || own.Source(1, false) != b || !own.Source(0, true).IsZero() || !plain.Source(1, true).IsZero() {
		t.Error("sources")
	}
	if table.SamePeers(plain) || !table.SamePeers(plain.WithPeers([]Peer{{}, {Addr: a}})) || !table.SameRoutes(plain) {
		t.Error("compared wrongly")
	}
}
