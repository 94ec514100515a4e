package nat

import (
	"testing"

	"github.com/l4fwd/l4fwd/packet"
)

// burst64 are 64 equal frames, for one alone would wait for its own stores.
type burst64 struct {
	frame  []byte
	good   packet.Packet
	chunks [64][]byte
	pkts   [64]packet.Packet
}

func newBurst64(b *testing.B, s shape) *burst64 {
	r := &burst64{frame: s.frame()}
	r.good = parse(b, r.frame)
	for i := range r.chunks {
		r.chunks[i] = inChunk(r.frame, headroom)
	}
	b.ReportAllocs()
	return r
}

// next is the i-th frame's place; all are put back as they were each time round,
// which is part of what is measured.
func (r *burst64) next(i int) int {
	at := i % len(r.chunks)
	if at == 0 {
		for k := range r.chunks {
			copy(r.chunks[k][headroom:], r.frame[:min(len(r.frame), 94)])
			r.pkts[k] = r.good
		}
	}
	return at
}

func BenchmarkForward64TCP(b *testing.B) {
	f := flow64()
	f.e.SeqDelta = 0x12345678
	r := newBurst64(b, f.fromClient(shape{flags: packet.ACK}))
	for i := 0; b.Loop(); i++ {
		at := r.next(i)
		Forward64(r.chunks[at], headroom, len(r.frame), &r.pkts[at], &f.e, &f.dir, 1)
	}
}

func BenchmarkReply64TCP(b *testing.B) {
	f := flow64()
	f.e.SeqDelta = 0x12345678
	r := newBurst64(b, f.fromServer(shape{flags: packet.ACK}))
	for i := 0; b.Loop(); i++ {
		at := r.next(i)
		Reply64(r.chunks[at], headroom, len(r.frame), &r.pkts[at], &f.e, &f.dir)
	}
}

// BenchmarkReply64UDPZeroChecksum has to read 1400 bytes of data.
func BenchmarkReply64UDPZeroChecksum(b *testing.B) {
	f := flow64()
	f.e.Proto = packet.ProtoUDP
	r := newBurst64(b, f.fromServer(shape{udp: true, noCsum: true, payload: bytesOf('x', 1400)}))
	for i := 0; b.Loop(); i++ {
		at := r.next(i)
		Reply64(r.chunks[at], headroom, len(r.frame), &r.pkts[at], &f.e, &f.dir)
	}
}
