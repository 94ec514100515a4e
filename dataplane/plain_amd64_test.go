//go:build !purego

package dataplane

import (
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/packet"
)

// TestGlancesTwin compares glances with glance: of frames that are good, or were before a
// byte or the length was changed.
func TestGlancesTwin(t *testing.T) {
	const chunk = 4096
	table, frames := glanceTable(t), glanceFrames(t)
	umem := make([]byte, BurstSize*chunk)
	taken := 0
	rapid.Check(t, func(rt *rapid.T) {
		w := &Worker{umem: umem, table: table}
		n := rapid.IntRange(1, BurstSize).Draw(rt, "frames")
		for i := range n {
			frame := append([]byte(nil), rapid.SampledFrom(frames).Draw(rt, "frame")...)
			if rapid.IntRange(0, 15).Draw(rt, "changed") == 0 {
				frame[rapid.IntRange(12, len(frame)-1).Draw(rt, "at")] = rapid.Byte().Draw(rt, "byte")
			}
			if rapid.IntRange(0, 31).Draw(rt, "cut") == 0 {
				frame = frame[:rapid.IntRange(0, len(frame)).Draw(rt, "length")]
			}
			at := uint64(i*chunk + memport.Headroom)
			if rapid.IntRange(0, 255).Draw(rt, "place") == 0 {
				at = rapid.SampledFrom([]uint64{0, 3, 4, uint64(len(umem) - len(frame)), uint64(len(umem)) - 78, uint64(len(umem)) - 77}).Draw(rt, "odd place")
			}
			w.b.desc[i] = unix.XDPDesc{Addr: at, Len: uint32(copy(umem[at:], frame))}
		}
		from := rapid.IntRange(0, n-1).Draw(rt, "from")
		k := rapid.IntRange(0, BurstSize-(n-from)).Draw(rt, "place in look")
		next := w.glances(table.Buckets(), from, n, k)
		for i := from; i < next; i++ {
			hash, ip := glance(umem, &w.b.desc[i], table)
			if got, want := w.b.ip[k], ip; got != want || w.b.look.Hash[k] != hash || w.b.look.Packet[k] != uint8(i) {
				rt.Fatalf("row %d: IP header at %#x, hash %#x, row %d, want %#x, %#x: %x", i, got, w.b.look.Hash[k], w.b.look.Packet[k], want, hash, w.frame(i))
			}
			k++
			taken++
		}
		if next == n {
			return
		}
		d := w.b.desc[next]
		if d.Addr < 4 || d.Addr+82 > uint64(len(umem)) {
			return // glance panics, of a frame with a tag or without
		}
		if _, ip := glance(umem, &d, table); ip&^isV6 == d.Addr+packet.EthLen {
			rt.Fatalf("row %d: not taken: %x", next, w.frame(next))
		}
	})
	if taken == 0 {
		t.Error("nothing was taken")
	}
}

// segment is segments for the only packet of a burst.
func (r *rig) segment(frame []byte) (taken bool) {
	r.t.Helper()
	w := r.dp.Workers[0]
	at := w.pool.take(1)[0] + memport.Headroom
	w.b.desc[0] = unix.XDPDesc{Addr: at, Len: uint32(copy(w.umem[at:], frame))}
	if n := w.parse(1); n != 1 {
		r.t.Fatal("no packet of a flow")
	}
	w.find(1)
	clients, servers := w.b.look.Order(1)
	var next int
	switch six := w.b.ip[0] >= isV6; {
	case w.b.look.Found[0].Dir() == conntrack.Forward && six:
		next = segments[client, v6](w, clients, 0)
	case w.b.look.Found[0].Dir() == conntrack.Forward:
		next = segments[client, v4](w, clients, 0)
	case six:
		next = segments[server, v6](w, servers, 0)
	default:
		next = segments[server, v4](w, servers, 0)
	}
	if next == 0 {
		w.release(at)
	}
	w.flush()
	return next == 1
}

// TestSegmentsTake: segments knows nearly all segments of a connection that goes on.
func TestSegmentsTake(t *testing.T) {
	const client4, client6 = "198.51.100.7:40000", "[2001:db8:c::7]:40000"
	for _, tt := range []struct {
		name, client, vip string
		toa6              bool
	}{
		{"full-nat v4", client4, "192.0.2.10:80", false},
		{"full-nat v6", client6, "[2001:db8::10]:80", true},
		{"dnat v4", client4, "192.0.2.11:80", false},
		{"dnat v6", client6, "[2001:db8::11]:80", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 1, testSpec())
			c := r.open(0, tt.client, tt.vip)
			up := func(seq, ack uint32, payload int) []byte {
				return build(t, seg{src: tt.client, dst: tt.vip, ack: true, seq: 1000 + seq, ackNum: 9000 + ack, payload: payload})
			}
			down := func(seq, ack uint32, payload int) []byte {
				return build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9000 + seq, ackNum: c.isn + ack, payload: payload, opts: twinOptions["timestamps"]})
			}
			for i, step := range []struct {
				frame []byte
				taken bool
			}{
				{up(1, 1, 10), !tt.toa6},
				{down(1, 11, 100), true},
				{up(11, 1, 10), !tt.toa6},
				{up(21, 101, 10), true}, // who has data of the server's knows its client
				{down(101, 31, 100), true},
				{up(31, 150, 0), true},
				{up(31, 1, 10), false},      // an acknowledgement that came late
				{up(51, 201, 10), false},    // one before is missing
				{down(101, 31, 100), false}, // again
			} {
				got := r.segment(step.frame)
				if got != step.taken {
					t.Fatalf("step %d: taken: %v", i, got)
				}
				if !got && i < 6 { // plain and those after it know it
					r.plain(step.frame)
				}
			}
		})
	}
}
