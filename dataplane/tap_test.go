package dataplane

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/cbpf"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// tapAll has every rig captured from its first packet to its last, and the captures
// compared with the counters.
var tapAll = flag.Bool("tap", false, "capture all rigs and compare with the counters")

// tapped is a capture of all that the workers of a rig do.
type tapped struct {
	dp   *Dataplane
	taps []*Tap
	rx   []([NumVerdicts]uint64) // by worker
	tx   []uint64
}

func newTapped(dp *Dataplane) *tapped {
	s := &tapped{dp: dp, rx: make([][NumVerdicts]uint64, len(dp.Workers)), tx: make([]uint64, len(dp.Workers))}
	for _, w := range dp.Workers {
		t := NewTap(TapOptions{Points: TapRX | TapTX, SnapLen: 64, Frames: 1 << 12})
		w.Tap(t)
		s.taps = append(s.taps, t)
	}
	return s
}

func (s *tapped) drain() {
	for i, t := range s.taps {
		for f := t.Peek(); f != nil; f = t.Peek() {
			if f.Point == TapRX {
				s.rx[i][f.Verdict]++
			} else {
				s.tx[i]++
			}
			t.Next()
		}
	}
}

// check wants every packet captured once with its verdict, but by the worker that gave
// it away, and all that was sent.
func (s *tapped) check(t testing.TB) {
	t.Helper()
	s.drain()
	for i, w := range s.dp.Workers {
		if s.taps[i].Missed() != 0 {
			continue // more at once than the ring holds
		}
		want := w.count.Verdicts
		want[HandedOver] = 0
		for v := range want {
			if want[v] != s.rx[i][v] {
				t.Errorf("worker %d: %d packets of %v, %d captured", i, want[v], Verdict(v), s.rx[i][v])
			}
		}
		if s.tx[i] != w.count.Sent {
			t.Errorf("worker %d: %d frames sent, %d captured", i, w.count.Sent, s.tx[i])
		}
	}
}

// All that other tests have workers do is captured, no more and no less.
func TestTapSeesAll(t *testing.T) {
	if *tapAll || raceDetector { // one thread is all that works there
		return
	}
	names := "Fragment|Handoff|Refuse|Refused|Persist|Direct|Tunnel|NAT64|Proxy|Damage|Hostile|Order|Chaos|Split|TxFull|Expir|Reopen|Plain|Relay|Answer|UOA"
	cmd := exec.Command(os.Args[0], "-test.run", names, "-test.short", "-tap", "-rapid.checks=20")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out[max(0, len(out)-4000):])
	}
}

// tap has worker 0 of a rig captured and returns what takes out what there is.
func (r *rig) tap(o TapOptions) (*Tap, func() []TapFrame) {
	if o.SnapLen == 0 {
		o.SnapLen = testFrame
	}
	if o.Frames == 0 {
		o.Frames = 64
	}
	t := NewTap(o)
	r.dp.Workers[0].Tap(t)
	r.seen = nil // not by that one
	return t, func() (out []TapFrame) {
		for f := t.Peek(); f != nil; f = t.Peek() {
			c := *f
			c.Data = append([]byte(nil), f.Data...)
			out = append(out, c)
			t.Next()
		}
		return out
	}
}

// A connection's packets are captured as they come and as they go, with what there is
// to know of them.
func TestTapJoins(t *testing.T) {
	r := newRig(t, 1, testSpec())
	at := int64(5)
	_, taken := r.tap(TapOptions{Points: TapRX | TapTX, Clock: func() int64 { return at }})
	syn := build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true, seq: 7})
	out := r.one(0, 0, 1, syn)
	src, _ := ipOf(verify(t, out))
	got := taken()
	if len(got) != 2 {
		t.Fatalf("%d frames captured, want 2", len(got))
	}
	local := got[0].Local
	if local.Addr.Netip().String() != src.String() {
		t.Errorf("local address %v, want %v", local.Addr, src)
	}
	want := TapFrame{
		Nanos: 1, Packet: 1, Point: TapRX, Verdict: Forwarded, Len: len(syn), Data: syn,
		Service: "fnat4", Flow: true, Mode: conntrack.FullNAT,
		Client: endpoint("198.51.100.7:40000", packet.ProtoTCP), VIP: endpoint("192.0.2.10:80", packet.ProtoTCP),
		Local: local, Backend: got[0].Backend,
	}
	sent := want
	sent.Nanos, sent.Point, sent.NIC, sent.Len, sent.Data = 5, TapTX, 1, len(out), out
	if d := cmp.Diff([]TapFrame{want, sent}, got); d != "" {
		t.Error(d)
	}
}

