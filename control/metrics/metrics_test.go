package metrics

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
)

// sampleOf makes a sample of a site of that size, every figure in it drawn at random, or
// zero where random is nil.
func sampleOf(services, backends, workers int, random *rand.Rand) *Sample {
	s := &Sample{Started: time.Unix(1e9, 0), Loaded: time.Unix(1e9+1, 0)}
	for i := range services {
		svc := Service{Name: fmt.Sprintf("service-%d", i), ID: i, QUIC: i%4 == 1, Handshakes: i%2 == 0}
		for j := range backends {
			svc.Backends = append(svc.Backends, Backend{
				Name: fmt.Sprintf("10.%d.%d.%d:8080", i>>8, i&255, j), ID: i*backends + j, Weight: uint32(j), State: State(j) % numStates,
				Checks: &Checks{}, Judged: true, Suspect: j == 1, Panic: j == 1 && i%2 == 0,
			})
		}
		s.Services = append(s.Services, svc)
	}
	for range workers {
		s.Workers = append(s.Workers, Worker{
			Backends: make([]dataplane.BackendCount, services*backends), Services: make([]dataplane.ServiceCount, services),
			Handshakes: make([]dataplane.Handshakes, services),
		})
	}
	s.NICs = []NIC{{Name: "eth1", Queues: make([]afxdp.Stats, workers)}, {Name: `a"b\c`}}
	if random != nil {
		scatter(random, reflect.ValueOf(s.Workers))
		scatter(random, reflect.ValueOf(s.NICs))
	}
	return s
}

// scatter writes random figures wherever there are any.
func scatter(random *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			scatter(random, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			scatter(random, v.Field(i))
		}
	case reflect.Uint64:
		v.SetUint(random.Uint64N(1e9))
	case reflect.Int, reflect.Int64:
		v.SetInt(random.Int64N(1e9))
	case reflect.Bool:
		v.SetBool(true)
	}
}

func text(t testing.TB, families []family, s *Sample) string {
	t.Helper()
	var b bytes.Buffer
	if err := newWriter(&b).page(families, s); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestText: the format, down to the byte.
func TestText(t *testing.T) {
	var times dataplane.Times
	times.Buckets[0], times.Buckets[2], times.Buckets[dataplane.NumTimes-1], times.Micros = 3, 2, 1, 9_500_000
	got := text(t, []family{
		{name: "none_total", kind: counter, help: "Without labels.", emit: func(w *writer, _ *Sample) { w.count(1<<64 - 1) }},
		{name: "two", kind: gauge, help: "With two.", labels: []string{"a", "b"}, emit: func(w *writer, _ *Sample) {
			w.number(0.25, "x", "a\"b\\c\nd")
			w.number(-3, "", "é")
		}},
		{name: "took_seconds", kind: histogram, help: "Times.", labels: []string{"side"}, emit: func(w *writer, _ *Sample) { w.times(&times, "s") }},
	}, nil)
	want := `# HELP none_total Without labels.
# TYPE none_total counter
none_total 18446744073709551615
# HELP two With two.
# TYPE two gauge
two{a="x",b="a\"b\\c\nd"} 0.25
two{a="",b="é"} -3
# HELP took_seconds Times.
# TYPE took_seconds histogram
`
	for i := range dataplane.NumTimes {
		n := 3
		le := fmt.Sprint(float64(int(32)<<i) / 1e6)
		switch {
		case i == dataplane.NumTimes-1:
			n, le = 6, "+Inf"
		case i >= 2:
			n = 5
		}
		want += fmt.Sprintf("took_seconds_bucket{side=\"s\",le=\"%s\"} %d\n", le, n)
	}
	want += "took_seconds_sum{side=\"s\"} 9.5\ntook_seconds_count{side=\"s\"} 6\n"
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestFailedWriter: who hangs up is told of once, and nothing more is written to him.
func TestFailedWriter(t *testing.T) {
	r, w := io.Pipe()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := newWriter(w).page(detail, sampleOf(300, 10, 2, nil)); err != io.ErrClosedPipe { //nolint:errorlint // as it is
		t.Errorf("%v", err)
	}
}

var series = regexp.MustCompile(`^([a-z0-9_]+)(\{(?:[a-z_]+="(?:[^"\\]|\\.)*",?)+\})? (\S+)$`)

// seriesOf are the names and labels of a page's series, each once, and their values.
func seriesOf(t *testing.T, page string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(page) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "# ") {
			continue
		}
		m := series.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("not a series: %s", line)
		}
		if _, twice := out[m[1]+m[2]]; twice {
			t.Errorf("twice: %s", line)
		}
		out[m[1]+m[2]] = m[3]
	}
	return out
}

