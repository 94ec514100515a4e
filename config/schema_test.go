package config

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func keys[T any](fields []field[T]) (out []string) {
	for _, f := range fields {
		out = append(out, f.key)
	}
	return out
}

func tags(v any) (out []string) {
	for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
		if f.IsExported() {
			out = append(out, f.Tag.Get("yaml"))
		}
	}
	return out
}

// Every field of every struct is a key of the tables, in documented form.
func TestSchemaComplete(t *testing.T) {
	tests := []struct {
		name      string
		got, want []string
	}{
		{"Config", keys(topFields), tags(Config{})},
		{"Interface", keys(interfaceFields), tags(Interface{})},
		{"VLAN", keys(vlanFields), tags(VLAN{})},
		{"Service", keys(serviceFields), tags(Service{})},
		{"Backend", keys(backendFields), tags(Backend{})},
		{"Persistence", keys(persistenceFields), tags(Persistence{})},
		{"QUIC", keys(quicFields), tags(QUIC{})},
		{"HealthCheck", keys(healthFields), tags(HealthCheck{})},
		{"Passive", keys(passiveFields), tags(Passive{})},
		{"Timeouts", keys(timeoutFields), tags(Timeouts{})},
		{"Discovery", keys(discoveryFields), tags(Discovery{})},
		{"Etcd", keys(etcdFields), tags(Etcd{})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			slices.Sort(tt.got)
			slices.Sort(tt.want)
			if diff := cmp.Diff(tt.want, tt.got); diff != "" {
				t.Errorf("(-struct +table):\n%s", diff)
			}
		})
	}
	var times Timeouts
	if got := len(times.all()); got != len(timeoutFields) {
		t.Errorf("Timeouts.all has %d of %d", got, len(timeoutFields))
	}
}

