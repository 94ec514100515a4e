package control

import (
	"testing"

	"github.com/l4fwd/l4fwd/control/nic"
)

func TestUsableRSS(t *testing.T) {
	good := func() *nic.RSS {
		return &nic.RSS{
			Function: nic.Toeplitz, Key: make([]byte, 40), Indirection: []uint32{0, 1},
			TCP4: nic.HashFourTuple, UDP4: nic.HashFourTuple, TCP6: nic.HashFourTuple, UDP6: nic.HashFourTuple,
		}
	}
	tests := []struct {
		name   string
		change func(*nic.RSS)
		want   string
	}{
		{"good", func(*nic.RSS) {}, ""},
		{"xor", func(r *nic.RSS) { r.Function = nic.XOR }, "its hash function is not plain Toeplitz"},
		{"symmetric", func(r *nic.RSS) { r.Symmetric = true }, "its hash function is not plain Toeplitz"},
		{"udp by addresses", func(r *nic.RSS) { r.UDP4 = nic.HashSrcIP | nic.HashDstIP },
			"udp4 is not hashed by addresses and ports (ethtool -N NIC rx-flow-hash udp4 sdfn)"},
		{"other key", func(r *nic.RSS) { r.Key = append([]byte{1}, r.Key[1:]...) }, "its key or indirection table differs from the other interfaces'"},
		{"other table", func(r *nic.RSS) { r.Indirection = []uint32{1, 0} }, "its key or indirection table differs from the other interfaces'"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := good()
			tt.change(r)
			got := ""
			if err := usable(r, good()); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
	if usable(nil, nil) == nil {
		t.Error("nothing known is not usable")
	}
}
