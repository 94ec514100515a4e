package filter

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/dataplane/cbpf"
)

// expressions that tcpdump knows too.
var expressions = []string{
	"ip", "ip6", "arp", "rarp", "tcp", "udp", "sctp", "icmp", "icmp6", "igmp", "pim", "esp", "ah", "vrrp",
	"host 10.0.0.1", "src host 10.0.0.1", "dst host 10.0.0.1", "src 10.0.0.1", "dst 10.0.0.1",
	"src or dst host 10.0.0.1", "src and dst host 10.0.0.1", "dst or src 10.0.0.1", "ip host 10.0.0.1", "arp host 10.0.0.1",
	"host 2001:db8::1", "src host 2001:db8::1", "dst 2001:db8:1::10", "ip6 host fe80::1",
	"net 10.0.0.0/8", "net 10", "net 10.1", "net 10.0.0", "src net 10.1.2.0/24", "dst net 192.0.2.0/24",
	"net 10.0.0.0 mask 255.0.0.0", "net 172.16.0.0/12", "net 0.0.0.0/0", "ip net 10.0.0.0/8", "net 2001:db8::/32", "net 2001:db8:1::/48",
	"src net fe80::/10", "ip6 net 2001:db8::/127", "arp net 10.0.0.0/8", "net ::/0",
	"host ::ffff:10.0.0.1", "ip6 net ::ffff:10.0.0.0/104",
	"port 80", "tcp port 80", "udp port 53", "src port 80", "dst port 443", "tcp src port 443", "udp dst port 5353", "sctp port 80",
	"src and dst port 80", "port 0x50",
	"portrange 80-443", "tcp portrange 8000-9000", "udp src portrange 1-100", "portrange 443-80", "dst portrange 53-53",
	"tcp dst portrange 1-65535",
	"proto 6", "ip proto 17", "ip6 proto 58", `ip proto \tcp`, `ip6 proto \udp`, "ether proto 0x806", `ether proto \ip6`, "ip proto 103",
	"ether host 02:00:00:00:00:01", "ether src 02:00:00:00:00:01", "ether dst 02:00:00:00:00:02", "ether broadcast", "broadcast",
	"ether multicast", "multicast", "ip multicast", "ip6 multicast",
	"vlan", "vlan 100", "vlan and tcp", "vlan 5 and tcp port 80", "vlan 7 and vlan 100 and ip", "vlan and vlan", "not vlan",
	"ip or vlan and ip", "vlan 100 and host 10.0.0.1", "vlan and ip[8] = 9", "vlan and tcp[13] & 2 != 0", "vlan and (udp or icmp)",
	"(vlan or ip) and tcp", "tcp or (vlan and tcp)", "vlan and ether host 02:00:00:00:00:01",
	"less 60", "greater 1000", "len > 60", "len <= 60", "len = 60", "len & 1 = 0", "60 < len",
	"tcp[tcpflags] & tcp-syn != 0", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "tcp[tcpflags] == tcp-syn|tcp-ack",
	"tcp[13] = 2", "tcp[13] & 4 != 0", "(tcp[13] & 7) != 0", "tcp[0:2] = 80", "tcp[2:2] > 1024", "tcp[0:4] != 0", "udp[4:2] > 8",
	"icmp[icmptype] = icmp-echo", "icmp[icmptype] != icmp-echo and icmp[icmptype] != icmp-echoreply", "icmp[0] == 3 and icmp[1] == 1",
	"icmp6[icmp6type] = icmp6-echo", "icmp6[0] == 135", "ip6[6] = 6", "ip6[40] = 0", "ip[0] & 0xf != 5", "ip[6:2] & 0x1fff != 0",
	"ip[6] & 0x20 != 0", "ip[2:2] - ((ip[0] & 0xf) << 2) > 28", "ip[9] = ip[9]", "ip[8] + 1 > ip[9]", "ether[0] & 1 = 0",
	"ether[12:2] = 0x800", "arp[6:2] = 1", "ip[16] >= 224", "ip[8] * 2 = 18", "ip[8] / 2 = 4", "ip[8] % 4 = 1", "ip[8] ^ 9 = 0", "ip[8] >> 1 = 4",
	"-ip[8] + 10 = 1", "tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420", "tcp port 8080 and tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420",
	"tcp and ip[6:2] & 0x1fff = 0 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)", "ip[ip[8]:1] = 6", "2 + 3 * 4 = 14", "1 = 1", "1 = 2", "(1) = (1)",
	"tcp and port 80", "tcp or udp", "not tcp", "! tcp", "not (tcp or udp)", "tcp && port 80 || udp", "tcp or udp and port 80", "udp or tcp and port 80",
	"port 80 or 443", "port 80 or 443 or 53", "tcp port (80 or 443)", "host 10.0.0.1 and not port 22", "host 10.0.0.1 or 192.0.2.10",
	"src net 10.0.0.0/8 and dst net 192.0.2.0/24", "tcp and not host 10.0.0.1", "not not tcp", "not port 80 and not port 443", "ip and not udp port 53",
	"(host 10.0.0.1 or host 2001:db8::1) and (port 80 or port 443)", "icmp or icmp6 or arp", "((((((tcp))))))", "dst host 192.0.2.10 and tcp dst port 80",
	"host (10.0.0.1 or 192.0.2.10)", "ip host 10.0.0.1 and 192.0.2.10", "src host 10.0.0.1 and dst port 80 and tcp[13] = 2",
}

