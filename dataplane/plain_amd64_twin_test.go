//go:build !purego

package dataplane

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

// segmentTwin is a worker with nothing but what segments and plain read and write, all of it
// random and much of it at its bounds, in states also that no worker comes to.
type segmentTwin struct {
	t      *testing.T
	r      *rand.Rand
	d      conntrack.Dir
	ipLen  int
	w      *Worker
	flows  []conntrack.Entry // 0 is nobody's
	counts []BackendCount
	queues [MaxNICs]queue
	rows   []uint8
	taken  int
}

const (
	twinChunk = 512
	twinWays  = 5
	twinHops  = 6
	twinFlows = 6
	guard     = 4096
)

func oneOf[T any](r *rand.Rand, v ...T) T { return v[r.IntN(len(v))] }

// rare reports one time in n.
func (s *segmentTwin) rare(n int) bool { return s.r.IntN(n) == 0 }

// newSegmentTwin makes a twin whose UMEM begins shift bytes behind the start of a page.
func newSegmentTwin[S sender, F family](t *testing.T, seed uint64, shift int) *segmentTwin {
	const size = BurstSize * twinChunk
	m, err := unix.Mmap(-1, 0, size+2*guard, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(m) })
	whole := m[guard : guard+size : guard+size] // whoever leaves it faults
	umem := whole[shift:]
	if err := unix.Mprotect(whole, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	table := glanceTable(t)
	s := &segmentTwin{
		t: t, r: rand.New(rand.NewPCG(seed, 0)), d: conntrack.Dir(len(*new(S))), ipLen: len(*new(F)),
		w:     &Worker{umem: umem, table: table, frameSize: twinChunk, routes: &route.Table{}},
		flows: table.Entries()[:twinFlows+1], counts: make([]BackendCount, twinWays),
	}
	return s
}

func (s *segmentTwin) addr() packet.Addr {
	if s.ipLen == packet.IPv4MinLen {
		return packet.Addr4(binary.BigEndian.AppendUint32(nil, s.r.Uint32()))
	}
	return packet.Addr{Hi: s.r.Uint64(), Lo: s.r.Uint64()}
}

// surroundings are clock, routes, local addresses, backends and queues.
func (s *segmentTwin) surroundings() {
	r, w := s.r, s.w
	w.tick = oneOf(r, uint32(0), 1, 1<<31-1, 1<<31, 1<<32-1, r.Uint32())
	w.routes.Gen = r.Uint32()
	w.hops, w.locals, w.ways = nil, nil, nil
	for range twinHops {
		var dst, src [6]byte
		binary.LittleEndian.PutUint32(dst[:], r.Uint32())
		binary.LittleEndian.PutUint32(src[1:], r.Uint32())
		hop := route.NewHop(uint16(r.IntN(2*MaxNICs)), dst, src, oneOf(r, 0, 0x81000000|r.Uint32()&0xffff), oneOf(r, 1500, 1500, 1500, 65535, 40, 60, 100, 70000))
		if s.rare(30) {
			hop.State = route.HopState(r.IntN(4))
		}
		w.hops = append(w.hops, hop)
	}
	for range 4 {
		w.locals = append(w.locals, s.addr())
	}
	for i := range s.counts {
		s.counts[i] = BackendCount{}
		to := way{
			addr: [2]packet.Addr{s.addr(), s.addr()}, port: [2]uint16{uint16(r.Uint32()), uint16(r.Uint32())}, gen: w.routes.Gen,
			timeout: oneOf(r, 0, 100, 100, r.Uint32()), oneWay: r.Uint32(), id: route.HopID(r.IntN(twinHops)), header: uint8(s.ipLen),
			toa: s.rare(2), kind: oneOf[uint8](r, 254, 0, 255, 28), strict: s.rare(2), marks: oneOf[marks](r, 0, 0, told, left, cids, names), count: &s.counts[i],
		}
		switch r.IntN(100) {
		case 0:
			to.gen++
		case 1:
			to.header = oneOf[uint8](r, 0, 20, 40, 60)
		case 2:
			to.id = oneOf[route.HopID](r, twinHops, twinHops+1, 65535)
		}
		w.ways = append(w.ways, to)
	}
	for i := range s.queues {
		s.queues[i] = queue{n: oneOf(r, 0, 0, 0, r.IntN(2*BurstSize), 2*BurstSize-2, 2*BurstSize-1, 2*BurstSize)}
		if w.out[i] = &s.queues[i]; s.rare(30) {
			w.out[i] = nil
		}
	}
}