func TestShowDefaults(t *testing.T) {
	var out bytes.Buffer
	if err := ShowDefaults(&out); err != nil {
		t.Fatal(err)
	}
	c, err := Parse("defaults", out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(example(), c, same); diff != "" {
		t.Errorf("example (-want +got):\n%s", diff)
	}
	c.Interfaces, c.LocalAddresses, c.Services = nil, nil, nil
	if diff := cmp.Diff(Defaults(), c, same); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
	for _, key := range slices.Concat(keys(topFields), keys(interfaceFields), keys(vlanFields), keys(localFields),
		keys(serviceFields), keys(persistenceFields), keys(quicFields), keys(healthFields), keys(passiveFields), keys(backendFields), keys(timeoutFields),
		keys(discoveryFields), keys(etcdFields)) {
		if !strings.Contains(out.String(), key+": ") && !strings.Contains(out.String(), key+":\n") {
			t.Errorf("the key %s is not shown", key)
		}
	}
	for line := range strings.Lines(out.String()) {
		if len(line) > 100 {
			t.Errorf("a line of %d: %s", len(line), line)
		}
	}
}

func roundTrip(t interface{ Fatalf(string, ...any) }, c *Config) {
	y, err := c.MarshalYAML()
	if err != nil {
		t.Fatalf("%v", err)
	}
	back, err := Parse("effective", y)
	if err != nil {
		t.Fatalf("%v\n%s", err, y)
	}
	if diff := cmp.Diff(c, back, same); diff != "" {
		t.Fatalf("(-want +got):\n%s\n%s", diff, y)
	}
	if d := Diff(c, back); len(d) > 0 {
		t.Fatalf("Diff of equal configurations: %v", d)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, path := range []string{"testdata/good/contract.yaml", "testdata/good/all.yaml", "testdata/good/halves.yaml", "testdata/good/health.yaml"} {
		t.Run(path, func(t *testing.T) { roundTrip(t, mustLoad(t, path)) })
	}
}

func TestDiff(t *testing.T) {
	const file = "testdata/good/all.yaml"
	tests := []struct {
		name     string
		from, to string // alternately replaced, separated by |
		want     []string
	}{
		{"nothing", "", "", nil},
		{"plain", "log_level: error", "log_level: info", []string{"log_level: error → info"}},
		{"quic", "quic-lb, config_id: 6|0xffff_ffff_ffff_ffff", "quic-lb, config_id: 5|7",
			[]string{"services[quic].quic.config_id: 6 → 5", "services[quic].backends[10.0.2.1:443].server_id: 18446744073709551615 → 7"}},
		{"restart", "frames_per_queue: 128", "frames_per_queue: 256",
			[]string{"frames_per_queue: 128 → 256 (needs a restart)"}},
		{"interface", "[{name: ens1f0np0, vlans: [{id: 1, interface: br0}, {id: 4094, interface: \"true\"}]}]", "[{name: eth1}, {name: eth2, vlans: []}]",
			[]string{`interfaces: [ens1f0np0 with [{id: 1, interface: br0}, {id: 4094, interface: "true"}]] → [eth1 eth2] (needs a restart)`}},
		{"VLAN", "id: 4094", "id: 4093",
			[]string{`interfaces: [ens1f0np0 with [{id: 1, interface: br0}, {id: 4094, interface: "true"}]] → ` +
				`[ens1f0np0 with [{id: 1, interface: br0}, {id: 4093, interface: "true"}]] (needs a restart)`}},
		{"service value", "scheduler: maglev", "scheduler: wrr", []string{"services[web].scheduler: maglev → wrr"}},
		{"service added and removed", "name: dns,", "name: dns2,", []string{
			"services[dns2]: added, udp 192.0.2.10:53 dnat, 1 backends",
			"services[dns]: removed, was udp 192.0.2.10:53 dnat, 1 backends"}},
		{"backends", "10.0.2.2:8080|weight: 0", "10.0.2.3:8080|weight: 7", []string{
			"services[web].backends[10.0.2.3:8080]: added, weight 7",
			"services[web].backends[10.0.2.2:8080]: removed, was weight 0"}},
		{"weight", "weight: 0", "weight: 7", []string{"services[web].backends[10.0.2.2:8080].weight: 0 → 7"}},
		{"service timeout", "tcp_established: 90s", "tcp_established: 91s",
			[]string{"services[web].timeouts.tcp_established: 1m30s → 1m31s"}},
		{"service timeout no longer its own", "{tcp_established: 90s}", "{}",
			[]string{"services[web].timeouts.tcp_established: 1m30s → 3h"}},
		{"global timeout", "tcp_established: 3h", "tcp_established: 4h", []string{"timeouts.tcp_established: 3h → 4h"}},
		{"global option kind", "toa_kind: 253", "toa_kind: 252", []string{"toa_kind: 253 → 252"}},
		{"service option kind", "toa_kind: 200", "toa_kind: 201", []string{"services[web].toa_kind: 200 → 201"}},
		{"global checks", "tcp_checks: off", "tcp_checks: normal", []string{"tcp_checks: off → normal"}},
		{"global drain", "drain_timeout: 0s", "drain_timeout: 5m", []string{"drain_timeout: 0s → 5m"}},
		{"connection log", "1/1_000|connection_log_keep: 1_000", "full|connection_log_keep: 0",
			[]string{"services[dns].connection_log: 1/1000 → full", "connection_log_keep: 1000 → 0"}},
		{"service checks", "tcp_checks: strict", "tcp_checks: off", []string{"services[web].tcp_checks: strict → off"}},
		{"persistence", "{timeout: 100ms, prefix4: 1, prefix6: 128}", "{prefix6: 128}", []string{
			"services[web6].persistence.timeout: 100ms → 0s", "services[web6].persistence.prefix4: 1 → 32"}},
		{"hash table", "hash_table_size: 251", "hash_table_size: 257", []string{"services[dns].hash_table_size: 251 → 257"}},
		{"limit", "max_connections: 1_073_741_824", "max_connections: 5", []string{"services[web].backends[10.0.2.1:8080].max_connections: 1073741824 → 5"}},
		{"locals", "10.0.1.20-10.0.1.21", "10.0.1.21-10.0.1.22", []string{
			"local_addresses[10.0.1.22]: added, ports 20000-29999",
			"local_addresses[10.0.1.20]: removed, was ports 20000-29999"}},
		{"local ports", "20000-29999", "20000-29998", []string{
			"local_addresses[10.0.1.20]: ports 20000-29999 → ports 20000-29998",
			"local_addresses[10.0.1.21]: ports 20000-29999 → ports 20000-29998"}},
		{"global local ports", "2000-3000", "2000-4000", []string{"local_port_range: 2000-3000 → 2000-4000"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := string(read(t, file))
			to := strings.Split(tt.to, "|")
			for i, from := range strings.Split(tt.from, "|") {
				if !strings.Contains(src, from) {
					t.Fatalf("no %s in %s", from, file)
				}
				if from != "" {
					src = strings.Replace(src, from, to[i], 1)
				}
			}
			b, err := Parse("new", []byte(src))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range Diff(mustLoad(t, file), b) {
				got = append(got, c.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// drawQUIC gives a service a layout that it may have, and its backends ids by their
// number.
func drawQUIC(t *rapid.T, s *Service) func(backend int) uint64 {
	if s.Protocol == UDP {
		s.QUIC.Layout = QUICLayout(rapid.IntRange(1, len(quicLayoutNames)).Draw(t, "layout"))
	}
	most := uint64(1<<32 - 1)
	switch s.QUIC.Layout {
	case QUICLB:
		s.QUIC.ConfigID, s.QUIC.IDLength = rapid.IntRange(0, 6).Draw(t, "config"), rapid.IntRange(1, 8).Draw(t, "length")
		if rapid.Bool().Draw(t, "rotated") {
			s.QUIC.FormerConfigID, s.QUIC.FormerIDLength = (s.QUIC.ConfigID+rapid.IntRange(1, 6).Draw(t, "former"))%7, rapid.IntRange(1, 8).Draw(t, "former length")
		}
		most = ^uint64(0) >> (64 - 8*s.QUIC.IDLength)
	case QUICKatran:
	default:
		return func(int) uint64 { return 0 }
	}
	return func(backend int) uint64 { return most - uint64(backend) }
}

// Whatever services, backends and addresses there are, the effective
// configuration says the same.
func TestRoundTripRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := example()
		c.CPUs = rapid.SliceOfNDistinct(rapid.IntRange(0, maxCPU), 0, 20, rapid.ID[int]).Draw(t, "cpus")
		c.Workers = len(c.CPUs)
		c.MaxFlows = rapid.IntRange(1024, 1<<28).Draw(t, "flows")
		c.Timeouts.UDPOneWay = minTimeout + timeDraw(t, "udp")
		c.Services = nil
		for i := range rapid.IntRange(1, 5).Draw(t, "services") {
			s := defaultService()
			s.Name = fmt.Sprintf("%s%d", rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,20}`).Draw(t, "name"), i)
			s.Protocol = rapid.SampledFrom([]Protocol{TCP, UDP}).Draw(t, "protocol")
			s.Mode, s.Scheduler = DNAT, Scheduler(rapid.IntRange(1, len(schedulerNames)).Draw(t, "scheduler"))
			s.Address = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}),
				rapid.Uint16Range(1, 65535).Draw(t, "port"))
			s.HealthCheck = drawHealthCheck(t, s.Protocol)
			s.TOAKind, s.TCPChecks, s.Timeouts, s.DrainTimeout = c.TOAKind, c.TCPChecks, c.Timeouts, c.DrainTimeout
			if rapid.Bool().Draw(t, "drains") {
				s.DrainTimeout = minTimeout + timeDraw(t, "drain")
			}
			s.Timestamps, s.Hash, s.OnBackendDown = TimestampsKeep, HashAddressPort, OnBackendDown(rapid.IntRange(2, 3).Draw(t, "down"))
			if s.Scheduler.Hashed() {
				s.Hash = Hash(rapid.IntRange(1, 2).Draw(t, "hash"))
				s.HashTableSize = rapid.SampledFrom([]int{0, 251, 65537}).Draw(t, "slots")
			}
			if rapid.Bool().Draw(t, "persistence") {
				s.Persistence = Persistence{minTimeout + timeDraw(t, "sticks"), rapid.IntRange(1, 32).Draw(t, "prefix4"), rapid.IntRange(1, 128).Draw(t, "prefix6")}
			}
			if s.Protocol == TCP {
				s.Timestamps = rapid.SampledFrom([]Timestamps{TimestampsStrip, TimestampsKeep}).Draw(t, "timestamps")
				s.MSSClamp = rapid.SampledFrom([]MSSClamp{MSSOff, MSSMTU, 536, 65495}).Draw(t, "mss")
			}
			s.Timeouts.TCPClose = minTimeout + timeDraw(t, "close")
			ids := drawQUIC(t, &s)
			for j := range rapid.IntRange(1, 5).Draw(t, "backends") {
				s.Backends = append(s.Backends, Backend{
					netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 2, byte(j)}), 80),
					rapid.Uint16().Draw(t, "weight"), rapid.IntRange(0, maxMaxConnections).Draw(t, "limit"), ids(j),
					rapid.Bool().Draw(t, "backup")})
			}
			c.Services = append(c.Services, s)
		}
		roundTrip(t, c)
	})
}

// Any bytes: no panic; what is accepted round-trips, and all errors are placed.
func FuzzParse(f *testing.F) {
	f.Add(read(f, "testdata/good/contract.yaml"))
	f.Add(read(f, "testdata/good/all.yaml"))
	f.Add(read(f, "testdata/bad/wrong-types-nested.yaml"))
	f.Add(read(f, "testdata/bad/unknown-keys.yaml"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err == nil {
			roundTrip(t, c)
			c.Warnings()
			return
		}
		var list Errors
		if !errors.As(err, &list) || len(list) == 0 {
			t.Fatalf("%T %v", err, err)
		}
		for _, p := range list {
			if p.Line < 1 || p.Column < 1 || p.File != "f" || p.Message == "" || strings.Contains(p.String(), "\n") {
				t.Fatalf("%#v", p)
			}
		}
	})
}
