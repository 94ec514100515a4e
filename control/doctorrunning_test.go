package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestDoctorRunning: what has been edited since the daemon read its file, or was said by
// flags, is named, for what doctor looks at is the file.
func TestDoctorRunning(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Queues: 2, Servers: 1})
	text := w.Config(testbed.Services(0, "dnat", "", "rr"), small...)
	parse := func(text string, flags ...config.Override) *config.Config {
		t.Helper()
		c, err := config.Parse("l4fwd.yaml", []byte(text), flags...)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	nics := parse(text).Interfaces
	one, other := nics[0].Name, nics[1].Name
	flags := []config.Override{{Flag: "--workers", Key: "workers", Value: "2"}, {Flag: "--interface", Key: "interfaces", Value: one}}
	for name, c := range map[string]struct {
		flags []config.Override
		begun string // the configuration at start, flags included
		file  string // as it is now
		want  []string
	}{
		"as it was": {nil, text, text, []string{"ok: it is what the running l4fwd has in force, but for flags of run"}},
		"edited": {nil, text, "drain_timeout: 7s\n" + text, []string{
			"warn: it is looked at here, and is not what the running l4fwd has in force; a reload would change: drain_timeout"}},
		"not to be reloaded": {nil, text, "workers: 2\n" + text, []string{
			"warn: it is looked at here, and the running l4fwd would not take it by a reload: needs a restart: workers"}},
		"flags": {flags, "workers: 2\n" + strings.Replace(text, "  - name: "+other+"\n", "", 1), text, []string{
			"warn: it is looked at here without flags of run: workers are 1 in it, 2 in the running l4fwd",
			fmt.Sprintf("warn: it is looked at here without flags of run: its interfaces are %s, %s, the running l4fwd's %s", one, other, one)}},
	} {
		t.Run(name, func(t *testing.T) {
			var socket config.Override
			d := w.run(c.begun, func(o *Options) {
				o.Load = func() (*config.Config, error) { return parse(c.file, append(slices.Clone(c.flags), socket)...), nil }
			})
			socket = config.Override{Flag: "test", Key: "admin_socket", Value: d.cfg.AdminSocket}
			client := admin.NewClient(socket.Value)
			defer client.Close()
			var got []string
			for _, f := range CompareRunning(context.Background(), client, parse(c.file)) {
				got = append(got, fmt.Sprintf("%s: %s", f.Grade, f.Text))
				if f.Check != "file" || f.Subject != "l4fwd.yaml" {
					t.Errorf("%+v", f)
				}
			}
			if !slices.EqualFunc(got, c.want, strings.HasPrefix) {
				t.Errorf("%q, want %q", got, c.want)
			}
			d.end()
		})
	}
	w.clean()
}
