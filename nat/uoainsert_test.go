package nat

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/internal/testbed"
	"github.com/l4fwd/l4fwd/packet"
)

// bytesIn is hexadecimal with blanks.
func bytesIn(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return b
}

// TestUOAOnTheWire is both forms byte for byte, put together by hand from DPVS's
// include/uoa.h.
func TestUOAOnTheWire(t *testing.T) {
	const (
		ip4    = "0a00010a 0a000114"
		ip6    = "20010db8000100000000000000000010 20010db8000100000000000000000020"
		client = "c001 c6336407"
		six    = "c001 20010db8000900000000000000000007"
		ports  = "4e21 1f90"
	)
	for _, c := range []struct {
		name     string
		flow     *flow
		form     UOAForm
		inserted string // into a datagram of two bytes with TTL 9; its checksums are not looked at
		built    string
	}{
		{"protocol, IPv4", udpFlow(flow4(conntrack.FullNAT)), UOAProtocol,
			"4500 002a abcd 4000 09f8 ....  " + ip4 + " 10 11 000c 1f 08" + client + ports + "000a .... 6869",
			"4500 002c 0000 4000 40f8 ....  " + ip4 + " 10 11 0010 1f 08" + client + "00000000" + ports + "0008 ...."},
		{"protocol, IPv6", udpFlow(flow6(conntrack.FullNAT)), UOAProtocol,
			"6000 1234 0022 f809" + ip6 + " 20 11 0018 1f 14" + six + ports + "000a .... 6869",
			"6000 0000 0024 f840" + ip6 + " 20 11 001c 1f 14" + six + "00000000" + ports + "0008 ...."},
		{"protocol, NAT64", udpFlow(flow64()), UOAProtocol,
			"4500 0036 abcd 4000 09f8 ....  " + ip4 + " 20 11 0018 1f 14" + six + ports + "000a .... 6869",
			"4500 0038 0000 4000 40f8 ....  " + ip4 + " 20 11 001c 1f 14" + six + "00000000" + ports + "0008 ...."},
		{"option", udpFlow(flow4(conntrack.FullNAT)), UOAOption,
			"4700 0026 abcd 4000 0911 ....  " + ip4 + " 1f 08" + client + ports + "000a .... 6869",
			"4800 0028 0000 4000 4011 ....  " + ip4 + " 1f 08" + client + "00000000" + ports + "0008 ...."},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.flow.toServer(shape{udp: true, ttl: 10, payload: []byte("hi")})
			frame := s.frame()
			p := parse(t, frame)
			chunk := inChunk(frame, headroom)
			off, n, ok := InsertUOA(chunk, headroom, len(frame), &p, &c.flow.e, c.form, 1500)
			if !ok {
				t.Fatal("not inserted")
			}
			compareHex(t, c.inserted, chunk[off+int(p.L3):off+int(p.End)])
			if n < int(p.End) {
				t.Errorf("%d bytes of %d", n, p.End)
			}
			chunk = bytesOf(0xee, 2048)
			off, n, ok = BuildUOA(chunk, &c.flow.e, &c.flow.dir, c.form)
			if !ok {
				t.Fatal("not built")
			}
			compareHex(t, c.built, chunk[off+packet.EthLen:off+n])
			got, ok := testbed.ReadUOA(chunk[off+packet.EthLen : off+n])
			want := c.flow.toServer(shape{udp: true, ttl: 65})
			plain := want.datagram()
			if plain[0]>>4 == 4 {
				plain[4], plain[5] = 0, 0 // the builder's identification
				if c.form == UOAOption {
					plain = slices.Insert(plain, 20, 0, 0, 0, 0)
					plain[0]++
					plain[3] += 4
				}
				recompute(plain, int(plain[0]&15)*4, 17, false)
			} else {
				plain[2], plain[3] = 0, 0 // its flow label
			}
			if d := cmp.Diff(plain, got.Plain); d != "" || !ok || !got.Apart {
				t.Errorf("%+v (-want +got):\n%s", got, d)
			}
		})
	}
}

