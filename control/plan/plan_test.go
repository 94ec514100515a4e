package plan

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/control/pathmtu"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/steer"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

const text = `
interfaces: [{name: eth1}]
local_port_range: 2000-3000
local_addresses:
  - 10.0.1.10-10.0.1.11
  - {address: 10.0.1.2, ports: 20000-29999}
  - "2001:db8:1::10"
toa_kind: 200
services:
  - name: web
    address: 192.0.2.10:80
    protocol: tcp
    mode: full-nat
    scheduler: maglev
    hash: address
    hash_table_size: 1021
    client_address: toa
    timeouts: {tcp_established: 90s, tcp_close: 110ms}
    backends: [{address: "10.0.1.20:8080", weight: 3, max_connections: 70}, {address: "10.0.1.21:8080", weight: 0}]
  - name: dns
    address: "[2001:db8::10]:53"
    protocol: udp
    mode: dnat
    scheduler: sh
    one_packet: true
    backends: [{address: "[2001:db8:1::20]:53"}]
  - name: dns-tcp
    address: "[2001:db8::10]:53"
    protocol: tcp
    mode: dnat
    scheduler: rr
    tcp_checks: strict
    on_backend_down: drop
    backends: [{address: "[2001:db8:1::20]:53"}]
  - name: dns-again
    address: "[2001:db8::11]:53"
    protocol: tcp
    mode: dnat
    persistence: {timeout: 110ms, prefix4: 24, prefix6: 56}
    backends: [{address: "[2001:db8:1::20]:53"}]
`

var addrs = cmpopts.EquateComparable(netip.Addr{})