// What tcpdump forgets: its arithmetic is guarded by what stands first in it alone, so
// that this one is true of UDP too.
func TestGuarded(t *testing.T) {
	all := frames(t)
	if n, tcp := matched(t, "ip[8] - tcp[0] < 256", all), matched(t, "tcp and ip", all); n == 0 || n > tcp {
		t.Errorf("%d packets, of %d of TCP", n, tcp)
	}
}

func TestTcpdumpAgrees(t *testing.T) {
	all := frames(t)
	for _, expr := range expressions {
		if d := differs(t, expr, all); d != "" {
			t.Errorf("%s:\n%s", expr, d)
		}
	}
}

// matched is how many of the packets an expression admits.
func matched(t *testing.T, expr string, all []frame) (n int) {
	t.Helper()
	code, err := Compile(expr)
	if err != nil {
		t.Fatal(err)
	}
	p, err := cbpf.New(code)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if p.Run(f.bytes, uint32(len(f.bytes))) != 0 {
			n++
		}
	}
	return n
}

// The packets are such that the expressions tell them apart: hardly one admits all or
// none.
func TestFramesTell(t *testing.T) {
	all := frames(t)
	dull := 0
	for _, expr := range expressions {
		if n := matched(t, expr, all); n == 0 || n == len(all) {
			t.Logf("%s: %d of %d", expr, n, len(all))
			dull++
		}
	}
	if dull > len(expressions)/12 {
		t.Errorf("%d of %d expressions admit all packets or none", dull, len(expressions))
	}
	if n := matched(t, " ", all); n != len(all) {
		t.Errorf("the empty expression admits %d of %d", n, len(all))
	}
}

// draw makes an expression of primitives, in any nesting.
func draw(t *rapid.T, depth int) string {
	if depth == 0 || rapid.IntRange(0, 3).Draw(t, "leaf") == 0 {
		return rapid.SampledFrom(expressions).Draw(t, "primitive")
	}
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		return "not (" + draw(t, depth-1) + ")"
	case 1:
		return "(" + draw(t, depth-1) + ") and (" + draw(t, depth-1) + ")"
	case 2:
		return "(" + draw(t, depth-1) + ") or (" + draw(t, depth-1) + ")"
	}
	return draw(t, depth-1) + " and (" + draw(t, depth-1) + ")"
}

func TestTcpdumpAgreesOnAll(t *testing.T) {
	all := frames(t)
	rapid.Check(t, func(r *rapid.T) {
		expr := draw(r, 4)
		if d := differs(t, expr, all); d != "" {
			r.Fatalf("%s:\n%s", expr, d)
		}
	})
}

