package control

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Files as this machine's kernel writes them.
var procFiles = map[string]string{
	"tcp": `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0000000000000000 100 0 0 10 0
   1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0000000000000000 20 4 30 10 -1
`,
	"tcp6": `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0000000000000000 100 0 0 10 0
   1: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0000000000000000 100 0 0 10 0
`,
	"udp": `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
   19: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 5 2 0000000000000000 0
   rubbish
   20: XYZ:0035 00000000:0000 07
`,
	"sys/ip_local_port_range":     "32768\t60999\n",
	"sys/ip_local_reserved_ports": "8080,40000-40999\n",
}

func procDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range procFiles {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestReadHostPorts(t *testing.T) {
	dir := procDir(t)
	got, err := readHostPorts(dir, dir+"/sys") // there is no udp6, as without IPv6
	if err != nil {
		t.Fatal(err)
	}
	want := hostPorts{
		ephemeral: config.PortRange{First: 32768, Last: 60999},
		reserved:  []config.PortRange{{First: 8080, Last: 8080}, {First: 40000, Last: 40999}},
		bound: []boundPort{
			{config.TCP, netip.MustParseAddr("127.0.0.1"), 8080},
			{config.TCP, netip.IPv6Unspecified(), 22},
			{config.TCP, netip.MustParseAddr("2001:db8::1"), 80},
			{config.UDP, netip.IPv4Unspecified(), 53},
		},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(hostPorts{}, boundPort{}), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := readHostPorts(dir, dir); err == nil {
		t.Error("no ip_local_port_range, no error")
	}
}

// serviceAt is a configuration of one service.
func serviceAt(vip, proto, backend string) string {
	const service = `
interfaces: [{name: eth1}]
services:
  - {name: s, address: "VIP", protocol: PROTO, mode: dnat, backends: [{address: "BACKEND"}]}
`
	return strings.NewReplacer("VIP", vip, "PROTO", proto, "BACKEND", backend).Replace(service)
}

func TestConflicts(t *testing.T) {
	dir := procDir(t)
	ports, err := readHostPorts(dir, dir+"/sys")
	if err != nil {
		t.Fatal(err)
	}
	vip := serviceAt
	local := func(ports string) string {
		return vip("192.0.2.1:1", "tcp", "10.9.9.9:1") + "local_addresses: [{address: 10.0.0.1, ports: " + ports + "}]\n"
	}
	tests := map[string]struct{ config, want string }{
		"ssh":                    {vip("10.0.0.1:22", "tcp", "10.9.9.9:1"), "tcp port 22 ([::]:22)"},
		"ssh by IPv6":            {vip("[2001:db8::1]:22", "tcp", "[2001:db8::9]:1"), "tcp port 22 ([::]:22)"},
		"other protocol":         {vip("10.0.0.1:22", "udp", "10.9.9.9:1"), ""},
		"address of its own":     {vip("[2001:db8::1]:80", "tcp", "[2001:db8::9]:1"), "tcp port 80 ([2001:db8::1]:80)"},
		"listens elsewhere":      {vip("10.0.0.1:8080", "tcp", "10.9.9.9:1"), ""},
		"not the host's address": {vip("10.0.0.2:22", "tcp", "10.9.9.9:1"), ""},
		"UDP wildcard":           {vip("10.0.0.1:53", "udp", "10.9.9.9:1"), "udp port 53 (0.0.0.0:53)"},
		"IPv4 wildcard, IPv6":    {vip("[2001:db8::1]:53", "udp", "[2001:db8::9]:1"), ""},
		"kernel's ports":         {local("60000-65535"), "ports 60000-65535 are among those"},
		"one kernel's port":      {local("60999-65535"), "ip_local_reserved_ports"},
		"beyond the kernel's":    {local("61000-65535"), ""},
		"reserved":               {local("40000-40999"), ""},
		"more than reserved":     {local("40000-41000"), "ports 40000-41000"},
		"listener among them":    {local("20-30"), "tcp port 22"},
		"UDP among them":         {local("30-60"), "udp port 53"},
		"nobody":                 {local("1000-2000"), ""},
	}
	own := map[netip.Addr]bool{netip.MustParseAddr("10.0.0.1"): true, netip.MustParseAddr("2001:db8::1"): true}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := config.Parse("test.yaml", []byte(tc.config))
			if err != nil {
				t.Fatal(err)
			}
			errs := ports.conflicts(c, own)
			switch {
			case tc.want == "" && len(errs) > 0:
				t.Error(errs)
			case tc.want != "" && (len(errs) != 1 || !strings.Contains(errs[0].Error(), tc.want)):
				t.Errorf("%v, want %q", errs, tc.want)
			}
		})
	}
}

