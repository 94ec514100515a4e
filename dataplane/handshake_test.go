package dataplane

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// times is what add makes of durations.
func times(of ...time.Duration) (t Times) {
	for _, d := range of {
		t.add(uint32(d / time.Microsecond))
	}
	return t
}

// TestTimeBuckets: what is in a bucket is above the bound of the one before and not
// above its own.
func TestTimeBuckets(t *testing.T) {
	for _, c := range []struct {
		micros uint32
		bucket int
	}{
		{0, 0}, {1, 0}, {31, 0}, {32, 0}, {33, 1}, {64, 1}, {65, 2}, {128, 2}, {129, 3},
		{1 << 20, 15}, {1<<20 + 1, 16}, {1 << 23, 18}, {1<<23 + 1, 19}, {1<<32 - 1, 19},
	} {
		var got, want Times
		got.add(c.micros)
		want.Buckets[c.bucket], want.Micros = 1, uint64(c.micros)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%d µs: %s", c.micros, d)
		}
		bound, ok := TimeBound(c.bucket)
		if took := time.Duration(c.micros) * time.Microsecond; ok && took > bound || c.bucket > 0 && !ok != (c.bucket == NumTimes-1) {
			t.Errorf("%v in a bucket of up to %v, %v", took, bound, ok)
		}
	}
}

// handshakes is what all workers have timed of a service.
func (r *rig) handshakes(service string) (sum Handshakes, there bool) {
	for _, w := range r.dp.Workers {
		for id, h := range w.Handshakes() {
			if w.snap.Services[id].Name == service && h != nil {
				sum.Add(h)
				there = true
			}
		}
	}
	return sum, there
}

// TestHandshakeTimes: SYN to SYN-ACK and SYN-ACK to ACK by a clock of the test's, in
// every mode that sees both, once a connection whatever comes again.
func TestHandshakeTimes(t *testing.T) {
	const (
		ms = time.Millisecond
		us = time.Microsecond
	)
	for _, c := range []struct{ service, client, vip string }{
		{"fnat4", "198.51.100.7:1024", "192.0.2.10:80"},
		{"fnat6", "[2001:db8:c::7]:1024", "[2001:db8::10]:80"},
		{"dnat4", "198.51.100.7:1024", "192.0.2.11:80"},
		{"dnat6", "[2001:db8:c::7]:1024", "[2001:db8::11]:80"},
		{"nat64", "[2001:db8:c::7]:1024", "[2001:db8::64]:80"},
		{"proxy1", "198.51.100.7:1024", "192.0.2.13:80"},
		{"proxy2", "[2001:db8:c::7]:1024", "[2001:db8::13]:80"},
	} {
		t.Run(c.service, func(t *testing.T) {
			r := newRig(t, 1, testSpec())
			wait := func(d time.Duration) { r.now += int64(d) }
			wants := func(server, client Times) {
				t.Helper()
				got, there := r.handshakes(c.service)
				if d := cmp.Diff(Handshakes{server, client}, got); d != "" || !there {
					t.Fatal(d)
				}
			}
			conv, _ := r.begin(c.client, c.vip, 1000)
			wait(300 * us)
			conv.fromClient(seg{syn: true, seq: 1000}) // again: the first one counts
			wants(Times{}, Times{})
			wait(200 * us)
			conv.answer()
			wants(times(500*us), Times{})
			wait(20 * ms)
			conv.answer()                              // and here
			conv.fromClient(seg{syn: true, seq: 1000}) // the client has got neither yet
			wait(10 * ms)
			conv.fromClient(seg{ack: true, seq: 1001, ackNum: 9001})
			wants(times(500*us), times(30*ms))
			wait(time.Second)
			conv.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 10})
			conv.fromServer(seg{ack: true, seq: 9001, ackNum: conv.isn + 1, payload: 10})
			conv.answer()
			conv.fromClient(seg{ack: true, fin: true, seq: 1011, ackNum: 9011})
			wants(times(500*us), times(30*ms))
		})
	}
}

// TestHandshakesNotTimed: what is no handshake that comes by has no times, and a
// handshake that fails has none.
func TestHandshakesNotTimed(t *testing.T) {
	r := newRig(t, 1, testSpec())
	if _, there := r.handshakes("fnat4u"); there {
		t.Error("UDP has handshakes")
	}
	one := service("one", "192.0.2.20:80", packet.ProtoTCP, conntrack.DNATOneWay, false, "10.0.1.20:80")
	ow := newRig(t, 1, Spec{Services: []ServiceSpec{one}})
	ow.one(0, 0, 1, build(t, seg{src: "198.51.100.7:1", dst: "192.0.2.20:80", syn: true, seq: 1}))
	ow.one(0, 0, 1, build(t, seg{src: "198.51.100.7:1", dst: "192.0.2.20:80", ack: true, seq: 2, ackNum: 1}))
	if _, there := ow.handshakes("one"); there {
		t.Error("handshakes that do not come by are timed")
	}
	refused, _ := r.begin("198.51.100.7:1", "192.0.2.10:80", 1000)
	r.now += int64(time.Millisecond)
	refused.fromServer(seg{rst: true, ack: true, ackNum: refused.isn + 1})
	given, _ := r.begin("198.51.100.7:2", "192.0.2.10:80", 1000)
	r.now += int64(time.Millisecond)
	given.answer()
	given.fromClient(seg{rst: true, seq: 1001})
	got, _ := r.handshakes("fnat4")
	if d := cmp.Diff(Handshakes{Server: times(time.Millisecond)}, got); d != "" {
		t.Error(d)
	}
}