// TestSeriesFromTheStart: what has happened makes no series that were not there before,
// every drop and outcome has one, and no series is in both pages.
func TestSeriesFromTheStart(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	names := func(m map[string]string) []string {
		var out []string
		for k := range m {
			out = append(out, k)
		}
		slices.Sort(out)
		return out
	}
	both := map[string]bool{}
	for page, families := range map[string][]family{"totals": totals, "detail": detail} {
		idle := names(seriesOf(t, text(t, families, sampleOf(5, 3, 2, nil))))
		busy := names(seriesOf(t, text(t, families, sampleOf(5, 3, 2, random))))
		if d := cmp.Diff(idle, busy); d != "" {
			t.Errorf("%s: %s", page, d)
		}
		for _, n := range idle {
			if both[n] {
				t.Errorf("in both pages: %s", n)
			}
			both[n] = true
		}
	}
	for v := range dataplane.NumVerdicts {
		name := fmt.Sprintf(`l4fwd_outcomes_total{outcome="%v"}`, v)
		if v.IsDrop() {
			name = fmt.Sprintf(`l4fwd_drops_total{reason="%v"}`, v)
		}
		if !both[name] {
			t.Errorf("no %s", name)
		}
	}
	for _, name := range []string{
		`l4fwd_service_backends{service="service-0",state="down"}`, `l4fwd_nic_up{nic="a\"b\\c"}`,
		`l4fwd_backend_bytes_total{service="service-4",backend="10.0.4.2:8080",worker="1",direction="to_clients"}`,
		`l4fwd_service_handshake_seconds_bucket{service="service-2",side="client",le="+Inf"}`,
	} {
		if !both[name] {
			t.Errorf("no %s", name)
		}
	}
}

// TestLabelsClosed: labels are those whose values are few and not a client's to choose.
func TestLabelsClosed(t *testing.T) {
	closed := []string{
		"service", "backend", "worker", "nic", "queue", "reason", "outcome", "direction", "side", "state", "decision", "result",
		"ring", "call", "what", "stage", "version", "go_version", "at",
	}
	seen := map[string]bool{}
	for _, f := range concat(totals, detail) {
		if seen[f.name] {
			t.Errorf("two of %s", f.name)
		}
		seen[f.name] = true
		for _, l := range f.labels {
			if !slices.Contains(closed, l) {
				t.Errorf("%s has label %s", f.name, l)
			}
		}
	}
}

