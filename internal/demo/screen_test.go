package demo

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/control"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestStatsContract: the demo reads the stats file with a type of its own, as
// any user would.
func TestStatsContract(t *testing.T) {
	b, err := json.Marshal(control.Stats{Flows: 1, Opened: 2, Dropped: 3, Verdicts: map[string]uint64{"forwarded": 4}})
	if err != nil {
		t.Fatal(err)
	}
	var got stats
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(stats{Flows: 1, Opened: 2, Dropped: 3, Verdicts: map[string]uint64{"forwarded": 4}}, got); diff != "" {
		t.Error(diff)
	}
	for v := range dataplane.NumVerdicts {
		if notDrops[v.String()] == v.IsDrop() {
			t.Errorf("%s: drop %t", v, v.IsDrop())
		}
	}
}

func TestDropsInOrder(t *testing.T) {
	s := stats{Verdicts: map[string]uint64{"forwarded": 9, "replied": 9, "no_flow": 2, "bad_rst": 2, "no_route": 1234, "internal": 0}}
	if diff := cmp.Diff([]string{"no_route 1,234", "bad_rst 2", "no_flow 2"}, s.drops()); diff != "" {
		t.Error(diff)
	}
}

// TestTableFitsTerminal: a line that wraps, or one more or less than the cursor
// goes up, would spoil the picture.
func TestTableFitsTerminal(t *testing.T) {
	var out bytes.Buffer
	s := &screen{w: &out, redraw: true, color: true, width: tableWidth}
	sc := &scenario{mode: modes[0], protocol: "http", family: testbed.V6}
	sc.t = tally{Planned: MaxRequests, OK: MaxRequests, Failed: 1, Flows: MaxRequests,
		ByServer: map[string]int{"rs1": MaxRequests, "rs2": MaxRequests},
		Peer:     netip.MustParseAddrPort("[2001:db8:1::a]:65535"), Client: netip.MustParseAddrPort("[2001:db8:100::64]:65535")}
	tests := make([]*scenario, 8)
	for i := range tests {
		tests[i] = sc
	}
	many := stats{Opened: 1 << 40, Dropped: 9, Verdicts: map[string]uint64{verdictForwarded: 1 << 50, "neighbour_unresolved": 1 << 40,
		"no_flow": 1 << 40, "bad_rst": 1 << 40, "bad_syn": 1 << 40, "ports_exhausted": 1 << 40}}
	s.live(0, tests, many)
	first := out.String()
	lines := strings.Split(strings.TrimSuffix(first, "\n"), "\n")
	escapes := regexp.MustCompile(`\x1b\[[0-9;]*[a-zA-Z]`)
	for _, l := range lines {
		if n := utf8.RuneCountInString(escapes.ReplaceAllString(l, "")); n >= tableWidth {
			t.Errorf("%d columns: %q", n, l)
		}
	}
	if len(lines) != tableLines || s.drawn != tableLines {
		t.Errorf("%d lines, %d drawn, want %d", len(lines), s.drawn, tableLines)
	}
	out.Reset()
	s.live(0, tests, many)
	if want := "\x1b[13A" + first; out.String() != want {
		t.Errorf("drawn again: %q\nwant %q", out.String(), want)
	}
}

func TestCheckWeights(t *testing.T) {
	for _, tt := range []struct {
		name     string
		rs1, rs2 int
		ok       bool
	}{
		{"exact", 100, 200, true},
		{"a turn off", 99, 201, true},
		{"by chance equal", 150, 150, false},
		{"the wrong way", 200, 100, false},
		{"only one", 0, 300, false},
		{"nothing", 0, 0, false},
		{"one cycle", 1, 2, true},
	} {
		s := &scenario{mode: modes[1], protocol: "http", family: testbed.V4}
		s.t = tally{Flows: tt.rs1 + tt.rs2, ByServer: map[string]int{"rs1": tt.rs1, "rs2": tt.rs2}}
		d := &demo{tests: []*scenario{s}}
		if c := d.checkWeights(); c.ok != tt.ok {
			t.Errorf("%s: %+v", tt.name, c)
		}
	}
}

func TestSweepDirs(t *testing.T) {
	tmp := t.TempDir()
	for _, name := range []string{"l4fwd-demo-999999999-x", "l4fwd-demo-1-x", "l4fwd-demo--x", "l4fwd-demo-999999999", "l4fwd-demo-999999999-", "else"} {
		if err := os.Mkdir(filepath.Join(tmp, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// Whoever may write to the directory must not choose what is removed.
	if err := os.Symlink("/nowhere", filepath.Join(tmp, "l4fwd-demo-999999999-link")); err != nil {
		t.Fatal(err)
	}
	swept, err := sweepDirs(tmp)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"l4fwd-demo-999999999-x"}, swept); diff != "" {
		t.Error(diff)
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 123456: "123,456", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
