package dataplane

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// quicSpec is how a service's backends are called: by ids, or, for QUICDPVS, by their
// addresses.
func quicServiceSpec(q QUICSpec, backends []string, ids ...uint64) ServiceSpec {
	s := service("quic", "192.0.2.10:443", packet.ProtoUDP, conntrack.FullNAT, false, backends...)
	s.QUIC = q
	for i := range ids {
		s.Backends[i].ServerID = ids[i]
	}
	return s
}

// TestQUICLayouts: connection IDs written down byte by byte name the backends that
// they should.
func TestQUICLayouts(t *testing.T) {
	katran, lb1, lb3, lb8 := QUICSpec{Layout: QUICKatran}, QUICSpec{Layout: QUICLB, ConfigID: 2, IDLength: 1}, QUICSpec{Layout: QUICLB, ConfigID: 6, IDLength: 3}, QUICSpec{Layout: QUICLB, ConfigID: 0, IDLength: 8}
	dpvs := QUICSpec{Layout: QUICDPVS}
	rotated := QUICSpec{Layout: QUICLB, ConfigID: 1, IDLength: 3, FormerID: 0, FormerLength: 1}
	three := []string{"10.0.1.20:443", "10.0.1.21:443", "10.0.2.21:4433"}
	// The addresses and ports of DPVS's own tests of its CIDs, and a namesake each.
	dpvs4 := []string{"192.168.111.222:443", "192.168.111.222:8029", "10.0.110.222:8029"}
	dpvs6 := []string{"[2001::123:4567:89ab:cdef]:443", "[2001::123:4567:89ab:cdef]:51321", "[2001::923:4567:89ab:cdef]:51321"}
	const unknown, nothing = -1, -2
	tests := []struct {
		name     string
		spec     QUICSpec
		backends []string
		ids      []uint64
		cid      string
		want     int
	}{
		// 01, then 16 bits: 0x1234 is 000100 10001101 00.
		{"katran 1", katran, three, []uint64{1, 0x1234, 3}, "44 8d 3f ff ff ff ff ff", 1},
		{"katran 1, all bits", katran, three, []uint64{1, 2, 0xffff}, "7f ff c0 00 00 00 00 00", 2},
		{"katran 1, nobody's", katran, three, []uint64{1, 2, 3}, "44 8d 3f ff ff ff ff ff", unknown},
		{"katran 1, zero", katran, three, []uint64{1, 2, 3}, "40 00 3f ff ff ff ff ff", nothing},
		{"katran 2", katran, three, []uint64{1, 0x123456, 3}, "bf 12 34 56 ff ff ff ff", 1},
		{"katran 2, zero", katran, three, []uint64{1, 2, 3}, "bf 00 00 00 ff ff ff ff", nothing},
		{"katran 3", katran, three, []uint64{1, 2, 0x12345678}, "ff 12 34 56 78 ff ff ff", 2},
		{"katran 3, small", katran, three, []uint64{1, 2, 3}, "c0 00 00 00 03 00 00 00", 2},
		{"katran 0", katran, three, []uint64{1, 2, 3}, "00 00 00 00 03 00 00 00", nothing},
		{"katran, 20 bytes", katran, three, []uint64{1, 2, 3}, "80 00 00 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00", 1},
		{"katran, 7 bytes", katran, three, []uint64{1, 2, 3}, "80 00 00 02 00 00 00", nothing},
		{"katran, none", katran, three, []uint64{1, 2, 3}, "", nothing},

		{"dpvs, 3 bytes and port", dpvs, dpvs4, nil, "aa 5a 86 fd e1 f5 d5 bb cc dd", 1},
		{"dpvs, 3 bytes", dpvs, dpvs4, nil, "aa 4a 86 fd e5 bb cc dd", 0},
		{"dpvs, 1 byte", dpvs, dpvs4, nil, "aa 0d e0 00 00 00 00", 0},
		{"dpvs, 1 byte and port", dpvs, dpvs4, nil, "aa 1d e1 f5 d0 00 00", 1},
		{"dpvs, 4 bytes and port", dpvs, dpvs4, nil, "aa 70 a0 06 ed e1 f5 d0", 2},
		{"dpvs, port 0", dpvs, dpvs4, nil, "aa 5a 86 fd e0 00 00 bb", 0},
		{"dpvs, other port", dpvs, dpvs4, nil, "aa 5a 86 fd e1 f5 e5 bb cc dd", unknown},
		{"dpvs, 5 bytes of IPv4", dpvs, dpvs4, nil, "aa 8f fc 0a 86 fd e0 00", unknown},
		{"dpvs, too short for the port", dpvs, dpvs4, nil, "aa 5a 86 fd e1 f5", nothing},
		{"dpvs, too short for 8 bytes", dpvs, dpvs6, nil, "aa f1 23 45 67 89 ab cd", nothing},
		{"dpvs, IPv6, 6 bytes and port", dpvs, dpvs6, nil, "aa b4 56 78 9a bc de fc 87 90 00 00 00 00 00 00", 1},
		{"dpvs, IPv6, 8 bytes and port", dpvs, dpvs6, nil, "aa f0 92 34 56 78 9a bc de fc 87 90", 2},
		{"dpvs, IPv6, 8 bytes", dpvs, dpvs6, nil, "aa e0 92 34 56 78 9a bc de f0", 2},
		{"dpvs, IPv6, 2 bytes", dpvs, dpvs6, nil, "aa 2c de f0 00 00 00", 0},

		{"quic-lb, 1 byte", lb1, three, []uint64{1, 255, 3}, "5f ff 00 00 00 00", 1},
		{"quic-lb, other configuration", lb1, three, []uint64{1, 255, 3}, "7f ff 00 00 00 00", nothing},
		{"quic-lb, unroutable", lb1, three, []uint64{1, 255, 3}, "ff ff 00 00 00 00", nothing},
		{"quic-lb, too short", lb1, three, []uint64{1, 255, 3}, "5f ff 00 00 00", nothing},
		{"quic-lb, nobody's", lb1, three, []uint64{1, 255, 3}, "5f fe 00 00 00 00", unknown},
		{"quic-lb, 3 bytes", lb3, three, []uint64{1, 2, 0xc4605e}, "c0 c4 60 5e 45 04 cc 4f", 2},
		{"quic-lb, 8 bytes", lb8, three, []uint64{0xfedcba9876543210, 2, 3}, "1f fe dc ba 98 76 54 32 10 01 02 03 04", 0},
		{"quic-lb, rotated", rotated, three, []uint64{1, 255, 3}, "20 00 00 ff 00 00 00 00", 1},
		{"quic-lb, before it was rotated", rotated, three, []uint64{1, 255, 3}, "00 ff 00 00 00 00 00 00", 1},
		{"quic-lb, before that", rotated, three, []uint64{1, 255, 3}, "40 ff 00 00 00 00 00 00", nothing},
		{"quic-lb, rotated and too short", rotated, three, []uint64{1, 255, 3}, "20 00 00 ff 00 00 00", nothing},
		{"quic-lb, newer than the former", rotated, three, []uint64{1, 0x100, 3}, "00 01 00 00 00 00", 0},
		{"quic-lb, zero", lb3, three, []uint64{1, 2, 3}, "c0 00 00 00 00 00 00 00", unknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := quicServiceSpec(tt.spec, tt.backends, tt.ids...)
			q := newQUICRoutes(&s, []uint32{70, 71, 72})
			cid := unhex(t, tt.cid)
			datagrams := map[string][]byte{
				"short":     append([]byte{0x41}, cid...),
				"handshake": append(append([]byte{0xe1, 0, 0, 0, 1, byte(len(cid))}, cid...), 0, 0x40),
			}
			for form, b := range datagrams {
				backend, known := q.server(b[:len(b):len(b)])
				got := nothing
				if backend != nobody {
					got = int(backend) - 70
				} else if known {
					got = unknown
				}
				if got != tt.want {
					t.Errorf("%s header: %d, want %d", form, got, tt.want)
				}
			}
			initial := append(append([]byte{0xc1, 0, 0, 0, 1, byte(len(cid))}, cid...), 0, 0x40)
			if backend, known := q.server(initial); backend != nobody || known {
				t.Errorf("initial: backend %d", backend)
			}
		})
	}
}

