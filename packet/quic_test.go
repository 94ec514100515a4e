package packet

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func fromHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestQUICServerID(t *testing.T) {
	const id = "f067a5502a4262b5" // of RFC 9001 appendix A, where it is the server's
	long := strings.Repeat("ab", 21)
	tests := []struct{ name, datagram, want string }{
		{"nothing", "", ""},
		{"a byte", "40", ""},
		{"short", "43" + id + "00bff4", id + "00bff4"},
		{"short, greased", "03" + id + "00", id + "00"},
		{"short, all but the form bit", "7f" + id, id},
		{"short, long", "43" + long, long[:40]},
		{"initial", "c3 00000001 08 8394c8f03e515708 00", ""}, // the client's of RFC 9001 A.2
		{"0-rtt", "d3 00000001 08 8394c8f03e515708 00", ""},
		{"handshake", "e3 00000001 08" + id + "00 0041", id},
		{"handshake, greased", "a3 00000001 08" + id + "00 0041", id},
		{"retry", "f3 00000001 08" + id + "00", id},
		{"version 2, retry", "c3 6b3343cf 08" + id + "00", id},
		{"version 2, initial", "d3 6b3343cf 08" + id + "00", ""},
		{"version 2, 0-rtt", "e3 6b3343cf 08" + id + "00", ""},
		{"version 2, handshake", "f3 6b3343cf 08" + id + "00", id},
		{"unknown version, handshake", "e3 0a1a2a3a 08" + id + "00", id},
		{"version negotiation", "e3 00000000 08" + id + "00", ""},
		{"no id", "e3 00000001 00 00", ""},
		{"id of a byte", "e3 00000001 01 77", "77"},
		{"21 bytes", "e3 0a1a2a3a 15" + long, long},
		{"id to the end", "e3 00000001 08" + id, id},
		{"id beyond the end", "e3 00000001 09" + id, ""},
		{"ends at the length", "e3 00000001 08", ""},
		{"ends in the version", "e3 000000", ""},
		{"a handshake behind an initial", "c3 00000001 00 00 00 02 0000 e3 00000001 08" + id + "00", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := fromHex(t, tt.datagram)
			if diff := cmp.Diff(fromHex(t, tt.want), append([]byte{}, QUICServerID(b)...)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever a datagram is, the ID is a part of it, no more than its header says, and a
// client's own is never returned.
func FuzzQUICServerID(f *testing.F) {
	for _, s := range []string{"", "43f067a5502a4262b500bff4", "e30000000108f067a5502a4262b500", "c30000000108f067a5502a4262b500", "f36b3343cf08f067a5502a4262b5", "e300000001ff00"} {
		f.Add(fromHex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		id := QUICServerID(b[:len(b):len(b)])
		if len(id) == 0 {
			if id != nil {
				t.Fatal("empty and not nil")
			}
			return
		}
		at := 1
		if b[0] >= 0x80 {
			if at = 6; int(b[5]) != len(id) {
				t.Fatalf("%d bytes of %d", len(id), b[5])
			}
		} else if len(id) > 20 {
			t.Fatalf("%d bytes", len(id))
		}
		if !bytes.Equal(id, b[at:at+len(id)]) || &id[0] != &b[at] {
			t.Fatalf("%x is not what is at %d of %x", id, at, b)
		}
		if kind := b[0] & 0xf0; kind&^0x50 == 0x80 && string(b[1:5]) == "\x00\x00\x00\x01" {
			t.Fatalf("an ID of type %#x", kind)
		}
	})
}
