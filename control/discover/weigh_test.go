package discover

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/config"
)

const twinFile = `
interfaces: [{name: eth1}]
local_addresses: [192.0.2.9, "2001:db8::9"]
web_listen: 127.0.0.1:80
services:
  - {name: file, address: "192.0.2.1:80", protocol: tcp, mode: dnat, backends: [{address: "10.0.0.1:80"}, {address: "10.0.0.2:80"}]}
  - {name: d, address: "192.0.2.1:81", protocol: udp, mode: full-nat, backends: [{address: "10.0.0.3:80"}]}
  - {name: other, address: "192.0.2.2:80", protocol: tcp, mode: snat, backends: [{address: "10.0.0.4:80"}]}
  - {name: tunnels, address: "192.0.2.3:80", protocol: tcp, mode: tunnel, encapsulation: ipip, encapsulation_source: 10.9.0.1, backends: [{address: "10.0.0.2:80"}]}
discovery: {etcd: {endpoints: ["http://127.0.0.1:2379"], on_empty: %s}}
`

// halve is how documents were chosen before: what is wrong is looked for with the whole of
// what is accepted, in halves.
func (g *merging) halve(items []*document) {
	err := g.merge(slices.Concat(g.accepted, items))
	switch {
	case err == nil:
	case len(items) > 1:
		g.halve(items[:len(items)/2])
		g.halve(items[len(items)/2:])
	default:
		if was := g.fallback(items[0], err); was != nil {
			if err := g.merge(append(slices.Clone(g.accepted), was)); err != nil {
				g.problem(was.Key, "refused, and so is the version before it: %s", reason(was.Key, err))
			}
		}
	}
}

// randomDocument is one of few addresses, so that much does not go together.
func randomDocument(t *rapid.T, name string) (key, value string) {
	pick := func(what string, from ...string) string { return rapid.SampledFrom(from).Draw(t, what) }
	address := func(what string) string {
		return pick(what, "192.0.2.1", "192.0.2.2", "192.0.2.4", "192.0.2.5", "192.0.2.9", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.9.0.1", "[2001:db8::1]", "[2001:db8::2]", "127.0.0.1") +
			pick(what+"'s port", ":80", ":81")
	}
	back := func() string {
		return fmt.Sprintf(`{"address":%q%s%s}`, address("backend"), pick("id", "", "", "", `,"server_id":1`, `,"server_id":2`), pick("more", "", "", "", `,"backup":true`))
	}
	if rapid.Bool().Draw(t, "backend") {
		return name + "/backends/" + pick("key", "1", "2", "3", "4", "5", "6"), back()
	}
	var own []string
	for range rapid.IntRange(0, 3).Draw(t, "backends") {
		own = append(own, back())
	}
	return name, fmt.Sprintf(`{"address":%q,%s%s,"backends":[%s]}`, address("vip"),
		pick("mode", `"protocol":"tcp","mode":"dnat"`, `"protocol":"tcp","mode":"dnat"`, `"protocol":"udp","mode":"full-nat"`, `"protocol":"udp","mode":"full-nat","quic":{"layout":"katran"}`, `"protocol":"tcp","mode":"snat"`, `"protocol":"tcp","mode":"dsr-l2"`,
			`"protocol":"tcp","mode":"tunnel","encapsulation":"ipip"`, `"protocol":"tcp","mode":"tunnel","encapsulation":"gre","encapsulation_source":"10.9.0.2"`,
			`"protocol":"tcp","mode":"tunnel","encapsulation":"gre","encapsulation_source":"10.0.0.4/30"`),
		pick("more", "", "", "", `,"scheduler":"maglev","hash_table_size":251`, `,"scheduler":"sh"`, `,"health_check":{"type":"tcp","source":"10.7.7.7"}`,
			`,"scheduler":"sh","hash_table_size":8388617`), strings.Join(own, ","))
}

// What goes together is what was found with halves, in the same words.
func TestWeighAsBefore(t *testing.T) {
	bases := []*config.Config{}
	for _, onEmpty := range []string{"keep", "apply"} {
		c, err := config.Parse("l4fwd.yaml", []byte(fmt.Sprintf(twinFile, onEmpty)))
		if err != nil {
			t.Fatal(err)
		}
		bases = append(bases, c)
	}
	refused, went := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.SampledFrom(bases).Draw(t, "file")
		m := NewMerger(&base.Discovery.Etcd)
		against := func(s *config.Service) error {
			if s.Address.Addr().String() == "192.0.2.5" {
				return errors.New(s.Name + ": not here")
			}
			return nil
		}
		state := map[string]Document{}
		revision := int64(0)
		for range rapid.IntRange(1, 4).Draw(t, "steps") {
			for range rapid.IntRange(1, 12).Draw(t, "changes") {
				revision++
				key, value := randomDocument(t, rapid.SampledFrom([]string{"a", "b", "c", "d", "file", "z"}).Draw(t, "name"))
				if rapid.IntRange(0, 9).Draw(t, "gone") == 0 {
					delete(state, key)
				} else {
					state[key] = doc(revision, key, value)
				}
			}
			set := &Set{revision, slices.SortedFunc(maps.Values(state), func(a, b Document) int { return strings.Compare(a.Key, b.Key) })}
			want := merging{Merger: m, ctx: t.Context(), base: base, against: against, read: map[string]*document{}}
			items := want.candidates(set)
			byAge(items)
			if err := want.merge(nil); err != nil {
				t.Fatal(err)
			}
			want.halve(items)
			want.idle()
			got, err := m.Merge(t.Context(), base, set, against)
			if err != nil {
				t.Fatal(err)
			}
			problems := slices.SortedFunc(maps.Values(want.problems), func(a, b Problem) int { return strings.Compare(a.Key, b.Key) })
			if diff := cmp.Diff(problems, got.Problems); diff != "" {
				t.Fatalf("(-before +now):\n%s", diff)
			}
			if diff := cmp.Diff(served(want.config), served(got.Config)); diff != "" {
				t.Fatalf("(-before +now):\n%s", diff)
			}
			keys := func(all []*document) (out []string) {
				for _, d := range all {
					out = append(out, fmt.Sprint(d.Key, d.Revision))
				}
				return out
			}
			if diff := cmp.Diff(keys(want.accepted), keys(got.accepted)); diff != "" {
				t.Fatalf("(-before +now):\n%s", diff)
			}
			refused, went = refused+len(got.Problems), went+len(got.accepted)
			m.Commit(got)
		}
	})
	// Of each some 150 in the short form; a bound near that fails for what was drawn.
	if refused < 10 || went < 10 {
		t.Errorf("%d refused, %d not: that says little", refused, went)
	}
}