// compareHex compares bytes with hexadecimal, in which dots stand for any digit.
func compareHex(t *testing.T, want string, got []byte) {
	t.Helper()
	want, have := strings.Join(strings.Fields(want), ""), hex.EncodeToString(got)
	same := len(want) == len(have)
	for i := 0; same && i < len(want); i++ {
		same = want[i] == '.' || want[i] == have[i]
	}
	if !same {
		t.Errorf("got\n%s, want\n%s", have, want)
	}
}

// TestInsertUOATwin: whatever comes out, a server that takes UOA off again has what it
// would have had without, and the client's address.
func TestInsertUOATwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		f := drawFlow(t, v6, true)
		f.e.Mode = conntrack.FullNAT
		if v6 && rapid.Bool().Draw(t, "NAT64") {
			// The packet is IPv4 by then.
			other := drawFlow(t, false, true)
			f.dir.Backends, f.dir.Locals, v6 = other.dir.Backends, other.dir.Locals, false
		}
		Prepare(&f.e, &f.dir)
		form := rapid.SampledFrom([]UOAForm{UOAProtocol, UOAOption, UOAProtocol, UOASeparate, NoUOA}).Draw(t, "form")
		s := drawShape(t, v6, true)
		if !v6 && rapid.Bool().Draw(t, "options") {
			s.ipOpts = slowStrip(drawIPOptions(t), 31)
		}
		s = f.toServer(s)
		mtu := rapid.SampledFrom([]int{1500, 1500, 1500, 60, 0}).Draw(t, "mtu")
		room := rapid.SampledFrom([]int{headroom, headroom, 24, 23, 12, 11, 8, 7}).Draw(t, "room")
		frame := s.frame()
		chunk := inChunk(frame, room)
		before := slices.Clone(chunk)
		p := parse(t, frame)
		was, e := p, f.e
		size := 8
		if !f.e.Client.Is4() {
			size = 20
		}
		if form == UOAProtocol {
			size += 4
		}
		fits := was.IPLen()+size <= mtu && room >= size
		switch form {
		case UOAOption:
			fits = fits && !v6 && f.e.Client.Is4() && 20+len(s.ipOpts)+8 <= 60
		case UOASeparate, NoUOA:
			fits = false
		}
		off, n, ok := InsertUOA(chunk, room, len(frame), &p, &f.e, form, mtu)
		if ok != fits || e != f.e {
			t.Fatalf("%v, want %v", ok, fits)
		}
		if !ok {
			if off != room || n != len(frame) || p != was || !slices.Equal(chunk, before) {
				t.Fatal("changed")
			}
			return
		}
		got, ok := testbed.ReadUOA(chunk[off+int(p.L3) : off+int(p.End)])
		plain := s.datagram()
		if d := cmp.Diff(plain, got.Plain); !ok || d != "" || got.Client != netip.AddrPortFrom(f.e.Client.Netip(), f.e.ClientPort) {
			t.Fatalf("%v (-want +got):\n%s", got.Client, d)
		}
		if off != room-size || p.L3 != was.L3 || p.IPLen() != was.IPLen()+size || p.Payload != was.Payload+uint16(size) || p.L4 != was.L4+uint16(size) ||
			!slices.Equal(chunk[off:off+int(p.L3)], frame[:p.L3]) || n < int(p.End) {
			t.Fatalf("%d bytes at %d: %+v", n, off, p)
		}
		if form == UOAOption {
			if again := parse(t, chunk[off:off+n]); again != p {
				t.Fatalf("(-parsed +updated):\n%s", cmp.Diff(again, p))
			}
			if len(s.ipOpts) == 0 { // gopacket writes nothing behind their end
				judgeRaw(t, chunk[off:off+n])
			}
		}
		if h := chunk[off+int(p.L3):]; !v6 && slowSum(h[:int(h[0]&15)*4]) != 0xffff {
			t.Fatal("the IPv4 header's checksum is wrong")
		}
		if !slices.Equal(chunk[:off], before[:off]) || !slices.Equal(chunk[room+len(frame):], before[room+len(frame):]) {
			t.Fatal("wrote outside the frame")
		}
	})
}

