package bench

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/l4fwd/l4fwd/packet"
)

// The limit does its work for every packet: one entry is written to, the header
// changes, the frame comes back; and it allocates nothing.
func TestLimitWorks(t *testing.T) {
	const flows, packets = 500, 3000
	l, err := newLimit(1000, flows, 2048)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.close(); err != nil {
			t.Error(err)
		}
	}()
	var frames [][]byte
	r := random{1}
	for i := range packets {
		s := segment{proto: packet.ProtoTCP, srcPort: uint16(r.next()), dstPort: 80, payload: i % 1000}
		s.src, s.dst = packet.Addr{Hi: 1, Lo: r.next()}, packet.Addr{Hi: 1, Lo: 2}
		if i%2 == 0 {
			s.src, s.dst = packet.AddrFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})), packet.AddrFrom(netip.AddrFrom4([4]byte{10, 1, 0, 1}))
		}
		frames = append(frames, bytes.Clone(s.build(make([]byte, 2048))))
	}
	frames = append(frames, make([]byte, 20)) // too short for anything
	sent, same := 0, 0
	l.port.OnSend = func(f []byte) {
		if bytes.Equal(f, frames[sent]) {
			same++
		}
		sent++
	}
	l.feed(frames)
	l.port.OnSend = nil
	written, met := uint32(0), 0
	for k := range flows {
		e := &l.lines[l.buckets+k*limitEntryLines]
		written += e[0]
		if e[0] > 0 {
			met++
		}
	}
	if sent != packets+1 || same != 1 || written != packets+1 || met < flows*9/10 {
		t.Errorf("%d sent, %d of them as they came; entries written %d times, %d met", sent, same, written, met)
	}
	held := len(l.port.Held(nil))
	if len(l.pool)+held != framesAlone {
		t.Errorf("%d frames in the pool, %d with the port, of %d", len(l.pool), held, framesAlone)
	}
	if n := testing.AllocsPerRun(10, func() { l.feed(frames) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

func TestMedian(t *testing.T) {
	v := []float64{3, 1, 2}
	if m := median(v); m != 2 || v[0] != 3 {
		t.Errorf("%g, %v", m, v)
	}
	if m := median([]float64{4, 1, 2, 3}); m != 2.5 {
		t.Errorf("%g", m)
	}
	l := newLimitReport([]float64{30, 20, 90}, []float64{10, 10, 10})
	if l.Ratio != 3 || l.BestRatio != 2 || l.Worst != 10 {
		t.Errorf("%+v", l)
	}
}
