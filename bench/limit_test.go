package bench_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/l4fwd/l4fwd/bench"
)

// The limit takes packets of any kind and size.
func TestLimit(t *testing.T) {
	for _, name := range append(allServices, "") {
		o := bench.SynthOptions{Spec: loadSpec(t, "all.yaml"), Flows: 1000, Packets: 5000, Rounds: 3, Size: 1000}
		if name != "" {
			o.Spec = loadSpec(t, "all.yaml", name)
		}
		rep, err := bench.Limit(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		// A line for two flows and two lines for each.
		if least := uint64(1000 * (64/2 + 128)); rep.Memory < least || rep.Median <= 0 || rep.Rounds != 3 || rep.Flows != 1000 {
			t.Errorf("%s: %+v", name, rep)
		}
		var b bytes.Buffer
		if err := rep.WriteText(&b); err != nil || !bytes.Contains(b.Bytes(), []byte("limit: median")) {
			t.Errorf("%v\n%s", err, &b)
		}
	}
	if _, err := bench.Limit(context.Background(), bench.SynthOptions{Spec: loadSpec(t, "all.yaml")}); !errors.Is(err, bench.ErrOptions) {
		t.Errorf("no flows: %v", err)
	}
}

// A capture is replayed and the limit measured over it in turn, or the stages.
func TestReplayBesideLimit(t *testing.T) {
	spec := loadSpec(t, "all.yaml")
	pcap := generate(t, bench.GenOptions{Spec: spec})
	rep := replay(t, pcap, bench.Options{Spec: spec, Loops: 4, Limit: true})
	allForwarded(t, rep)
	if rep.Limit == nil || rep.Limit.Rounds != 3 || rep.Rounds.Rounds != 3 || rep.Limit.Ratio <= 0.5 || rep.Loops != 4 {
		t.Errorf("%+v %+v, %d loops", rep.Limit, rep.Rounds, rep.Loops)
	}
	var prof bytes.Buffer
	rep = replay(t, pcap, bench.Options{Spec: spec, Loops: 4, Profile: true, CPUProfile: &prof})
	allForwarded(t, rep)
	if rep.Profile == nil || rep.Profile.Bursts < 3*2000/64 || len(rep.Profile.Stages) != 5 || prof.Len() == 0 {
		t.Errorf("%+v, %d bytes of CPU profile", rep.Profile, prof.Len())
	}
	for name, o := range map[string]bench.Options{
		"one loop":    {Limit: true},
		"two workers": {Limit: true, Loops: 3, Workers: 2},
		"output":      {Profile: true, Output: &prof},
	} {
		o.Spec = spec
		if _, err := bench.Replay(context.Background(), read(t, pcap), o); !errors.Is(err, bench.ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
