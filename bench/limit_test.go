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