// TestFigures: what is in the sample comes out where it belongs, and sums are sums.
func TestFigures(t *testing.T) {
	s := sampleOf(2, 2, 2, nil)
	for i := range s.Workers {
		w, n := &s.Workers[i], uint64(i+1)
		w.Counts = dataplane.Counts{Received: 10 * n, Opened: 100 * n, BusyNanos: 1_500_000_000 * n}
		w.Counts.Verdicts[dataplane.DropTTL], w.Counts.Verdicts[dataplane.Replied] = 7*n, 9*n
		w.Room = dataplane.Room{Flows: 3 * i, MaxFlows: 1000, HalfOpen: i, MaxHalfOpen: 250}
		w.Backends[1] = dataplane.BackendCount{Flows: n, Active: int64(n), Packets: [2]uint64{2 * n, 3 * n}, Bytes: [2]uint64{200 * n, 300 * n}}
		w.Former = dataplane.BackendCount{Packets: [2]uint64{1, 0}} // of a backend that is gone
		w.Handshakes[0].Client.Buckets[1], w.Handshakes[0].Client.Micros = n, 50*n
		w.AllHandshakes = w.Handshakes[0]
		w.Services[1].PortsExhausted = n
	}
	s.Reloads, s.ReloadsRefused, s.LastRefused = 3, 2, true
	s.WrongTokens = WrongTokens{Web: 4, Admin: 5}
	s.Discovery = &Discovery{Connected: true, Refused: 6}
	s.Services[1].Backends[1].Suspect = false
	s.NICs[0].Queues[0].Kernel.RxRingFull, s.NICs[0].Queues[1].Kernel.RxRingFull = 4, 5
	got := seriesOf(t, text(t, totals, s)+text(t, detail, s))
	for name, want := range map[string]string{
		`l4fwd_packets_total{direction="to_backends"}`: "8", `l4fwd_packets_total{direction="to_clients"}`: "9",
		`l4fwd_bytes_total{direction="to_backends"}`: "600", `l4fwd_drops_total{reason="ttl_exceeded"}`: "21",
		`l4fwd_outcomes_total{outcome="replied"}`: "27", `l4fwd_frames_received_total`: "30", `l4fwd_flows_opened_total`: "300",
		`l4fwd_flows`: "3", `l4fwd_flows_limit`: "2000", `l4fwd_half_open_flows`: "1", `l4fwd_half_open_flows_limit`: "500",
		`l4fwd_worker_busy_seconds_total{worker="1"}`: "3", `l4fwd_workers`: "2",
		`l4fwd_handshake_seconds_count{side="client"}`: "3", `l4fwd_handshake_seconds_sum{side="client"}`: "0.00015",
		`l4fwd_handshake_seconds_bucket{side="client",le="3.2e-05"}`:     "0",
		`l4fwd_handshake_seconds_bucket{side="client",le="6.4e-05"}`:     "3",
		`l4fwd_handshake_seconds_count{side="backend"}`:                  "0",
		`l4fwd_nic_lost_packets_total{nic="eth1",reason="rx_ring_full"}`: "9", `l4fwd_nic_up{nic="eth1"}`: "0",
		`l4fwd_service_backends{service="service-0",state="up"}`: "1", `l4fwd_service_backends{service="service-0",state="standby"}`: "1",
		`l4fwd_service_suspect_backends{service="service-0"}`: "1", `l4fwd_service_suspect_backends{service="service-1"}`: "0",
		`l4fwd_service_panic_backends{service="service-0"}`: "1", `l4fwd_service_panic_backends{service="service-1"}`: "0",
		`l4fwd_backend_suspect{service="service-0",backend="10.0.0.1:8080"}`: "1", `l4fwd_backend_suspect{service="service-0",backend="10.0.0.0:8080"}`: "0",
		`l4fwd_service_flows{service="service-0"}`:                                                                   "3",
		`l4fwd_service_ports_exhausted_total{service="service-1"}`:                                                   "3",
		`l4fwd_service_quic_datagrams_total{service="service-1",result="routed"}`:                                    "0",
		`l4fwd_backend_flows{service="service-0",backend="10.0.0.1:8080",worker="1"}`:                                "2",
		`l4fwd_backend_packets_total{service="service-0",backend="10.0.0.1:8080",worker="0",direction="to_clients"}`: "3",
		`l4fwd_service_handshake_seconds_count{service="service-0",side="client"}`:                                   "3",
		`l4fwd_worker_drops_total{worker="1",reason="ttl_exceeded"}`:                                                 "14",
		`process_start_time_seconds`:                                                                                 "1e+09", `l4fwd_config_loaded_time_seconds`: "1.000000001e+09",
		`l4fwd_config_last_reload_successful`: "0", `l4fwd_config_reloads_total{result="applied"}`: "3",
		`l4fwd_config_reloads_total{result="refused"}`: "2", `l4fwd_wrong_tokens_total{at="web"}`: "4", `l4fwd_wrong_tokens_total{at="admin"}`: "5",
		`l4fwd_discovery_connected`: "1", `l4fwd_discovery_current`: "0", `l4fwd_discovery_refused_documents`: "6",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %s", name, got[name], want)
		}
	}
}

// TestPromtool: the program that Prometheus has for it finds nothing to say about the
// pages.
func TestPromtool(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	for page, families := range map[string][]family{"totals": totals, "detail": detail} {
		cmd := exec.Command("promtool", "check", "metrics")
		cmd.Stdin = strings.NewReader(text(t, families, sampleOf(4, 3, 2, random)))
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", page, err, out)
		}
	}
}

// TestManyBackends: a site of 10,000 services with 10 backends each, on two workers,
// makes a page that costs a second or two and no memory to speak of.
func TestManyBackends(t *testing.T) {
	services := 10_000
	if testing.Short() {
		services /= 10
	}
	s := sampleOf(services, 10, 2, nil)
	for page, families := range map[string][]family{"totals": totals, "detail": detail} {
		var size countingWriter
		start := time.Now()
		var err error
		allocs := testing.AllocsPerRun(1, func() {
			size = 0
			err = newWriter(&size).page(families, s)
		})
		took := time.Since(start) / 2
		t.Logf("%s: %d MB in %v, %.0f allocations", page, size>>20, took, allocs)
		if err != nil || int(allocs) > 10*services { // of 200 series each
			t.Errorf("%s: %v, %v, %.0f allocations", page, err, took, allocs)
		}
	}
}

type countingWriter int64

func (w *countingWriter) Write(b []byte) (int, error) {
	*w += countingWriter(len(b))
	return len(b), nil
}

var documented = regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| (counter|gauge|histogram) \\| (\\S.*?) \\| \\S.*\\.( |\\S)* \\|$")

// TestDocumented: docs/metrics.md has a row for every metric, in the order of the pages,
// with its type and labels, and none for another.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	type row struct{ Name, Kind, Labels string }
	var got, want []row
	for _, m := range documented.FindAllStringSubmatch(string(b), -1) {
		got = append(got, row{m[1], m[2], m[3]})
	}
	for _, f := range concat(totals, detail) {
		labels := "–"
		if len(f.labels) > 0 {
			labels = "`" + strings.Join(f.labels, "`, `") + "`"
		}
		want = append(want, row{f.name, string(f.kind), labels})
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
