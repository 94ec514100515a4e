package peers

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Names of the works, as --only and --skip take them.
const (
	UDP256  = "udp256"
	UDP50k  = "udp50k"
	HTTP    = "http"
	Iperf1  = "iperf1"
	Iperf4  = "iperf4"
	Latency = "latency"
	Idle    = "idle"
)

// Metric is one of the figures that a work gives.
type Metric struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	// LowerIsBetter is so of times and of what is wasted.
	LowerIsBetter bool `json:"lower_is_better,omitempty"`
	// Charted is what a chart is drawn of.
	Charted bool `json:"charted,omitempty"`
}

// better reports whether a is better than b.
func (m *Metric) better(a, b float64) bool { return a > b != m.LowerIsBetter && a != b }

// work is something that forwarders are made to carry.
type work struct {
	name, title string
	traffic     traffic
	how         string // the command, for the reader
	metrics     []Metric
	chief       int // the metric by which an arrangement is chosen
	tools       []tool
	// measure gives a figure for each metric. The forwarder runs, and what the
	// server sees has been looked at.
	measure func(ctx context.Context, r *run, n *network, k *kind, took time.Duration) ([]float64, error)
}

// Errors of figures that do not count.
var (
	// ErrWrong: clients had errors, or counts do not fit.
	ErrWrong = errors.New("the figure does not count")
	// ErrNAT: the server did not see whom it was to see.
	ErrNAT = errors.New("wrong source address at the server")
)

// works are all of them, in the order of the table.
func works() []work {
	return []work{
		udpWork(UDP256, "64-byte UDP, 256 flows", 256),
		udpWork(UDP50k, "64-byte UDP, 50,000 flows", 50_000), {
			name: HTTP, title: "HTTP, a new connection each, 64 at a time", traffic: tcp,
			how:     "wrk -t1 -c64 --timeout " + wrkPatience + " --latency -H 'Connection: close' http://VIP/",
			metrics: []Metric{{Name: "connections", Unit: "/s", Charted: true}, {Name: "p50", Unit: "µs", LowerIsBetter: true}, {Name: "p99", Unit: "µs", LowerIsBetter: true}},
			tools:   []tool{toolServer, toolWrk},
			measure: measureHTTP,
		}, {
			name: Latency, title: "HTTP, one connection, one request after the other", traffic: tcp,
			how:     "wrk -t1 -c1 --timeout " + wrkPatience + " --latency http://VIP/",
			metrics: []Metric{{"p50", "µs", true, true}, {"p99", "µs", true, true}, {Name: "requests", Unit: "/s"}},
			tools:   []tool{toolServer, toolWrk},
			measure: measureLatency,
		}, iperfWork(Iperf1, 1), iperfWork(Iperf4, 4), idleWork()}
}

func iperfWork(name string, streams int) work {
	title := "bulk TCP, 1 stream"
	if streams > 1 {
		title = fmt.Sprintf("bulk TCP, %d streams", streams)
	}
	return work{
		name: name, title: title, traffic: tcp,
		how:     fmt.Sprintf("iperf3 -c VIP -P %d", streams),
		metrics: []Metric{{Name: "received", Unit: "Mbit/s", Charted: true}},
		tools:   []tool{toolServer, toolIperf},
		measure: func(ctx context.Context, r *run, n *network, k *kind, took time.Duration) ([]float64, error) {
			return measureIperf(ctx, n, k, took, streams)
		},
	}
}
