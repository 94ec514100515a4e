package peers

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/table.md anew")

func TestFormat(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 1: "1", 0.8234: "0.823", 0.00456: "0.00456", 12.34: "12.3", 18781.21: "18781", 200: "200", 1.6: "1.6", -3.14159: "-3.14", 99.96: "100",
		math.Inf(1): "+Inf",
	} {
		if got := format(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}

func TestRow(t *testing.T) {
	a := Arrangement{NearRPS, FarSender}
	data := rowData{arrangement: a, rounds: [][]float64{{5, 50}, {1, 10}, {4, 40}, {2, 20}}, err: errors.New("broken\nin detail")}
	want := Row{Forwarder: Nft, Arrangement: a, Rounds: []float64{50, 10, 40, 20}, Median: 30, Least: 10, Most: 50, Failed: "broken"}
	if d := cmp.Diff(want, data.row(Nft, 1)); d != "" {
		t.Error(d)
	}
	none := rowData{arrangement: a, err: errors.New("broken")}
	if d := cmp.Diff(Row{Forwarder: Nft, Arrangement: a, Failed: "broken"}, none.row(Nft, 0)); d != "" {
		t.Error(d)
	}
}

func TestRatio(t *testing.T) {
	for _, c := range []struct {
		a, b []float64
		want float64
	}{
		{[]float64{1, 2, 3}, []float64{2, 2, 2}, 1},
		{[]float64{1, 20, 3}, []float64{1, 10, 1}, 2}, // drift in the second round
		{[]float64{1, 20, 3}, []float64{1, 0, 1}, 2},  // 1 and 3
		{[]float64{4}, []float64{2, 100}, 2},          // one ended early
		{nil, []float64{1}, 0},
		{[]float64{1}, []float64{0}, 0},
	} {
		if got := ratio(c.a, c.b); got != c.want {
			t.Errorf("%v to %v: %v, want %v", c.a, c.b, got, c.want)
		}
	}
}

func TestStolen(t *testing.T) {
	before := []byte("cpu  100 0 100 800 0 0 0 10 5 5\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	after := []byte("cpu  150 0 100 840 0 0 0 20 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	if got := stolenSince(before, after); got != 10 {
		t.Errorf("%v %%, want 10", got)
	}
	if got := stolenSince(before, before); got != 0 {
		t.Errorf("no time: %v %%", got)
	}
}

// The best by median is chosen, of those that may be and never failed.
func TestSettle(t *testing.T) {
	a := []Arrangement{{NearRPS, FarSender}, {NearRPS, FarRPS}, {NearThreadLoad, FarSender}, {NearSender, FarSender}}
	for _, c := range []struct {
		name  string
		m     Metric
		tried [4][]float64
		fails []int
		want  Arrangement
	}{
		{"a lucky trial does not count", Metric{}, [4][]float64{{5, 6, 5}, {1, 9, 1}, {4, 4, 4}, {3, 3, 3}}, nil, a[0]},
		{"less is better", Metric{LowerIsBetter: true}, [4][]float64{{5, 6, 5}, {1, 9, 1}, {4, 4, 4}, {3, 3, 3}}, nil, a[1]},
		{"the last", Metric{}, [4][]float64{{5}, {4}, {3}, {9}}, nil, a[3]},
		{"not what failed", Metric{}, [4][]float64{{9, 9}, {4}, {5}, {1}}, []int{0}, a[2]},
		{"nothing works", Metric{}, [4][]float64{}, []int{0, 1, 2, 3}, a[0]},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := rowData{arrangement: a[0], err: errors.New("the last failure")}
			d.propose(a[:])
			for i := range c.tried {
				d.trials[i].Rounds = c.tried[i]
			}
			for _, i := range c.fails {
				d.trials[i].Failed = "so it is"
			}
			d.settle(&c.m)
			if d.arrangement != c.want || (d.err != nil) != (len(c.fails) == 4) {
				t.Errorf("%v, %v; want %v", d.arrangement, d.err, c.want)
			}
		})
	}
	var d rowData
	if d.propose(a[:1]); d.trials != nil {
		t.Errorf("one arrangement is tried: %v", d.trials)
	}
}

func TestBetter(t *testing.T) {
	more, less := Metric{}, Metric{LowerIsBetter: true}
	for _, c := range []struct {
		m    Metric
		a, b float64
		want bool
	}{{more, 2, 1, true}, {more, 1, 2, false}, {more, 1, 1, false}, {less, 1, 2, true}, {less, 2, 1, false}, {less, 1, 1, false}} {
		if c.m.better(c.a, c.b) != c.want {
			t.Errorf("%+v: not %t", c, c.want)
		}
	}
}