// TestInsertUOADamaged: a header that came damaged is not repaired.
func TestInsertUOADamaged(t *testing.T) {
	for _, form := range []UOAForm{UOAProtocol, UOAOption} {
		f := udpFlow(flow4(conntrack.FullNAT))
		s := f.toServer(shape{udp: true, ttl: 9, payload: []byte("hello")})
		frame := s.frame()
		frame[packet.EthLen+packet.IPv4ID] ^= 4
		p := parse(t, frame)
		chunk := inChunk(frame, headroom)
		off, n, ok := InsertUOA(chunk, headroom, len(frame), &p, &f.e, form, 1500)
		if !ok || packet.VerifyIPv4(chunk[off:off+n], &packet.Packet{L3: p.L3, L4: p.L3 + uint16(chunk[off+int(p.L3)]&15)*4}) {
			t.Errorf("form %d: %v, or the checksum is right", form, ok)
		}
	}
}

func TestUOARefuses(t *testing.T) {
	for _, c := range []struct {
		name          string
		edit          func(f *flow, p *packet.Packet)
		form          UOAForm
		insert, build bool
	}{
		{"as it should be", func(*flow, *packet.Packet) {}, UOAProtocol, true, true},
		{"separate", func(*flow, *packet.Packet) {}, UOASeparate, false, true},
		{"TCP", func(_ *flow, p *packet.Packet) { p.Kind = packet.KindTCP }, UOAProtocol, false, true},
		{"DNAT", func(f *flow, _ *packet.Packet) { f.e.Mode = conntrack.DNAT }, UOAProtocol, false, false},
		{"offsets that are not a frame's", func(_ *flow, p *packet.Packet) { p.End = 9999 }, UOAProtocol, false, true},
		{"no server", func(f *flow, _ *packet.Packet) { f.e.Backend = 9 }, UOAProtocol, true, false},
		{"no local address", func(f *flow, _ *packet.Packet) { f.e.Local = 9 }, UOAProtocol, true, false},
		{"families mixed", func(f *flow, _ *packet.Packet) { f.dir.Locals[1] = addr("2001:db8::1") }, UOAProtocol, true, false},
		{"option, IPv6 client", func(f *flow, _ *packet.Packet) { f.e.Client = addr("2001:db8::1") }, UOAOption, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := udpFlow(flow4(conntrack.FullNAT))
			s := f.toServer(shape{udp: true, ttl: 9, payload: []byte("hello")})
			frame := s.frame()
			p := parse(t, frame)
			c.edit(f, &p)
			if _, _, ok := InsertUOA(inChunk(frame, headroom), headroom, len(frame), &p, &f.e, c.form, 1500); ok != c.insert {
				t.Errorf("inserted: %v", ok)
			}
			if _, _, ok := BuildUOA(make([]byte, 172), &f.e, &f.dir, c.form); ok != c.build {
				t.Errorf("built: %v", ok)
			}
			if _, _, ok := BuildUOA(make([]byte, 171), &f.e, &f.dir, c.form); ok {
				t.Error("built without room")
			}
		})
	}
	for words, want := range map[int]bool{8: true, 9: false, 10: false} {
		f := udpFlow(flow4(conntrack.FullNAT))
		s := f.toServer(shape{udp: true, ttl: 9, ipOpts: bytesOf(1, 4*words)})
		frame := s.frame()
		p := parse(t, frame)
		if _, _, ok := InsertUOA(inChunk(frame, headroom), headroom, len(frame), &p, &f.e, UOAOption, 1500); ok != want {
			t.Errorf("into a header with %d words of options: %v", words, ok)
		}
	}
	t.Run("IPv6 extension header", func(t *testing.T) {
		f := udpFlow(flow6(conntrack.FullNAT))
		s := f.toServer(shape{udp: true, ttl: 9, payload: []byte("hello")})
		d := slices.Insert(s.datagram(), 40, 17, 0, 1, 4, 0, 0, 0, 0) // destination options, padding
		d[6], d[5] = 60, d[5]+8
		frame := append(ether(false, false), d...)
		p := parse(t, frame)
		if _, _, ok := InsertUOA(inChunk(frame, headroom), headroom, len(frame), &p, &f.e, UOAProtocol, 1500); ok {
			t.Error("inserted")
		}
	})
}

