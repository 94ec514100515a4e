package config

import (
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func timeDraw(t *rapid.T, label string) time.Duration {
	return time.Duration(rapid.Int64Range(0, int64(maxTimeout-minTimeout)).Draw(t, label))
}

func TestParseCPUList(t *testing.T) {
	tests := []struct {
		give string
		want []int
		ok   bool
	}{
		{"", nil, true},
		{"0", []int{0}, true},
		{"2,4-5", []int{2, 4, 5}, true},
		{" 5 , 1-2", []int{5, 1, 2}, true},
		{"8191", []int{8191}, true},
		{"8192", nil, false},
		{"1,", nil, false},
		{",", nil, false},
		{"1-", nil, false},
		{"-1", nil, false},
		{"3-2", nil, false},
		{"1-3,2", nil, false},
		{"01", nil, false},
		{"1 - 2", nil, false},
		{"a", nil, false},
		{"0-99999999999999999999", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.give, func(t *testing.T) {
			got, err := ParseCPUList(tt.give)
			if (err == nil) != tt.ok {
				t.Fatalf("error %v", err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCPUListInverse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfNDistinct(rapid.IntRange(0, 30), 1, 30, rapid.ID[int]).Draw(t, "cpus")
		if rapid.Bool().Draw(t, "sorted") {
			slices.Sort(want)
		}
		got, err := ParseCPUList(formatCPUList(want))
		if err != nil || !slices.Equal(want, got) {
			t.Fatalf("%v became %q, %v, %v", want, formatCPUList(want), got, err)
		}
	})
}

func TestPortRangeInverse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Uint16Range(1, 65535).Draw(t, "a"), rapid.Uint16Range(1, 65535).Draw(t, "b")
		r := PortRange{a, b}
		got, err := ParsePortRange(r.String())
		if a > b {
			if err == nil {
				t.Fatalf("%v accepted", r)
			}
			return
		}
		if err != nil || got != r || r.Len() != int(b)-int(a)+1 {
			t.Fatalf("%v became %v, %v", r, got, err)
		}
	})
}

// The length of an address range, against arithmetic on big integers.
func TestLocalRangeLen(t *testing.T) {
	number := func(a netip.Addr) *big.Int { b := a.As16(); return new(big.Int).SetBytes(b[:]) }
	rapid.Check(t, func(t *rapid.T) {
		b := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "first"))
		first := netip.AddrFrom16(b)
		at := rapid.IntRange(0, 15).Draw(t, "at")
		for i := at; i < 16; i++ {
			b[i] = rapid.Byte().Draw(t, "byte")
		}
		last := netip.AddrFrom16(b)
		if last.Less(first) {
			first, last = last, first
		}
		want := new(big.Int).Sub(number(last), number(first))
		want.Add(want, big.NewInt(1))
		n := maxLocalAddresses + 1
		if want.IsInt64() && want.Int64() <= maxLocalAddresses {
			n = int(want.Int64())
		}
		if got := (LocalRange{First: first, Last: last}).Len(); got != n {
			t.Fatalf("%v-%v: %d, want %d", first, last, got, n)
		}
	})
}

func TestAddrRangeInverse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := [4]byte{10, rapid.Byte().Draw(t, "b"), rapid.Byte().Draw(t, "c"), rapid.Byte().Draw(t, "d")}
		r := LocalRange{First: netip.AddrFrom4(b)}
		r.Last = r.First
		for range rapid.IntRange(0, 500).Draw(t, "more") {
			if next := r.Last.Next(); next.As4()[0] == 10 {
				r.Last = next
			}
		}
		got, err := parseAddrRange(r.String())
		if err != nil || got != r {
			t.Fatalf("%v became %v, %v", r, got, err)
		}
	})
}

func TestDurationInverse(t *testing.T) {
	tests := map[time.Duration]string{
		2*time.Hour + 4*time.Minute: "2h4m", 10 * time.Second: "10s", time.Hour: "1h",
		10 * time.Minute: "10m", time.Hour + time.Second: "1h0m1s", 100 * time.Millisecond: "100ms",
		720 * time.Hour: "720h", 20 * time.Hour: "20h", 90 * time.Second: "1m30s",
	}
	for d, want := range tests {
		if got := formatDuration(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		d := minTimeout + timeDraw(t, "duration")
		if got, err := parseDuration(formatDuration(d)); err != nil || got != d {
			t.Fatalf("%v became %s, %v, %v", d, formatDuration(d), got, err)
		}
	})
}

