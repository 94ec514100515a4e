package dataplane

import (
	"fmt"
	"testing"
)

// BenchmarkTap is what a client's datagram costs, its copying in and out included:
// without a capture, with one whose filter no packet passes, and with captures that
// match and are read at once.
func BenchmarkTap(b *testing.B) {
	nobody := compiled(b, 14+20, 9)
	var drops [NumVerdicts]bool
	drops[DropNoFlow] = true
	for _, c := range []struct {
		name string
		o    *TapOptions
	}{
		{"off", nil},
		{"rx, none passes", &TapOptions{Points: TapRX, Filter: nobody}},
		{"tx, none passes", &TapOptions{Points: TapTX, Filter: nobody}},
		{"both, none passes", &TapOptions{Points: TapRX | TapTX, Filter: nobody}},
		{"drops, there are none", &TapOptions{Points: TapRX | TapTX, Verdicts: &drops}},
		{"everything, 128 bytes", &TapOptions{Points: TapRX | TapTX, SnapLen: 128}},
		{"everything", &TapOptions{Points: TapRX | TapTX}},
	} {
		for _, payload := range []int{18, 1400} {
			b.Run(fmt.Sprintf("%s/%d", c.name, payload+42), func(b *testing.B) {
				r := newRig(b, 1, testSpec())
				r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
				drain := func() {}
				if c.o != nil {
					o := *c.o
					o.Frames = 1024
					t, _ := r.tap(o)
					drain = func() {
						for t.Peek() != nil {
							t.Next()
						}
					}
				}
				var frames [][]byte
				for i := range BurstSize {
					frames = append(frames, build(b, seg{src: fmt.Sprintf("198.51.100.7:%d", 40000+i), dst: "192.0.2.10:5000", udp: true, payload: payload}))
				}
				b.ResetTimer()
				r.port[0][0].Feed(frames, (b.N+BurstSize-1)/BurstSize)
				for r.dp.Workers[0].Poll(r.now) > 0 {
					drain()
				}
			})
		}
	}
}
