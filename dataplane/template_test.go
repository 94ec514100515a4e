package dataplane

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

func TestPrefixes(t *testing.T) {
	for _, c := range []struct {
		bits         int
		client, want string
	}{
		{32, "198.51.100.7", "198.51.100.7"},
		{24, "198.51.100.7", "198.51.100.0"},
		{17, "198.51.200.7", "198.51.128.0"},
		{1, "198.51.100.7", "128.0.0.0"},
		{128, "2001:db8::7", "2001:db8::7"},
		{65, "2001:db8::8000:0:0:7", "2001:db8:0:0:8000::"},
		{64, "2001:db8::7", "2001:db8::"},
		{48, "2001:db8:c:1::7", "2001:db8:c::"},
		{1, "2001:db8:c:1::7", "::"},
	} {
		a := addr(c.client)
		s := newStick(1, c.bits, a.Is4())
		if got := s.prefix(a).String(); got != c.want {
			t.Errorf("%s/%d: %s, want %s", c.client, c.bits, got, c.want)
		}
	}
}

// TestTemplatesMakeRoom: in a full bucket what is over goes first, then who came
// but once, then the oldest.
func TestTemplatesMakeRoom(t *testing.T) {
	table := newTemplates(1) // one bucket
	at := func(i int) packet.Addr { return packet.Addr4([]byte{10, 0, 0, byte(i)}) }
	put := func(i int, now uint32) (evicted bool) {
		x, found, evicted := table.find(0, at(i), 3, now)
		if !found {
			*x = template{prefix: at(i), service: 4}
		}
		x.renewed, x.expires = found, now+100
		return evicted
	}
	there := func(now uint32) (out []int) {
		for i := range 40 {
			for _, x := range table.slots {
				if x.service == 4 && x.prefix == at(i) && int32(now-x.expires) < 0 {
					out = append(out, i)
				}
			}
		}
		return out
	}
	for i := range 8 {
		if put(i, uint32(i)) {
			t.Error("there was room")
		}
	}
	for _, i := range []int{0, 1, 2, 5} {
		put(i, 20) // they come again
	}
	for i := 10; i < 14; i++ { // these take the places of 3, 4, 6, 7
		if !put(i, 21) {
			t.Error("whom did it evict?")
		}
	}
	if diff := cmp.Diff([]int{0, 1, 2, 5, 10, 11, 12, 13}, there(21)); diff != "" {
		t.Error(diff)
	}
	for i := 20; i < 30; i++ {
		put(i, uint32(i+10))
	}
	if diff := cmp.Diff([]int{0, 1, 2, 5, 26, 27, 28, 29}, there(50)); diff != "" {
		t.Error(diff)
	}
	if put(30, 121) {
		t.Error("the oldest were over")
	}
	if diff := cmp.Diff([]int{26, 27, 28, 29, 30}, there(121)); diff != "" {
		t.Error(diff)
	}
	if _, found, _ := table.find(0, at(30), 4, 121); found {
		t.Error("another service's")
	}
}

// stickySpec has two services with persistence, of IPv4 clients by /24, of IPv6 by
// /64.
func stickySpec(seconds uint32) Spec {
	spec := testSpec()
	four := service("dnat4", "192.0.2.11:80", packet.ProtoTCP, conntrack.DNAT, false)
	six := service("fnat6u", "[2001:db8::10]:5000", packet.ProtoUDP, conntrack.FullNAT, false)
	four.Persistence = Persistence{Timeout: seconds * conntrack.TicksPerSecond, Prefix: 24}
	six.Persistence = Persistence{Timeout: seconds * conntrack.TicksPerSecond, Prefix: 64}
	for i := range 8 {
		four.Backends = append(four.Backends, BackendSpec{Endpoint: endpoint(fmt.Sprintf("10.0.1.%d:80", 20+i), packet.ProtoTCP), Weight: 1})
		six.Backends = append(six.Backends, BackendSpec{Endpoint: endpoint(fmt.Sprintf("[2001:db8:1::%d]:80", 20+i), packet.ProtoUDP), Weight: 1})
	}
	spec.Services = []ServiceSpec{four, six}
	spec.Templates = 1024
	return spec
}

// stickyRig publishes the snapshots of one registry.
func stickyRig(t *testing.T, workers int) (r *rig, publish func(Spec)) {
	r = newRigWith(t, workers, stickySpec(300), func(o *Options) { o.Flows = 8192 * workers })
	g := NewRegistry(workers)
	publish = func(s Spec) {
		t.Helper()
		snap, err := g.Build(s)
		if err != nil {
			t.Fatal(err)
		}
		r.dp.Publish(snap)
		r.step()
	}
	publish(stickySpec(300))
	return r, publish
}