// flow is a random entry.
func (s *segmentTwin) flow() (e conntrack.Entry) {
	r := s.r
	e.Client, e.ClientPort, e.LocalPort = s.addr(), uint16(r.Uint32()), uint16(r.Uint32())
	if s.rare(4) { // the sum of TOA overflows
		e.Client.Lo, e.ClientPort = e.Client.Lo|0xffffffff, 0xffff
	}
	e.Backend, e.Local = uint32(r.IntN(twinWays)), uint16(r.IntN(len(s.w.locals)))
	e.Proto, e.Mode, e.State = packet.ProtoTCP, conntrack.Mode(r.IntN(2)), conntrack.Established
	e.SeqDelta = oneOf(r, 0, 1, 1<<32-1, 1<<31, r.Uint32(), r.Uint32())
	e.Flags = conntrack.HasServerISN | conntrack.Flags(r.IntN(256))&^conntrack.HalfOpen | oneOf(r, 0, conntrack.ServerAcked)
	e.AddrSum, e.PortSum = oneOf(r, 0, 0xffff, uint16(r.Uint32())), oneOf(r, 0, 0xffff, uint16(r.Uint32()))
	e.HopID, e.HopGen = uint16(r.IntN(twinHops)), s.w.routes.Gen
	e.Expires = s.w.tick + s.w.ways[e.Backend].timeout - oneOf(r, 0, 0, 1, 1, 100, 1<<31-1, 1<<31, 1<<31+1, 1<<32-1, r.Uint32()>>1)
	for d := range e.Win {
		w := &e.Win[d]
		w.End = oneOf(r, r.Uint32(), 0, 1<<32-1, 5)
		w.Acked = w.End - oneOf(r, 0, 1, 100, conntrack.MostFlight-1, conntrack.MostFlight, conntrack.MostFlight+1, 1<<32-1, r.Uint32())
		w.MaxWin = oneOf(r, 0, 65535, r.Uint32(), 1<<31, r.Uint32()>>12)
		e.WScale[d] = oneOf[uint8](r, 0, 7, 14, 31, 32, 33, 255)
	}
	acked := e.Win[conntrack.Reply].Acked
	e.ServerNext = oneOf(r, acked, e.Win[conntrack.Reply].End, acked-1, acked+1, acked+1<<31, acked+1<<31-1, r.Uint32())
	e.Packets = [2]uint32{oneOf[uint32](r, 1<<32-1, 3), oneOf[uint32](r, 1<<32-1, 7)}
	e.Bytes = [2]uint64{oneOf[uint64](r, 1<<64-1, 1<<32-1, 1<<32, 1<<32+3), r.Uint64()}
	switch r.IntN(100) {
	case 0, 1, 2:
		e.Backend = oneOf[uint32](r, twinWays, 1<<32-1, 1<<31, 1<<26)
	case 3, 4, 5:
		e.Local = oneOf(r, uint16(len(s.w.locals)), 0xffff)
	case 6, 7, 8:
		e.Proto = oneOf[uint8](r, 17, 7, 0, 58)
	case 9, 10, 11:
		e.Mode = conntrack.Mode(r.IntN(256))
	case 12, 13, 14:
		e.State = conntrack.State(r.IntN(16))
	case 15, 16, 17:
		e.Flags = conntrack.Flags(r.IntN(256))
	case 18, 19, 20:
		e.HopID = oneOf[uint16](r, twinHops, 0xffff)
	case 21, 22, 23:
		e.HopGen++
	}
	return e
}

// ends are the flow's ends as the sender's packets bear them.
func (s *segmentTwin) ends(e *conntrack.Entry) (src, dst packet.Addr, ports uint32) {
	var to way
	if int(e.Backend) < twinWays {
		to = s.w.ways[e.Backend]
	}
	if s.d == conntrack.Forward {
		return e.Client, to.addr[1], uint32(e.ClientPort)<<16 | uint32(to.port[1])
	}
	if e.Mode == conntrack.FullNAT && int(e.Local) < len(s.w.locals) {
		return to.addr[0], s.w.locals[e.Local], uint32(to.port[0])<<16 | uint32(e.LocalPort)
	}
	return to.addr[0], e.Client, uint32(to.port[0])<<16 | uint32(e.ClientPort)
}