// quicID makes a connection ID for backend i of a spec as that server would.
func quicID(t *rapid.T, s *ServiceSpec, i int) []byte {
	b := &s.Backends[i]
	cid := rapid.SliceOfN(rapid.Byte(), 20, 20).Draw(t, "random")
	n := rapid.IntRange(8, 20).Draw(t, "length")
	switch s.QUIC.Layout {
	case QUICKatran:
		switch {
		case b.ServerID < 1<<16 && rapid.Bool().Draw(t, "version 1"):
			v := 1<<62 | b.ServerID<<46 | binary.BigEndian.Uint64(cid)&(1<<46-1)
			binary.BigEndian.PutUint64(cid, v)
		case b.ServerID < 1<<24 && rapid.Bool().Draw(t, "version 2"):
			cid[0] = cid[0]&0x3f | 0x80
			cid[1], cid[2], cid[3] = byte(b.ServerID>>16), byte(b.ServerID>>8), byte(b.ServerID)
		default:
			cid[0] |= 0xc0
			binary.BigEndian.PutUint32(cid[1:], uint32(b.ServerID))
		}
	case QUICDPVS:
		// In hexadecimal digits: two of anything, one and a half of lengths, and so on.
		a := b.Endpoint.Addr.Netip().AsSlice()
		most := min(len(a), 8)
		take := rapid.IntRange(2, most).Draw(t, "bytes")
		digits := hex.EncodeToString(cid[:1]) + fmt.Sprintf("%x%x%04x", (take-1)<<1|1, a[len(a)-take:], b.Endpoint.Port)
		copy(cid, must(hex.DecodeString(digits+"0")))
		n = max(n, 5+take+2)
	case QUICLB:
		length, config := int(s.QUIC.IDLength), s.QUIC.ConfigID
		if n := int(s.QUIC.FormerLength); n > 0 && b.ServerID>>(8*n-1)>>1 == 0 && rapid.Bool().Draw(t, "former") {
			length, config = n, s.QUIC.FormerID
		}
		cid[0] = cid[0]&0x1f | config<<5
		var id [8]byte
		binary.BigEndian.PutUint64(id[:], b.ServerID)
		copy(cid[1:], id[8-length:])
		n = max(n, 1+length+4)
	}
	return cid[:n]
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// TestQUICIDsOfServers: what a server puts into its IDs leads back to it, in every
// layout and with as many backends as there may be.
func TestQUICIDsOfServers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := ServiceSpec{QUIC: QUICSpec{Layout: QUICLayout(rapid.IntRange(1, 3).Draw(t, "layout"))}}
		most := uint64(1<<32 - 1)
		if s.QUIC.Layout == QUICLB {
			s.QUIC.ConfigID, s.QUIC.IDLength = uint8(rapid.IntRange(0, 6).Draw(t, "config")), uint8(rapid.IntRange(1, 8).Draw(t, "id length"))
			most = ^uint64(0) >> (64 - 8*s.QUIC.IDLength)
			if rapid.Bool().Draw(t, "rotated") {
				s.QUIC.FormerID = (s.QUIC.ConfigID + uint8(rapid.IntRange(1, 6).Draw(t, "former"))) % 7
				s.QUIC.FormerLength = uint8(rapid.IntRange(1, 8).Draw(t, "former length"))
			}
		}
		v6 := rapid.Bool().Draw(t, "IPv6")
		ids := rapid.SliceOfNDistinct(rapid.Uint64Range(1, most), 1, 100, rapid.ID[uint64]).Draw(t, "ids")
		var backends []uint32
		for i, id := range ids {
			e := endpoint(fmt.Sprintf("10.0.%d.%d:443", i/7, i), packet.ProtoUDP)
			if v6 {
				e = endpoint(fmt.Sprintf("[2001:db8::%x:%x]:443", i/7, i), packet.ProtoUDP)
			}
			s.Backends = append(s.Backends, BackendSpec{Endpoint: e, ServerID: id})
			backends = append(backends, uint32(1000+i))
		}
		q := newQUICRoutes(&s, backends)
		i := rapid.IntRange(0, len(ids)-1).Draw(t, "backend")
		if backend, _ := q.server(append([]byte{0x40}, quicID(t, &s, i)...)); backend != backends[i] {
			t.Fatalf("backend %d, want %d", backend, backends[i])
		}
	})
}

