package peers

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

func TestConfigIsGood(t *testing.T) {
	for _, mode := range []string{"busy", "adaptive"} {
		file := filepath.Join(t.TempDir(), "l4fwd.yaml")
		if err := os.WriteFile(file, []byte(l4fwdConfig(1, mode)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := config.Load(file); err != nil {
			t.Error(err)
		}
	}
}

func TestOptions(t *testing.T) {
	good := Options{CPUs: CPUs{0, 1}}
	for name, change := range map[string]func(*Options){
		"rounds":    func(o *Options) { o.Rounds = -1 },
		"duration":  func(o *Options) { o.Duration = -1 },
		"calibrate": func(o *Options) { o.Calibrate = -1 },
		"one CPU":   func(o *Options) { o.CPUs = CPUs{1, 1} },
		"CPU":       func(o *Options) { o.CPUs = CPUs{-1, 1} },
		"no CPU":    func(o *Options) { o.CPUs = CPUs{0, 1023} },
		"no work":   func(o *Options) { o.Only, o.Skip = []string{L4fwd, HTTP}, []string{HTTP} },
		"no lane":   func(o *Options) { o.Only = []string{Testpmd, HTTP} },
		"name":      func(o *Options) { o.Only = []string{"varnish"} },
		"skip":      func(o *Options) { o.Skip = []string{"varnish"} },
	} {
		o := good
		change(&o)
		if _, err := Run(context.Background(), o); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWants(t *testing.T) {
	forwarders, all := Names()
	for _, c := range []struct {
		only, skip []string
		name       string
		among      []string
		want       bool
	}{
		{nil, nil, Nft, forwarders, true},
		{[]string{HTTP}, nil, Nft, forwarders, true},
		{[]string{HTTP}, nil, Iperf1, all, false},
		{[]string{HTTP, L4fwd}, nil, Nft, forwarders, false},
		{[]string{HTTP, L4fwd}, nil, L4fwd, forwarders, true},
		{nil, []string{Nft}, Nft, forwarders, false},
		{[]string{Nft}, []string{Nft}, Nft, forwarders, false},
	} {
		if got := (&Options{Only: c.only, Skip: c.skip}).wants(c.name, c.among); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

// l4fwd and two of its peers go through every kind of work once, as the command
// would have them, and nothing is left.
func TestRun(t *testing.T) {
	// It takes 20 s, but many times that where others have the CPUs.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	executable, err := testbed.Build(ctx, "./cmd/l4fwd", false)
	if err != nil {
		t.Fatal(err)
	}
	// Where a machine stands still for as long as a measurement takes nothing arrives, which
	// says nothing.
	nothing := regexp.MustCompile(`: wrk: 0 requests,|: nothing arrived of \d+ datagrams$|: iperf3 sent \d+ bytes, received 0,`)
	var rep *Report
	for try := 1; ; try++ {
		rep, err = Run(ctx, Options{
			Executable: executable, Rounds: 1, Duration: 300 * time.Millisecond, CPUs: CPUs{0, 1},
			Only: []string{L4fwd, Nft, Nginx, UDP256, HTTP, Latency, Iperf1}, Note: func(s string) { t.Log(s) },
		})
		if err != nil {
			t.Fatal(err)
		}
		f := rep.Failures()
		if len(f) > 0 && try < 3 && !slices.ContainsFunc(f, func(s string) bool { return !nothing.MatchString(s) }) {
			continue
		}
		if len(f) > 0 {
			t.Error(strings.Join(f, "\n"))
		}
		break
	}
	if len(rep.Lacks) > 0 {
		t.Errorf("tests need them: %s", Install(rep.Lacks))
	}
	got := map[string][]string{}
	for _, w := range rep.Works {
		for _, m := range w.Metrics {
			for _, row := range m.Rows {
				if len(row.Rounds) != 1 || row.Median <= 0 {
					t.Errorf("%s, %s, %s: %+v", w.Name, m.Name, row.Forwarder, row)
				}
				got[w.Name+" "+m.Name] = append(got[w.Name+" "+m.Name], row.Forwarder)
			}
		}
	}
	all := []string{L4fwd, Nft, Nginx}
	want := map[string][]string{
		"udp256 forwarded": {L4fwd, Nft}, "udp256 upper quintile of 100 ms": {L4fwd, Nft},
		"http connections": all, "http p50": all, "http p99": all,
		"latency p50": all, "latency p99": all, "latency requests": all,
		"iperf1 received": all,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// A run that is cut short takes down what it has.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err := Run(ctx, Options{
		Rounds: 1, Duration: time.Minute, CPUs: CPUs{0, 1}, Only: []string{Routing, HTTP}, Calibrate: time.Second,
		Note: func(string) { cancel() },
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if names, err := testbed.CloseAll(); len(names) > 0 || err != nil {
		t.Errorf("left: %v, %v", names, err)
	}
}

// diesUnseen is a forwarder that is found dead in the end.
type diesUnseen struct{}

func (diesUnseen) start(context.Context, *network, traffic) error { return nil }
func (diesUnseen) stop() error                                    { return errEnded }

// A report outlives the taking down.
func TestEnd(t *testing.T) {
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	failed := errors.New("it does not work")
	good := &Report{}
	for _, c := range []struct {
		name string
		ctx  context.Context
		fwd  forwarder
		rep  *Report
		err  error
		want *Report
		is   []error
	}{
		{"well", t.Context(), &kernel{}, good, nil, good, nil},
		{"not down", t.Context(), diesUnseen{}, good, nil, good, []error{errEnded}},
		{"failed, not down", t.Context(), diesUnseen{}, nil, failed, nil, []error{failed, errEnded}},
		{"interrupted", canceled, &kernel{}, good, nil, nil, []error{context.Canceled}},
		{"interrupted, not down", canceled, diesUnseen{}, good, nil, nil, []error{errEnded}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &run{dir: t.TempDir(), lanes: []*lane{{net: &network{}, fwd: c.fwd}}}
			rep, err := r.end(c.ctx, c.rep, c.err)
			if rep != c.want || (err == nil) != (c.is == nil) {
				t.Errorf("report %v, error %v", rep, err)
			}
			for _, want := range c.is {
				if !errors.Is(err, want) {
					t.Errorf("%v is not in %v", want, err)
				}
			}
			if _, err := os.Stat(r.dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("files are left: %v", err)
			}
		})
	}
}

// The threads of threaded NAPI are found, and stay where they are told to.
func TestNAPIThreads(t *testing.T) {
	n, err := newNetwork(filepath.Join(t.TempDir(), "n"), CPUs{0, 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	})
	k := &kernel{}
	if err := n.arrange(t.Context(), Arrangement{NearThreadForward, FarRPS}); err != nil {
		t.Fatal(err)
	}
	if err := k.start(t.Context(), n, udp); err != nil {
		t.Fatal(err)
	}
	if err := n.settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	pids, err := napiThreads(n.l0)
	if err != nil || len(pids) != 1 {
		t.Fatalf("threads %v, %v", pids, err)
	}
	if got, err := affinity(pids[0]); err != nil || got != "1" {
		t.Errorf("the thread may run on %s, %v", got, err)
	}
	// And back, with everything else.
	n.now = Arrangement{NearSender, FarSender}
	if err := errors.Join(n.settle(t.Context()), k.stop()); err != nil {
		t.Fatal(err)
	}
	if pids, err := napiThreads(n.l0); err != nil || len(pids) != 0 {
		t.Errorf("threads that are left: %v, %v", pids, err)
	}
}

// affinity is the list of CPUs of a thread.
func affinity(pid int) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return "", err
	}
	return field(b, "Cpus_allowed_list", ":"), nil
}