// TestLent: services at ports that the kernel gives to the host's connections, and the
// command that has it keep them, and what it kept before.
func TestLent(t *testing.T) {
	dir := procDir(t)
	ports, err := readHostPorts(dir, dir+"/sys")
	if err != nil {
		t.Fatal(err)
	}
	v4 := func(vip string) string { return serviceAt(vip, "tcp", "10.9.9.9:1") }
	many := v4("10.0.0.1:32768")
	for i := range 6 {
		many += fmt.Sprintf("  - {name: m%d, address: \"10.0.0.1:%d\", protocol: udp, mode: dnat, backends: [{address: 10.9.9.9:1}]}\n", i, 50001+i/2*2-i%2)
	}
	tests := map[string]struct{ config, want string }{
		"first":                  {v4("10.0.0.1:32768"), "ip_local_port_range is 32768-60999): s; "},
		"UDP":                    {serviceAt("10.0.0.1:45000", "udp", "10.9.9.9:1"), "with: sysctl -w net.ipv4.ip_local_reserved_ports=8080,40000-40999,45000"},
		"IPv6":                   {serviceAt("[2001:db8::1]:60999", "tcp", "[2001:db8::9]:1"), "=8080,40000-40999,60999"},
		"beside reserved ones":   {v4("10.0.0.1:41000"), "=8080,40000-41000"},
		"several":                {many, "): s, m0, m1, m2, m3, 2 more; "},
		"several's ports":        {many, "=8080,32768,40000-40999,50000-50005"},
		"reserved":               {v4("10.0.0.1:40500"), ""},
		"below":                  {v4("10.0.0.1:32767"), ""},
		"above":                  {v4("10.0.0.1:61000"), ""},
		"not the host's address": {v4("10.0.0.2:45000"), ""},
		"nothing is taken of it": {strings.Replace(v4("10.0.0.1:45000"), "dnat", "snat", 1), ""},
	}
	own := map[netip.Addr]bool{netip.MustParseAddr("10.0.0.1"): true, netip.MustParseAddr("2001:db8::1"): true}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := config.Parse("test.yaml", []byte(tc.config))
			if err != nil {
				t.Fatal(err)
			}
			err = ports.lent(c, own)
			if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if errs := ports.conflicts(c, own); len(errs) > 0 {
				t.Errorf("refused: %v", errs)
			}
		})
	}
}

// TestLentLive: it is said at start and by each reload, until the command was given.
func TestLentLive(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	check(t, w.LBClient.AddAddr(netip.PrefixFrom(w.VIP(testbed.V4, 0), 32)))
	text := w.Config(testbed.Services(0, "full-nat", "none", "wrr"), small...)
	d := w.run(text)
	const key, ports = "net.ipv4.ip_local_reserved_ports", "9000-9001"
	said := func(problems []string) int {
		return len(slices.DeleteFunc(problems, func(p string) bool { return !strings.HasSuffix(p, key+"="+ports) }))
	}
	var atStart []string
	for _, e := range d.logs.FilterMessage("configuration").All() {
		atStart = append(atStart, fmt.Sprint(e.ContextMap()["problem"]))
	}
	if said(atStart) != 1 {
		t.Errorf("at start: %q", atStart)
	}
	if r := d.reload(text); said(r.Warnings) != 1 {
		t.Errorf("reload: %q", r.Warnings)
	}
	check(t, w.LB.Sysctl(key, ports))
	if r := d.reload(text); said(r.Warnings) != 0 {
		t.Errorf("reload, reserved: %q", r.Warnings)
	}
	d.end()
	w.clean()
}

func FuzzParseProcAddr(f *testing.F) {
	f.Add("0100007F:1F90")
	f.Add("B80D0120000000000000000001000000:0050")
	f.Add("0:0")
	f.Add(":")
	f.Fuzz(func(t *testing.T, s string) {
		if a, ok := parseProcAddr(s); ok && !a.IsValid() {
			t.Errorf("%q: %v", s, a)
		}
	})
}
