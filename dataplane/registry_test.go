package dataplane

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// publisher returns what builds and publishes specs of one registry.
func (r *rig) publisher(workers int) (*Registry, func(Spec) *Snapshot) {
	g := NewRegistry(workers)
	return g, func(s Spec) *Snapshot {
		r.t.Helper()
		snap, err := g.Build(s)
		if err != nil {
			r.t.Fatal(err)
		}
		r.dp.Publish(snap)
		r.step()
		return snap
	}
}

// backendCounts are those of all workers.
func (r *rig) backendCounts() []BackendCount {
	var out []BackendCount
	for _, w := range r.dp.Workers {
		for id, c := range w.BackendCounts() {
			if id == len(out) {
				out = append(out, BackendCount{})
			}
			out[id].Add(&c)
		}
	}
	return out
}

// TestServiceGone: flows of a service that is gone are reset with their next packet from
// either side; before, while it drains, its address is answered for.
func TestServiceGone(t *testing.T) {
	for _, vip := range orphanVIPs {
		for _, side := range []string{"client", "server"} {
			t.Run(vip+"/"+side, func(t *testing.T) {
				r, publish := orphanRig(t, BackendDownDrop)
				c := r.open(0, "198.51.100.7:40000", vip)
				spec := orphanSpec(BackendDownDrop)
				kept := spec.Services[:0]
				for _, s := range spec.Services {
					if s.VIP.Addr != endpoint(vip, packet.ProtoTCP).Addr {
						kept = append(kept, s)
					}
				}
				spec.Services = kept
				publish(spec.after(orphanSpec(BackendDownDrop)))
				c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 10})
				owned := r.dp.Workers[0].snap.names.owns(endpoint(vip, packet.ProtoTCP).Addr)
				r.refused(0, 0, DropNoService, build(t, seg{src: "198.51.100.8:1", dst: vip, syn: true, seq: 1}))
				publish(spec)
				if still := r.dp.Workers[0].snap.names.owns(endpoint(vip, packet.ProtoTCP).Addr); !owned || still {
					t.Errorf("owned while it drains: %v, then: %v", owned, still)
				}
				r.now += int64(time.Second)
				frame, nic := build(t, seg{src: c.client, dst: vip, ack: true, seq: 1011, ackNum: 9001, payload: 10}), 0
				if side == "server" {
					frame, nic = build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 11, payload: 10}), 1
				}
				before := r.counts().Verdicts[DropBackendGone]
				r.deliver(0, nic, frame)
				r.now += int64(time.Second)
				r.step()
				resets := 0
				for _, f := range r.sent {
					if tcpOf(verify(t, f.bytes)).RST {
						resets++
					}
				}
				if n := r.counts().Verdicts[DropBackendGone] - before; n != 1 || resets != 2 || r.dp.Workers[0].Flows() != 0 {
					t.Errorf("%d drops, %d RSTs, %d flows", n, resets, r.dp.Workers[0].Flows())
				}
			})
		}
	}
}

// TestForget: with a thousand changes of who is there, one flow living on through all
// of them, there are no more ids than are needed; whoever gets one that another had
// begins at zero.
func TestForget(t *testing.T) {
	const workers = 2
	r := newRig(t, workers, testSpec())
	g, publish := r.publisher(workers)
	spec := func(n int) Spec {
		s := testSpec()
		s.Services = append(s.Services[:2:2], // and then one that is another each time
			service(fmt.Sprintf("s%d", n), fmt.Sprintf("192.0.2.20:%d", 1+n), packet.ProtoTCP, conntrack.DNAT, false,
				fmt.Sprintf("10.0.1.20:%d", 1000+n), fmt.Sprintf("10.0.1.21:%d", 1000+n)))
		s.Services[0].Backends = append(s.Services[0].Backends[:1:1], BackendSpec{Endpoint: endpoint(fmt.Sprintf("10.0.1.21:%d", 2000+n), packet.ProtoTCP)})
		return s
	}
	publish(spec(0))
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	first := r.open(1, "198.51.100.7:40001", "192.0.2.20:1")
	var peak [2]int
	for n := range 1000 {
		g.Forget(r.backendCounts())
		snap := publish(spec(1 + n))
		peak = [2]int{max(peak[0], len(snap.Services)), max(peak[1], len(snap.Directory.Backends))}
		if n%100 == 0 {
			vip := fmt.Sprintf("192.0.2.20:%d", 2+n)
			o := r.open(0, "198.51.100.9:40002", vip)
			if o.backend != fmt.Sprintf("10.0.1.20:%d", 1001+n) && o.backend != fmt.Sprintf("10.0.1.21:%d", 1001+n) {
				t.Fatalf("reload %d: %s went to %s", n, vip, o.backend)
			}
			id := snap.Services[snap.names.find(addr("192.0.2.20"), uint16(2+n), packet.ProtoTCP)].Backends
			counts := r.backendCounts()
			if a, b := counts[id[0]], counts[id[1]]; a.Flows+b.Flows != 1 || a.Active+b.Active != 1 {
				t.Fatalf("reload %d: %+v, %+v", n, a, b)
			}
			o.fromClient(seg{rst: true, ack: true, seq: 1001, ackNum: 9001})
			for range 3 { // until the closed flow is forgotten
				r.now += int64(20 * time.Second)
				r.step()
			}
		}
		c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 10})
		c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 11, payload: 10})
	}
	// fnat4, fnat6, s0, one of whose backends has a flow, and the last two of the rest.
	if diff := cmp.Diff([2]int{5, 9}, peak); diff != "" {
		t.Errorf("services and backends: %s", diff)
	}
	r.refused(0, 0, DropBackendGone, build(t, seg{src: first.client, dst: first.vip, ack: true, seq: 1001, ackNum: 9001, payload: 1}))
}