// to4 is where a client's SYN goes, by whatever queue it comes.
func (r *rig) to4(worker int, client string) string {
	r.t.Helper()
	_, dst := ipOf(verify(r.t, r.one(worker, 0, 1, build(r.t, seg{src: client, dst: "192.0.2.11:80", syn: true}))))
	return dst.String()
}

// TestPersistence: all clients of a prefix come to one backend, on whatever worker
// their flows are, others elsewhere.
func TestPersistence(t *testing.T) {
	for _, workers := range []int{1, 3} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			r, _ := stickyRig(t, workers)
			rng := rand.New(rand.NewPCG(1, 2))
			seen, backends := map[string]string{}, map[string]int{}
			for i := range 600 {
				var prefix, got string
				if i%2 == 0 {
					prefix = "198.51.100"
					if n := rng.IntN(40); n > 0 { // the routes know no other prefix of IPv4
						got = r.to4(rng.IntN(workers), fmt.Sprintf("198.51.100.%d:%d", n, 1024+i))
					} else {
						continue
					}
				} else {
					prefix = fmt.Sprintf("2001:db8:c:%x", rng.IntN(40))
					frame := build(t, seg{src: fmt.Sprintf("[%s::%x]:%d", prefix, rng.IntN(1<<16), 1024+i), dst: "[2001:db8::10]:5000", udp: true, payload: i % 3})
					_, dst := ipOf(verify(t, r.one(rng.IntN(workers), 0, 1, frame)))
					got = dst.String()
				}
				if was, ok := seen[prefix]; ok && was != got {
					t.Fatalf("a client of %s went to %s, before to %s", prefix, got, was)
				}
				if _, ok := seen[prefix]; !ok {
					seen[prefix] = got
					backends[got]++
				}
			}
			if len(seen) < 35 || len(backends) < 8 {
				t.Errorf("%d prefixes, on %d backends", len(seen), len(backends))
			}
			c := r.counts()
			if asked := c.Verdicts[HandedOver]; workers == 1 && asked != 0 || workers > 1 && asked < 600 {
				t.Errorf("%d packets handed over", asked)
			}
			if c.Drops() != 0 || c.TemplatesEvicted != 0 {
				t.Errorf("%+v", c)
			}
		})
	}
}

// TestPersistenceEnds: after its timeout, counted from the last new flow, and when its
// backend takes no new flows, a template is made anew; a reload keeps it.
func TestPersistenceEnds(t *testing.T) {
	const workers = 3
	r, publish := stickyRig(t, workers)
	port := 2000
	next := func() string {
		port++
		return r.to4(port%workers, fmt.Sprintf("198.51.100.%d:%d", port%200+1, port))
	}
	first := next()
	for range 5 {
		r.now += int64(299 * time.Second)
		if got := next(); got != first {
			t.Fatalf("in time, but to %s after %s", got, first)
		}
		publish(stickySpec(300))
	}
	changed := 0
	for range 20 {
		r.now += int64(301 * time.Second)
		if got := next(); got != first {
			changed++
		}
	}
	if changed < 10 {
		t.Errorf("after the timeout %d of 20 went elsewhere", changed)
	}
	was := next()
	drained := stickySpec(300)
	for i := range drained.Services[0].Backends {
		if b := &drained.Services[0].Backends[i]; b.Endpoint.Addr.String() == was {
			b.Weight = 0
		}
	}
	publish(drained)
	now := next()
	if now == was {
		t.Errorf("to %s, which is drained", now)
	}
	publish(stickySpec(300))
	if got := next(); got != now {
		t.Errorf("to %s after %s", got, now)
	}
	none := stickySpec(0)
	publish(none)
	spread := map[string]bool{}
	for range 20 {
		spread[next()] = true
	}
	if len(spread) < 3 {
		t.Errorf("without persistence to %d backends", len(spread))
	}
}

// TestPersistenceAndLimits: who finds its backend full goes elsewhere, and comes
// back to it later.
func TestPersistenceAndLimits(t *testing.T) {
	const workers = 2
	r, publish := stickyRig(t, workers)
	spec := stickySpec(300)
	for i := range spec.Services[0].Backends {
		spec.Services[0].Backends[i].MaxConnections = 5
	}
	publish(spec)
	count := map[string]int{}
	for i := range 12 {
		count[r.to4(i%workers, fmt.Sprintf("198.51.100.7:%d", 1024+i))]++
	}
	most := 0
	for _, n := range count {
		most = max(most, n)
	}
	if most != 5 || len(count) < 2 {
		t.Errorf("%v", count)
	}
}

