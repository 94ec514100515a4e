package peers

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/bench/liveframes"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// wrkOutput is what wrk 4.1.0 prints.
const wrkOutput = `Running 1s test @ http://192.0.2.10:80/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.02ms  512.33us  17.41ms   94.10%
    Req/Sec    18.91k     1.01k   20.02k    80.00%
  Latency Distribution
     50%  987.00us
     75%    2.11ms
     90%    2.34ms
     99%    4.21ms
  18799 requests in 1.00s, 3.00MB read
%sRequests/sec:  18781.21
Transfer/sec:      3.00MB
`

func TestParseWrk(t *testing.T) {
	whole := strings.Replace(wrkOutput, "%s", "", 1)
	for _, c := range []struct {
		name, out string
		want      wrkResult
		err       error
	}{
		{"good", whole, wrkResult{requests: 18799, rate: 18781.21, p50: 987, p99: 4210}, nil},
		{"seconds", strings.Replace(whole, "4.21ms", "1.50s", 1), wrkResult{requests: 18799, rate: 18781.21, p50: 987, p99: 1.5e6}, nil},
		{"minutes", strings.Replace(whole, "4.21ms", "2.00m", 1), wrkResult{requests: 18799, rate: 18781.21, p50: 987, p99: 120e6}, nil},
		{"socket errors", strings.Replace(wrkOutput, "%s", "  Socket errors: connect 0, read 7, write 0, timeout 0\n", 1), wrkResult{}, ErrWrong},
		{"bad status", strings.Replace(wrkOutput, "%s", "  Non-2xx or 3xx responses: 3\n", 1), wrkResult{}, ErrWrong},
		{"no requests", strings.Replace(whole, "18799 requests", "0 requests", 1), wrkResult{}, ErrWrong},
		{"no quantiles", strings.Replace(whole, "50%", "51%", 1), wrkResult{}, ErrWrong},
		{"refused", "unable to connect to 192.0.2.10:80 Connection refused\n", wrkResult{}, ErrWrong},
		{"nothing", "", wrkResult{}, ErrWrong},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseWrk(c.out)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err == nil && got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func TestParseSNMP(t *testing.T) {
	const text = "Ip: Forwarding DefaultTTL\nIp: 2 64\nTcp: RtoAlgorithm ActiveOpens PassiveOpens\nTcp: 1 17 4711\nUdp: InDatagrams\nUdp: 5\n"
	for _, c := range []struct {
		protocol, name string
		want           uint64
		fails          bool
	}{
		{"Tcp:", "PassiveOpens", 4711, false},
		{"Udp:", "InDatagrams", 5, false},
		{"Tcp:", "InDatagrams", 0, true},
		{"Sctp:", "PassiveOpens", 0, true},
	} {
		got, err := parseSNMP(text, c.protocol, c.name)
		if got != c.want || (err != nil) != c.fails {
			t.Errorf("%s %s: %d, %v", c.protocol, c.name, got, err)
		}
	}
}

func TestParseIperf3(t *testing.T) {
	const good = `{"start":{},"end":{"sum_sent":{"bytes":312500000,"bits_per_second":2.5e9,"retransmits":12},"sum_received":{"bytes":300000000,"bits_per_second":2.4e9}}}`
	got, err := testbed.ParseIperf3([]byte(good), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(testbed.Iperf3Result{SentMbps: 2500, ReceivedMbps: 2400, SentBytes: 312_500_000, ReceivedBytes: 300_000_000, Retransmits: 12}, got); d != "" {
		t.Error(d)
	}
	for name, out := range map[string]string{
		"told":  `{"end":{},"error":"unable to connect to server"}`,
		"cut":   good[:40],
		"empty": "",
	} {
		if _, err := testbed.ParseIperf3([]byte(out), nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := testbed.ParseIperf3([]byte(good), errors.New("exit status 1")); err == nil {
		t.Error("a failed client is no error")
	}
}

func TestCheckIperf(t *testing.T) {
	for _, c := range []struct {
		name    string
		r       testbed.Iperf3Result
		streams int
		ok      bool
	}{
		{"all well", testbed.Iperf3Result{ReceivedMbps: 2400, SentBytes: 9 << 20, ReceivedBytes: 8 << 20}, 1, true},
		{"one side for longer", testbed.Iperf3Result{SentMbps: 1200, ReceivedMbps: 2400, SentBytes: 9 << 20, ReceivedBytes: 9 << 20}, 1, true},
		{"blocks under way", testbed.Iperf3Result{ReceivedMbps: 2400, SentBytes: 9 << 20, ReceivedBytes: 9<<20 + 4*iperfBlock}, 4, true},
		{"out of nowhere", testbed.Iperf3Result{ReceivedMbps: 2400, SentBytes: 9 << 20, ReceivedBytes: 9<<20 + 4*iperfBlock + 1}, 4, false},
		{"nothing", testbed.Iperf3Result{SentBytes: 9 << 20}, 1, false},
	} {
		if err := checkIperf(&c.r, c.streams); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrWrong) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestCheckSource(t *testing.T) {
	with, without := &kind{nat: true}, &kind{}
	for _, c := range []struct {
		name string
		k    *kind
		seen string
		ok   bool
	}{
		{"Full-NAT, local address", with, "10.0.1.13", true},
		{"proxy, own address", with, "10.0.1.1", true},
		{"Full-NAT, client", with, "198.51.100.100", false},
		{"Full-NAT, beside the local addresses", with, "10.0.1.11", false},
		{"routing, client", without, "198.51.100.100", true},
		{"routing, local address", without, "10.0.1.13", false},
	} {
		if err := checkSource(c.k, netip.MustParseAddr(c.seen)); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrNAT) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestCheckUDP(t *testing.T) {
	with, without := &kind{nat: true}, &kind{}
	for _, c := range []struct {
		name string
		k    *kind
		sent uint64
		got  liveframes.SinkCount
		want error
	}{
		{"all well", with, 5_000_000, liveframes.SinkCount{Packets: 900_000, From: 900_000}, nil},
		{"what was under way", with, 10, liveframes.SinkCount{Packets: 1000, From: 1000}, nil},
		{"nothing", with, 5_000_000, liveframes.SinkCount{}, ErrWrong},
		{"out of nowhere", with, 5_000_000, liveframes.SinkCount{Packets: 5_200_000, From: 5_200_000}, ErrWrong},
		{"without NAT", with, 5_000_000, liveframes.SinkCount{Packets: 900_000, From: 899_999}, ErrNAT},
		{"not the client's", without, 5_000_000, liveframes.SinkCount{Packets: 900_000}, ErrNAT},
	} {
		if err := errors.Join(checkUDP(c.sent, c.got.Packets), checkNAT(c.k, c.got)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}
