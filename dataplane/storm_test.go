package dataplane

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
)

// TestNoSleepBehindTime: many flows idle out at once, and nothing else happens.
// An adaptive worker must not sleep between the few that go each round, or a
// million of them hold their ports for an hour.
func TestNoSleepBehindTime(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	for i := range 200 {
		r.deliver(0, 0, build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 2000+i), dst: "192.0.2.10:80", syn: true, seq: 1000}))
	}
	r.now += int64(time.Hour)
	for slept := 0; w.Flows() > 0; {
		w.Poll(r.now)
		start := time.Now()
		if w.sleep(); time.Since(start) >= maxSleep/2 {
			slept++
		}
		if slept > 3 { // some may have been others' work
			t.Fatalf("%d flows left after %d sleeps", w.Flows(), slept)
		}
	}
	w.Poll(r.now)
	if !sleeps(w, func(took time.Duration) bool { return took >= maxSleep/2 }) {
		t.Error("does not sleep though nothing is left")
	}
}

// TestOwnWorkDoesNotAllocate: flows opened, used, given up and opened again, with
// PROXY headers.
func TestOwnWorkDoesNotAllocate(t *testing.T) {
	r := newRig(t, 1, testSpec())
	r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
	w := r.dp.Workers[0]
	var list [][]byte
	for _, v := range [][2]string{{"198.51.100.7:4000", "192.0.2.13:80"}, {"[2001:db8:c::7]:4000", "[2001:db8::13]:80"}} {
		list = append(list,
			build(t, seg{src: v[0], dst: v[1], syn: true, seq: 1000, opts: []layers.TCPOption{mss(1460)}}),
			build(t, seg{src: v[0], dst: v[1], syn: true, seq: 5000}), // another
			build(t, seg{src: v[0], dst: v[1], ack: true, seq: 5001, ackNum: 9001, payload: 100}),
			build(t, seg{src: v[0], dst: v[1], ack: true, seq: 5001, ackNum: 9001, payload: 1460}))
	}
	become := func(s conntrack.State) {
		for ref := range conntrack.Ref(16) {
			if e := w.table.Entry(ref); e.Proto != 0 {
				e.State, e.Created = s, 77
			}
		}
	}
	if n := testing.AllocsPerRun(300, func() {
		for _, s := range []conntrack.State{conntrack.Closed, conntrack.Established} { // it reopens, and ends for good
			r.port[0][0].Feed(list, 1)
			r.step()
			become(s)
		}
		r.port[0][0].Feed(list, 1)
		r.step()
		for r.now += int64(3 * time.Hour); w.Flows() > 0; {
			r.step()
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if c := r.counts(); c.Expired == 0 || c.Reopened == 0 || c.Refusals == 0 {
		t.Errorf("%+v", c)
	}
}

// TestExpiryStormIsLimited: flows that idle out all at once must not fill the TX
// rings with RSTs, nor flood a server with them. The flows go all the same.
func TestExpiryStormIsLimited(t *testing.T) {
	r := newRigWith(t, 1, testSpec(), func(o *Options) { o.Flows = 1 << 15 })
	r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
	w := r.dp.Workers[0]
	const flows = 6000
	for i := range flows {
		r.deliver(0, 0, build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 2000+i), dst: "192.0.2.10:80", syn: true, seq: 1000}))
	}
	for ref := range conntrack.Ref(flows + 1) {
		if e := w.table.Entry(ref); e.Proto != 0 {
			e.State = conntrack.Established
		}
	}
	r.now += int64(3 * time.Hour)
	for w.Flows() > 0 {
		w.Poll(r.now)
	}
	if c := r.counts(); c.Expired != flows || c.Refusals != farewellBurst || c.Sent != flows+farewellBurst {
		t.Errorf("%d expired, %d RSTs, %d sent", c.Expired, c.Refusals, c.Sent)
	}
}