// segment writes a packet of e to p, without what is in front of it. next is the number it
// begins with, if it is the next one.
func (s *segmentTwin) segment(p []byte, e *conntrack.Entry, next *uint32) {
	r := s.r
	src, dst, ports := s.ends(e)
	data, options := oneOf(r, 0, 0, 1, 6, 10, 100, 1400, 1440, 1441, 1448, 1452, 1453, 1460, r.IntN(65500), 65495-r.IntN(16)), oneOf(r, 0, 0, 12)
	n := s.ipLen + packet.TCPMinLen + options + data
	if s.rare(30) {
		n = r.IntN(100)
	}
	ttl := oneOf[uint8](r, 64, 128, 255, 2, 2, 127, 64, 1, 0)
	if s.ipLen == packet.IPv4MinLen {
		p[0], p[packet.IPv4TTL], p[packet.IPv4Proto] = 0x45, ttl, e.Proto
		binary.BigEndian.PutUint16(p[packet.IPv4TotalLen:], uint16(n))
		binary.BigEndian.PutUint16(p[packet.IPv4Checksum:], oneOf(r, 0, 0xffff, uint16(r.Uint32())))
		binary.BigEndian.PutUint64(p[packet.IPv4Src:], src.Lo<<32|dst.Lo&0xffffffff)
	} else {
		p[0], p[packet.IPv6HopLimit], p[packet.IPv6NextHeader] = 0x60, ttl, e.Proto
		binary.BigEndian.PutUint16(p[packet.IPv6PayloadLen:], uint16(n-s.ipLen))
		src.Put16(p[packet.IPv6Src:])
		dst.Put16(p[packet.IPv6Dst:])
	}
	h, peer := p[s.ipLen:], &e.Win[s.d^1]
	seq, ack := *next, peer.Acked
	if s.rare(12) {
		seq += oneOf(r, 1, 1<<32-1, 100, 1<<31, r.Uint32())
	} else {
		*next += uint32(data)
	}
	if flight := peer.End - peer.Acked; s.rare(2) && flight < 1<<20 {
		ack += uint32(r.IntN(int(flight) + 1))
	}
	if s.rare(12) {
		ack = oneOf(r, peer.End, peer.End+1, peer.Acked-1, e.ServerNext, r.Uint32())
	}
	if s.d != conntrack.Forward {
		ack += e.SeqDelta
	}
	binary.BigEndian.PutUint32(h, ports)
	binary.BigEndian.PutUint32(h[packet.TCPSeq:], seq)
	binary.BigEndian.PutUint32(h[packet.TCPAck:], ack)
	h[packet.TCPOffset], h[packet.TCPFlags] = uint8(5+options/4)<<4|uint8(r.IntN(16)), packet.ACK|oneOf[uint8](r, 0, packet.PSH, 0x20, 0xc0)
	if s.rare(10) {
		h[oneOf(r, packet.TCPOffset, packet.TCPFlags)] = uint8(r.IntN(256))
	}
	binary.BigEndian.PutUint16(h[packet.TCPWindow:], oneOf(r, 0, 0xffff, uint16(r.Uint32())))
	binary.BigEndian.PutUint16(h[packet.TCPChecksum:], oneOf(r, 0, 0xffff, uint16(r.Uint32())))
	copy(h[packet.TCPMinLen:packet.TCPMinLen+4], []byte{1, 1, 8, 10})
	if s.rare(60) {
		p[r.IntN(s.ipLen+packet.TCPMinLen)] ^= 1 << r.IntN(8)
	}
}

// burst fills in rows, and the packets at them.
func (s *segmentTwin) burst() {
	r, umem := s.r, s.w.umem
	for i := 0; i < len(umem); i += 8 {
		binary.LittleEndian.PutUint64(umem[i:], r.Uint64())
	}
	for i := range s.flows {
		s.flows[i] = conntrack.Entry{}
		if i > 0 {
			s.flows[i] = s.flow()
		}
	}
	var next [twinFlows + 1]uint32
	for i, e := range s.flows {
		next[i] = e.Win[s.d].End
	}
	places, chunks := r.Perm(BurstSize), r.Perm(BurstSize)
	s.rows = make([]uint8, 1+r.IntN(20), BurstSize) // what is behind them is read
	for j := range s.rows {
		k, i := places[j], 1+r.IntN(twinFlows)
		s.rows[j] = uint8(k)
		s.w.b.look.Found[k] = conntrack.Cand(i<<1) | conntrack.Cand(s.d)
		at := chunks[j]*twinChunk + oneOf(r, 18, 18, 22, 25, 26, 32, 64, 256, 300)
		if chunks[j] == BurstSize-1 && s.rare(2) {
			at = len(umem) - s.ipLen - packet.TCPMinLen - 4 - (packet.IPv6Len - s.ipLen) // as near to the end as they may be
		}
		s.segment(umem[at:], &s.flows[i], &next[i])
		s.w.b.ip[k] = uint64(at)
		if s.ipLen == packet.IPv6Len {
			s.w.b.ip[k] |= isV6
		}
		switch r.IntN(200) {
		case 0:
			s.w.b.ip[k] = oneOf(r, 0, isV6, s.w.b.ip[k]^isV6)
		case 1:
			s.w.b.look.Found[k] = conntrack.Cand(s.d)
		}
	}
}

