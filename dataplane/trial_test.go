package dataplane

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// trialSpec is testSpec with services of all schedulers, persistence, limits, direct
// return and tunnels among them.
func trialSpec(rnd *rand.Rand) Spec {
	spec := testSpec()
	kinds := []balance.Kind{balance.RoundRobin, balance.WeightedRoundRobin, balance.LeastConn, balance.WeightedLeastConn, balance.SourceHash, balance.Maglev, balance.TwoChoices}
	spec.Templates = 64
	for i := range spec.Services {
		s := &spec.Services[i]
		s.Scheduler = kinds[rnd.IntN(len(kinds))]
		s.ResetStray, s.LogOneIn = rnd.IntN(2) == 0, uint32(rnd.IntN(3))
		if rnd.IntN(3) == 0 {
			s.Persistence = Persistence{Timeout: 20, Prefix: 24}
		}
		for k := range s.Backends {
			s.Backends[k].Weight = uint32(1 + rnd.IntN(3))
			if rnd.IntN(3) == 0 {
				s.Backends[k].MaxConnections = uint32(1 + rnd.IntN(3))
			}
		}
	}
	spec.Services[0].Mode, spec.Services[0].TOA = []conntrack.Mode{conntrack.FullNAT, conntrack.DirectReturn}[rnd.IntN(2)], false
	if spec.Services[0].Mode == conntrack.DirectReturn {
		spec.Services[0].Timestamps = 0
	}
	return spec
}

// trialStep is one packet of TestTrial.
type trialStep struct {
	worker, nic int
	frame       []byte
}

// outcome is what becomes of a packet, of a trial or in truth.
type outcome struct {
	Verdicts map[string]uint64
	Sent     []sentFrame
}