// TestPersistenceOfFragments: the first of a client's packets may come in fragments,
// which get through.
func TestPersistenceOfFragments(t *testing.T) {
	r, _ := stickyRig(t, 3)
	for id := range uint32(30) {
		whole := build(t, seg{src: fmt.Sprintf("[2001:db8:c:%x::7]:4000", id), dst: "[2001:db8::10]:5000", udp: true, payload: 2000})
		r.sent = nil
		out := r.deliver(int(id)%3, 0, cut6(t, whole, id, 1200)...)
		if len(out) != 2 {
			t.Fatalf("%d of 2 fragments went on", len(out))
		}
	}
}

// cut6 cuts an IPv6 datagram in two.
func cut6(t *testing.T, f []byte, id uint32, at int) [][]byte {
	t.Helper()
	const l3, l4 = 14, 14 + 40
	piece := func(from, to int, more bool) []byte {
		h := []byte{packet.ProtoUDP, 0, byte(from >> 8), byte(from), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}
		if more {
			h[3] |= 1
		}
		p := append(append(append([]byte{}, f[:l4]...), h...), f[l4+from:l4+to]...)
		n := 8 + to - from
		p[l3+4], p[l3+5], p[l3+6] = byte(n>>8), byte(n), byte(layers.IPProtocolIPv6Fragment)
		return p
	}
	return [][]byte{piece(0, at, true), piece(at, len(f)-l4, false)}
}

// TestPersistenceAcrossSnapshots: workers that have not taken over the same snapshot
// do without an answer that they do not understand.
func TestPersistenceAcrossSnapshots(t *testing.T) {
	const workers = 3
	r := newRig(t, workers, stickySpec(300))
	g := NewRegistry(workers)
	build := func(n int) *Snapshot {
		s := stickySpec(300)
		s.Services = s.Services[:n]
		if n > 0 {
			s.Services[0].Backends = s.Services[0].Backends[:4*n]
		}
		snap, err := g.Build(s)
		if err != nil {
			t.Fatal(err)
		}
		return snap
	}
	all := []*Snapshot{build(0), build(1), build(2)}
	rng := rand.New(rand.NewPCG(5, 6))
	opened := 0
	for i := range 500 {
		for _, w := range r.dp.Workers {
			w.nextSnap.Store(all[rng.IntN(len(all))])
			if rng.IntN(3) > 0 {
				w.nextSnap.Store(all[2])
			}
			w.refresh()
		}
		opened += len(r.deliver(rng.IntN(workers), 0, buildSYN(t, i)))
	}
	if opened < 100 {
		t.Errorf("%d of 500 opened", opened)
	}
}

func buildSYN(t *testing.T, i int) []byte {
	return build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1024+i), dst: "192.0.2.11:80", syn: true})
}

// TestPersistenceForgetsBackends: a template ends with its backend, although another one
// of the service gets the backend's id: its clients are not all that one's.
func TestPersistenceForgetsBackends(t *testing.T) {
	r := newRigWith(t, 1, stickySpec(300), func(o *Options) { o.Flows = 8192 })
	g, publish := r.publisher(1)
	publish(stickySpec(300))
	client := func(prefix, port int) string { return fmt.Sprintf("198.51.%d.7:%d", prefix, port) }
	var sticky []int // the prefixes of one backend
	gone := r.to4(0, client(0, 1000))
	for i := 1; len(sticky) < 20; i++ {
		if r.to4(0, client(i, 1000)) == gone {
			sticky = append(sticky, i)
		}
	}
	spec := stickySpec(300)
	key := spec.Services[0].Key()
	was, _ := g.BackendID(key, endpoint(gone+":80", packet.ProtoTCP))
	at := slices.IndexFunc(spec.Services[0].Backends, func(b BackendSpec) bool { return b.Endpoint.Addr.String() == gone })
	full := slices.Clone(spec.Services[0].Backends)
	spec.Services[0].Backends = slices.Delete(slices.Clone(full), at, at+1)
	publish(spec)
	for r.backendCounts()[was].Active > 0 { // what it had ends
		r.now += int64(time.Second)
		r.step()
	}
	g.Forget(r.backendCounts())
	full[at].Endpoint = endpoint("10.0.1.99:80", packet.ProtoTCP)
	spec.Services[0].Backends = full
	publish(spec)
	if now, _ := g.BackendID(key, full[at].Endpoint); now != was {
		t.Fatalf("the new backend is %d, the one that is gone was %d", now, was)
	}
	spread := map[string]bool{}
	for _, i := range sticky {
		to := r.to4(0, client(i, 2000))
		if again := r.to4(0, client(i, 2001)); again != to {
			t.Errorf("to %s, then to %s", to, again)
		}
		spread[to] = true
	}
	if len(spread) < 3 {
		t.Errorf("clients of a backend that is gone went to %d of %d others", len(spread), len(full))
	}
}