func parse(t *testing.T, s string) *config.Config {
	t.Helper()
	c, err := config.Parse("test.yaml", []byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func end(addr string, proto uint8) conntrack.Endpoint {
	return endpoint(netip.MustParseAddrPort(addr), proto)
}

func TestSpec(t *testing.T) {
	web := conntrack.DefaultTimeouts()
	web[conntrack.Established] = 90 * conntrack.TicksPerSecond
	web[conntrack.Closed] = 2 // 110 ms are more than one tick of 62.5 ms
	dns := conntrack.DefaultTimeouts()
	const both = balance.ClientAddress | balance.ClientPort
	want := dataplane.Spec{
		Seed: fleetSeed, Templates: 1 << 18,
		Locals: []packet.Addr{
			packet.AddrFrom(addr("10.0.1.10")), packet.AddrFrom(addr("10.0.1.11")),
			packet.AddrFrom(addr("10.0.1.2")), packet.AddrFrom(addr("2001:db8:1::10")),
		},
		Services: []dataplane.ServiceSpec{
			{
				Name: "web", VIP: end("192.0.2.10:80", packet.ProtoTCP), Mode: conntrack.FullNAT,
				Scheduler: balance.Maglev, HashFields: balance.ClientAddress, HashSlots: 1021, TOA: true, TOAKind: 200, Timestamps: nat.TSStrip, Timeouts: web,
				Backends: []dataplane.BackendSpec{
					{Endpoint: end("10.0.1.20:8080", packet.ProtoTCP), Weight: 3, MaxConnections: 70},
					{Endpoint: end("10.0.1.21:8080", packet.ProtoTCP)},
				},
			},
			{
				Name: "dns", VIP: end("[2001:db8::10]:53", packet.ProtoUDP), Mode: conntrack.DNAT,
				Scheduler: balance.SourceHash, HashFields: balance.ClientAddress, OnBackendDown: dataplane.BackendDownReschedule, OnePacket: true, TOAKind: 200, Timeouts: dns,
				Backends: []dataplane.BackendSpec{{Endpoint: end("[2001:db8:1::20]:53", packet.ProtoUDP), Weight: 1}},
			},
			{
				Name: "dns-tcp", VIP: end("[2001:db8::10]:53", packet.ProtoTCP), Mode: conntrack.DNAT,
				Scheduler: balance.RoundRobin, HashFields: both, OnBackendDown: dataplane.BackendDownDrop, TCPChecks: conntrack.ChecksStrict, TOAKind: 200, Timeouts: dns,
				Backends: []dataplane.BackendSpec{{Endpoint: end("[2001:db8:1::20]:53", packet.ProtoTCP), Weight: 1}},
			},
			{
				Name: "dns-again", VIP: end("[2001:db8::11]:53", packet.ProtoTCP), Mode: conntrack.DNAT,
				Scheduler: balance.WeightedRoundRobin, HashFields: both,
				Persistence: dataplane.Persistence{Timeout: 2, Prefix: 56}, TOAKind: 200, Timeouts: dns,
				Backends: []dataplane.BackendSpec{{Endpoint: end("[2001:db8:1::20]:53", packet.ProtoTCP), Weight: 1}},
			},
		},
	}
	got := Spec(parse(t, text), nil)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := dataplane.NewRegistry(2).Build(got); err != nil {
		t.Error(err)
	}
}

// Every policy of rewriting finds its way.
func TestPolicies(t *testing.T) {
	const head = "interfaces: [{name: eth1}]\nlocal_addresses: [10.0.1.10]\n"
	const service = "services: [{name: s, address: \"192.0.2.10:80\", protocol: tcp, mode: full-nat, client_address: toa, " +
		"backends: [{address: \"10.0.1.20:80\"}]"
	plainly := Spec(parse(t, head+service+"}]"), nil)
	for text, change := range map[string]func(*dataplane.Spec){
		service + ", persistence: {timeout: 1s}}]": func(s *dataplane.Spec) {
			s.Services[0].Persistence = dataplane.Persistence{Timeout: conntrack.TicksPerSecond, Prefix: 32}
		},
		service + ", timestamps: keep}]":          func(s *dataplane.Spec) { s.Services[0].Timestamps = nat.TSKeep },
		service + ", timestamps: strip}]":         func(*dataplane.Spec) {},
		service + ", timestamps: translate}]":     func(s *dataplane.Spec) { s.Services[0].Timestamps = nat.TSTranslate },
		service + ", toa_no_room: drop}]":         func(s *dataplane.Spec) { s.Services[0].TOAOnly = true },
		service + ", toa_no_room: send-without}]": func(*dataplane.Spec) {},
		service + ", mss_clamp: off}]":            func(*dataplane.Spec) {},
		service + ", mss_clamp: mtu}]":            func(s *dataplane.Spec) { s.Services[0].MSSClamp = dataplane.ClampToMTU },
		service + ", mss_clamp: 1400}]":           func(s *dataplane.Spec) { s.Services[0].MSSClamp = 1400 },
		"decrement_ttl: false\n" + service + "}]": func(s *dataplane.Spec) { s.KeepTTL = true },
		"decrement_ttl: true\n" + service + "}]":  func(*dataplane.Spec) {},
	} {
		want := plainly
		want.Services = slices.Clone(plainly.Services)
		change(&want)
		if diff := cmp.Diff(want, Spec(parse(t, head+text), nil)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
}

// Every mode is one of the data plane's.
func TestModes(t *testing.T) {
	for m := config.FullNAT; m.String()[0] != 'i'; m++ { // invalid
		if _, ok := modes[m]; !ok {
			t.Errorf("mode %v", m)
		}
	}
	c := parse(t, "interfaces: [{name: eth1}]\nservices: [{name: s, address: \"192.0.2.10:80\", protocol: tcp, mode: dsr-l2, backends: [{address: \"10.0.1.20:80\"}]}]")
	if s := Spec(c, nil).Services[0]; s.Mode != conntrack.DirectReturn {
		t.Errorf("%+v", s)
	}
	// Nothing of the backend's own traffic is to be taken.
	want := steer.Rules{Addrs: []netip.Addr{addr("192.0.2.10")}}
	if got, _ := Rules(c, nil); !cmp.Equal(want, got, addrs) {
		t.Errorf("%+v", got)
	}
}

// Every encapsulation finds its way, with what it asks for.
func TestTunnels(t *testing.T) {
	mac := [6]byte{2, 0x6c, 0x34, 0x66, 0x77, 0x64}
	for text, want := range map[string]nat.Tunnel{
		"ipip": {Kind: nat.IPIP},
		"gre, encapsulation_source: 172.16.0.0/16": {Kind: nat.GRE, Source: packet.AddrFrom(addr("172.16.0.0")), Spread: 16},
		"gue, encapsulation_source: 10.0.1.1":      {Kind: nat.GUE, Port: 6080, Source: packet.AddrFrom(addr("10.0.1.1"))},
		"fou, encapsulation_port: 5555":            {Kind: nat.FOU, Port: 5555},
		"vxlan":                                    {Kind: nat.VXLAN, Port: 4789, MAC: mac},
		`vxlan, encapsulation_port: 8472, vni: 7, vxlan_mac: "02:00:00:00:00:01"`: {Kind: nat.VXLAN, Port: 8472, VNI: 7, MAC: [6]byte{2, 0, 0, 0, 0, 1}},
	} {
		c := parse(t, "interfaces: [{name: eth1}]\nservices: [{name: s, address: \"192.0.2.10:80\", protocol: tcp, mode: tunnel, "+
			"backends: [{address: \"10.0.5.20:80\"}], encapsulation: "+text+"}]")
		s := Spec(c, nil).Services[0]
		if diff := cmp.Diff(want, s.Tunnel); diff != "" || s.Mode != conntrack.DirectReturn {
			t.Errorf("%s: (-want +got)\n%s", text, diff)
		}
	}
}

// The file documents its timeouts, conntrack its own: they must be the same.
func TestDefaultTimeouts(t *testing.T) {
	got := Timeouts(&config.Defaults().Timeouts)
	if diff := cmp.Diff(conntrack.DefaultTimeouts(), got); diff != "" {
		t.Errorf("(-conntrack +config):\n%s", diff)
	}
}

func TestPortRanges(t *testing.T) {
	want := []nat.PortRange{{First: 2000, Last: 3000}, {First: 2000, Last: 3000}, {First: 20000, Last: 29999}, {First: 2000, Last: 3000}}
	if diff := cmp.Diff(want, PortRanges(parse(t, text))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Every value the configuration knows means something to the data plane.
func TestSchedulers(t *testing.T) {
	for s := config.RR; s <= config.P2C; s++ {
		if k, ok := schedulers[s]; !ok || k.String() != s.String() || k.Hashed() != s.Hashed() {
			t.Errorf("scheduler %v is %v", s, k)
		}
	}
	for _, n := range []int{balance.MinSlots - 1, balance.MinSlots, balance.MaxSlots, balance.MaxSlots + 1} {
		text := strings.Replace(text, "hash_table_size: 1021", fmt.Sprint("hash_table_size: ", n), 1)
		if _, err := config.Parse("test.yaml", []byte(text)); (err == nil) != (n == balance.MinSlots || n == balance.MaxSlots) {
			t.Errorf("%d slots: %v", n, err)
		}
	}
}

func TestRules(t *testing.T) {
	c := parse(t, text)
	backends := []steer.ServiceRule{
		{Addr: addr("2001:db8:1::20"), Proto: packet.ProtoTCP, Port: 53},
		{Addr: addr("2001:db8:1::20"), Proto: packet.ProtoUDP, Port: 53},
	}
	tests := map[string]struct {
		host    []netip.Addr
		want    steer.Rules
		refused []netip.Addr
	}{
		"nothing is the host's": {
			host: []netip.Addr{addr("127.0.0.1")},
			want: steer.Rules{
				Addrs: []netip.Addr{
					addr("10.0.1.2"), addr("10.0.1.10"), addr("10.0.1.11"), addr("192.0.2.10"),
					addr("2001:db8::10"), addr("2001:db8::11"), addr("2001:db8:1::10"),
				},
				Backends: backends,
			},
		},
		"VIPs and a local address with ports": {
			host: []netip.Addr{addr("10.0.1.2"), addr("::ffff:192.0.2.10"), addr("2001:db8::10%eth1")},
			want: steer.Rules{
				Addrs: []netip.Addr{addr("10.0.1.10"), addr("10.0.1.11"), addr("2001:db8::11"), addr("2001:db8:1::10")},
				Services: []steer.ServiceRule{
					{Addr: addr("192.0.2.10"), Proto: packet.ProtoTCP, Port: 80},
					{Addr: addr("2001:db8::10"), Proto: packet.ProtoUDP, Port: 53},
					{Addr: addr("2001:db8::10"), Proto: packet.ProtoTCP, Port: 53},
				},
				LocalRanges: []steer.RangeRule{{Addr: addr("10.0.1.2"), Lo: 20000, Hi: 29999}},
				Backends:    backends,
			},
		},
		"local addresses without ports": {
			host: []netip.Addr{addr("10.0.1.11"), addr("2001:db8:1::10")},
			want: steer.Rules{
				Addrs:    []netip.Addr{addr("10.0.1.2"), addr("10.0.1.10"), addr("192.0.2.10"), addr("2001:db8::10"), addr("2001:db8::11")},
				Backends: backends,
			},
			refused: []netip.Addr{addr("10.0.1.11"), addr("2001:db8:1::10")},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			tc.want.HostAddrs = tc.host
			got, refused := Rules(c, tc.host)
			if diff := cmp.Diff(tc.want, got, addrs); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.refused, refused, addrs); diff != "" {
				t.Errorf("refused (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRulesDHCP: a service or local address with the DHCP client's port has it where the
// address is nobody else's, too: the host's client gets the rest.
func TestRulesDHCP(t *testing.T) {
	c := parse(t, `
interfaces: [{name: eth1}]
local_addresses: [{address: 10.0.1.10, ports: 60-70}, {address: 10.0.1.11, ports: 69-79}]
services:
  - {name: a, address: "192.0.2.10:68", protocol: udp, mode: full-nat, backends: [{address: "10.0.1.20:67"}]}
  - {name: b, address: "192.0.2.10:68", protocol: tcp, mode: full-nat, backends: [{address: "10.0.1.20:67"}]}
`[1:])
	got, _ := Rules(c, nil)
	want := steer.Rules{
		Addrs:       []netip.Addr{addr("10.0.1.10"), addr("10.0.1.11"), addr("192.0.2.10")},
		Services:    []steer.ServiceRule{{Addr: addr("192.0.2.10"), Proto: packet.ProtoUDP, Port: 68}},
		LocalRanges: []steer.RangeRule{{Addr: addr("10.0.1.10"), Lo: 60, Hi: 70}},
	}
	if diff := cmp.Diff(want, got, addrs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestHalves: the two halves of a DNAT, as two machines have them, or one.
func TestHalves(t *testing.T) {
	c := parse(t, `
interfaces: [{name: eth1}]
services:
  - {name: there, address: "192.0.2.10:80", protocol: tcp, mode: dnat, replies: elsewhere, backends: [{address: "10.0.1.20:8080"}]}
  - {name: back, address: "192.0.2.10:80", protocol: tcp, mode: snat, backends: [{address: "10.0.1.20:8080"}]}
  - {name: back-only, address: "192.0.2.11:80", protocol: tcp, mode: snat, backends: [{address: "10.0.1.21:8080"}]}
`[1:])
	var got []string
	for _, s := range Spec(c, nil).Services {
		got = append(got, fmt.Sprint(s.Name, " ", s.Mode, " ", s.ReturnOnly))
	}
	want := []string{
		fmt.Sprint("there ", conntrack.DNATOneWay, " false"), fmt.Sprint("back ", conntrack.DNAT, " true"),
		fmt.Sprint("back-only ", conntrack.DNAT, " true"),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	// The VIP is taken by the half that has it; what the servers send, by the other.
	rules, _ := Rules(c, []netip.Addr{addr("192.0.2.11")})
	if d := cmp.Diff(steer.Rules{
		Addrs:     []netip.Addr{addr("192.0.2.10")},
		HostAddrs: []netip.Addr{addr("192.0.2.11")},
		Backends: []steer.ServiceRule{
			{Addr: addr("10.0.1.20"), Proto: packet.ProtoTCP, Port: 8080}, {Addr: addr("10.0.1.21"), Proto: packet.ProtoTCP, Port: 8080},
		},
	}, rules, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
}

// TestTunnelEnds: each backend of a tunnel with all its looks, and where IPv6 travels to
// it, nothing is believed that a packet of 1280 bytes would not fit together with what
// is put before it: nobody makes smaller ones, so one forged error would shut them out.
func TestTunnelEnds(t *testing.T) {
	c, err := config.Parse("test", []byte(`
interfaces: [{name: eth1}]
services:
  - {name: a, address: "192.0.2.10:80", protocol: tcp, mode: tunnel, encapsulation: ipip, backends: [{address: "10.0.5.20:80"}, {address: "10.0.5.21:80"}]}
  - {name: b, address: "[2001:db8::10]:80", protocol: tcp, mode: tunnel, encapsulation: ipip, backends: [{address: "10.0.5.20:80"}]}
  - {name: c, address: "192.0.2.11:80", protocol: tcp, mode: tunnel, encapsulation: gue, backends: [{address: "10.0.5.20:80"}]}
  - {name: d, address: "[2001:db8::11]:80", protocol: tcp, mode: tunnel, encapsulation: vxlan, backends: [{address: "[2001:db8:5::20]:80"}]}
  - {name: e, address: "192.0.2.12:80", protocol: tcp, mode: tunnel, encapsulation: gre, encapsulation_source: 172.16.0.0/16, backends: [{address: "10.0.5.22:80"}]}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := pathmtu.Ends{
		netip.MustParseAddr("10.0.5.20"):      {Looks: []pathmtu.Look{{Proto: 4}, {Proto: 41}, {Proto: 17, Port: 6080, Head: 12}}, Least: 1280 + 20},
		netip.MustParseAddr("10.0.5.21"):      {Looks: []pathmtu.Look{{Proto: 4}}},
		netip.MustParseAddr("2001:db8:5::20"): {Looks: []pathmtu.Look{{Proto: 17, Port: 4789, Head: 30}}, Least: 1280 + 70},
	}
	if diff := cmp.Diff(want, TunnelEnds(servicesOf(c)), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func servicesOf(c *config.Config) iter.Seq[*config.Service] {
	return func(yield func(*config.Service) bool) {
		for i := range c.Services {
			if !yield(&c.Services[i]) {
				return
			}
		}
	}
}