// twinState is all that is written.
type twinState struct {
	UMEM   []byte
	Flows  []conntrack.Entry
	Counts []BackendCount
	Queues [MaxNICs]queue
	Worker Counts
}

func (s *segmentTwin) state() twinState {
	return twinState{slices.Clone(s.w.umem), slices.Clone(s.flows), slices.Clone(s.counts), s.queues, s.w.count}
}

func (s *segmentTwin) restore(was *twinState) {
	copy(s.w.umem, was.UMEM)
	copy(s.flows, was.Flows)
	copy(s.counts, was.Counts)
	s.queues, s.w.count = was.Queues, was.Worker
}

// same fails the test if what one way has left is not what the other has.
func (s *segmentTwin) same(got, want *twinState) {
	s.t.Helper()
	if slices.Equal(got.UMEM, want.UMEM) && got.Queues == want.Queues && slices.Equal(got.Flows, want.Flows) &&
		slices.Equal(got.Counts, want.Counts) && cmp.Equal(got.Worker, want.Worker) {
		return
	}
	for i := range got.UMEM {
		if got.UMEM[i] != want.UMEM[i] {
			s.t.Errorf("byte %d of chunk %d: %#x, want %#x", i%twinChunk, i/twinChunk, got.UMEM[i], want.UMEM[i])
			break
		}
	}
	got.UMEM, want.UMEM = nil, nil
	s.t.Fatal(cmp.Diff(want, got, cmp.AllowUnexported(queue{}, conntrack.Entry{})))
}

// check compares segments with plain, where it stops, too, and from the next row on again;
// and plains, that has both, with plain.
func checkSegments[S sender, F family](s *segmentTwin) {
	was := s.state()
	var runs [][2]int
	for at := 0; at <= len(s.rows); {
		next := segments[S, F](s.w, s.rows, at)
		if next < at || next > len(s.rows) {
			s.t.Fatalf("from row %d of %d to row %d", at, len(s.rows), next)
		}
		runs = append(runs, [2]int{at, next})
		s.taken += next - at
		at = next + 1
	}
	got := s.state()
	s.restore(&was)
	for _, run := range runs {
		if next, toa := plain[S, F](s.w, s.rows[:run[1]], run[0]); next != run[1] || toa {
			s.t.Fatalf("rows from %d to %d: plain takes those to %d, TOA %v", run[0], run[1], next, toa)
		}
	}
	want := s.state()
	s.same(&got, &want)

	s.restore(&was)
	next, toa := plains[S, F](s.w, s.rows, 0, true)
	got = s.state()
	s.restore(&was)
	if end, due := plain[S, F](s.w, s.rows, 0); end != next || due != toa {
		s.t.Fatalf("plains takes the rows to %d, TOA %v, plain to %d, %v", next, toa, end, due)
	}
	want = s.state()
	s.same(&got, &want)
}

func testSegments[S sender, F family](t *testing.T) {
	bursts := 30_000
	if testing.Short() {
		bursts = 4000
	}
	aligned, shifted := newSegmentTwin[S, F](t, 1, 0), newSegmentTwin[S, F](t, 2, 24)
	for i := range bursts {
		s := []*segmentTwin{aligned, shifted}[i%2]
		s.surroundings()
		s.burst()
		checkSegments[S, F](s)
	}
	if taken := aligned.taken + shifted.taken; taken < bursts/10 {
		t.Errorf("%d packets in %d bursts were taken: that says little", taken, bursts)
	}
}

// TestSegmentsTwin: what segments takes is, and leaves, what plain would have.
func TestSegmentsTwin(t *testing.T) {
	t.Run("client v4", testSegments[client, v4])
	t.Run("client v6", testSegments[client, v6])
	t.Run("server v4", testSegments[server, v4])
	t.Run("server v6", testSegments[server, v6])
}