// usedLocals are those of all flows.
func (r *rig) usedLocals() *LocalIDs {
	used := new(LocalIDs)
	for _, w := range r.dp.Workers {
		for s := new(FlowSlice); !s.Done; {
			w.CopyFlows(s)
			s.Locals(used)
		}
	}
	return used
}

// TestForgetLocals: with a thousand changes of local addresses, one flow living on through
// all of them, there are no more ids than are needed, and new flows work on those that
// others had.
func TestForgetLocals(t *testing.T) {
	const workers = 2
	r := newRig(t, workers, testSpec())
	g, publish := r.publisher(workers)
	local := func(n int) packet.Addr { return addr(fmt.Sprintf("10.0.7.%d", n%200)) }
	spec := func(n int) Spec {
		s := testSpec()
		s.Locals = append(s.Locals[2:], local(n)) // the two of IPv4 are not there
		s.LocalPorts = make([]nat.PortRange, len(s.Locals))
		s.LocalPorts[len(s.Locals)-1] = nat.PortRange{First: uint16(2000 + n), Last: uint16(2099 + n)}
		s.FormerLocals = []packet.Addr{local(n + 100)}
		return s
	}
	publish(testSpec())
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	peak := 0
	for n := range 1000 {
		_, build := g.LeftLocals()
		used := r.usedLocals()
		var late *conv
		if n%2 == 0 { // the look began before the last change, and before this flow
			if n%100 == 50 {
				late = r.open(1, "198.51.100.9:40003", "192.0.2.10:80")
			}
			publish(spec(n + 50))
		}
		g.ForgetLocals(used, build)
		snap := publish(spec(n))
		if late != nil {
			late.fromServer(seg{ack: true, seq: 9001, ackNum: late.isn + 1, payload: 10})
			late.fromClient(seg{rst: true, ack: true, seq: 1001, ackNum: 9011})
			for range 3 {
				r.now += int64(20 * time.Second)
				r.step()
			}
		}
		peak = max(peak, len(snap.Locals))
		if n%100 == 0 {
			o := r.open(1, "198.51.100.9:40002", "192.0.2.10:80")
			e := endpoint(o.local, packet.ProtoTCP)
			if e.Addr != local(n) || int(e.Port) < 2000+n || int(e.Port) > 2099+n {
				t.Fatalf("reload %d: from %s", n, o.local)
			}
			o.fromServer(seg{ack: true, seq: 9001, ackNum: o.isn + 1, payload: 10})
			o.fromClient(seg{rst: true, ack: true, seq: 1001, ackNum: 9011})
			for range 3 { // until the closed flow is forgotten
				r.now += int64(20 * time.Second)
				r.step()
			}
		}
		c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 10})
		c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 11, payload: 10})
	}
	if len(testSpec().Locals)+6 < peak {
		t.Errorf("%d local addresses at a time", peak)
	}
}

