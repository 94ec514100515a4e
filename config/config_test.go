package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// same compares two Configs by what they say, not by where they were read.
var same = cmp.Options{
	cmpopts.IgnoreUnexported(Config{}),
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}),
	cmpopts.EquateEmpty(),
}

// Every file in testdata/bad ends with the errors it must give, one
// "# want: " line each.
func TestBad(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		name := filepath.Base(path)
		t.Run(strings.TrimSuffix(name, ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for line := range strings.Lines(string(data)) {
				if w, ok := strings.CutPrefix(line, "# want: "); ok {
					want = append(want, name+strings.TrimSuffix(w, "\n"))
				}
			}
			c, err := Parse(name, data)
			if err == nil {
				t.Fatalf("accepted: %+v", c)
			}
			var list Errors
			if !errors.As(err, &list) || len(list) == 0 {
				t.Fatalf("%T %v", err, err)
			}
			if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func mustLoad(t testing.TB, path string, o ...Override) *Config {
	t.Helper()
	c, err := Load(path, o...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The example of the documentation, whose keys and meaning are the contract.
func TestContract(t *testing.T) {
	want := Defaults()
	want.ManagementInterface = "eth0"
	want.Interfaces = []Interface{{Name: "eth1"}, {Name: "eth2"}}
	want.LocalAddresses = []LocalRange{
		{First: addr("10.0.1.10"), Last: addr("10.0.1.13"), Ports: PortRange{1024, 65535}},
		{First: addr("2001:db8:1::10"), Last: addr("2001:db8:1::10"), Ports: PortRange{1024, 65535}},
	}
	want.Services = []Service{{
		Name: "web", Address: addrPort("192.0.2.10:80"), Protocol: TCP, Mode: FullNAT, Replies: RepliesHere,
		Scheduler: WRR, ClientAddress: ClientAddressTOA, NoFlow: NoFlowDrop, TOAKind: 254, TCPChecks: TCPChecksNormal, Timeouts: want.Timeouts,
		TOANoRoom: TOANoRoomSend, UOAForm: UOASeparate, UOADatagrams: 3, Timestamps: TimestampsStrip,
		Persistence: Persistence{0, 32, 64}, QUIC: QUIC{QUICNone, 0, 4, -1, 4}, OnBackendDown: OnBackendDownReset, Hash: HashAddressPort,
		DrainTimeout: 5 * time.Minute,
		Backends:     []Backend{{addrPort("10.0.1.20:8080"), 1, 0, 0, false}, {addrPort("10.0.1.21:8080"), 2, 0, 0, false}},
	}}
	withoutTunnels(want)
	got := mustLoad(t, "testdata/good/contract.yaml")
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if w := got.Warnings(); len(w) > 0 {
		t.Error(w)
	}
}

// withoutTunnels fills in the defaults of services that say nothing of tunnels or
// health.
func withoutTunnels(c *Config) {
	for i := range c.Services {
		if s := &c.Services[i]; s.HealthCheck.Type == 0 {
			s.HealthCheck = defaultHealthCheck()
			s.HealthCheck.inherit(s.Protocol)
			s.HealthCheck.Passive.Action = PassiveOff
		}
		if s := &c.Services[i]; s.Encapsulation == 0 {
			s.Encapsulation, s.VXLANMAC = EncapsulationNone, defaultService().VXLANMAC
		}
	}
}

func TestAllKeys(t *testing.T) {
	times := Timeouts{
		TCPSynSent: time.Second, TCPSynRecv: 2 * time.Second, TCPEstablished: 3 * time.Hour,
		TCPFinWait: 4 * time.Second, TCPCloseWait: 5 * time.Second, TCPLastAck: 6 * time.Second,
		TCPTimeWait: 7 * time.Second, TCPClose: 8 * time.Second,
		UDPOneWay: 9 * time.Second, UDPTwoWay: 100 * time.Millisecond, UDPOnePacket: 10 * time.Hour,
	}
	webTimes := times
	webTimes.TCPEstablished = 90 * time.Second
	want := &Config{
		ManagementInterface: "eth0",
		Interfaces:          []Interface{{Name: "ens1f0np0", VLANs: []VLAN{{1, "br0"}, {4094, "true"}}}},
		LocalAddresses: []LocalRange{
			{addr("10.0.1.10"), addr("10.0.1.10"), PortRange{2000, 3000}, false},
			{addr("10.0.1.20"), addr("10.0.1.21"), PortRange{20000, 29999}, true},
			{addr("2001:db8:1::"), addr("2001:db8:1::1"), PortRange{2000, 3000}, false},
		},
		LocalPorts: PortRange{2000, 3000},
		Services: []Service{
			{
				Name: "web", Address: addrPort("192.0.2.10:80"), Protocol: TCP, Mode: FullNAT, Replies: RepliesHere, Scheduler: Maglev,
				ClientAddress: ClientAddressTOA, TOANoRoom: TOANoRoomDrop, UOAForm: UOASeparate, UOADatagrams: 3, Timestamps: TimestampsTranslate, MSSClamp: 1400,
				NoFlow: NoFlowReset, TOAKind: 200, TCPChecks: TCPChecksStrict, Timeouts: webTimes,
				Persistence: Persistence{0, 32, 64}, QUIC: QUIC{QUICNone, 0, 4, -1, 4}, OnBackendDown: OnBackendDownReschedule, Hash: HashAddressPort,
				DrainTimeout: time.Hour, Backends: []Backend{{addrPort("10.0.2.1:8080"), 1, 1 << 30, 0, false}, {addrPort("10.0.2.2:8080"), 0, 0, 0, false}},
			},
			{
				Name: "web6", Address: addrPort("[2001:db8::10]:80"), Protocol: TCP, Mode: FullNAT, Replies: RepliesHere, Scheduler: WRR,
				ClientAddress: ClientAddressNone, TOANoRoom: TOANoRoomSend, UOAForm: UOASeparate, UOADatagrams: 3, Timestamps: TimestampsKeep, MSSClamp: MSSMTU,
				NoFlow: NoFlowDrop, TOAKind: 253, TCPChecks: TCPChecksOff, Timeouts: times,
				Persistence: Persistence{100 * time.Millisecond, 1, 128}, QUIC: QUIC{QUICNone, 0, 4, -1, 4}, OnBackendDown: OnBackendDownDrop, Hash: HashAddressPort,
				Backends: []Backend{{addrPort("[2001:db8:2::1]:80"), 65535, 0, 0, false}},
			},
			{
				Name: "dns", Address: addrPort("192.0.2.10:53"), Protocol: UDP, Mode: DNAT, Replies: RepliesHere, Scheduler: SH, OnePacket: true, ConnectionLog: 1000,
				ClientAddress: ClientAddressNone, TOANoRoom: TOANoRoomSend, UOAForm: UOASeparate, UOADatagrams: 3, Timestamps: TimestampsKeep,
				NoFlow: NoFlowDrop, TOAKind: 253, TCPChecks: TCPChecksOff, Timeouts: times,
				Persistence: Persistence{0, 32, 64}, QUIC: QUIC{QUICNone, 0, 4, -1, 4}, OnBackendDown: OnBackendDownReschedule, Hash: HashAddressPort, HashTableSize: 251,
				Backends: []Backend{{addrPort("10.0.2.1:53"), 1, 0, 0, false}},
			},
			{
				Name: "dns-tcp", Address: addrPort("192.0.2.10:53"), Protocol: TCP, Mode: DNAT, Replies: RepliesElsewhere, Scheduler: RR,
				ClientAddress: ClientAddressNone, TOANoRoom: TOANoRoomSend, UOAForm: UOASeparate, UOADatagrams: 3, Timestamps: TimestampsStrip,
				NoFlow: NoFlowDrop, TOAKind: 253, TCPChecks: TCPChecksOff, Timeouts: times,
				Persistence: Persistence{0, 32, 64}, QUIC: QUIC{QUICNone, 0, 4, -1, 4}, OnBackendDown: OnBackendDownReset, Hash: HashAddressPort,
				Backends: []Backend{{addrPort("10.0.2.1:53"), 1, 0, 0, false}},
			},
			{
				Name: "quic", Address: addrPort("192.0.2.10:443"), Protocol: UDP, Mode: DNAT, Replies: RepliesHere, Scheduler: WRR,
				ClientAddress: ClientAddressNone, TOANoRoom: TOANoRoomSend, UOAForm: UOASeparate, UOADatagrams: 3, Timestamps: TimestampsKeep,
				NoFlow: NoFlowDrop, TOAKind: 253, TCPChecks: TCPChecksOff, Timeouts: times,
				Persistence: Persistence{0, 32, 64}, QUIC: QUIC{QUICLB, 6, 8, 0, 1}, OnBackendDown: OnBackendDownReschedule, Hash: HashAddressPort,
				Backends: []Backend{{addrPort("10.0.2.1:443"), 1, 0, 0xffffffffffffffff, false}},
			},
			{
				Name: "game", Address: addrPort("192.0.2.10:5000"), Protocol: UDP, Mode: FullNAT, Replies: RepliesHere, Scheduler: WRR,
				ClientAddress: ClientAddressUOA, TOANoRoom: TOANoRoomSend, UOAForm: UOAOption, UOADatagrams: 255, Timestamps: TimestampsKeep,
				NoFlow: NoFlowDrop, TOAKind: 253, TCPChecks: TCPChecksOff, Timeouts: times,
				Persistence: Persistence{0, 32, 64}, QUIC: QUIC{QUICNone, 0, 4, -1, 4}, OnBackendDown: OnBackendDownReschedule, Hash: HashAddressPort,
				Backends: []Backend{{addrPort("10.0.2.1:5000"), 1, 0, 0, false}},
			},
			{
				Name: "far", Address: addrPort("192.0.2.11:80"), Protocol: TCP, Mode: Tunnel, Replies: RepliesHere, Scheduler: WRR,
				Encapsulation: EncapsulationVXLAN, EncapsulationPort: 8472, EncapsulationSource: netip.MustParsePrefix("2001:db8:9::/96"),
				VNI: 16777215, VXLANMAC: MAC{2, 0, 0, 0, 0, 0xff},
				ClientAddress: ClientAddressNone, TOANoRoom: TOANoRoomSend, UOAForm: UOASeparate, UOADatagrams: 3, Timestamps: TimestampsKeep,
				NoFlow: NoFlowDrop, TOAKind: 253, TCPChecks: TCPChecksOff, Timeouts: times,
				Persistence: Persistence{0, 32, 64}, QUIC: QUIC{QUICNone, 0, 4, -1, 4}, OnBackendDown: OnBackendDownReset, Hash: HashAddressPort,
				Backends: []Backend{{addrPort("[2001:db8:2::9]:80"), 1, 0, 0, false}},
			},
		},
		Workers: 3, CPUs: []int{4, 5, 2}, PollMode: PollBusy, BusyPoll: true,
		XDPMode: XDPGeneric, ZeroCopy: ZeroCopyOff, FrameSize: 4096, FramesPerQueue: 128,
		RingSize: 64, MaxFlows: 1000000, TOAKind: 253, TCPChecks: TCPChecksOff, Timeouts: times,
		Discovery: Discovery{Etcd{
			Endpoints: []string{"https://10.0.0.5:2379", "https://10.0.0.6:2379"}, Prefix: "/lb", CA: "/etc/l4fwd/ca.pem",
			Cert: "/etc/l4fwd/cert.pem", Key: "/etc/l4fwd/key.pem", Username: "l4fwd", PasswordFile: "/etc/l4fwd/password",
			Timeout: 2 * time.Second, OnEmpty: OnEmptyApply, StateDir: "/var/lib/other",
		}},
		DrainTimeout: 0, AdminSocket: "/run/other.sock", MetricsListen: netip.MustParseAddrPort("[::1]:9464"),
		WebListen: netip.MustParseAddrPort("127.0.0.1:9480"), WebTokenFile: "/etc/l4fwd/web.token", WebHosts: []string{"lb1.example.org", "lb2"},
		AdminListen: netip.MustParseAddrPort("[::]:9443"), AdminTLSCert: "/etc/l4fwd/cert.pem", AdminTLSKey: "/etc/l4fwd/key.pem",
		AdminTokenFile: "/etc/l4fwd/admin.token", LogLevel: LogError, LogFormat: LogJSON,
		ConnectionLogFile: "/tmp/flows", ConnectionLogSize: 0, ConnectionLogKeep: 1000,
	}
	withoutTunnels(want)
	if diff := cmp.Diff(want, mustLoad(t, "testdata/good/all.yaml"), same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestReload: a file is read again, through a link too; what would be waited for is not.
func TestReload(t *testing.T) {
	const good = "testdata/good/contract.yaml"
	dir := t.TempDir()
	link, pipe := filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	here, err := filepath.Abs(good)
	if err = errors.Join(err, os.Symlink(here, link), syscall.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	got, err := Reload(link)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(mustLoad(t, link), got, same); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, path := range []string{pipe, dir, "/dev/zero"} {
		if _, err := Reload(path); err == nil || !strings.Contains(err.Error(), path+" is no regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := Reload(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestLoadErrors(t *testing.T) {
	_, err := Load("testdata/nonexistent.yaml")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	_, err = Parse("big", make([]byte, maxSize+1))
	if err == nil || err.Error() != "big:1:1: the file has 4194305 bytes, more than 4194304" {
		t.Errorf("big file: %v", err)
	}
	_, err = Parse("binary", []byte("a: 1\nb: ü\xff\n"))
	if err == nil || err.Error() != "binary:2:5: not UTF-8" {
		t.Errorf("binary file: %v", err)
	}
	if _, err = Parse("bom", append([]byte("\ufeff"), read(t, "testdata/good/all.yaml")...)); err != nil {
		t.Errorf("byte order mark: %v", err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Input that makes a careless recursive parser run out of stack, or of time.
func TestNesting(t *testing.T) {
	const n = 4096
	deep := strings.Builder{}
	for i := range 100 {
		deep.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	tests := []struct{ name, src, want string }{
		{"brackets", strings.Repeat("[", n), "f:1:33: not valid YAML: nested too deeply"},
		{"brackets on lines", strings.Repeat("[\n", n), "f:33:1: not valid YAML: nested too deeply"},
		{"braces", strings.Repeat("{a: ", n), "f:1:129: not valid YAML: nested too deeply"},
		{"entries", strings.Repeat("- ", n) + "x", "f:1:65: not valid YAML: nested too deeply"},
		{"explicit keys", strings.Repeat("? ", n) + "x", "f:1:65: not valid YAML: nested too deeply"},
		{"indentation", deep.String(), "f:33:33: not valid YAML: nested too deeply"},
		{"tag", "workers: !!int 1", "f:1:10: tags are not supported"},
		{"long line", "# " + strings.Repeat("-", maxLine), "f:1:1: a line of 65538 bytes, more than 65536"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f", []byte(tt.src))
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	const head = "interfaces: [{name: eth1}]\nlocal_addresses: [10.0.1.10]\nservices:\n"
	service := func(vip, mode, scheduler string, backends string) string {
		return head + "  - {name: s, address: \"" + vip + "\", protocol: tcp, mode: " + mode +
			", scheduler: " + scheduler + ",\n     backends: [" + backends + "]}\n"
	}
	tests := []struct {
		name, src string
		warnings  []string
	}{
		{"nothing", service("192.0.2.1:1", "dnat", "rr", `{address: "10.0.0.1:1"}`), nil},
		{"a token at home", "web_listen: \"[::1]:1\"\nweb_token_file: /t\n" + service("192.0.2.1:1", "dnat", "rr", `{address: "10.0.0.1:1"}`), nil},
		{"one token for all", "web_listen: 127.0.0.1:1\nweb_token_file: /t\nadmin_listen: 127.0.0.1:2\nadmin_tls_cert: /c\nadmin_tls_key: /k\nadmin_token_file: /t\n" +
			service("192.0.2.1:1", "dnat", "rr", `{address: "10.0.0.1:1"}`),
			[]string{"f:2:17: web_token_file: whoever may press the page's buttons may give every command: it is admin_token_file"}},
		{"a token for all to read", "web_listen: 10.0.0.9:1\nweb_token_file: /t\n" + service("192.0.2.1:1", "dnat", "rr", `{address: "10.0.0.1:1"}`),
			[]string{"f:1:13: web_listen: a browser sends the token of web_token_file as it is, for everybody on the way to read: listen on 127.0.0.1, behind ssh or a proxy with TLS"}},
		{"all drained", service("192.0.2.1:1", "dnat", "wrr", `{address: "10.0.0.1:1", weight: 0}`),
			[]string{"f:5:16: services[0].backends: all weights are 0: the service takes no new flows"}},
		{"rr weighs nothing", service("192.0.2.1:1", "dnat", "rr", `{address: "10.0.0.1:1", weight: 2}, {address: "10.0.0.2:1"}`),
			[]string{"f:4:77: services[0].scheduler: rr does not look at weights; wrr does"}},
		{"rr and drained", service("192.0.2.1:1", "dnat", "rr", `{address: "10.0.0.1:1", weight: 0}, {address: "10.0.0.2:1"}`), nil},
		{"clocks of many clients", service("192.0.2.1:1", "full-nat, timestamps: keep", "wrr", `{address: "10.0.0.1:1"}`),
			[]string{"f:4:82: services[0].timestamps: keep in full-nat: a backend takes the clients behind one local address for one host, and drops segments whose timestamps seem old; strip or translate"}},
		{"NAT64", service("[2001:db8::1]:1", "full-nat", "wrr", `{address: "10.0.0.1:1"}`), nil},
		{"rr starts nobody slowly", service("192.0.2.1:1", "dnat, health_check: {type: tcp, slow_start: 1m}", "rr", `{address: "10.0.0.1:1"}`),
			[]string{"f:4:104: services[0].health_check.slow_start: rr does not look at weights, so a backend that comes up has its whole share at once; wrr does"}},
		{"one packet, all to one backend", strings.Replace(service("192.0.2.1:1", "dnat, one_packet: true", "sh", `{address: "10.0.0.1:1"}`), "tcp", "udp", 1),
			[]string{"f:4:78: services[0].one_packet: sh sends all datagrams of a client's port to one backend; rr and wrr do not"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("f", []byte(tt.src))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.warnings, lines(c.Warnings())); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func lines(p []Problem) (out []string) {
	for _, x := range p {
		out = append(out, x.String())
	}
	return out
}

func TestOverride(t *testing.T) {
	const file = "testdata/good/all.yaml"
	tests := []struct {
		name      string
		overrides []Override
		want      func(c *Config)
	}{
		{"none", nil, func(*Config) {}},
		{"plain values", []Override{
			{"--xdp-mode", "xdp_mode", "native"}, {"--zero-copy", "zero_copy", "on"},
			{"--busy-poll", "busy_poll", "false"}, {"--poll-mode", "poll_mode", "adaptive"},
			{"--log-level", "log_level", "debug"}, {"--log-format", "log_format", "console"},
		}, func(c *Config) {
			c.XDPMode, c.ZeroCopy, c.BusyPoll, c.PollMode = XDPNative, ZeroCopyOn, false, PollAdaptive
			c.LogLevel, c.LogFormat = LogDebug, LogConsole
		}},
		{"cpus replace workers", []Override{{"--cpus", "cpus", "2,4-5,7"}},
			func(c *Config) { c.CPUs, c.Workers = []int{2, 4, 5, 7}, 4 }},
		{"workers replace cpus", []Override{{"--workers", "workers", "1"}},
			func(c *Config) { c.CPUs, c.Workers = nil, 1 }},
		{"interfaces", []Override{{"--interface", "interfaces", "eth7,eth8"}},
			func(c *Config) { c.Interfaces = []Interface{{Name: "eth7"}, {Name: "eth8"}} }},
		{"global value of services", []Override{{"--toa-kind", "toa_kind", "252"}}, func(c *Config) {
			c.TOAKind = 252
			for i := 1; i < len(c.Services); i++ {
				c.Services[i].TOAKind = 252
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := mustLoad(t, file)
			tt.want(want)
			if diff := cmp.Diff(want, mustLoad(t, file, tt.overrides...), same); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestOverrideErrors(t *testing.T) {
	tests := []struct{ key, value, want string }{
		{"xdp_mode", "nativ", `--flag: expected one of auto, native, generic, got "nativ"; did you mean native?`},
		{"cpus", "x", `--flag: expected CPU numbers such as 2,4-5, within 0-8191, each once, got "x"`},
		{"interfaces", "eth1,eth0", "--flag: eth0 is the management interface, which is left to the kernel"},
		{"interfaces", "eth1,", `--flag: expected an interface name of 1 to 15 characters, got ""`},
		{"services", "x", "--flag: no flag can set the key services"},
		{"nonsense", "x", "--flag: no flag can set the key nonsense"},
		{"ring_size", "128", "all.yaml:61:19: frames_per_queue: frames_per_queue must be at least twice ring_size, 256; it is 128"},
	}
	for _, tt := range tests {
		t.Run(tt.key, func(t *testing.T) {
			_, err := Parse("all.yaml", read(t, "testdata/good/all.yaml"), Override{"--flag", tt.key, tt.value})
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
	if _, err := Parse("f", []byte("services: []"), Override{"-i", "interfaces", "eth1"}); err == nil ||
		err.Error() != "f:1:11: services: at least one service is needed" {
		t.Errorf("interfaces from the flag alone: %v", err)
	}
}

func TestProblem(t *testing.T) {
	c := mustLoad(t, "testdata/good/contract.yaml")
	tests := []struct{ path, want string }{
		{"interfaces[1].name", "testdata/good/contract.yaml:4:11: interfaces[1].name: no such thing"},
		{"interfaces[1].queues", "testdata/good/contract.yaml:4:5: interfaces[1].queues: no such thing"},
		{"interfaces[9]", "testdata/good/contract.yaml:3:3: interfaces[9]: no such thing"},
		{"services[0].backends[1].weight", "testdata/good/contract.yaml:17:45: services[0].backends[1].weight: no such thing"},
		{"ring_size", "testdata/good/contract.yaml:1:1: ring_size: no such thing"},
		{"", "testdata/good/contract.yaml:1:1: no such thing"},
	}
	for _, tt := range tests {
		if got := c.Problem(tt.path, "no such %s", "thing").String(); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
	if got := (&Config{}).Problem("a.b", "wrong").String(); got != "a.b: wrong" {
		t.Errorf("made by hand: %s", got)
	}
}

func TestLocals(t *testing.T) {
	var got []string
	for a, r := range mustLoad(t, "testdata/good/all.yaml").Locals() {
		got = append(got, a.String()+" "+r.Ports.String())
	}
	want := []string{"10.0.1.10 2000-3000", "10.0.1.20 20000-29999", "10.0.1.21 20000-29999",
		"2001:db8:1:: 2000-3000", "2001:db8:1::1 2000-3000"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for range mustLoad(t, "testdata/good/all.yaml").Locals() {
		break
	}
}
