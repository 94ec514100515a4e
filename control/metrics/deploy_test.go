package metrics

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// Dashboard and alerts are of use only while what they ask for is there.
const (
	rulesFile     = "../../deploy/prometheus/l4fwd.rules.yml"
	rulesTestFile = "../../deploy/prometheus/l4fwd.test.yml"
	dashboardFile = "../../deploy/grafana/l4fwd.json"
)

// rules are the alerts as the file has them.
func rules(t *testing.T) (out []struct{ Alert, Expr string }) {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	b, err := os.ReadFile(rulesFile)
	if err == nil {
		err = yaml.Unmarshal(b, &file)
	}
	if err != nil || len(file.Groups) == 0 {
		t.Fatalf("%v, %d groups", err, len(file.Groups))
	}
	for _, g := range file.Groups {
		out = append(out, g.Rules...)
	}
	return out
}

// TestRules: Prometheus takes the alerts, and they are raised and not raised when their
// unit tests say so, which there are of each.
func TestRules(t *testing.T) {
	for _, args := range [][]string{{"check", "rules", "--lint-fatal", rulesFile}, {"test", "rules", rulesTestFile}} {
		if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	var tests struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string
				ExpAlerts []any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	b, err := os.ReadFile(rulesTestFile)
	if err == nil {
		err = yaml.Unmarshal(b, &tests)
	}
	if err != nil {
		t.Fatal(err)
	}
	raised, quiet := map[string]bool{}, map[string]bool{}
	for _, x := range tests.Tests {
		for _, a := range x.AlertRuleTest {
			if len(a.ExpAlerts) > 0 {
				raised[a.Alertname] = true
			} else {
				quiet[a.Alertname] = true
			}
		}
	}
	for _, r := range rules(t) {
		if !raised[r.Alert] || !quiet[r.Alert] {
			t.Errorf("%s: tested when raised: %v, when not: %v", r.Alert, raised[r.Alert], quiet[r.Alert])
		}
		wants(t, r.Alert, r.Expr, totals)
	}
}

var (
	named   = regexp.MustCompile(`\b((?:l4fwd|process|go)_[a-z0-9_]+)\b(?:\{([^}]*)\})?`)
	matched = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"`)
	word    = regexp.MustCompile(`^[a-z_]+(\|[a-z_]+)*$`)
)

// wants fails if expr asks for a metric, a label or, among the names that the program
// has, a label's value that none of the families has.
func wants(t *testing.T, where, expr string, families []family) {
	t.Helper()
	found := false
	for _, m := range named.FindAllStringSubmatch(expr, -1) {
		found = true
		f := familyOf(families, m[1])
		if f == nil {
			t.Errorf("%s asks for %s, which is not there", where, m[1])
			continue
		}
		page := text(t, []family{*f}, sampleOf(4, 3, 2, nil))
		for _, l := range matched.FindAllStringSubmatch(m[2], -1) {
			label, values := l[1], l[2]
			if label == "instance" || label == "job" {
				continue // Prometheus has them
			}
			if label != "le" && !slices.Contains(f.labels, label) {
				t.Errorf("%s: %s has no label %s", where, m[1], label)
			}
			if !word.MatchString(values) && label != "le" {
				continue // a variable of the dashboard
			}
			for v := range strings.SplitSeq(values, "|") {
				if !strings.Contains(page, label+`="`+v+`"`) {
					t.Errorf("%s: %s is never of %s %q", where, m[1], label, v)
				}
			}
		}
	}
	if !found && !strings.Contains(expr, "up{") {
		t.Errorf("%s asks for nothing of l4fwd's: %s", where, expr)
	}
}

// familyOf finds the family of a series.
func familyOf(families []family, name string) *family {
	for i := range families {
		f := &families[i]
		if f.name == name && f.kind != histogram {
			return f
		}
		if rest, ok := strings.CutPrefix(name, f.name); ok && f.kind == histogram && slices.Contains([]string{"_bucket", "_sum", "_count"}, rest) {
			return f
		}
	}
	return nil
}

// panel is what is looked at of a Grafana panel.
type panel struct {
	ID          int
	Type        string
	Title       string
	Description string
	Datasource  struct{ Type, UID string }
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct {
		RefID, Expr string
		Datasource  struct{ Type, UID string }
	}
}

type dashboard struct {
	UID, Title    string
	SchemaVersion int
	Panels        []panel
	Templating    struct {
		List []struct{ Name, Type, Definition string }
	}
	Annotations struct {
		List []struct{ Name, Expr string }
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	b, err := os.ReadFile(dashboardFile)
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// queries are all that the dashboard asks Prometheus, by where it does, with its
// variables filled in; upper are those above the rows that need /metrics/detail.
func (d *dashboard) queries() (all, upper map[string]string) {
	all, upper = map[string]string{}, map[string]string{}
	fill := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*", "$service", ".*")
	lower := false
	for _, p := range d.Panels {
		lower = lower || p.Type == "row" && strings.Contains(p.Title, "/metrics/detail")
		for _, q := range p.Targets {
			where := fmt.Sprintf("panel %d %q %s", p.ID, p.Title, q.RefID)
			if all[where] = fill.Replace(q.Expr); !lower {
				upper[where] = all[where]
			}
		}
	}
	for _, a := range d.Annotations.List {
		all["annotation "+a.Name] = fill.Replace(a.Expr)
		upper["annotation "+a.Name] = all["annotation "+a.Name]
	}
	return all, upper
}

// TestDashboard: each panel has its place, says what it shows, and asks for what is
// there, in words that Prometheus understands.
func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	if d.UID != "l4fwd" || d.SchemaVersion < 39 || len(d.Templating.List) != 3 || d.Templating.List[0].Type != "datasource" {
		t.Errorf("%q, schema %d, %d variables", d.UID, d.SchemaVersion, len(d.Templating.List))
	}
	ids, taken := map[int]bool{}, map[[2]int]int{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("two panels of id %d", p.ID)
		}
		ids[p.ID] = true
		if g := p.GridPos; g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
			t.Errorf("panel %d %q is at %+v", p.ID, p.Title, g)
		}
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other, ok := taken[at]; ok {
					t.Fatalf("panels %d and %d are both at %v", other, p.ID, at)
				}
				taken[at] = p.ID
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Title == "" || p.Description == "" || len(p.Targets) == 0 || p.Datasource.UID != "${datasource}" {
			t.Errorf("panel %d %q: %q, %d queries, data source %q", p.ID, p.Title, p.Description, len(p.Targets), p.Datasource.UID)
		}
		for _, q := range p.Targets {
			if q.Datasource.UID != "${datasource}" {
				t.Errorf("panel %d asks %q", p.ID, q.Datasource.UID)
			}
		}
	}
	all, upper := d.queries()
	for where, expr := range upper {
		wants(t, where, expr, totals)
	}
	var file strings.Builder
	file.WriteString("groups:\n- name: dashboard\n  rules:\n")
	n := 0
	for where, expr := range all {
		wants(t, where, expr, concat(totals, detail))
		fmt.Fprintf(&file, "  - {record: 'q:%d', expr: %q}\n", n, expr)
		n++
	}
	path := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("promtool", "check", "rules", path).CombinedOutput(); err != nil || !strings.Contains(string(out), fmt.Sprintf("%d rules found", n)) {
		t.Errorf("promtool: %v\n%s\n%s", err, out, file.String())
	}
}