func (r *rig) try(s trialStep) (*Outcome, outcome) {
	r.t.Helper()
	t, err := r.dp.NewTrial(s.frame, uint8(s.nic), s.worker, r.now)
	if err != nil {
		r.t.Fatal(err)
	}
	o, err := t.Run(func(f func(*Worker)) error {
		for _, w := range r.dp.Workers {
			f(w)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	said := outcome{Verdicts: map[string]uint64{}}
	if o.Decided {
		said.Verdicts[o.Verdict.String()] = 1
	}
	for _, f := range o.Sent {
		said.Sent = append(said.Sent, sentFrame{nic: int(f.NIC), bytes: f.Data})
	}
	return o, said
}

// truly is what becomes of a packet in truth.
func (r *rig) truly(s trialStep) outcome {
	r.t.Helper()
	before := r.counts()
	is := outcome{Verdicts: map[string]uint64{}}
	for _, f := range r.deliver(s.worker, s.nic, s.frame) {
		f.worker = 0
		is.Sent = append(is.Sent, f)
	}
	after := r.counts()
	for v := range NumVerdicts {
		if n := after.Verdicts[v] - before.Verdicts[v]; n > 0 && v != HandedOver {
			is.Verdicts[v.String()] = n
		}
	}
	return is
}

// What a trial says of a packet is what then becomes of it, to the byte; and a rig on
// which nothing is tried does the same.
func TestTrial(t *testing.T) {
	seen := make(map[string]int)
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		rnd := rand.New(rand.NewPCG(seed, 1))
		spec := trialSpec(rnd)
		workers := 1 + rnd.IntN(3)
		flows := []int{4, 1024}[rnd.IntN(2)]
		small := func(o *Options) { o.Flows = flows * workers }
		sub := &sink{TB: t}
		tried, plain := newRigWith(sub, workers, spec, small), newRigWith(sub, workers, spec, small)
		defer sub.end()
		c := &chaos{rig: tried, rnd: rnd}
		for i := range 30 {
			s := trialStep{worker: rnd.IntN(workers)}
			nic, segment := c.segment()
			if n, a, ok := c.answer(); ok && rnd.IntN(3) > 0 {
				nic, segment = n, a
			}
			s.nic, s.frame = nic, build(t, segment)
			if rnd.IntN(20) == 0 {
				s.frame[rnd.IntN(len(s.frame))] ^= byte(1 + rnd.IntN(255))
			}
			if rnd.IntN(10) == 0 && len(s.frame) > 300 {
				s.frame = cut(s.frame, uint32(i), 200)[rnd.IntN(2)]
			}
			if rnd.IntN(15) == 0 {
				tried.now += int64(rnd.IntN(200 * 1e9))
			}
			plain.now = tried.now
			for _, r := range []*rig{tried, plain} {
				r.settle()
			}
			o, said := tried.try(s)
			is := tried.truly(s)
			if d := outcomesDiffer(is, said); d != "" && !o.NoPort && !o.Crowded {
				rt.Fatalf("step %d, worker %d of %d, NIC %d, %+v: -is +said\n%s", i, s.worker, workers, s.nic, segment, d)
			}
			if d := outcomesDiffer(is, plain.truly(s)); d != "" {
				rt.Fatalf("step %d: the trial has changed something: -tried +not tried\n%s", i, d)
			}
			for v := range is.Verdicts {
				seen[v]++
			}
			for _, f := range tried.sent {
				if c.last = append(c.last, [2][]byte{f.bytes, {byte(f.nic)}}); len(c.last) > 20 {
					c.last = c.last[1:]
				}
			}
			tried.now += int64(rnd.IntN(1e9))
		}
	})
	for _, v := range []Verdict{Forwarded, Replied, DropNoFlow, DropTooBig, DropTTL} {
		if seen[v.String()] == 0 {
			t.Errorf("no packet was %v", v)
		}
	}
	t.Log(fmt.Sprint(seen))
}

// outcomesDiffer is "" if they do not. cmp takes as long as all the rest.
func outcomesDiffer(a, b outcome) string {
	if reflect.DeepEqual(a, b) {
		return ""
	}
	return cmp.Diff(a, b, cmp.AllowUnexported(sentFrame{}), cmpopts.EquateEmpty())
}

// settle lets all go that has idled out.
func (r *rig) settle() {
	for behind := true; behind; {
		r.step()
		behind = false
		for _, w := range r.dp.Workers {
			behind = behind || w.table.Behind(w.tick)
		}
	}
}

// sink is a test within another's property, whose cleanups come before its end.
type sink struct {
	testing.TB
	last []func()
}

func (s *sink) Cleanup(f func()) { s.last = append(s.last, f) }

func (s *sink) end() {
	for i := len(s.last) - 1; i >= 0; i-- {
		s.last[i]()
	}
}

// What a trial says beside the verdict: the flow before and after, whom persistence
// keeps a client with, and what does not fit is refused.
func TestTrialTells(t *testing.T) {
	spec := testSpec()
	spec.Templates = 64
	spec.Services[3].Persistence = Persistence{Timeout: 600 * conntrack.TicksPerSecond, Prefix: 24}
	r := newRig(t, 2, spec)
	step := trialStep{frame: build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.11:80", syn: true, seq: 5})}
	o, _ := r.try(step)
	if o.Before != nil || o.After == nil || !o.Opened || o.Service != "dnat4" || o.Stays.Port != 0 || o.Verdict != Forwarded {
		t.Errorf("of a first SYN: %+v", o)
	}
	if n := r.counts(); n.Opened != 0 || n.Received != 0 {
		t.Errorf("the trial shows in the counters: %+v", n)
	}
	r.truly(step)
	o, _ = r.try(step)
	if o.Before == nil || o.After == nil || o.Opened || o.Before.Backend != o.After.Backend {
		t.Errorf("of a SYN again: %+v", o)
	}
	first := o.Before.Backend
	o, _ = r.try(trialStep{frame: build(t, seg{src: "198.51.100.8:4000", dst: "192.0.2.11:80", syn: true, seq: 5})})
	if o.Stays != first || o.StaysFor == 0 || o.After == nil || o.After.Backend != first {
		t.Errorf("of a client that persistence keeps with %v: %+v", first, o)
	}
	for name, f := range map[string]func() (*Trial, error){
		"short":  func() (*Trial, error) { return r.dp.NewTrial(make([]byte, 13), 0, 0, 1) },
		"long":   func() (*Trial, error) { return r.dp.NewTrial(make([]byte, testFrame), 0, 0, 1) },
		"NIC":    func() (*Trial, error) { return r.dp.NewTrial(step.frame, MaxNICs, 0, 1) },
		"worker": func() (*Trial, error) { return r.dp.NewTrial(step.frame, 0, 2, 1) },
	} {
		if _, err := f(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A local port that the live table has in use is not the one that is told.
func TestTrialPorts(t *testing.T) {
	r := newRig(t, 1, testSpec())
	for i := range 20 {
		s := trialStep{frame: build(t, seg{src: hostPort("198.51.100.7", uint16(4000+i)), dst: "192.0.2.10:80", syn: true, seq: 5})}
		o, said := r.try(s)
		if d := outcomesDiffer(r.truly(s), said); d != "" || o.After.Local.Port == 0 {
			t.Fatalf("connection %d: -is +said\n%s", i, d)
		}
		// The round begins anew: all ports so far are in the way.
		fresh := nat.NewPorts(nat.PortOptions{Workers: 1, Seed: 1})
		fresh.CopyTo(r.dp.Workers[0].ports)
	}
}

// A SYN that its flow's owner has refused is known to a trial when it comes again,
// whichever worker that is.
func TestTrialComesAgain(t *testing.T) {
	const workers = 3
	r := newRigWith(t, workers, testSpec(), func(o *Options) { o.Flows = 16 * workers }) // 4 half-open each
	seen := make(map[int]bool)
	for i := 0; len(seen) < workers; i++ {
		src := hostPort("198.51.100.7", uint16(1024+i))
		s := trialStep{frame: build(t, seg{src: src, dst: "192.0.2.11:80", syn: true})}
		if is := r.truly(s); is.Verdicts[DropHalfOpenFull.String()] == 0 {
			continue
		}
		o, said := r.try(s)
		if d := outcomesDiffer(r.truly(s), said); d != "" {
			t.Errorf("worker %d: -is +said\n%s", o.Worker, d)
		}
		seen[o.Worker] = true
	}
}

// BenchmarkTrialLook is what a worker loses to one question about a new flow.
func BenchmarkTrialLook(b *testing.B) {
	for _, backends := range []int{2, 100} {
		b.Run(fmt.Sprint(backends, " backends"), func(b *testing.B) {
			var all []string
			for i := range backends {
				all = append(all, hostPort(fmt.Sprintf("10.0.1.%d", 20+i), 8080))
			}
			s := service("web", "192.0.2.10:80", packet.ProtoTCP, conntrack.FullNAT, false, all...)
			s.Scheduler = balance.WeightedLeastConn
			r := newRig(b, 1, Spec{Locals: testSpec().Locals, Services: []ServiceSpec{s}})
			w := r.dp.Workers[0]
			r.step()
			frame := build(b, seg{src: "198.51.100.7:4000", dst: "192.0.2.10:80", syn: true})
			for b.Loop() {
				b.StopTimer()
				t, err := r.dp.NewTrial(frame, 0, 0, r.now)
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				t.Look(w)
			}
		})
	}
	b.Run("port", func(b *testing.B) {
		r := newRig(b, 1, Spec{Locals: testSpec().Locals, Services: []ServiceSpec{service("web", "192.0.2.10:80", packet.ProtoTCP, conntrack.FullNAT, false, "10.0.1.20:80")}})
		r.step()
		for b.Loop() {
			a := portAsk{}
			a.ask(r.dp.Workers[0], 1)
		}
	})
}
