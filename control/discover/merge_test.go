package discover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/config"
)

const fileText = `
interfaces: [{name: eth1}]
services: [{name: file, address: "192.0.2.1:80", protocol: tcp, mode: dnat, backends: [{address: "10.0.0.1:80"}]}]
discovery: {etcd: {endpoints: ["http://127.0.0.1:2379"], on_empty: %s}}
`

func file(t interface{ Fatal(...any) }, onEmpty string) *config.Config {
	c, err := config.Parse("l4fwd.yaml", []byte(fmt.Sprintf(fileText, onEmpty)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// document n of revision n.
func doc(revision int64, key, value string) Document {
	return Document{"/l4fwd/services/" + key, revision, []byte(value)}
}

func service(address string, backends ...string) string {
	list := ""
	for i, b := range backends {
		list += fmt.Sprintf(`%s{"address":%q}`, map[bool]string{true: ","}[i > 0], b)
	}
	return fmt.Sprintf(`{"address":%q,"protocol":"tcp","mode":"dnat","backends":[%s]}`, address, list)
}

func bare(address string) string {
	return fmt.Sprintf(`{"address":%q,"protocol":"tcp","mode":"dnat"}`, address)
}

func backend(address string) string { return fmt.Sprintf(`{"address":%q}`, address) }

// served are the services of a configuration in short.
func served(c *config.Config) (out []string) {
	for i := range c.Services {
		s := &c.Services[i]
		text := s.Name + " " + s.Address.String()
		for _, b := range s.Backends {
			text += " " + b.Address.String()
		}
		out = append(out, text)
	}
	return out
}

func told(r *Result) (out []string) {
	for _, p := range r.Problems {
		out = append(out, strings.TrimPrefix(p.String(), "/l4fwd/services/"))
	}
	return out
}

// One Merger, step by step: what etcd says, what is served then, and what is said.
func TestMerge(t *testing.T) {
	const fromFile = "file 192.0.2.1:80 10.0.0.1:80"
	type step struct {
		set      []Document
		services []string
		problems []string
	}
	tests := []struct {
		name, onEmpty string
		steps         []step
	}{
		{"services and backends", "keep", []step{
			{nil, []string{fromFile}, nil},
			{[]Document{doc(4, "web", service("192.0.2.2:80", "10.0.0.9:80")), doc(2, "web/backends/b", backend("10.0.0.3:80")), doc(3, "web/backends/a", backend("10.0.0.2:80"))},
				[]string{fromFile, "web 192.0.2.2:80 10.0.0.9:80 10.0.0.2:80 10.0.0.3:80"}, nil},
			{[]Document{doc(4, "web", service("192.0.2.2:80", "10.0.0.9:80"))}, []string{fromFile, "web 192.0.2.2:80 10.0.0.9:80"}, nil},
			{[]Document{doc(5, "api", service("192.0.2.3:80", "10.0.0.9:80"))}, []string{fromFile, "api 192.0.2.3:80 10.0.0.9:80"}, nil},
		}},
		{"the file wins", "keep", []step{{
			[]Document{doc(1, "file", service("192.0.2.2:80", "10.0.0.9:80")), doc(2, "x", service("192.0.2.1:80", "10.0.0.9:80")),
				doc(3, "y", service("10.0.0.1:80", "10.0.0.9:80")), doc(4, "z", service("192.0.2.9:80", "10.0.0.9:80"))},
			[]string{fromFile, "z 192.0.2.9:80 10.0.0.9:80"},
			[]string{"file: refused: name: the name file is already that of services[0]", "x: refused: address: 192.0.2.1:80 tcp is already services[0]",
				"y: refused: l4fwd.yaml:3:98: services[0].backends[0].address: 10.0.0.1 is the VIP of /l4fwd/services/y"},
		}}},
		{"the last good version stays", "keep", []step{
			{[]Document{doc(1, "a", service("192.0.2.2:80", "10.0.0.9:80")), doc(2, "b", bare("192.0.2.3:80")), doc(2, "b/backends/1", backend("10.0.0.9:80"))},
				[]string{fromFile, "a 192.0.2.2:80 10.0.0.9:80", "b 192.0.2.3:80 10.0.0.9:80"}, nil},
			{[]Document{doc(3, "a", "{"), doc(2, "b", bare("192.0.2.3:80")), doc(4, "b/backends/1", backend("10.0.0.9"))},
				[]string{fromFile, "a 192.0.2.2:80 10.0.0.9:80", "b 192.0.2.3:80 10.0.0.9:80"},
				[]string{"a: refused, its version of revision 1 stays: not valid JSON: unexpected end of JSON input",
					`b/backends/1: refused, its version of revision 2 stays: address: expected address:port such as 192.0.2.10:80 or [2001:db8::10]:80, got "10.0.0.9"; the port is missing`}},
			{[]Document{doc(5, "a", service("192.0.2.3:80", "10.0.0.8:80")), doc(2, "b", bare("192.0.2.3:80")), doc(6, "b/backends/1", backend("10.0.0.7:80"))},
				[]string{fromFile, "a 192.0.2.2:80 10.0.0.9:80", "b 192.0.2.3:80 10.0.0.7:80"},
				[]string{"a: refused, its version of revision 1 stays: /l4fwd/services/b: address: 192.0.2.3:80 tcp is already /l4fwd/services/a"}},
			{[]Document{doc(7, "a", service("192.0.2.4:80", "10.0.0.8:80"))}, []string{fromFile, "a 192.0.2.4:80 10.0.0.8:80"}, nil},
		}},
		{"one bad backend of many", "keep", []step{{
			[]Document{doc(1, "a", bare("192.0.2.2:80")), doc(2, "a/backends/1", backend("10.0.0.9:80")), doc(3, "a/backends/2", backend("[2001:db8::9]:80")), doc(4, "a/backends/3", backend("10.0.0.9:80")), doc(5, "a/backends/4", backend("10.0.0.8:80"))},
			[]string{fromFile, "a 192.0.2.2:80 10.0.0.9:80 10.0.0.8:80"},
			[]string{"a/backends/2: refused: address: an IPv6 backend among IPv4 ones (/l4fwd/services/a/backends/1)", "a/backends/3: refused: address: 10.0.0.9:80 is already /l4fwd/services/a/backends/1"},
		}}},
		{"wiped, and kept", "keep", []step{
			{[]Document{doc(1, "a", service("192.0.2.2:80", "10.0.0.9:80"))}, []string{fromFile, "a 192.0.2.2:80 10.0.0.9:80"}, nil},
			{nil, []string{fromFile, "a 192.0.2.2:80 10.0.0.9:80"}, []string{": no service is there any more: all stays as it was (on_empty: keep)"}},
			{[]Document{doc(1, "b", service("192.0.2.2:80", "10.0.0.9:80"))}, []string{fromFile, "b 192.0.2.2:80 10.0.0.9:80"}, nil},
		}},
		{"wiped, and backends register again", "keep", []step{
			{[]Document{doc(1, "a", bare("192.0.2.2:80")), doc(2, "a/backends/1", backend("10.0.0.9:80")), doc(3, "a/backends/2", backend("10.0.0.8:80"))},
				[]string{fromFile, "a 192.0.2.2:80 10.0.0.9:80 10.0.0.8:80"}, nil},
			{[]Document{doc(2, "a/backends/2", backend("10.0.0.8:80"))}, []string{fromFile, "a 192.0.2.2:80 10.0.0.9:80 10.0.0.8:80"},
				[]string{": no service is there any more: all stays as it was (on_empty: keep)"}},
			{[]Document{doc(2, "a/backends/2", backend("10.0.0.8:80")), doc(3, "a", bare("192.0.2.2:80"))}, []string{fromFile, "a 192.0.2.2:80 10.0.0.8:80"}, nil},
		}},
		{"wiped, and applied", "apply", []step{
			{[]Document{doc(1, "a", service("192.0.2.2:80", "10.0.0.9:80"))}, []string{fromFile, "a 192.0.2.2:80 10.0.0.9:80"}, nil},
			{nil, []string{fromFile}, nil},
		}},
		{"backends gone, and kept", "keep", []step{
			{[]Document{doc(1, "a", bare("192.0.2.2:80")), doc(2, "a/backends/1", backend("10.0.0.9:80")), doc(3, "b", service("192.0.2.3:80", "10.0.0.9:80"))},
				[]string{fromFile, "a 192.0.2.2:80 10.0.0.9:80", "b 192.0.2.3:80 10.0.0.9:80"}, nil},
			{[]Document{doc(1, "a", bare("192.0.2.2:80")), doc(4, "b", bare("192.0.2.3:80"))},
				[]string{fromFile, "a 192.0.2.2:80 10.0.0.9:80", "b 192.0.2.3:80 10.0.0.9:80"},
				[]string{"a: it has no backend any more: the last ones stay (on_empty: keep)", "b: it has no backend any more: the last ones stay (on_empty: keep)"}},
			{[]Document{doc(1, "a", bare("192.0.2.2:80")), doc(5, "a/backends/2", backend("10.0.0.8:80"))}, []string{fromFile, "a 192.0.2.2:80 10.0.0.8:80"}, nil},
		}},
		{"backends gone, and applied", "apply", []step{
			{[]Document{doc(1, "a", bare("192.0.2.2:80")), doc(2, "a/backends/1", backend("10.0.0.9:80"))}, []string{fromFile, "a 192.0.2.2:80 10.0.0.9:80"}, nil},
			{[]Document{doc(1, "a", bare("192.0.2.2:80"))}, []string{fromFile}, []string{"a: it has no backends, so it is not served"}},
		}},
		{"no services", "keep", []step{{
			[]Document{doc(1, "a/backends/1", backend("10.0.0.9:80")), doc(2, "a/b", "{}"), doc(3, "a/backends/", "{}"), doc(4, "a/backends/1/2", "{}"), doc(5, "", "{}"), doc(6, "b/", "{}")},
			[]string{fromFile},
			[]string{": refused: " + `expected a name of at most 63 letters, digits, dots, hyphens and underscores, the first a letter or digit, got ""`,
				"a/b: refused: no key of a service or backend: expected /l4fwd/services/NAME or /l4fwd/services/NAME/backends/ID",
				"a/backends/: refused: no key of a service or backend: expected /l4fwd/services/NAME or /l4fwd/services/NAME/backends/ID",
				"a/backends/1: there is no service /l4fwd/services/a, so it does nothing",
				"a/backends/1/2: refused: no key of a service or backend: expected /l4fwd/services/NAME or /l4fwd/services/NAME/backends/ID",
				"b/: refused: no key of a service or backend: expected /l4fwd/services/NAME or /l4fwd/services/NAME/backends/ID"},
		}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			base := file(t, tt.onEmpty)
			m := NewMerger(&base.Discovery.Etcd)
			for i, s := range tt.steps {
				r, err := m.Merge(t.Context(), base, &Set{int64(i + 1), s.set}, nil)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(s.services, served(r.Config)); diff != "" {
					t.Errorf("step %d, services (-want +got):\n%s", i, diff)
				}
				if diff := cmp.Diff(s.problems, told(r)); diff != "" {
					t.Errorf("step %d, problems (-want +got):\n%s", i, diff)
				}
				if r.Services != len(r.Config.Services)-1 {
					t.Errorf("step %d: %d services", i, r.Services)
				}
				m.Commit(r)
				if again, err := m.Merge(t.Context(), base, &Set{int64(i + 1), s.set}, nil); err != nil || m.Commit(again) || cmp.Diff(served(r.Config), served(again.Config)) != "" {
					t.Errorf("step %d: the same again is something else: %v", i, err)
				}
			}
		})
	}
}

// What the host has against a service is held against its documents alone, and said to be
// no fault of theirs.
func TestMergeObjections(t *testing.T) {
	base := file(t, "keep")
	m := NewMerger(&base.Discovery.Etcd)
	taken := true
	against := func(s *config.Service) error {
		if taken && s.Address.String() == "192.0.2.3:80" {
			return errors.New("192.0.2.3:80 is taken\non this host")
		}
		return nil
	}
	var all []Document
	for i := range int64(100) {
		all = append(all, doc(i, fmt.Sprintf("s%02d", i), service(fmt.Sprintf("192.0.2.%d:80", 3+i), "10.0.0.9:80")))
	}
	all[7].Value = []byte("{")
	r, err := m.Merge(t.Context(), base, &Set{1, all}, against)
	if err != nil || r.Services != 98 || r.Objections != 1 {
		t.Errorf("%v %+v", err, r)
	}
	if diff := cmp.Diff([]string{"s00: refused: 192.0.2.3:80 is taken; on this host", "s07: refused: not valid JSON: unexpected end of JSON input"}, told(r)); diff != "" {
		t.Error(diff)
	}
	m.Commit(r)
	taken = false
	if r, err := m.Merge(t.Context(), base, &Set{1, all}, against); err != nil || r.Services != 99 || r.Objections != 0 {
		t.Errorf("later: %v %+v", err, r)
	}
}

// A Merge that is given up refuses nothing for that: who asked for a reload may have gone.
func TestMergeGivenUp(t *testing.T) {
	base := file(t, "keep")
	m := NewMerger(&base.Discovery.Etcd)
	var all []Document
	for i := range int64(100) { // every other one is the one before it
		all = append(all, doc(i, fmt.Sprintf("s%02d", i), service(fmt.Sprintf("192.0.2.%d:80", 3+i/2), "10.0.0.9:80")))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := 0
	against := func(*config.Service) error {
		if asked++; asked == 10 {
			cancel()
		}
		return nil
	}
	if r, err := m.Merge(ctx, base, &Set{1, all}, against); r != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%+v %v", r, err)
	}
}

// However much is wrong with a document, what is said of it fits into a line of the log.
func TestReasonsAreBounded(t *testing.T) {
	base := file(t, "keep")
	for name, value := range map[string]string{
		"keys":     `{` + strings.Repeat(`"wrong":1,`, 5000) + `"wrong":1}`,
		"backends": `{"backends":[` + strings.Repeat(`{},`, 1000) + `{}]}`,
		"values":   `{"address":"` + strings.Repeat("\u00e9", 5000) + `"}`,
	} {
		r, err := NewMerger(&base.Discovery.Etcd).Merge(t.Context(), base, &Set{1, []Document{doc(1, "a", value)}}, nil)
		if err != nil || len(r.Problems) != 1 || len(r.Problems[0].Text) > maxReason+100 || !utf8.ValidString(r.Problems[0].Text) {
			t.Errorf("%s: %v, %d problems of %d bytes", name, err, len(r.Problems), len(r.Problems[0].Text))
		}
	}
}

// However documents come and go: what is in force is valid, has all of the file, and what
// is not refused of etcd; and a Merger that has forgotten nothing agrees with one that
// begins with what the first one had in force.
func TestMergeProperties(t *testing.T) {
	base := file(t, "keep")
	rapid.Check(t, func(t *rapid.T) {
		m := NewMerger(&base.Discovery.Etcd)
		state := map[string]Document{}
		for revision := range int64(rapid.IntRange(1, 12).Draw(t, "steps")) {
			name := rapid.SampledFrom([]string{"a", "b", "c", "file"}).Draw(t, "name")
			octet := rapid.IntRange(1, 4).Draw(t, "octet")
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				state[name] = doc(revision, name, bare(fmt.Sprintf("192.0.2.%d:80", octet)))
			case 1:
				id := fmt.Sprintf("%s/backends/%d", name, octet)
				state[id] = doc(revision, id, backend(fmt.Sprintf("10.0.0.%d:80", octet)))
			case 2:
				state[name] = doc(revision, name, service(fmt.Sprintf("10.0.0.%d:80", octet), "10.0.0.1:80"))
			case 3:
				state[name] = doc(revision, name, "nonsense")
			case 4:
				delete(state, name)
			}
			set := &Set{revision, slices.SortedFunc(maps.Values(state), func(a, b Document) int { return strings.Compare(a.Key, b.Key) })}
			other := NewMerger(&base.Discovery.Etcd)
			other.Recall(m.InForce())
			r, err := m.Merge(t.Context(), base, set, nil)
			if err != nil {
				t.Fatal(err)
			}
			r2, err := other.Merge(t.Context(), base, set, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(served(r.Config), served(r2.Config)); diff != "" {
				t.Fatalf("after a restart:\n%s", diff)
			}
			y, err := r.Config.MarshalYAML()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := config.Parse("merged", y); err != nil {
				t.Fatalf("not valid: %v\n%s", err, y)
			}
			if got := served(r.Config)[0]; got != served(base)[0] {
				t.Fatalf("the file's: %s", got)
			}
			m.Commit(r)
		}
	})
}

func TestState(t *testing.T) {
	base := file(t, "keep")
	e := base.Discovery.Etcd
	e.StateDir = filepath.Join(t.TempDir(), "below")
	if _, err := Load(&e); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	want := &Set{7, []Document{doc(3, "a", service("192.0.2.2:80", "10.0.0.9:80")), doc(5, "b", "\x00\xff")}}
	for range 2 {
		if err := Save(&e, want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Load(&e)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	left, err := os.ReadDir(e.StateDir)
	if err != nil || len(left) != 1 {
		t.Errorf("%v %v", left, err)
	}
	if i, err := left[0].Info(); err != nil || i.Mode() != 0o600 {
		t.Errorf("%v %v", i.Mode(), err)
	}
	other := e
	other.Prefix = "/other"
	if _, err := Load(&other); err == nil {
		t.Error("what another prefix has was taken")
	}
	if err := os.WriteFile(filepath.Join(e.StateDir, stateFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(&e); err == nil {
		t.Error("half a file was taken")
	}
	if e.StateDir = "/proc/nowhere"; Save(&e, want) == nil {
		t.Error("kept where nothing can be")
	}
}
