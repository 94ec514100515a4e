package dataplane

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// TestComesAgain: where every half-open flow is young a new SYN is refused, and
// gets the place of the oldest when it comes again. Old ones make room for
// anybody, but not all at once.
func TestComesAgain(t *testing.T) {
	r := newRigWith(t, 1, testSpec(), func(o *Options) { o.Flows = 16 }) // 4 half-open
	w := r.dp.Workers[0]
	syn := func(i int) []byte {
		return build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1024+i), dst: "192.0.2.11:80", syn: true, seq: uint32(i)})
	}
	let := func(list ...int) {
		t.Helper()
		for _, i := range list {
			r.one(0, 0, 1, syn(i))
		}
	}
	has := func(want ...int) {
		t.Helper()
		var got []int
		for ref := range conntrack.Ref(17) {
			if e := w.table.Entry(ref); e.Proto != 0 {
				got = append(got, int(e.ClientPort)-1024)
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("flows %v, want %v", got, want)
		}
	}
	at := func(ms int) { r.now = int64(ms) * int64(time.Millisecond) }
	let(0, 1, 2, 3)
	at(200)
	r.refused(0, 0, DropHalfOpenFull, syn(4))
	has(0, 1, 2, 3)
	let(4)
	has(1, 2, 3, 4)
	at(350)
	let(10)
	r.refused(0, 0, DropHalfOpenFull, syn(11)) // 2 is old, but one went just now
	has(2, 3, 4, 10)
	let(11)
	has(3, 4, 10, 11)
	at(2000)
	let(20, 21, 22, 23) // all have had more than their time
	r.refused(0, 0, DropHalfOpenFull, syn(24))
	r.refused(0, 0, DropHalfOpenFull, syn(25))
	has(20, 21, 22, 23)
	let(25, 24)
	has(22, 23, 24, 25)
}

// TestEvenPace: a table that filled in a moment and has flows at their age all at
// once turns over in a handshakeTime, no faster, and goes on like that.
func TestEvenPace(t *testing.T) {
	const flows, every = 1 << 10, 250 * time.Microsecond
	r := newRigWith(t, 1, testSpec(), func(o *Options) { o.Flows = flows })
	w := r.dp.Workers[0]
	half := uint64(w.table.HalfOpenCap())
	const second = int(time.Second / every)
	var evicted []uint64 // by tick
	for i := range 2 * second {
		r.now = int64(i) * int64(every)
		r.deliver(0, 0, build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1024+i), dst: "192.0.2.11:80", syn: true}))
		if tick := int(r.now / nanosPerTick); tick == len(evicted) {
			evicted = append(evicted, 0)
		}
		evicted[len(evicted)-1] = r.counts().Evicted
	}
	share := half / handshakeTime
	for tick := handshakeTime + 2; tick < len(evicted); tick++ {
		if n := evicted[tick] - evicted[tick-1]; n < share*3/4 || n > share*5/4 {
			t.Errorf("tick %d: %d evicted, want about %d", tick, n, share)
		}
	}
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

// TestRefusedMemory: what two million SYNs a second were refused is known for
// more than a second, most of what was not is told from it, and nothing is kept
// for good.
func TestRefusedMemory(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	client, vip := addr("198.51.100.1"), addr("192.0.2.10")
	p := packet.Packet{Kind: packet.KindTCP, Tuple: packet.Tuple{Dst: vip, DstPort: 80, Proto: packet.ProtoTCP}}
	syn := func(i int) *packet.Packet {
		p.Src, p.SrcPort = client, uint16(i)
		p.Src.Lo += uint64(i >> 16)
		return &p
	}
	const each, strangers = 2_000_000 / conntrack.TicksPerSecond, 1 << 30
	known := func(from int) (n int) {
		for i := range 1000 {
			if w.refusedOf(&syn(from + 100*i).Tuple).known() {
				n++
			}
		}
		return n
	}
	start := uint32(7)
	for w.tick = start; w.tick < start+3*refusedTime; w.tick++ {
		for i := range each {
			w.remember(syn(int(w.tick-start)*each + i))
		}
		if from := int(w.tick-start) - refusedTime; from >= 0 && known(from*each) != 1000 {
			t.Fatalf("tick %d: of what was refused %d ticks before %d in a thousand are known", w.tick, refusedTime, known(from*each))
		}
		if n := known(strangers); n > 200 {
			t.Fatalf("tick %d: %d strangers in a thousand are known", w.tick, n)
		}
	}
	last := w.tick - 1 - start
	w.tick += 2 * refusedTime
	if n := known(int(last) * each); n != 0 {
		t.Errorf("%d in a thousand are known after %d ticks", n, 2*refusedTime)
	}
	p.Kind = packet.KindUDP
	if w.remember(syn(1)); known(1) != 0 {
		t.Error("a datagram is remembered")
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
