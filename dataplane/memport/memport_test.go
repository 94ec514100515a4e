package memport

import (
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestRingsAreFIFO: what Fill and Transmit take comes out in that order, whatever the
// sizes, also around the rings' ends, and never more than there is or there is room for.
func TestRingsAreFIFO(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const chunk = 2048
		size := 1 << rapid.IntRange(0, 4).Draw(t, "size")
		p := New(make([]byte, 64*chunk), chunk, size)
		p.Feed([][]byte{{1}, {2}, {3}}, 1<<30)
		var filled, done []uint64
		next := uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"fill": func(t *rapid.T) {
				var a []uint64
				for range rapid.IntRange(0, 20).Draw(t, "n") {
					next++
					a = append(a, next%64*chunk+next%chunk)
				}
				n := p.Fill(a)
				if n != min(len(a), size-len(filled)) {
					t.Fatal(n)
				}
				for _, v := range a[:n] {
					filled = append(filled, v&^(chunk-1))
				}
			},
			"receive": func(t *rapid.T) {
				d := make([]unix.XDPDesc, rapid.IntRange(0, 20).Draw(t, "n"))
				n := p.Receive(d)
				if n != min(len(d), len(filled)) {
					t.Fatal(n)
				}
				for i := range d[:n] {
					if d[i].Addr != filled[i]+Headroom || d[i].Len != 1 {
						t.Fatal(d[i])
					}
				}
				filled = filled[n:]
			},
			"transmit": func(t *rapid.T) {
				d := make([]unix.XDPDesc, rapid.IntRange(0, 20).Draw(t, "n"))
				for i := range d {
					next++
					d[i] = unix.XDPDesc{Addr: next % 64 * chunk, Len: 1}
				}
				n := p.Transmit(d)
				if n != min(len(d), size-len(done)) {
					t.Fatal(n)
				}
				for i := range d[:n] {
					done = append(done, d[i].Addr)
				}
			},
			"reclaim": func(t *rapid.T) {
				a := make([]uint64, rapid.IntRange(0, 40).Draw(t, "n"))
				n := p.Reclaim(a)
				if n != min(len(a), len(done)) {
					t.Fatal(n)
				}
				for i := range a[:n] {
					if a[i] != done[i] {
						t.Fatal(i, a[i], done[i])
					}
				}
				done = done[n:]
			},
			"": func(t *rapid.T) {
				if got := len(p.Held(nil)); got != len(filled)+len(done) || p.FillFree() != size-len(filled) {
					t.Fatal(got)
				}
			},
		})
	})
}