// row3 is a row of three rounds.
func row3(forwarder string, ratio, least, median, most float64) Row {
	return Row{
		Forwarder: forwarder, Arrangement: Arrangement{NearSender, FarSender}, Rounds: []float64{median, most, least},
		Median: median, Least: least, Most: most, Ratio: ratio,
	}
}

// sample is a report as Run would return it.
func sample() *Report {
	ours := row3(L4fwd, 0, 19e3, 20e3, 21e3)
	ours.Trials = []Trial{
		{Arrangement: Arrangement{NearSender, FarSender}, Rounds: []float64{20100}, Value: 20100},
		{Arrangement: Arrangement{NearThreadLoad, FarSender}, Failed: "no thread"},
		{Arrangement: Arrangement{NearThreadLoad, FarRPS}, Value: 30000},
	}
	broken := row3(Nginx, 0, 0, 0, 0)
	broken.Rounds, broken.Failed = nil, "it burns"
	r := &Report{
		Date: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC), Command: "l4fwd bench peers", CPUs: CPUs{0, 1}, Rounds: 3, Seconds: 3,
		Host: Host{CPU: "A <fast> CPU", Cores: 2, Kernel: "6.18", Distro: "Debian", Go: "go1.26", Wrk: "4.1.0", Virtual: true},
		Forwarders: []ForwarderInfo{
			{L4fwd, "l4fwd", "Full-NAT", "abc", "l4fwd run -c FILE\n"},
			{Nft, "nftables", "DNAT & SNAT", "1.0.6", "nft -f FILE"},
			{Nginx, "nginx stream", "a proxy", "1.22", "nginx"},
		},
		Works: []WorkReport{{Name: HTTP, Title: "HTTP", How: "wrk", Metrics: []MetricReport{
			{Metric{Name: "connections", Unit: "/s", Charted: true}, []Row{ours, row3(Nft, 0, 15e3, 16e3, 18e3), broken}},
			{Metric{Name: "p99", Unit: "µs", LowerIsBetter: true}, []Row{row3(L4fwd, 0, 3000, 3100, 3300), row3(Nft, 0, 3000, 6200, 9000), broken}},
		}}},
		Lacks: []Lack{{Testpmd, "dpdk-testpmd", "dpdk-dev"}, {Iperf1, "iperf3", "iperf3"}, {Iperf4, "iperf3", "iperf3"}},
	}
	for i := range r.Works[0].Metrics {
		r.Works[0].Metrics[i].ratios()
	}
	r.judge()
	return r
}