func TestEnums(t *testing.T) {
	check := func(name string, err error, got, want any) {
		t.Helper()
		if err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	p, err := parseEnum[Protocol](protocolNames, "udp")
	check("protocol", err, p, UDP)
	m, err := parseEnum[Mode](modeNames, "dnat")
	check("mode", err, m, DNAT)
	s, err := parseEnum[Scheduler](schedulerNames, "maglev")
	check("scheduler", err, s, Maglev)
	c, err := parseEnum[ClientAddress](clientAddressNames, "toa")
	check("client address", err, c, ClientAddressTOA)
	r, err := parseEnum[TOANoRoom](toaNoRoomNames, "drop")
	check("toa_no_room", err, r, TOANoRoomDrop)
	u, err := parseEnum[UOAForm](uoaFormNames, "option")
	check("uoa_form", err, u, UOAOption)
	ts, err := parseEnum[Timestamps](timestampsNames, "translate")
	check("timestamps", err, ts, TimestampsTranslate)
	n, err := parseEnum[NoFlow](noFlowNames, "reset")
	check("no_flow", err, n, NoFlowReset)
	k, err := parseEnum[TCPChecks](tcpChecksNames, "off")
	check("tcp_checks", err, k, TCPChecksOff)
	x, err := parseEnum[XDPMode](xdpModeNames, "generic")
	check("XDP mode", err, x, XDPGeneric)
	z, err := parseEnum[ZeroCopy](zeroCopyNames, "off")
	check("zero copy", err, z, ZeroCopyOff)
	b, err := parseEnum[PollMode](pollModeNames, "adaptive")
	check("poll mode", err, b, PollAdaptive)
	l, err := parseEnum[LogLevel](logLevelNames, "error")
	check("log level", err, l, LogError)
	f, err := parseEnum[LogFormat](logFormatNames, "json")
	check("log format", err, f, LogJSON)
	if got := Protocol(0).String() + " " + Mode(9).String(); got != "invalid(0) invalid(9)" {
		t.Error(got)
	}
}

func TestDidYouMean(t *testing.T) {
	known := []string{"services", "interfaces", "cpus", "log_level"}
	tests := map[string]string{
		"service": "did you mean services?", "Interface": "did you mean interfaces?", "cpu": "did you mean cpus?",
		"log-level": "did you mean log_level?", "loglevel": "did you mean log_level?", "sevrices": "did you mean services?",
		"x": "", "": "", "workers": "", "a-very-long-key-that-nobody-could-have-meant-to-write": "",
	}
	for give, want := range tests {
		if got := didYouMean(give, known); got != want {
			t.Errorf("%q: %q, want %q", give, got, want)
		}
	}
}

// The memory of all hash tables is bounded, and who has fewer backends than slots
// told so.
func TestHashTables(t *testing.T) {
	many := func(services, backends int, more string) error {
		var b strings.Builder
		b.WriteString("interfaces: [{name: eth1}]\nservices:\n")
		for i := range services {
			fmt.Fprintf(&b, "- {name: s%d, address: \"192.0.2.%d:%d\", protocol: udp, mode: dnat, scheduler: sh%s, backends: [", i, i%250+1, i/250+1, more)
			for j := range backends {
				fmt.Fprintf(&b, "{address: \"10.0.%d.%d:53\"},", j/250, j%250+1)
			}
			b.WriteString("]}\n")
		}
		_, err := Parse("f", []byte(b.String()))
		return err
	}
	for _, c := range []struct {
		services, backends int
		more, want         string
	}{
		{63, 1, ", hash_table_size: 8388617", ""},
		{64, 1, ", hash_table_size: 8388617", "f:3:76: services[0].scheduler: the hash tables of sh and maglev take 1025 MiB in all services; expected at most 1024 MiB: give the services a smaller hash_table_size"},
		{1, 252, ", hash_table_size: 251", "f:3:97: services[0].hash_table_size: 251 slots for 252 backends; expected one for each at least, better 100"},
	} {
		got := ""
		if err := many(c.services, c.backends, c.more); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%d services of %d backends%s:\n got %s\nwant %s", c.services, c.backends, c.more, got, c.want)
		}
	}
}