// TestTooManyLocals: an error leaves room for what fits.
func TestTooManyLocals(t *testing.T) {
	g := NewRegistry(1)
	spec := testSpec()
	for len(spec.Locals) < maxLocals {
		n := len(spec.Locals)
		spec.Locals = append(spec.Locals, addr(fmt.Sprintf("10.7.%d.%d", n>>8, n&255)))
	}
	most := spec.Locals
	for range 3 {
		if spec.Locals = append(most[1:maxLocals:maxLocals], addr("10.9.0.1"), addr("10.9.0.2")); len(spec.Locals) != maxLocals+1 {
			t.Fatal(len(spec.Locals))
		}
		if _, err := g.Build(spec); err == nil {
			t.Error("one too many")
		}
	}
	spec.Locals = most
	if _, err := g.Build(spec); err != nil {
		t.Fatal(err)
	}
	spec.Locals = append(most[2:maxLocals:maxLocals], addr("10.9.0.1"))
	if _, err := g.Build(spec); err == nil {
		t.Error("one too many, though one has left that may have flows")
	}
	spec.Locals = most[1:]
	if _, err := g.Build(spec); err != nil {
		t.Fatal(err)
	}
	n, build := g.LeftLocals()
	if forgotten := g.ForgetLocals(new(LocalIDs), build); n != 1 || forgotten != 1 {
		t.Errorf("%d have left, %d are forgotten", n, forgotten)
	}
	spec.Locals = append(most[1:maxLocals:maxLocals], addr("10.9.0.1"))
	snap, err := g.Build(spec)
	if err != nil || len(snap.Locals) != maxLocals {
		t.Fatal(err, len(snap.Locals))
	}
}

// TestLocalBecomesVIP: a local address that flows use becomes a VIP. They go on, on
// whatever worker their servers' answers arrive, and the service works.
func TestLocalBecomesVIP(t *testing.T) {
	const workers = 3
	r := newRig(t, workers, testSpec())
	_, publish := r.publisher(workers)
	publish(testSpec())
	var all []*conv
	for i := range 20 {
		all = append(all, r.open(i%workers, fmt.Sprintf("198.51.100.7:%d", 20000+i), "192.0.2.10:80"))
	}
	spec := testSpec()
	spec.Locals = spec.Locals[1:]
	spec.Services = append(spec.Services, service("new", "10.0.1.10:80", packet.ProtoTCP, conntrack.DNAT, false, "10.0.1.22:80"))
	publish(spec)
	for _, c := range all {
		for c.worker = range workers {
			c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10})
			c.fromClient(seg{ack: true, seq: 1001, ackNum: 9011, payload: 10})
		}
	}
	if c := r.open(0, "198.51.100.8:1000", "10.0.1.10:80"); c.backend != "10.0.1.22:80" {
		t.Errorf("the new service is at %s", c.backend)
	}
	r.refused(0, 0, DropNoService, build(t, seg{src: "198.51.100.8:1001", dst: "10.0.1.10:81", syn: true, seq: 1}))
}

// TestLastLocalGoesWithItsService: a Full-NAT service drains, although the local addresses
// that it had left with it.
func TestLastLocalGoesWithItsService(t *testing.T) {
	r := newRig(t, 1, testSpec())
	_, publish := r.publisher(1)
	publish(testSpec())
	c := r.open(0, "198.51.100.7:20000", "192.0.2.10:80")
	spec := testSpec()
	was := spec.Services[0]
	was.Draining = true
	spec.Services = []ServiceSpec{spec.Services[3], was}
	spec.Locals, spec.FormerLocals = nil, spec.Locals
	publish(spec)
	c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10})
	c.fromClient(seg{ack: true, seq: 1001, ackNum: 9011, payload: 10})
	spec.Services[1].Draining = false
	if _, err := NewRegistry(1).Build(spec); !errors.Is(err, errNoLocal) {
		t.Errorf("one that does not drain: %v", err)
	}
}

// TestLocalPortsChange: new flows take ports of the range that local addresses have now,
// those that were added too.
func TestLocalPortsChange(t *testing.T) {
	r := newRig(t, 1, testSpec())
	_, publish := r.publisher(1)
	spec := testSpec()
	publish(spec)
	spec.Locals = append(spec.Locals, addr("10.0.1.12"))
	spec.LocalPorts = []nat.PortRange{{First: 3000, Last: 3009}, {First: 3000, Last: 3009}, {}, {First: 3000, Last: 3009}}
	publish(spec)
	used := map[string]int{}
	for i := range 6 {
		c := r.open(0, fmt.Sprintf("198.51.100.7:%d", 20000+i), "192.0.2.10:80")
		e := endpoint(c.local, packet.ProtoTCP)
		if used[e.Addr.String()]++; e.Port < 3000 || e.Port > 3009 {
			t.Errorf("port %d", e.Port)
		}
	}
	if diff := cmp.Diff(map[string]int{"10.0.1.10": 2, "10.0.1.11": 2, "10.0.1.12": 2}, used); diff != "" {
		t.Error(diff)
	}
}
