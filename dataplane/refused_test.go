package dataplane

import (
	"fmt"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// TestComesAgain: where every half-open flow is young a new SYN is refused. When
// it comes again it gets the place of the oldest that did not; one that came
// again as well is spared, as long as its handshake may take.
func TestComesAgain(t *testing.T) {
	r := newRigWith(t, 1, testSpec(), func(o *Options) { o.Flows = 16 }) // 4 half-open
	w := r.dp.Workers[0]
	syn := func(i int) []byte {
		return build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1024+i), dst: "192.0.2.11:80", syn: true, seq: uint32(i)})
	}
	has := func(i int) bool {
		for ref := range conntrack.Ref(17) {
			if e := w.table.Entry(ref); e.Proto != 0 && e.ClientPort == uint16(1024+i) {
				return true
			}
		}
		return false
	}
	at := func(ms int) { r.now = int64(ms) * int64(time.Millisecond) }
	for i := range 4 {
		r.one(0, 0, 1, syn(i))
	}
	at(200)
	r.refused(0, 0, DropHalfOpenFull, syn(4))
	r.one(0, 0, 1, syn(4))
	at(350)
	for i := 10; i < 13; i++ {
		r.one(0, 0, 1, syn(i)) // 1, 2 and 3 have had their time
	}
	r.refused(0, 0, DropHalfOpenFull, syn(13))
	r.one(0, 0, 1, syn(13))
	for i, want := range map[int]bool{0: false, 1: false, 2: false, 3: false, 4: true, 10: false, 11: true, 12: true, 13: true} {
		if has(i) != want {
			t.Errorf("flow %d is there: %v", i, !want)
		}
	}
	// Where all came again one has to wait.
	for i := 14; i < 16; i++ {
		r.refused(0, 0, DropHalfOpenFull, syn(i))
		r.one(0, 0, 1, syn(i))
	}
	r.refused(0, 0, DropHalfOpenFull, syn(16))
	r.refused(0, 0, DropHalfOpenFull, syn(16))
	if has(11) || has(12) || !has(4) || !has(13) || !has(14) || !has(15) || w.table.HalfOpenLen() != 4 {
		t.Errorf("%d half-open", w.table.HalfOpenLen())
	}
	at(1000)
	r.one(0, 0, 1, syn(16))
}

// TestDatagramsDoNotWait: a flow of UDP leaves the half-open ones with its first
// answer, so the oldest goes however young it is.
func TestDatagramsDoNotWait(t *testing.T) {
	r := newRigWith(t, 1, testSpec(), func(o *Options) { o.Flows = 16 })
	for i := range 20 {
		r.one(0, 0, 1, build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1024+i), dst: "192.0.2.11:5000", udp: true}))
	}
	if c := r.counts(); c.Evicted != 16 {
		t.Errorf("%d evicted", c.Evicted)
	}
}

// TestRefusedMemory: what was refused is known again, after so many others as
// come in a flood, and what was not hardly ever is.
func TestRefusedMemory(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	client, vip := addr("198.51.100.1"), addr("192.0.2.10")
	packetOf := func(i int) *packet.Packet {
		tu := packet.Tuple{Src: client, SrcPort: uint16(i), Dst: vip, DstPort: 80, Proto: packet.ProtoTCP}
		tu.Src.Lo += uint64(i >> 16)
		return &packet.Packet{Tuple: tu, Kind: packet.KindTCP}
	}
	const n = 1 << 17
	for i := range n {
		w.remember(packetOf(i))
	}
	known, strangers := 0, 0
	for i := range n {
		if w.cameBefore(&packetOf(i).Tuple) {
			known++
		}
		if w.cameBefore(&packetOf(n + i).Tuple) {
			strangers++
		}
	}
	if known < n*99/100 || strangers > n/1000 {
		t.Errorf("%d of %d known, and %d strangers", known, n, strangers)
	}
	for i := n; i < 10*n; i++ {
		w.remember(packetOf(i))
	}
	known = 0
	for i := range 100 {
		if w.cameBefore(&packetOf(i).Tuple) {
			known++
		}
	}
	if known == 100 {
		t.Error("nothing is forgotten")
	}
}

// TestRefusingDoesNotAllocate: a flood's SYNs, refused, remembered and let in.
func TestRefusingDoesNotAllocate(t *testing.T) {
	r := newRigWith(t, 1, testSpec(), func(o *Options) { o.Flows = 16 })
	r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
	var list [][]byte
	for i := range 60 {
		list = append(list, build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1024+i/2), dst: "192.0.2.11:80", syn: true}))
	}
	if n := testing.AllocsPerRun(100, func() {
		r.port[0][0].Feed(list, 1)
		r.step()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if c := r.counts(); c.Verdicts[DropHalfOpenFull] == 0 || c.Evicted == 0 {
		t.Errorf("%+v", c)
	}
}
