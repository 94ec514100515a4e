package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/l4fwd/l4fwd/internal/growth"
)

// each joins what one has to say n times.
func each(n int, between string, one func(i int) string) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = one(i)
	}
	return strings.Join(parts, between)
}

func numbered(i int) string { return fmt.Sprintf("%d.%d", i>>8, i&255) }

const growing = "interfaces: [{name: eth0}]\nlocal_addresses: [10.9.0.1]\nservices:\n"

// TestParseInProportion: what a file takes grows with its size, and so does a document.
func TestParseInProportion(t *testing.T) {
	backends := func(n int) string {
		return each(n, ",\n", func(i int) string { return `{"address": "10.2.` + numbered(i) + `:80", "weight": 2}` })
	}
	const web = `{"address": "10.1.0.1:80", "protocol": "tcp", "mode": "full-nat", "backends": [`
	for _, tt := range []struct {
		name  string
		text  func(n int) string
		parse func(text []byte) error
	}{
		{"backends", func(n int) string {
			return growing + "  - {name: web, " + strings.TrimPrefix(web, "{") + "\n" + backends(n) + "]}\n"
		}, nil},
		{"services", func(n int) string {
			return growing + each(n, "", func(i int) string {
				return fmt.Sprintf("  - name: s%d\n    address: \"10.1.%s:80\"\n    protocol: tcp\n    mode: full-nat\n    backends: [{address: \"10.2.0.1:80\"}]\n", i, numbered(i))
			})
		}, nil},
		{"document", func(n int) string { return web + backends(n) + "]}" },
			func(text []byte) error { _, err := ParseService("k", "web", text); return err }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.parse == nil {
				tt.parse = func(text []byte) error { _, err := Parse("x", text); return err }
			}
			growth.Proportional(t, 1000, func(n int) func() {
				text := []byte(tt.text(n))
				return func() {
					if err := tt.parse(text); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// TestTunnelSourcesInProportion: that no tunnel comes from what another service has takes
// no look at each of all for each.
func TestTunnelSourcesInProportion(t *testing.T) {
	for _, source := range []string{"10.5.%s", "10.5.0.0/16 # %s"} {
		growth.Proportional(t, 1500, func(n int) func() {
			c := mustParse(t, growing+each(n, "", func(i int) string {
				return fmt.Sprintf("  - name: s%d\n    address: \"10.1.%s:80\"\n    protocol: tcp\n    mode: tunnel\n    encapsulation: ipip\n    encapsulation_source: "+source+"\n    backends: [{address: \"10.2.%[2]s:80\"}]\n",
					i, numbered(i), numbered(i))
			}))
			return func() {
				if errs := c.validate(nil); len(errs) > 0 {
					t.Error(errs)
				}
			}
		})
	}
}

// BenchmarkParse shows what of a file is the YAML library's, and what a document takes.
func BenchmarkParse(b *testing.B) {
	list := each(30000, ",\n", func(i int) string { return `{"address":"10.2.` + numbered(i) + `:80","weight":2}` })
	const web = `"address":"10.1.0.1:80","protocol":"tcp","mode":"full-nat","backends":[`
	file, document := growing+"  - {name: web, "+web+"\n"+list+"]}\n", "{"+web+list+"]}"
	for _, bb := range []struct {
		name, text string
		run        func(text string) error
	}{
		{"file", file, func(s string) error { _, err := Parse("x", []byte(s)); return err }},
		{"library", file, func(s string) error {
			tokens, err := tokenize(s)
			if err == nil {
				_, err = parseYAML(tokens)
			}
			return err
		}},
		{"document", document, func(s string) error { _, err := ParseService("k", "web", []byte(s)); return err }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.SetBytes(int64(len(bb.text)))
			for range b.N {
				if err := bb.run(bb.text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestSumInProportion: documents that are judged one by one, since one is refused, take as
// long together as there are of them.
func TestSumInProportion(t *testing.T) {
	base := mustParse(t, growing+`  - {name: file, address: "192.0.2.1:80", protocol: tcp, mode: tunnel, encapsulation: ipip, backends: [{address: "10.0.0.1:80"}]}`+"\n")
	many := func(n int) *Config {
		return mustParse(t, growing+each(n, "", func(i int) string {
			return fmt.Sprintf("  - {name: f%d, address: \"10.1.%s:80\", protocol: tcp, mode: dnat, backends: [{address: \"10.2.%s:80\"}]}\n", i, numbered(i), numbered(i))
		}))
	}
	const dnat = `{"address":"10.3.%s:80","protocol":"tcp","mode":"dnat","backends":[{"address":"10.4.%[1]s:80"}]}`
	tunnel := func(source string) string {
		return `{"address":"10.3.%s:80","protocol":"tcp","mode":"tunnel","encapsulation":"ipip","encapsulation_source":"` + source + `","backends":[{"address":"10.4.%[1]s:80"}]}`
	}
	for _, tt := range []struct {
		name, text string
		file       func(n int) *Config
	}{
		{"services", dnat, func(int) *Config { return base }},
		{"beside as many of the file", dnat, many},
		{"tunnels", tunnel("10.5.%[1]s"), func(int) *Config { return base }},
		{"tunnels of one source", tunnel("10.5.0.1"), func(int) *Config { return base }},
		{"tunnels of one network", tunnel("10.5.0.0/16"), func(int) *Config { return base }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			growth.Proportional(t, 200, func(n int) func() {
				file := tt.file(n)
				var services []*ServiceDocument
				var backends []*BackendDocument
				for i := range n {
					services = append(services, mustService(t, fmt.Sprint("k", i), fmt.Sprint("k", i), fmt.Sprintf(tt.text, numbered(i))))
					backends = append(backends, mustBackend(t, fmt.Sprint("b", i), fmt.Sprintf(`{"address":"10.6.%s:80"}`, numbered(i))))
				}
				return func() {
					sum := file.Sum(nil)
					for i, s := range services {
						if err := sum.AddService(s); err != nil {
							t.Fatal(err)
						}
						if err := sum.AddBackend(s.Name(), backends[i]); err != nil {
							t.Fatal(err)
						}
					}
				}
			})
		})
	}
}
