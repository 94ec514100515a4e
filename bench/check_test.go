package bench_test

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/bench"
)

// committed are the bounds that `make bench-check` goes by.
func committed(t *testing.T) bench.Bounds {
	t.Helper()
	b, err := os.ReadFile("bounds.json")
	if err != nil {
		t.Fatal(err)
	}
	bounds, err := bench.ReadBounds(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return bounds
}

// Sizes, memory and allocations are what was committed; what is beyond its bound
// fails, by itself.
func TestCheck(t *testing.T) {
	bounds := committed(t)
	o := bench.CheckOptions{Spec: loadSpec(t, "matrix.yaml"), Bounds: bounds, Packets: 5000}
	o.Bounds.Ratios = []bench.RatioBound{{Flows: 1000, Max: 1e6}}
	rep := check(t, o)
	if !rep.OK() {
		t.Errorf("%+v", rep.Checks)
	}
	o.Bounds = bench.Bounds{
		Ratios: []bench.RatioBound{{Flows: 1000, Max: 0.01}}, BytesPerFlow: 100,
		Sizes: map[string]uintptr{"conntrack.Entry": 64, "packet.Packet": 64, "packet.Gone": 8},
	}
	o.Attempts = 1
	rep = check(t, o)
	var failed []string
	stray := 0 // the runtime's own allocations, which one attempt may meet
	for _, c := range rep.Checks {
		switch {
		case !c.OK && strings.HasPrefix(c.What, "allocations"):
			stray++
		case !c.OK:
			failed = append(failed, c.What)
		}
	}
	var what []string
	for _, c := range rep.Checks {
		if of, ok := strings.CutPrefix(c.What, "allocations a packet, "); ok {
			what = append(what, of)
		}
	}
	if d := cmp.Diff([]string{"tcp4", "udp4", "tcp6", "dnat4", "toa4", "nat64", "dsr4", "ipip4", "gue4in6", "2 workers, all replies handed over", "whole lives"}, what); d != "" {
		t.Error(d)
	}
	want := []string{"bytes of conntrack.Entry", "bytes of packet.Gone", "bytes of packet.Tuple", "ratio to the limit, 1000 flows", "bytes a flow in the table"}
	if d := cmp.Diff(want, failed); d != "" || rep.OK() {
		t.Error(d)
	}
	var b bytes.Buffer
	if err := rep.WriteText(&b); err != nil || strings.Count(b.String(), "FAIL") != len(want)+stray {
		t.Errorf("%v\n%s", err, &b)
	}
}

func check(t *testing.T, o bench.CheckOptions) *bench.CheckReport {
	t.Helper()
	rep, err := bench.Check(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func TestReadBoundsRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "nothing": "{}", "unknown": `{"ratio": []}`, "no JSON": "ratios:",
		"no sizes": `{"ratios": [{"flows": 1, "max": 1}], "bytes_per_flow": 1}`,
	} {
		if _, err := bench.ReadBounds(strings.NewReader(text)); err == nil || !strings.HasPrefix(err.Error(), "bounds: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := bench.Check(context.Background(), bench.CheckOptions{}); err == nil {
		t.Error("nothing to check is no error")
	}
}
