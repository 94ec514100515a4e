package control

import (
	"testing"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

func TestForwards(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	d := w.run(w.Config(testbed.Services(0, "full-nat", "toa", "wrr"), small...))
	for _, f := range testbed.Families {
		r := w.ask(w.VIP(f, 0), 20)
		if len(r.ByServer) != 2 {
			t.Errorf("%v: not spread: %v", f, r.ByServer)
		}
	}
	s, err := d.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", s)
	d.end()
	w.clean()
	t.Log(d.said())
}