// compiled is a filter that admits frames whose 16 bits at offset at are v.
func compiled(t testing.TB, at, v uint32) *cbpf.Program {
	t.Helper()
	p, err := cbpf.New([]bpf.RawInstruction{{Op: 0x28, K: at}, {Op: 0x15, K: v, Jf: 1}, {Op: 6, K: 1}, {Op: 6}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// What is asked for is captured, and nothing else.
func TestTapChooses(t *testing.T) {
	const srcPort, dstPort = 14 + 20, 14 + 20 + 2
	only := func(v Verdict) *[NumVerdicts]bool {
		var all [NumVerdicts]bool
		all[v] = true
		return &all
	}
	backend := endpoint("10.0.1.20:8080", packet.ProtoTCP)
	other := endpoint("10.0.1.99:8080", packet.ProtoTCP)
	anyPort := endpoint("10.0.1.20:0", packet.ProtoTCP)
	for name, c := range map[string]struct {
		o    TapOptions
		want string // r: the client's received, t: as sent; d: the dropped one
	}{
		"all":                   {TapOptions{Points: TapRX | TapTX}, "rtd"},
		"received":              {TapOptions{Points: TapRX}, "rd"},
		"sent":                  {TapOptions{Points: TapTX}, "t"},
		"as received":           {TapOptions{Points: TapRX | TapTX, Filter: compiled(t, srcPort, 40000)}, "rt"},
		"as sent":               {TapOptions{Points: TapRX | TapTX, Filter: compiled(t, dstPort, 8080)}, "rt"},
		"as sent, received":     {TapOptions{Points: TapRX, Filter: compiled(t, dstPort, 8080)}, ""},
		"as received, sent":     {TapOptions{Points: TapTX, Filter: compiled(t, srcPort, 40000)}, ""},
		"neither":               {TapOptions{Points: TapRX | TapTX, Filter: compiled(t, dstPort, 9)}, ""},
		"dropped":               {TapOptions{Points: TapRX | TapTX, Verdicts: only(DropNoFlow)}, "d"},
		"dropped otherwise":     {TapOptions{Points: TapRX | TapTX, Verdicts: only(DropNoService)}, ""},
		"service":               {TapOptions{Points: TapRX | TapTX, Service: "fnat4"}, "rtd"},
		"another service":       {TapOptions{Points: TapRX | TapTX, Service: "dnat4"}, ""},
		"backend":               {TapOptions{Points: TapRX | TapTX, Backend: backend}, "rt"},
		"backend of any port":   {TapOptions{Points: TapTX, Backend: anyPort}, "t"},
		"another backend":       {TapOptions{Points: TapRX | TapTX, Backend: other}, ""},
		"not beyond the length": {TapOptions{Points: TapRX, SnapLen: 20}, "rd"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := testSpec()
			spec.Services[0].Backends = spec.Services[0].Backends[:1]
			r := newRig(t, 1, spec)
			_, taken := r.tap(c.o)
			r.deliver(0, 0,
				build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true}),
				build(t, seg{src: "198.51.100.7:40001", dst: "192.0.2.10:80", ack: true}))
			got := ""
			for _, f := range taken() {
				switch {
				case c.o.SnapLen != 0 && (len(f.Data) != c.o.SnapLen || f.Len < 54):
					t.Errorf("%d of %d bytes", len(f.Data), f.Len)
				case f.Point == TapTX:
					got += "t"
				case f.Verdict.IsDrop():
					got += "d"
				default:
					got += "r"
				}
			}
			if got != c.want {
				t.Errorf("captured %q, want %q", got, c.want)
			}
		})
	}
}

// A reader that does not read costs frames, which are counted, and nothing else.
func TestTapIsFull(t *testing.T) {
	r := newRig(t, 1, testSpec())
	tap, taken := r.tap(TapOptions{Points: TapRX | TapTX, Frames: 4})
	syn := build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true})
	for range 5 {
		r.one(0, 0, 1, syn)
	}
	if n := tap.Missed(); len(taken()) != 4 || n != 6 {
		t.Errorf("%d missed, want 6", n)
	}
	r.one(0, 0, 1, syn)
	if n := len(taken()); n != 2 {
		t.Errorf("%d captured after there was room, want 2", n)
	}
}

// What waits in vain is captured too, when it has its verdict.
func TestTapSeesWhatExpires(t *testing.T) {
	r := newRig(t, 1, testSpec())
	_, taken := r.tap(TapOptions{Points: TapRX | TapTX})
	datagram := build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:5000", udp: true, payload: 200})
	r.deliver(0, 0, cut(datagram, 7, 64)[1])
	if got := taken(); len(got) != 0 {
		t.Fatalf("captured while it waits: %+v", got)
	}
	r.now += int64(time.Minute)
	r.step()
	if got := taken(); len(got) != 1 || got[0].Verdict != DropFragmentExpired {
		t.Errorf("captured %+v, want one of %v", got, DropFragmentExpired)
	}
}