// TestUOADue: the first datagrams of a flow, and all where each has a flow.
func TestUOADue(t *testing.T) {
	e := udpFlow(flow4(conntrack.FullNAT)).e
	for packets, want := range []bool{0: true, 1: true, 2: true, 3: true, 4: false, 5: false} {
		if e.Packets[conntrack.Forward] = uint32(packets); UOADue(&e, 3) != want {
			t.Errorf("after %d: %v", packets, !want)
		}
	}
	if e.State = conntrack.UDPOnePacket; !UOADue(&e, 3) {
		t.Error("not where each has a flow")
	}
}

// TestUOAQuoted: an ICMP error about a packet with the option is told from others.
func TestUOAQuoted(t *testing.T) {
	f := udpFlow(flow4(conntrack.FullNAT))
	for _, c := range []struct {
		name string
		opts []byte
		want int
	}{
		{"UOA", bytesIn("1f08c001c6336407"), 8},
		{"UOA before others", bytesIn("1f08c001c6336407 01010101"), 8},
		{"none", nil, 0},
		{"another", bytesIn("0101010101010101"), 0},
	} {
		inner := f.toServer(shape{udp: true, ttl: 9, ipOpts: c.opts, payload: []byte("hello")})
		icmp := icmpError{src: addr("10.9.9.9"), dst: inner.src, ttl: 9, kind: 3, code: 4, inner: inner.datagram()}
		frame := icmp.frame()
		p := parse(t, frame)
		if got := UOAQuoted(frame, &p); got != c.want {
			t.Errorf("%s: %d", c.name, got)
		}
	}
}

// FuzzInsertUOA: whatever the offsets and the form, no panic.
func FuzzInsertUOA(f *testing.F) {
	f.Add(256, 60, uint16(14), uint16(54), uint16(62), uint16(62), 1500, uint8(UOAProtocol), true)
	f.Add(256, 60, uint16(14), uint16(34), uint16(42), uint16(50), 1500, uint8(UOAOption), false)
	f.Add(0, 60, uint16(14), uint16(74), uint16(82), uint16(62), 40, uint8(UOAOption), false)
	f.Fuzz(func(_ *testing.T, off, n int, l3, l4, payload, end uint16, mtu int, form uint8, v6 bool) {
		fl := udpFlow(flow4(conntrack.FullNAT))
		if v6 {
			fl = udpFlow(flow6(conntrack.FullNAT))
		}
		p := packet.Packet{Kind: packet.KindUDP, L3: l3, L4: l4, Payload: payload, End: end, V6: v6}
		InsertUOA(bytesOf(0xee, 2048), off, n, &p, &fl.e, UOAForm(form), mtu)
		BuildUOA(bytesOf(0xee, min(max(mtu, 0), 2048)), &fl.e, &fl.dir, UOAForm(form))
		p.Kind, p.Inner4 = packet.KindICMPError, end
		UOAQuoted(bytesOf(31, int(min(uint(n), 2048))), &p)
		quote := bytesOf(248, int(min(uint(n), 2048)))
		if int(l4)+6 <= len(quote) {
			copy(quote[l4:], []byte{3, 4, 0, 0, 0, 0})
		}
		UnquoteUOA(quote, &p, &fl.e)
	})
}
