package bench_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/bench"
)

// Every service is a row, and so are two workers; nothing is lost.
func TestMatrix(t *testing.T) {
	rep, err := bench.Matrix(context.Background(), bench.MatrixOptions{
		Spec: loadSpec(t, "matrix.yaml"), Flows: 1000, Packets: 2000, Rounds: 3, Workers: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i, r := range rep.Rows {
		names = append(names, r.Name)
		fastest := 0.5 // beside the limit, by processor time
		if r.Workers > 1 {
			fastest = 0 // by the wall, which others' work moves by any factor
		}
		if r.Median <= 0 || r.Best > r.Median || r.Worst < r.Median || r.ToFirst <= 0 || r.ToLimit <= fastest || r.Dropped != 0 || r.Cores <= 0 || i == 0 && r.ToFirst != 1 {
			t.Errorf("%+v", r)
		}
	}
	want := []string{"tcp4", "udp4", "tcp6", "dnat4", "toa4", "nat64", "dsr4", "ipip4", "gue4in6", "tcp4, 2 workers, flows at home", "tcp4, 2 workers, every reply handed over"}
	if d := cmp.Diff(want, names); d != "" {
		t.Error(d)
	}
	var b bytes.Buffer
	if err := rep.WriteText(&b); err != nil || strings.Count(b.String(), "\n| ") != 12 {
		t.Errorf("%v\n%s", err, &b)
	}
	if _, err := bench.Matrix(context.Background(), bench.MatrixOptions{Spec: loadSpec(t, "matrix.yaml"), Flows: -1}); err == nil {
		t.Error("a negative number of flows is no error")
	}
}