// TestHandshakeReopened: a client that gives up and tries again from the same port is
// timed from its new SYN on.
func TestHandshakeReopened(t *testing.T) {
	r := newRig(t, 1, testSpec())
	r.begin("198.51.100.7:1", "192.0.2.11:80", 1000)
	r.now += int64(2 * time.Second)
	c, _ := r.begin("198.51.100.7:1", "192.0.2.11:80", 5000)
	r.now += int64(time.Millisecond)
	c.answer()
	got, _ := r.handshakes("dnat4")
	if d := cmp.Diff(Handshakes{Server: times(time.Millisecond)}, got); d != "" {
		t.Error(d)
	}
}

// TestHandshakesKept: a reload keeps what was timed, and times what it has added.
func TestHandshakesKept(t *testing.T) {
	spec := testSpec()
	reg := NewRegistry(1)
	build := func(n int) *Snapshot {
		t.Helper()
		s := spec
		s.Services = s.Services[:n]
		snap, err := reg.Build(s)
		if err != nil {
			t.Fatal(err)
		}
		return snap
	}
	r := newRig(t, 1, Spec{})
	first := build(1)
	r.dp.Publish(first)
	r.open(0, "198.51.100.7:1", "192.0.2.10:80")
	for _, n := range []int{4, 1, 4} {
		r.dp.Publish(build(n))
		r.step()
	}
	r.open(0, "198.51.100.7:1", "192.0.2.11:80")
	for _, name := range []string{"fnat4", "dnat4"} {
		if got, _ := r.handshakes(name); got.Server.Count() != 1 || got.Client.Count() != 1 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if n := len(first.Locality[0].handshakes); n != 1 {
		t.Errorf("an old snapshot has %d services now", n)
	}
}

// TestBusy: a round that saw packets lasts until the next one, and only such rounds are
// busy.
func TestBusy(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	poll := func(at int64, frames ...[]byte) {
		r.port[0][0].Feed(frames, 1)
		w.Poll(at)
	}
	syn := build(t, seg{src: "198.51.100.7:1", dst: "192.0.2.10:80", syn: true, seq: 1})
	poll(100)
	poll(200, syn)
	poll(270)
	poll(400, syn)
	poll(430, syn)
	poll(500)
	poll(900)
	type busy struct{ Rounds, BusyRounds, BusyNanos uint64 }
	c := w.Counts()
	if d := cmp.Diff(busy{7, 3, 70 + 30 + 70}, busy{c.Rounds, c.BusyRounds, c.BusyNanos}); d != "" {
		t.Error(d)
	}
}

// TestHandshakeAllocs: timing costs no memory.
func TestHandshakeAllocs(t *testing.T) {
	r := newRig(t, 1, testSpec())
	r.step()
	w := r.dp.Workers[0]
	e := conntrack.Entry{Proto: packet.ProtoTCP}
	syn := build(t, seg{src: "198.51.100.7:1", dst: "192.0.2.10:80", syn: true, seq: 1})
	var p packet.Packet
	packet.Parse(syn, &p)
	if n := testing.AllocsPerRun(200, func() {
		e.State, e.Flags, e.Bytes = conntrack.SynSent, conntrack.HalfOpen, [2]uint64{}
		w.timeClient(&e, &p, syn)
		e.State = conntrack.SynRecv
		w.timeServer(&e)
		e.State, e.Flags = conntrack.Established, 0
		w.timeClient(&e, &p, syn)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if h := w.Handshakes()[0]; h.Server.Count() == 0 || h.Server.Count() != h.Client.Count() {
		t.Errorf("%+v", h)
	}
}

// TestTotalsNeverFall: when a service is gone and another one has its id, what was
// counted and timed of it is still in the totals, and not in the other's.
func TestTotalsNeverFall(t *testing.T) {
	r := newRig(t, 1, Spec{})
	w := r.dp.Workers[0]
	reg, publishSpec := r.publisher(1)
	publish := func(services ...ServiceSpec) {
		t.Helper()
		spec := testSpec()
		spec.Services = services
		publishSpec(spec)
	}
	total := func() (b BackendCount) {
		b = w.FormerCount()
		for i := range w.BackendCounts() {
			b.Add(&w.BackendCounts()[i])
		}
		return b
	}
	first, second := testSpec().Services[0], testSpec().Services[3]
	publish(first)
	c := r.open(0, "198.51.100.7:1", "192.0.2.10:80")
	c.fromClient(seg{ack: true, rst: true, seq: 1001})
	r.now += int64(time.Minute)
	r.step()
	was, shaken := total(), w.AllHandshakes()
	if was.Active != 0 || was.Packets == [2]uint64{} || shaken.Server.Count() != 1 || shaken.Client.Count() != 1 {
		t.Fatalf("%+v %+v", was, shaken)
	}
	publish()
	reg.Forget(w.BackendCounts())
	publish(second)
	if id := w.snap.names.find(second.VIP.Addr, second.VIP.Port, second.VIP.Proto); id != 0 {
		t.Fatalf("the service has id %d", id)
	}
	if d := cmp.Diff(was, total()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(shaken, w.AllHandshakes()); d != "" {
		t.Error(d)
	}
	if got, there := r.handshakes("dnat4"); !there || got != (Handshakes{}) || w.BackendCounts()[0] != (BackendCount{}) {
		t.Errorf("another's: %v %+v %+v", there, got, w.BackendCounts()[0])
	}
	r.open(0, "198.51.100.7:1", "192.0.2.11:80")
	if now := total(); now.Packets[0] <= was.Packets[0] || now.Flows != was.Flows+1 {
		t.Errorf("%+v, was %+v", now, was)
	}
}
