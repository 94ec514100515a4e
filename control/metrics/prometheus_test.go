package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// prometheus is a Prometheus that reads both pages once a second, in a namespace of its
// own.
type prometheus struct {
	t    *testing.T
	http http.Client
}

const (
	servedAt     = "127.0.0.1:9464"
	prometheusAt = "127.0.0.1:9090"
)

func startPrometheus(t *testing.T, source func(context.Context) (*Sample, error)) *prometheus {
	t.Helper()
	ns, err := testbed.NewNamespace("prometheus")
	if err != nil {
		t.Fatal(err)
	}
	l, err := ns.Listen("tcp", servedAt)
	if err != nil {
		t.Fatal(err)
	}
	s, done := New(source, nil, nil), make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	dir := t.TempDir()
	conf := filepath.Join(dir, "prometheus.yml")
	rules, err := filepath.Abs(rulesFile)
	if err == nil {
		err = os.WriteFile(conf, fmt.Appendf(nil, `
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - {job_name: l4fwd, static_configs: [{targets: [%q]}]}
  - {job_name: l4fwd-detail, metrics_path: /metrics/detail, static_configs: [{targets: [%q]}]}
`, rules, servedAt, servedAt), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	said, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := ns.Command(context.Background(), "prometheus", "--config.file="+conf, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+prometheusAt)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &prometheus{t: t, http: http.Client{Transport: &http.Transport{DialContext: ns.Dialer(5 * time.Second).DialContext}}}
	t.Cleanup(func() {
		p.http.CloseIdleConnections()
		if err := ns.Close(); err != nil { // and Prometheus with it
			t.Error(err)
		}
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := said.Close(); err != nil {
			t.Error(err)
		}
		if b, err := os.ReadFile(said.Name()); t.Failed() {
			t.Logf("%v\n%s", err, b)
		}
	})
	return p
}

// answer is what Prometheus says to a question.
type answer struct {
	Status, Error string
	Data          struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
		}
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
}

// ask is an answer, or false as long as Prometheus does not listen.
func (p *prometheus) ask(path string, query url.Values) (a answer, ok bool) {
	r, err := p.http.Get("http://" + prometheusAt + path + "?" + query.Encode())
	if err != nil {
		return a, false
	}
	defer func() { _ = r.Body.Close() }()
	return a, json.NewDecoder(r.Body).Decode(&a) == nil
}

// TestDashboardAnswers: a real Prometheus that reads the pages has an answer to every
// query of the dashboard, and can evaluate all alerts.
func TestDashboardAnswers(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	s := sampleOf(4, 4, 2, random)
	p := startPrometheus(t, func(context.Context) (*Sample, error) {
		// A copy, in which everything has happened a few times more.
		next := sampleOf(4, 4, 2, nil)
		next.Workers, next.NICs = deepCopy(s.Workers), deepCopy(s.NICs)
		grow(reflect.ValueOf(next.Workers))
		grow(reflect.ValueOf(next.NICs))
		s = next
		return s, nil
	})
	d := readDashboard(t)
	missing, _ := d.queries()
	delete(missing, "annotation Started") // which would be a restart
	var a answer
	for end := time.Now().Add(time.Minute); len(missing) > 0 && time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		for where, expr := range missing {
			var ok bool
			if a, ok = p.ask("/api/v1/query", url.Values{"query": {expr}}); !ok {
				break
			}
			if a.Status != "success" {
				t.Fatalf("%s: %s\n%s", where, a.Error, expr)
			}
			if len(a.Data.Result) > 0 && a.Data.Result[0].Value[1] != "NaN" {
				delete(missing, where)
			}
		}
	}
	for where, expr := range missing {
		t.Errorf("no answer: %s: %s", where, expr)
	}
	n := 0
	for end := time.Now().Add(20 * time.Second); n < len(rules(t)) && time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		n = 0
		a, _ = p.ask("/api/v1/rules", nil)
		for _, g := range a.Data.Groups {
			for _, r := range g.Rules {
				if r.Health == "ok" {
					n++
				} else if r.LastError != "" {
					t.Fatalf("%s: %s", r.Name, r.LastError)
				}
			}
		}
	}
	if want := len(rules(t)); n != want {
		t.Errorf("%d alerts evaluated, of %d: %+v", n, want, a)
	}
}

// deepCopy copies by way of JSON, which has all that is counted.
func deepCopy[T any](v T) (out T) {
	b, err := json.Marshal(v)
	if err == nil {
		err = json.NewDecoder(strings.NewReader(string(b))).Decode(&out)
	}
	if err != nil {
		panic(err)
	}
	return out
}

// grow adds something to all counters.
func grow(v reflect.Value) {
	switch v.Kind() {
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			grow(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			grow(v.Field(i))
		}
	case reflect.Uint64:
		v.SetUint(v.Uint() + 1000)
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1000)
	}
}
