package bench_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/l4fwd/l4fwd/bench"
)

// synthesize runs with few flows and packets unless o says more.
func synthesize(t testing.TB, o bench.SynthOptions) *bench.Report {
	t.Helper()
	if o.Flows == 0 {
		o.Flows = 1000
	}
	if o.Packets == 0 {
		o.Packets = 5000
	}
	if o.Rounds == 0 {
		o.Rounds = 2
	}
	rep, err := bench.Synthesize(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// Every kind of flow is opened and every packet made of it is forwarded, from
// whichever queue, and nothing allocates.
func TestSynthesize(t *testing.T) {
	for _, name := range append(allServices, "") {
		for _, workers := range []int{1, 2} {
			for _, arrival := range []bench.Arrival{bench.ArriveSpread, bench.ArriveHome, bench.ArriveAway} {
				// Who owns a flow depends on the mode alone.
				if workers == 1 && arrival != bench.ArriveSpread || workers > 1 && !slices.Contains([]string{"fnat4", "dnat6", ""}, name) {
					continue
				}
				t.Run(fmt.Sprint(name, "/", workers, "/", arrival), func(t *testing.T) {
					o := bench.SynthOptions{Spec: loadSpec(t, "all.yaml"), Workers: workers, Arrival: arrival, Size: 64}
					if name != "" {
						o.Spec = loadSpec(t, "all.yaml", name)
					}
					synthesized(t, o)
				})
			}
		}
	}
}

// So are flows of which no server's packet comes by.
func TestSynthesizeOneWay(t *testing.T) {
	for _, name := range []string{"dsr-tcp4", "dsr-tcp6", "dsr-udp4", "dsr-udp6", "ipip-tcp4", "gre-tcp6", "gue-tcp4", "fou-udp4", "vxlan-udp6"} {
		t.Run(name, func(t *testing.T) {
			o := bench.SynthOptions{Spec: loadSpec(t, "golden.yaml", name), Workers: 1, Size: 64}
			synthesized(t, o)
			o.Workers, o.RSSKnown = 2, true
			if rep := synthesize(t, o); rep.Forwarded != rep.Packets || rep.Verdicts["handed_over"] > 0 {
				t.Errorf("%v", rep.Verdicts)
			}
		})
	}
}

func synthesized(t *testing.T, o bench.SynthOptions) {
	t.Helper()
	rep := synthesize(t, o)
	handed := rep.Verdicts["handed_over"]
	switch {
	case o.Workers == 1:
		allForwarded(t, rep)
		// What the runtime allocates of its own is not there each time.
		for range 3 {
			if rep.AllocsPerPacket == 0 {
				break
			}
			rep = synthesize(t, o)
		}
		if rep.AllocsPerPacket != 0 {
			t.Errorf("%g allocations a packet", rep.AllocsPerPacket)
		}
		return
	case rep.Forwarded != rep.Packets:
		t.Errorf("%d of %d packets forwarded, dropped %v", rep.Forwarded, rep.Packets, rep.Dropped)
	}
	steady := rep.Packets - rep.First.Packets
	switch o.Arrival {
	case bench.ArriveHome:
		if handed > rep.First.Packets {
			t.Errorf("%d packets handed over with %d at home", handed, steady)
		}
	case bench.ArriveAway: // replies are half of them, about
		if handed < steady*2/5 || handed > steady*3/5+rep.First.Packets {
			t.Errorf("%d of %d packets handed over", handed, steady)
		}
	}
}

// Clients that have no data of their servers' have TOA in every packet.
func TestSynthesizeFresh(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		o := bench.SynthOptions{Spec: loadSpec(t, "all.yaml", "fnat4"), Fresh: fresh, Flows: 100, Packets: 20000}
		rep := synthesize(t, o)
		allForwarded(t, rep)
		if share := float64(rep.TOA) / float64(rep.Packets); fresh && share < 0.45 || !fresh && share > 0.1 {
			t.Errorf("fresh %v: TOA in %.2f of all packets", fresh, share)
		}
	}
}

// The limit and the stages are measured along, and told.
func TestSynthesizeLimit(t *testing.T) {
	o := bench.SynthOptions{Spec: loadSpec(t, "all.yaml"), Limit: true, Profile: true, Size: 200}
	var prof bytes.Buffer
	o.CPUProfile = &prof
	rep := synthesize(t, o)
	allForwarded(t, rep)
	l, p := rep.Limit, rep.Profile
	if l == nil || l.Rounds != 2 || l.Best <= 0 || l.Ratio <= 0.5 || l.BestRatio <= 0.5 {
		t.Errorf("limit %+v beside %+v", l, rep.Rounds)
	}
	if p == nil || len(p.Stages) != 5 || p.Bursts < 5000/64 {
		t.Fatalf("profile %+v", p)
	}
	var share float64
	for _, s := range p.Stages {
		share += s.Share
		if s.Median > s.P99 {
			t.Errorf("%+v", s)
		}
	}
	if share < 0.99 || share > 1.01 {
		t.Errorf("shares sum up to %g", share)
	}
	if prof.Len() == 0 {
		t.Error("no CPU profile")
	}
	var b bytes.Buffer
	if err := rep.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ratio to limit", "2 rounds: median", "stages over"} {
		if !bytes.Contains(b.Bytes(), []byte(want)) {
			t.Errorf("%q is not in\n%s", want, &b)
		}
	}
}

func TestSynthesizeRefuses(t *testing.T) {
	spec := loadSpec(t, "all.yaml", "fnat4")
	for name, c := range map[string]struct {
		o    bench.SynthOptions
		want error
	}{
		"no flows":              {bench.SynthOptions{}, bench.ErrOptions},
		"short packets":         {bench.SynthOptions{Flows: 1, Size: 63}, bench.ErrOptions},
		"negative workers":      {bench.SynthOptions{Flows: 1, Workers: -1}, bench.ErrOptions},
		"negative rounds":       {bench.SynthOptions{Flows: 1, Rounds: -1}, bench.ErrOptions},
		"profile of two":        {bench.SynthOptions{Flows: 1, Workers: 2, Profile: true}, bench.ErrOptions},
		"a worker without flow": {bench.SynthOptions{Flows: 1, Workers: 2, Arrival: bench.ArriveHome}, bench.ErrOptions},
		"no service":            {bench.SynthOptions{Flows: 1, Protocol: 17}, bench.ErrNoService},
		"more flows than ports": {bench.SynthOptions{Flows: 600_000}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "more flows than ports" {
				spec.Locals = spec.Locals[:1]
				spec.Services[0].Backends = spec.Services[0].Backends[:1]
				c.o.Flows = 70_000
			}
			c.o.Spec = spec
			_, err := bench.Synthesize(context.Background(), c.o)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := bench.Lives(context.Background(), bench.LivesOptions{Spec: loadSpec(t, "golden.yaml", "dsr-tcp4")}); !errors.Is(err, bench.ErrNoService) {
		t.Errorf("lives without answers: %v", err)
	}
	proxied := loadSpec(t, "golden.yaml", "proxy1-tcp4")
	if _, err := bench.Synthesize(context.Background(), bench.SynthOptions{Spec: proxied, Flows: 1}); !errors.Is(err, bench.ErrOptions) {
		t.Errorf("PROXY: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := bench.Synthesize(ctx, bench.SynthOptions{Spec: spec, Flows: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
