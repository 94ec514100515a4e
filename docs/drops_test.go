package docs

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/packet"
)

// TestDrops: every reason has words that say what it means and what to do about it, in
// plain text.
func TestDrops(t *testing.T) {
	all := map[string]Drop{}
	for _, d := range Drops() {
		if _, twice := all[d.Reason]; twice {
			t.Errorf("%s stands there twice", d.Reason)
		}
		all[d.Reason] = d
	}
	for v := range dataplane.NumVerdicts {
		if v.String() == packet.ErrNone.String() {
			continue // no outcome
		}
		d, ok := all[v.String()]
		if !ok || d.Means == "" || v.IsDrop() && d.Do == "" {
			t.Errorf("%v: %+v", v, d)
		}
		if strings.ContainsAny(d.Means+d.Cause+d.Do, "`*|") || strings.Contains(d.Do, "](") {
			t.Errorf("%v: not plain: %+v", v, d)
		}
	}
	want := Drop{"no_service", "to a VIP, but no service has that protocol and port", "scans; a forgotten service", "add the service, or nothing"}
	if diff := cmp.Diff(want, all["no_service"]); diff != "" {
		t.Error(diff)
	}
}
