package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const fileAlone = `
interfaces: [{name: eth1}]
local_addresses: [10.0.1.10]
toa_kind: 200
timeouts: {tcp_established: 15m}
discovery: {etcd: {endpoints: ["http://10.0.0.5:2379"]}}
`

const (
	webDocument = `{
	"address": "192.0.2.10:80", "protocol": "tcp", "mode": "full-nat",
	"health_check": {"type": "http", "path": "\/health", "expect_body": "\u003cok\u003e", "host": "a.example"},
	"timeouts": {"udp_one_way": "1m"}, "backends": [{"address": "10.0.1.20:8080", "weight": 2}]
}`
	webYAML = `
  - name: web
    address: 192.0.2.10:80
    protocol: tcp
    mode: full-nat
    health_check: {type: http, path: /health, expect_body: "<ok>", host: a.example}
    timeouts: {udp_one_way: 1m}
    backends: [{address: "10.0.1.20:8080", weight: 2}, {address: "10.0.1.21:8080", backup: true}]
`
)

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("l4fwd.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustService(t *testing.T, source, name, text string) *ServiceDocument {
	t.Helper()
	s, err := ParseService(source, name, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustBackend(t *testing.T, source, text string) *BackendDocument {
	t.Helper()
	b, err := ParseBackend(source, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A service of documents is the one that the file would have: keys, defaults and what
// is inherited.
func TestDocumentsAreAsTheFile(t *testing.T) {
	base := mustParse(t, fileAlone)
	before, err := base.MarshalYAML()
	if err != nil {
		t.Fatal(err)
	}
	got, err := base.With([]Found{{
		Service:  mustService(t, "k/web", "web", webDocument),
		Backends: []*BackendDocument{mustBackend(t, "k/web/b1", `{"address":"10.0.1.21:8080","backup":true}`)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := mustParse(t, fileAlone+"services:"+webYAML)
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("(-file +documents):\n%s", diff)
	}
	if d := Diff(want, got); len(d) > 0 {
		t.Error(d)
	}
	after, err := base.MarshalYAML()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(before), string(after)); diff != "" {
		t.Errorf("With has changed what it was called of:\n%s", diff)
	}
	if p := got.Problem("services[0].backends[1].weight", "x"); p.String() != "k/web/b1: weight: x" {
		t.Errorf("%v", p)
	}
	if p := got.Problem("services[0].backends[0].weight", "x"); p.String() != "k/web: backends[0].weight: x" {
		t.Errorf("%v", p)
	}
	if p := got.Problem("services[0]", "x"); p.String() != "k/web: x" {
		t.Errorf("%v", p)
	}
}

func TestBadDocuments(t *testing.T) {
	const ok = `"address":"192.0.2.10:80","protocol":"tcp","mode":"dnat"`
	tests := []struct{ name, kind, text, want string }{
		{"no JSON", "service", "{", "k: not valid JSON: unexpected end of JSON input"},
		{"YAML", "service", "address: 192.0.2.10:80", "k: not valid JSON: invalid character 'a' looking for beginning of value"},
		{"empty", "service", "", "k: not valid JSON: unexpected end of JSON input"},
		{"a list", "service", "[1]", "k: expected a mapping of keys to values, got a list"},
		{"nothing said", "service", "{}", "k: the key address is missing\nk: the key protocol is missing\nk: the key mode is missing"},
		{"unknown key", "service", `{` + ok + `,"sheduler":"rr"}`, "k: sheduler: unknown key; did you mean scheduler?"},
		{"a key twice", "service", `{` + ok + `,"mode":"dnat"}`, "k: mode: this key was already given in line 1"},
		{"another name", "service", `{` + ok + `,"name":"other"}`, `k: name: it is "web" by its key, and "other" here`},
		{"a command", "service", `{` + ok + `,"health_check":{"type":"exec","command":["/bin/sh"]}}`, "k: health_check.type: exec is for the file alone"},
		{"of its backend", "service", `{` + ok + `,"backends":[{"address":"10.0.0.1:80"},{"address":"10.0.0.1"}]}`,
			`k: backends[1].address: expected address:port such as 192.0.2.10:80 or [2001:db8::10]:80, got "10.0.0.1"; the port is missing`},
		{"not a text", "service", `{"address":7,"protocol":null,"mode":"dnat"}`,
			"k: address: expected address:port such as 192.0.2.10:80 or [2001:db8::10]:80, got \"7\"; quote it if it is meant as text\n" +
				"k: protocol: expected one of tcp, udp, got nothing"},
		{"nested", "service", strings.Repeat("[", 5000) + strings.Repeat("]", 5000), "k: not valid JSON: nested too deeply"},
		{"no address", "backend", `{"weight":1}`, "k: the key address is missing"},
		{"weight", "backend", `{"address":"10.0.0.1:80","weight":-1}`, `k: weight: expected a whole number from 0 to 65535, got "-1"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var err error
			if tt.kind == "service" {
				_, err = ParseService("k", "web", []byte(tt.text))
			} else {
				_, err = ParseBackend("k", []byte(tt.text))
			}
			if err == nil || !errors.As(err, new(Errors)) {
				t.Fatalf("%v", err)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if _, err := ParseService("k", "a b", []byte("{"+ok+"}")); err == nil {
		t.Error("a name with a space")
	}
}

// What documents have against the file, and each other, names both.
func TestDocumentsTogether(t *testing.T) {
	base := mustParse(t, fileAlone+`
services: [{name: web, address: "192.0.2.10:80", protocol: tcp, mode: dnat, backends: [{address: "10.0.1.20:80"}]}]`)
	service := func(key, address, backend string) Found {
		return Found{Service: mustService(t, key, key, `{"address":"`+address+`","protocol":"tcp","mode":"dnat","backends":[{"address":"`+backend+`"}]}`)}
	}
	tests := []struct {
		name  string
		found []Found
		want  string
	}{
		{"the name", []Found{service("web", "192.0.2.11:80", "10.0.1.20:80")}, "web: name: the name web is already that of services[0]"},
		{"the address", []Found{service("b", "192.0.2.10:80", "10.0.1.20:80")}, "b: address: 192.0.2.10:80 tcp is already services[0]"},
		{"each other", []Found{service("b", "192.0.2.11:80", "10.0.1.20:80"), service("c", "192.0.2.11:80", "10.0.1.20:80")},
			"c: address: 192.0.2.11:80 tcp is already b"},
		{"the file's backend", []Found{service("b", "10.0.1.20:80", "10.0.1.21:80")},
			"l4fwd.yaml:8:98: services[0].backends[0].address: 10.0.1.20 is the VIP of b"},
		{"families", []Found{{service("b", "192.0.2.11:80", "10.0.1.20:80").Service,
			[]*BackendDocument{mustBackend(t, "b/6", `{"address":"[2001:db8::1]:80"}`)}}}, "b/6: address: an IPv6 backend among IPv4 ones (backends[0])"},
		{"one without backends", []Found{{Service: mustService(t, "b", "b", `{"address":"192.0.2.11:80","protocol":"tcp","mode":"dnat","backends":[]}`)},
			service("c", "192.0.2.11:80", "10.0.1.20:80")}, "b: address: 192.0.2.11:80 tcp is already c"},
		{"what snat has not", []Found{{Service: mustService(t, "b", "b",
			`{"address":"192.0.2.11:80","protocol":"tcp","mode":"snat","scheduler":"rr","backends":[{"address":"10.0.9.1:80"}]}`)}},
			"b: scheduler: snat keeps no flows and chooses no backends: it cannot have scheduler"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := base.With(tt.found)
			if err == nil {
				t.Fatal("taken")
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A service without backends is nobody's, and takes nothing from the places of others.
func TestDocumentWithoutBackends(t *testing.T) {
	idle := Found{Service: mustService(t, "a", "a", `{"address":"192.0.2.12:80","protocol":"tcp","mode":"dnat","backends":[]}`)}
	web := Found{Service: mustService(t, "web", "web", webDocument)}
	c, err := mustParse(t, fileAlone).With([]Found{idle, web})
	if err != nil || len(c.Services) != 1 || c.Services[0].Name != "web" {
		t.Fatalf("%v %+v", err, c)
	}
	if p := c.Problem("services[0].mode", "x"); p.String() != "web: mode: x" {
		t.Errorf("%v", p)
	}
	// What its backends decide is not decided yet.
	probed := Found{Service: mustService(t, "b", "b",
		`{"address":"[2001:db8::1]:80","protocol":"tcp","mode":"full-nat","health_check":{"type":"tcp","source":"10.0.1.9"}}`)}
	if _, err := mustParse(t, fileAlone).With([]Found{probed, web}); err != nil {
		t.Error(err)
	}
}

func TestDiscoveryKeys(t *testing.T) {
	const rest = "interfaces: [{name: eth1}]\n"
	tests := []struct{ name, text, want string }{
		{"no services needed", `{endpoints: ["https://[2001:db8::5]:2379", "https://etcd.example:2379"], cert: /c, key: /k, username: l4, password_file: /p, timeout: 2s, on_empty: apply, state_dir: off}`, ""},
		{"none, so services are", `{endpoints: []}`, "x:1:1: services: at least one service is needed"},
		{"no URL", `{endpoints: ["10.0.0.5:2379"]}`, `x:2:32: discovery.etcd.endpoints[0]: expected ` + wantEndpoint + `, got "10.0.0.5:2379"`},
		{"a path", `{endpoints: ["http://10.0.0.5:2379/x"]}`, `x:2:32: discovery.etcd.endpoints[0]: expected ` + wantEndpoint + `, got "http://10.0.0.5:2379/x"`},
		{"no port", `{endpoints: ["http://10.0.0.5"]}`, `x:2:32: discovery.etcd.endpoints[0]: expected ` + wantEndpoint + `, got "http://10.0.0.5"`},
		{"mixed", `{endpoints: ["http://a:1", "https://a:1"]}`, "x:2:46: discovery.etcd.endpoints[1]: http and https cannot be mixed"},
		{"no TLS", `{endpoints: ["http://a:1"], ca: /ca}`, "x:2:31: discovery.etcd.endpoints: ca, cert and key are for https"},
		{"half a pair", `{endpoints: ["https://a:1"], key: /k}`, "x:2:19: discovery.etcd: cert and key belong together"},
		{"no password", `{endpoints: ["https://a:1"], username: u}`, "x:2:19: discovery.etcd: username and password_file belong together"},
		{"slash", `{endpoints: ["http://a:1"], prefix: /l4/}`, `x:2:55: discovery.etcd.prefix: expected ` + wantPrefix + `, got "/l4/"`},
		{"long wait", `{endpoints: ["http://a:1"], timeout: 2m}`, `x:2:56: discovery.etcd.timeout: expected a duration from 100ms to 1m, got "2m"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("x", []byte(rest+"discovery: {etcd: "+tt.text+"}\n"))
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				roundTrip(t, c)
				return
			}
			if diff := cmp.Diff(tt.want, fmt.Sprint(err)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever a document is, reading it ends in a value or in words.
func FuzzDocument(f *testing.F) {
	f.Add([]byte(webDocument))
	f.Add([]byte(`{"address":"10.0.0.1:80"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := ParseService("k", "web", data); (s == nil) != (err != nil && err.Error() != "") {
			t.Error(s, err)
		}
		if b, err := ParseBackend("k", data); (b == nil) != (err != nil && err.Error() != "") {
			t.Error(b, err)
		}
	})
}