func TestJudge(t *testing.T) {
	r := sample()
	r.Works = append(r.Works, WorkReport{Name: Idle, Metrics: []MetricReport{
		{Metric{Name: idleCPU, Unit: "%", LowerIsBetter: true}, []Row{row3(L4fwd, 1, 1, 1.5, 2)}},
		{Metric{Name: idleFirst, Unit: "µs", LowerIsBetter: true}, []Row{row3(L4fwd, 1, 100, 201, 300)}},
	}})
	r.judge()
	got := map[string]string{}
	for _, x := range r.Targets {
		got[x.Work+" "+x.Metric+" "+x.Against] = x.verdict()
		if x.Measured && x.Work == HTTP && x.Value != 1.25 {
			t.Errorf("%+v: want 1.25", x)
		}
	}
	want := map[string]string{
		"udp256 forwarded testpmd": "not measured", "udp256 forwarded bare": "not measured", "udp256 forwarded nft": "not measured", "udp256 forwarded nft-inline": "not measured",
		"udp50k forwarded testpmd": "not measured", "udp50k forwarded bare": "not measured", "udp50k forwarded nft": "not measured", "udp50k forwarded nft-inline": "not measured",
		"http connections haproxy": "not measured", "http connections haproxy-inline": "not measured", "http connections nginx-inline": "not measured", "http connections nginx": "not measured", "http connections nft": "met", "http connections nft-inline": "not measured", "http connections bare": "not measured",
		"iperf1 received nft": "not measured", "iperf4 received nft": "not measured",
		"iperf1 received nft-inline": "not measured", "iperf4 received nft-inline": "not measured",
		"latency p50 nft-inline": "not measured", "latency p99 nft-inline": "not measured",
		"iperf1 received bare": "not measured", "iperf4 received bare": "not measured",
		"latency p50 nft": "not measured", "latency p99 nft": "not measured",
		"idle CPU ": "met", "idle first packet ": "missed",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// Every target is about a figure that there is.
func TestTargetsMeasurable(t *testing.T) {
	forwarders, _ := Names()
	for _, x := range targets() {
		found := false
		for _, w := range works() {
			for _, m := range w.metrics {
				found = found || w.name == x.Work && m.Name == x.Metric && m.LowerIsBetter == x.AtMost
			}
		}
		if !found {
			t.Errorf("%+v: no such figure", x)
		}
		if x.Against != "" && !strings.Contains(strings.Join(forwarders, " ")+" ", x.Against+" ") {
			t.Errorf("%+v: no such forwarder", x)
		}
	}
}

func TestWriteText(t *testing.T) {
	var b bytes.Buffer
	if err := sample().WriteText(&b); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/table.md"
	if *update {
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("%s: %s", golden, d)
	}
}

func TestWriteJSON(t *testing.T) {
	var b bytes.Buffer
	want := sample()
	if err := want.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got Report
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, &got); d != "" {
		t.Error(d)
	}
}

func TestFailures(t *testing.T) {
	if d := cmp.Diff([]string{"nginx, http: it burns"}, sample().Failures()); d != "" {
		t.Error(d)
	}
}

func TestInstall(t *testing.T) {
	if got, want := Install(sample().Lacks), "apt-get install dpdk-dev iperf3"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Install(nil); got != "" {
		t.Errorf("nothing is missing: %q", got)
	}
}

// The directory has a page whose links lead somewhere, charts that are XML,
// nothing of former runs, and what is not ours is left alone.
func TestWriteDir(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{chartFile(Idle, idleFirst), "architecture.svg", profileFile} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := sample().WriteDir(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if d := cmp.Diff([]string{PageFile, "architecture.svg", "http-connections.svg", ReportFile, profileFile}, names); d != "" {
		t.Error(d)
	}
	page, err := os.ReadFile(filepath.Join(dir, PageFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names[2:] {
		if !bytes.Contains(page, []byte("("+name+")")) {
			t.Errorf("the page has no link to %s", name)
		}
	}
	chart, err := os.ReadFile(filepath.Join(dir, "http-connections.svg"))
	if err != nil {
		t.Fatal(err)
	}
	bars := 0
	for d := xml.NewDecoder(bytes.NewReader(chart)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, chart)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	if bars != 2 {
		t.Errorf("%d bars, want one for each that has figures:\n%s", bars, chart)
	}
}

// Nothing is written where another page would be lost.
func TestCheckDir(t *testing.T) {
	for _, c := range []struct {
		name, page string // no page if empty
		want       error
	}{
		{"no page", "", nil},
		{"own", pageTitle + "\n\nWritten by", nil},
		{"another's", "# Documentation\n" + pageTitle + "\n", ErrOptions},
		{"begins alike", pageTitle + " and pears\n", ErrOptions},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			chart := filepath.Join(dir, chartFile(HTTP, "connections"))
			if c.page != "" {
				if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, PageFile), []byte(c.page), 0o600),
					os.WriteFile(chart, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if err := CheckDir(dir); !errors.Is(err, c.want) {
				t.Errorf("check: %v, want %v", err, c.want)
			}
			if err := sample().WriteDir(dir); !errors.Is(err, c.want) {
				t.Errorf("write: %v, want %v", err, c.want)
			}
			if c.want == nil {
				return
			}
			page, err := os.ReadFile(filepath.Join(dir, PageFile))
			if err != nil || string(page) != c.page {
				t.Errorf("the page is %q now, %v", page, err)
			}
			if _, err := os.Stat(chart); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAdopt: what an earlier report has found out stays, and is shown.
func TestAdopt(t *testing.T) {
	name := filepath.Join(t.TempDir(), "peers.json")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sample().WriteJSON(f), f.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := ReadReport(name)
	if err != nil {
		t.Fatal(err)
	}
	d := rowData{arrangement: Arrangement{NearRPS, FarRPS}}
	if !d.adopt(r, HTTP, L4fwd) || d.arrangement != (Arrangement{NearSender, FarSender}) || len(d.trials) != 3 {
		t.Errorf("%+v", d)
	}
	tried := r.trials()
	if tried == nil || tried.CPU != r.Host.CPU || !tried.Date.Equal(r.Date) {
		t.Errorf("tried: %+v", tried)
	}
	if next := (&Report{Adopted: tried, Host: Host{CPU: "another"}}); next.trials() != tried {
		t.Error("a report with another one's arrangements says that they were tried for it")
	}
	var page strings.Builder
	r.Adopted = &Trials{Date: r.Date, CPU: "some CPU"}
	if r.writeTrials(&page); !strings.Contains(page.String(), "times on 2026-11-22, some CPU |") {
		t.Error(page.String())
	}
	for _, c := range []struct {
		r               *Report
		work, forwarder string
	}{{nil, HTTP, L4fwd}, {r, Iperf1, L4fwd}, {r, HTTP, Routing}} {
		if d := (rowData{}); d.adopt(c.r, c.work, c.forwarder) || d.adopted {
			t.Errorf("%s %s: %+v", c.work, c.forwarder, d)
		}
	}
	if _, err := ReadReport(name + "x"); err == nil {
		t.Error("read what is not there")
	}
}