// outcomes are the captured frames in short: their numbers, points and verdicts.
func outcomes(all []TapFrame) (out []string) {
	for _, f := range all {
		point := "rx"
		if f.Point == TapTX {
			point = "tx"
		}
		what := f.Verdict.String()
		if f.Own {
			what = "own"
		}
		out = append(out, fmt.Sprintf("%d %s %s queue %d", f.Packet, point, what, f.Queue))
	}
	return out
}

// A packet that another worker is given in vain is captured, though its row is taken by
// what the other hands over; what is given away with success is not.
func TestTapSeesWhatIsGivenAway(t *testing.T) {
	r := newRig(t, 2, testSpec())
	here, other := r.dp.Workers[0], r.dp.Workers[1]
	_, taken := r.tap(TapOptions{Points: TapRX})
	reply := func(to *Worker) []byte { // to a local port of that worker, of no flow
		port := 2000
		for here.owners.localPort(uint16(port)) != to.id {
			port++
		}
		return build(t, seg{src: "10.0.1.20:8080", dst: fmt.Sprintf("10.0.1.10:%d", port), ack: true})
	}
	r.port[1][1].Feed([][]byte{reply(here), reply(here)}, 1)
	other.Poll(r.now)
	ring := r.dp.mesh.packets[0][1]
	for range handoffSlots - 1 {
		ring.put(0, 0)
	}
	ring.publish()
	r.port[0][1].Feed([][]byte{reply(other), reply(other)}, 1)
	here.Poll(r.now)
	want := []string{"2 rx handoff_full queue 0", "3 rx no_flow queue -1", "4 rx no_flow queue -1"}
	if d := cmp.Diff(want, outcomes(taken())); d != "" {
		t.Error(d)
	}
	ring.pop(make([]uint64, handoffSlots-1))
	r.step()
}

// What l4fwd sends of its own accord out of the memory of a packet that was dropped
// just before is not taken for that packet.
func TestTapTellsOwnFromDropped(t *testing.T) {
	r := newRig(t, 1, uoaSpec(nat.UOASeparate))
	_, taken := r.tap(TapOptions{Points: TapRX | TapTX})
	r.deliver(0, 0,
		build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.15:9", udp: true}),
		build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.15:5000", udp: true}))
	want := []string{"3 tx own queue 0", "2 rx forwarded queue 0", "2 tx forwarded queue 0", "1 rx no_service queue 0"}
	if d := cmp.Diff(want, outcomes(taken())); d != "" {
		t.Error(d)
	}
}

func TestTapDoesNotAllocate(t *testing.T) {
	r := newRig(t, 1, testSpec())
	tap, _ := r.tap(TapOptions{Points: TapRX | TapTX, Filter: compiled(t, 14+20, 40000), Service: "fnat4"})
	frames := [][]byte{
		build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true}),
		build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:9", syn: true}),
	}
	r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
	n := testing.AllocsPerRun(200, func() {
		r.port[0][0].Feed(frames, 1)
		for r.dp.Workers[0].Poll(r.now) > 0 {
		}
		for tap.Peek() != nil {
			tap.Next()
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Captures come and go while packets do, and are read meanwhile: for the race detector.
func TestTapPublication(t *testing.T) {
	r := newRig(t, 1, testSpec())
	r.seen = nil // the taps are another goroutine's
	w := r.dp.Workers[0]
	syn := build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true})
	r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !stop.Load() {
			r.port[0][0].Feed([][]byte{syn}, 1)
			w.Poll(r.now)
		}
	}()
	for range 20 {
		tap := NewTap(TapOptions{Points: TapRX | TapTX, SnapLen: 128, Frames: 16})
		if err := w.Do(context.Background(), func(w *Worker) { w.Tap(tap) }); err != nil {
			t.Fatal(err)
		}
		for seen, last := 0, uint64(0); seen < 50; {
			f := tap.Peek()
			if f == nil {
				time.Sleep(time.Microsecond)
				continue
			}
			if f.Point == TapRX && (f.Packet <= last || string(f.Data) != string(syn)) {
				t.Errorf("packet %d after %d: %x", f.Packet, last, f.Data)
			}
			last = f.Packet
			seen++
			tap.Next()
		}
		if err := w.Do(context.Background(), func(w *Worker) { w.Tap(nil) }); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	<-ended
}