// Programs so long that their jumps do not reach.
func TestLong(t *testing.T) {
	var hosts []string
	for i := range 200 {
		hosts = append(hosts, fmt.Sprintf("dst host 10.9.%d.1", i))
	}
	expr := "not (" + strings.Join(hosts, " or ") + ") and (" + strings.Join(hosts[:60], " or ") + " or tcp)"
	if d := differs(t, expr, frames(t)); d != "" {
		t.Error(d)
	}
	if _, err := Compile(strings.Join(append(hosts, hosts...), " or ") + " or " + strings.Join(hosts, " or ")); !errors.Is(err, errLong) && err == nil {
		t.Error("no limit to a program's length")
	}
}

func TestRefused(t *testing.T) {
	for expr, want := range map[string]string{
		"tcp port":                          "character 9: the expression ends too soon: want an address or a number",
		"foo":                               `character 1: unexpected "foo": want a condition, such as host, net or port`,
		"10.0.0.1":                          `character 1: unexpected "10.0.0.1": want a condition, such as host, net or port`,
		"host foo":                          `character 6: "foo" is no address: names of hosts are not resolved`,
		"host www.example.org":              `character 6: "www.example.org" is no address: names of hosts are not resolved`,
		"host 10.0.0":                       `character 6: "10.0.0" is no address`,
		"host 10.0.0.0/8":                   `character 14: unexpected "/"`,
		"net 10.0.0.1/8":                    "character 5: 10.0.0.1/8 has bits beyond its length: 10.0.0.0/8 is meant?",
		"net 10.0.0.0/33":                   "character 5: the prefix length of 10.0.0.0 is none",
		"port 70000":                        "character 6: port 70000: at most 65535",
		"port nosuchservice":                `character 6: "nosuchservice" is no port: names of services are not known`,
		"icmp port 1":                       "character 11: icmp has no ports",
		"tcp host 10.0.0.1":                 "character 10: tcp packets have no address like 10.0.0.1",
		"ip host ::1":                       "character 9: ip packets have no address like ::1",
		"ip broadcast":                      "character 4: ip broadcast is not known here",
		"vlan 5000":                         "character 6: VLAN 5000: at most 4095",
		"tcp[0:3] = 1":                      `character 4: unexpected "["`,
		"tcp[13]":                           `character 4: unexpected "["`,
		"ip[8] / 0 = 1":                     `character 3: unexpected "["`,
		"(tcp":                              `character 5: the expression ends too soon: want ")"`,
		"tcp)":                              `character 4: unexpected ")"`,
		"tcp and":                           "character 8: the expression ends too soon: want a condition",
		"inbound":                           `character 1: unexpected "inbound": want a condition, such as host, net or port`,
		"tcp $":                             `character 5: unexpected character '$'`,
		"ether host 1.2.3.4":                `character 12: "1.2.3.4" is no MAC address`,
		"ether proto 5":                     `character 13: "5" is no EtherType`,
		strings.Repeat("not ", 200) + "tcp": "nested too deep",
		strings.Repeat("(", 5000) + "tcp":   "nested too deep",
	} {
		_, err := Compile(expr)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %s", expr, err, want)
		}
	}
}

// Whatever is written, there is a program that is sound, or an error.
func FuzzCompile(f *testing.F) {
	for _, expr := range expressions {
		f.Add(expr)
	}
	all := frames(f)[:40]
	f.Fuzz(func(t *testing.T, expr string) {
		code, err := Compile(expr)
		if err != nil {
			return
		}
		p, err := cbpf.New(code)
		if err != nil {
			t.Fatalf("%q: %v", expr, err)
		}
		in, ok := bpf.Disassemble(code)
		if !ok {
			t.Fatalf("%q: %v", expr, code)
		}
		vm, err := bpf.NewVM(in)
		if err != nil {
			t.Fatalf("%q: %v", expr, err)
		}
		for _, fr := range all {
			n, err := vm.Run(fr.bytes)
			if got := p.Run(fr.bytes, uint32(len(fr.bytes))); err != nil || int(got) != n {
				t.Errorf("%q on %s: %d, x/net/bpf %d, %v", expr, fr.name, got, n, err)
			}
		}
	})
}
