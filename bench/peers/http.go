package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// wholeSeconds is a duration as wrk and iperf3 take it.
func wholeSeconds(d time.Duration) int {
	return int(max((d+time.Second-1)/time.Second, 1))
}

func measureHTTP(ctx context.Context, _ *run, n *network, k *kind, took time.Duration) ([]float64, error) {
	before, err := passiveOpens(n.server)
	if err != nil {
		return nil, err
	}
	res, err := n.wrk(ctx, took, 64, k.target(portHTTP), "Connection: close")
	if err != nil {
		return nil, err
	}
	after, err := passiveOpens(n.server)
	if err != nil {
		return nil, err
	}
	if opened := after - before; opened < res.requests {
		return nil, fmt.Errorf("%w: %d requests, the server saw %d connections", ErrWrong, res.requests, opened)
	}
	return []float64{res.rate, res.p50, res.p99}, nil
}

func measureLatency(ctx context.Context, _ *run, n *network, k *kind, took time.Duration) ([]float64, error) {
	res, err := n.wrk(ctx, took, 1, k.target(portHTTP), "")
	return []float64{res.p50, res.p99, res.rate}, err
}

// wrkPatience is what wrk counts an answer as an error after. The two seconds that it has
// by itself a busy machine may stand still for, which the latencies then show.
const wrkPatience = "20s"

// wrk runs wrk in the client's namespace, on the load's CPU.
func (n *network) wrk(ctx context.Context, took time.Duration, connections int, to netip.AddrPort, header string) (wrkResult, error) {
	args := []string{"-t1", "-c" + strconv.Itoa(connections), fmt.Sprintf("-d%ds", wholeSeconds(took)), "--timeout", wrkPatience, "--latency"}
	if header != "" {
		args = append(args, "-H", header)
	}
	args = pinned(n.cpus.Load, "wrk", append(args, "http://"+to.String()+"/")...)
	out, err := n.client.Command(ctx, args[0], args[1:]...).Output()
	if err != nil {
		return wrkResult{}, err
	}
	return parseWrk(string(out))
}

// wrkResult is what wrk printed: requests a second, latencies in microseconds.
type wrkResult struct {
	requests       uint64
	rate, p50, p99 float64
}

var (
	wrkRequests = regexp.MustCompile(`(?m)^\s*(\d+) requests in `)
	wrkRate     = regexp.MustCompile(`(?m)^Requests/sec:\s*([0-9.]+)`)
	wrkQuantile = regexp.MustCompile(`(?m)^\s*(50|99)%\s+([0-9.]+)(us|ms|s|m)\s*$`)
	wrkErrors   = regexp.MustCompile(`(?m)^\s*(Socket errors: .*|Non-2xx or 3xx responses: .*)$`)
)

// wrkUnits are wrk's units of time in microseconds.
var wrkUnits = map[string]float64{"us": 1, "ms": 1e3, "s": 1e6, "m": 60e6}

// parseWrk reads wrk's report. Any error of a client makes it worthless.
func parseWrk(out string) (r wrkResult, err error) {
	if m := wrkErrors.FindStringSubmatch(out); m != nil {
		return r, fmt.Errorf("%w: wrk: %s", ErrWrong, m[1])
	}
	requests, rate := wrkRequests.FindStringSubmatch(out), wrkRate.FindStringSubmatch(out)
	if requests == nil || rate == nil {
		return r, fmt.Errorf("%w: wrk printed %q", ErrWrong, out)
	}
	var errs [2]error
	r.requests, errs[0] = strconv.ParseUint(requests[1], 10, 64)
	r.rate, errs[1] = strconv.ParseFloat(rate[1], 64)
	if err := errors.Join(errs[:]...); err != nil {
		return r, fmt.Errorf("wrk: %w", err)
	}
	for _, m := range wrkQuantile.FindAllStringSubmatch(out, -1) {
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return r, fmt.Errorf("wrk: %w", err)
		}
		v *= wrkUnits[m[3]]
		if m[1] == "50" {
			r.p50 = v
		} else {
			r.p99 = v
		}
	}
	if r.requests == 0 || r.p50 == 0 || r.p99 < r.p50 {
		return r, fmt.Errorf("%w: wrk: %d requests, p50 %v, p99 %v", ErrWrong, r.requests, r.p50, r.p99)
	}
	return r, nil
}

// passiveOpens is how many TCP connections have been opened to a namespace.
func passiveOpens(ns *testbed.Namespace) (opens uint64, err error) {
	var b []byte
	err = ns.Do(func() (err error) {
		b, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("TCP counters of the server: %w", err)
	}
	return parseSNMP(string(b), "Tcp:", "PassiveOpens")
}

// parseSNMP finds a counter in /proc/net/snmp: a line of names, then one of values.
func parseSNMP(text, protocol, name string) (uint64, error) {
	var names []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != protocol {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i := 1; i < min(len(f), len(names)); i++ {
			if names[i] == name {
				return strconv.ParseUint(f[i], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("/proc/net/snmp has no %s %s", protocol, name)
}

// checkTCP has the server tell whom it sees, and compares that with what the
// forwarder is to do.
func (n *network) checkTCP(ctx context.Context, k *kind) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	transport := &http.Transport{DialContext: n.client.Dialer(patience).DialContext, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+k.target(portHTTP).String()+"/", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 256))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	seen, err := netip.ParseAddr(string(body))
	if err != nil {
		return fmt.Errorf("%w: the server answered %q", ErrNAT, body)
	}
	return checkSource(k, seen)
}

// checkSource compares the source address that a server saw with what a forwarder
// is to do.
func checkSource(k *kind, seen netip.Addr) error {
	switch {
	case k.nat && !isLocal(seen):
		return fmt.Errorf("%w: %s, which is no local address", ErrNAT, seen)
	case !k.nat && seen != clientAddr.Addr():
		return fmt.Errorf("%w: %s, not the client's", ErrNAT, seen)
	}
	return nil
}
