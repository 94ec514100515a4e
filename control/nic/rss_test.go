package nic

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRSS(t *testing.T) {
	make1 := func(entries, key uint32, function, transform byte, tail ...byte) []byte {
		b := make([]byte, rxfhConfig)
		binary.NativeEndian.PutUint32(b[rxfhIndirSize:], entries)
		binary.NativeEndian.PutUint32(b[rxfhKeySize:], key)
		b[rxfhFunction], b[rxfhInputXfrm] = function, transform
		return append(b, tail...)
	}
	queue := func(q ...uint32) (out []byte) {
		for _, q := range q {
			out = binary.NativeEndian.AppendUint32(out, q)
		}
		return out
	}
	tests := []struct {
		name string
		in   []byte
		want RSS
	}{
		{"table and key", make1(4, 3, 1, 0, append(queue(0, 1, 2, 3), 7, 8, 9)...), RSS{Function: Toeplitz, Indirection: []uint32{0, 1, 2, 3}, Key: []byte{7, 8, 9}}},
		{"key only, symmetric", make1(0, 2, 1, 1, 5, 6), RSS{Function: Toeplitz, Symmetric: true, Key: []byte{5, 6}}},
		{"nothing", make1(0, 0, 2, 0), RSS{Function: XOR}},
		{"shorter than it says", make1(4, 40, 1, 0, queue(1, 2)...), RSS{Function: Toeplitz, Indirection: []uint32{1, 2}}},
		{"key cut off", make1(1, 40, 1, 0, append(queue(1), 2, 3)...), RSS{Function: Toeplitz, Indirection: []uint32{1}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, *parseRSS(tt.in)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
