package nat

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// slowTimestamps moves the timestamps of a copy of the options.
func slowTimestamps(opts []byte, field int, delta uint32) (out []byte, found bool) {
	out = slices.Clone(opts)
	eachOption(opts, func(from, to int) {
		if opts[from] != 8 || to-from != 10 {
			return
		}
		found = true
		v := binary.BigEndian.Uint32(out[from+field:])
		if field == 2 || v != 0 {
			binary.BigEndian.PutUint32(out[from+field:], v+delta)
		}
	})
	return out, found
}

// TestShiftTimestampsTwin compares both directions with packets built from
// scratch, and with the way back.
func TestShiftTimestampsTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		f := drawFlow(t, v6, false)
		s := drawShape(t, v6, false)
		delta := edgy(t, "timestamp delta")
		if rapid.Bool().Draw(t, "usual") {
			s.opts = append([]byte{1, 1, 8, 10}, binary.BigEndian.AppendUint64(nil, uint64(edgy(t, "val"))<<32|uint64(edgy(t, "echo")))...)
		} else if rapid.IntRange(0, 3).Draw(t, "no echo") == 0 {
			s.opts = []byte{1, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1}
		}
		d := conntrack.Dir(rapid.IntRange(0, 1).Draw(t, "direction"))
		want, found := s, false
		if d == conntrack.Forward {
			s = f.fromClient(s)
			want = s
			want.opts, found = slowTimestamps(s.opts, 2, delta)
		} else {
			s = f.fromServer(s)
			want = s
			if s.flags&0x10 != 0 {
				want.opts, found = slowTimestamps(s.opts, 6, -delta)
			}
		}
		frame := s.frame()
		p := parse(t, frame)
		if ShiftTimestamps(frame, &p, d, delta) != found {
			t.Fatalf("found: want %v", found)
		}
		if diff := cmp.Diff(want.frame(), frame); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		if again := parse(t, frame); again != p {
			t.Fatal("p is not true any more")
		}
		if d == conntrack.Forward {
			ShiftTimestamps(frame, &p, d, -delta)
			if diff := cmp.Diff(s.frame(), frame); diff != "" {
				t.Fatalf("and back (-want +got):\n%s", diff)
			}
		}
	})
}

// TestTimestampGrows: later flows between one pair begin no earlier, whatever their
// ports, also than where an earlier one has got whose client ticks 1000 times a
// second.
func TestTimestampGrows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		isn := NewISN([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "secret")), 0)
		src, dst := addr("10.0.1.10"), addr("10.0.1.20")
		now := rapid.Int64Range(0, 1<<60).Draw(t, "now")
		pass := rapid.Int64Range(0, 24*3600*1e9).Draw(t, "pass")
		first, second := isn.Timestamp(src, dst, now), isn.Timestamp(src, dst, now+pass)
		elapsed := second - first
		if int32(elapsed) < 0 {
			t.Fatalf("%d ticks in %d ns", int32(elapsed), pass)
		}
		if ticks := uint32(pass / 1e6); elapsed < ticks {
			t.Fatalf("%d ticks, the client's clock has %d", elapsed, ticks)
		}
	})
	isn := NewISN([16]byte{1}, 0)
	a, b := addr("10.0.1.10"), addr("10.0.1.20")
	if isn.Timestamp(a, b, 0) == isn.Timestamp(b, a, 0) || isn.Timestamp(a, b, 0) == isn.Next(a, 0, b, 0, 0) {
		t.Error("clocks are not apart")
	}
}

// paws is what a server does with a timestamp (RFC 7323 section 5.3).
type paws struct {
	recent uint32
	set    bool
}

func (p *paws) accepts(val uint32) bool {
	if p.set && int32(val-p.recent) < 0 {
		return false
	}
	p.recent, p.set = val, true
	return true
}

// TestTimestampsManyClients: clients with unrelated clocks use one tuple one
// after another, and the server never takes one for old. Without translation it
// does. Each client finds the echo of what it sent.
func TestTimestampsManyClients(t *testing.T) {
	f := flow4(conntrack.FullNAT)
	isn := NewISN([16]byte{7}, 0)
	var server, plain paws
	refused := 0
	now := int64(1e9)
	for i := range 200 {
		clock := uint32(i) * 0x9e3779b9 // the client's own
		var delta uint32
		for j := range 20 {
			val := clock + uint32(j)*250
			s := f.fromClient(shape{ttl: 9, flags: packet.ACK, opts: stamps(val, 77)})
			if j == 0 {
				s.flags = packet.SYN
				delta = isn.Timestamp(f.dir.Locals[1], f.dir.Backends[2].Addr, now) - val
			}
			frame := s.frame()
			p := parse(t, frame)
			ShiftTimestamps(frame, &p, conntrack.Forward, delta)
			o := packet.ScanOptions(frame, &p)
			if !server.accepts(o.TSVal) {
				t.Fatalf("client %d, packet %d: %d after %d", i, j, o.TSVal, server.recent)
			}
			if o.TSEcr != 77 {
				t.Fatal("the server's own clock was moved")
			}
			if !plain.accepts(val) {
				refused++
			}
			back := f.fromServer(shape{ttl: 9, flags: packet.ACK, opts: stamps(5, o.TSVal)})
			r := back.frame()
			q := parse(t, r)
			ShiftTimestamps(r, &q, conntrack.Reply, delta)
			if o := packet.ScanOptions(r, &q); o.TSEcr != val || o.TSVal != 5 {
				t.Fatalf("echo %d of %d", o.TSEcr, val)
			}
			now += 250e6
		}
	}
	if refused == 0 {
		t.Error("the server is too easily content to prove anything")
	}
}

func stamps(val, echo uint32) []byte {
	return append([]byte{1, 1, 8, 10}, binary.BigEndian.AppendUint64(nil, uint64(val)<<32|uint64(echo))...)
}

func TestTimestampsAllocateNothing(t *testing.T) {
	f := flow4(conntrack.FullNAT)
	isn := NewISN([16]byte{7}, 0)
	for _, opts := range [][]byte{stamps(1, 2), append([]byte{1}, append(stamps(1, 2), 1, 1, 1)...)} {
		s := f.fromClient(shape{ttl: 9, flags: packet.ACK, opts: opts})
		frame := s.frame()
		p := parse(t, frame)
		if n := testing.AllocsPerRun(100, func() {
			if !ShiftTimestamps(frame, &p, conntrack.Forward, isn.Timestamp(p.Src, p.Dst, 5)) {
				panic("no option")
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}