// TestPersistenceStaleAnswer: the backend of an answer has left the service by the time
// it comes back.
func TestPersistenceStaleAnswer(t *testing.T) {
	r, publish := stickyRig(t, 2)
	first := r.to4(0, "198.51.100.7:1000")
	spec := stickySpec(300)
	for i := range spec.Services[0].Backends {
		if b := &spec.Services[0].Backends[i]; b.Endpoint.Addr.String() == first {
			b.Weight = 0
		}
	}
	a := addr("198.51.100.7")
	asked := r.dp.Workers[0]
	asked = r.dp.Workers[asked.owners.templateOwner(asked.owners.template(asked.snap.Services[0].stick.prefix(a), 0))]
	asks := r.dp.Workers[1-asked.id]
	port := 2000
	for asks.owners.client(a, uint16(port)) != asks.id {
		port++
	}
	r.sent = nil
	r.port[asks.id][0].Feed([][]byte{build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", port), dst: "192.0.2.11:80", syn: true})}, 1)
	asks.Poll(r.now)
	asked.Poll(r.now)
	publish(spec)
	if len(r.sent) != 1 {
		t.Fatalf("%d frames out", len(r.sent))
	}
	if _, dst := ipOf(verify(t, r.sent[0].bytes)); dst.String() == first {
		t.Errorf("a new flow went to %s, which is drained", first)
	}
}

// TestPersistenceRingFull: a question or an answer that finds no room is dropped and
// counted, and the frame is not lost.
func TestPersistenceRingFull(t *testing.T) {
	r, _ := stickyRig(t, 2)
	from, to := r.dp.Workers[0], r.dp.Workers[1]
	svc := &from.snap.Services[0]
	client := 0
	for i := 1; client == 0; i++ { // a client of worker 0 whose template is worker 1's
		a := addr("198.51.100.7")
		h := from.owners.template(svc.stick.prefix(a), 0)
		if from.owners.templateOwner(h) == from.id {
			from, to = to, from
		}
		if from.owners.client(a, uint16(1024+i)) == from.id {
			client = 1024 + i
		}
	}
	syn := build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", client), dst: "192.0.2.11:80", syn: true})
	fill := func(w *Worker, to int) {
		for range handoffSlots {
			w.outbox[to].put(0, 0)
		}
		w.outbox[to].publish()
	}
	drain := func(w, from *Worker) { r.dp.mesh.packets[from.id][w.id].pop(make([]uint64, handoffSlots)) }
	fill(from, to.id)
	r.port[from.id][0].Feed([][]byte{syn}, 1)
	from.Poll(r.now)
	drain(to, from)
	r.port[from.id][0].Feed([][]byte{syn}, 1)
	from.Poll(r.now)
	fill(to, from.id)
	to.Poll(r.now)
	drain(from, to)
	if a, b := from.Counts().Verdicts[DropHandoffFull], to.Counts().Verdicts[DropHandoffFull]; a != 1 || b != 1 {
		t.Errorf("dropped by who asks %d, by who answers %d", a, b)
	}
	if out := r.deliver(from.id, 0, syn); len(out) != 1 {
		t.Errorf("%d frames out", len(out))
	}
}

// TestPersistenceAllocatesNothing, here and where it is asked.
func TestPersistenceAllocatesNothing(t *testing.T) {
	r, _ := stickyRig(t, 2)
	for _, ports := range r.port {
		ports[0].OnSend, ports[1].OnSend = nil, nil
	}
	frames := make([][]byte, 400)
	for i := range frames {
		frames[i] = buildSYN(t, i)
	}
	n := 0
	if allocs := testing.AllocsPerRun(100, func() {
		r.port[n%2][0].Feed(frames[n:n+2], 1)
		n += 2
		r.step()
	}); allocs != 0 {
		t.Errorf("%g allocations", allocs)
	}
	if r.counts().Opened != 202 {
		t.Errorf("%d flows", r.counts().Opened)
	}
}

// TestPersistenceOfAllSchedulers: each can be asked for a prefix's backend.
func TestPersistenceOfAllSchedulers(t *testing.T) {
	for _, k := range []balance.Kind{
		balance.RoundRobin, balance.WeightedRoundRobin, balance.LeastConn, balance.WeightedLeastConn,
		balance.SourceHash, balance.Maglev, balance.TwoChoices,
	} {
		r, publish := stickyRig(t, 2)
		spec := stickySpec(300)
		spec.Services[0].Scheduler = k
		publish(spec)
		first := r.to4(0, "198.51.100.1:4000")
		for i := range 20 {
			if got := r.to4(i%2, fmt.Sprintf("198.51.100.%d:%d", i+2, 5000+i)); got != first {
				t.Errorf("%v: %s after %s", k, got, first)
			}
		}
	}
}