// FuzzQUICServer: any datagram, in any layout: no read beyond it, and whoever is found
// is a backend.
func FuzzQUICServer(f *testing.F) {
	for _, s := range []string{
		"", "41", "41448d3fffffffffff", "41c00000000300000000", "41aa5a86fde1f5d5bbccdd", "41aaf1234567", "415f01000000ff",
		"e10000000108448d3fffffffffff0040", "e10a1a2a3affaa", "c10000000108448d3fffffffffff0040",
	} {
		f.Add(unhex(f, s))
	}
	var all []*quicRoutes
	for _, q := range []QUICSpec{{Layout: QUICKatran}, {Layout: QUICDPVS}, {Layout: QUICLB, ConfigID: 2, IDLength: 1}, {Layout: QUICLB, ConfigID: 0, IDLength: 8, FormerID: 2, FormerLength: 1}} {
		s := quicServiceSpec(q, []string{"192.168.111.222:8029", "10.0.1.2:443"}, 0x1234, 1)
		all = append(all, newQUICRoutes(&s, []uint32{5, 6}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for i, q := range all {
			if backend, known := q.server(b[:len(b):len(b)]); backend != nobody && (backend != 5 && backend != 6 || !known) {
				t.Fatalf("layout %d: backend %d", i, backend)
			}
		}
	})
}
