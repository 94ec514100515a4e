package control

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/internal/browser"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestPageDrains: a person with a browser and the token drains a server and gives it
// traffic again; while the daemon is not there the page says so, and goes on when it is.
func TestPageDrains(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 2})
	file := filepath.Join(t.TempDir(), "web.token")
	if err := os.WriteFile(file, []byte("correct-horse-battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := w.Config(testbed.Services(0, "full-nat", "none", "rr"), append(small, "web_listen: "+webAt, "web_token_file: "+file)...)
	d := w.run(text)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	b, err := browser.Start(ctx, w.LB)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, b.Close()) })
	p, err := b.Open("http://"+webAt+"/", browser.Look{Width: 1100, Height: 900})
	if err != nil {
		t.Fatal(err)
	}
	must := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatalf("%v; complaints: %q", err, p.Complaints())
			}
		}
	}
	one := netip.AddrPortFrom(w.ServerAddr(testbed.V4, 0), testbed.PortHTTP)
	button := `.change[aria-label="Change ` + one.String() + ` in web-full-nat-v4-0"]`
	pill := `document.querySelector('` + button + `').closest('.backend-row').querySelector('.pill').textContent`
	state := func(want admin.BackendState) {
		t.Helper()
		must(p.Await(pill + ` === '` + string(want) + `'`))
		all, err := d.Backends(ctx, "web-full-nat-v4-0")
		if err != nil || all[0].State != want {
			t.Errorf("%+v %v", all, err)
		}
	}
	must(p.Await(`document.querySelector('` + button + `')`))
	must(p.Press(button), p.Press("#drain"), p.Press("#sure-yes"), p.Await("!document.getElementById('order-token').hidden"))
	must(p.Type("correct-horse-battery"), p.Key("Enter"))
	state(admin.BackendDrained)
	if n := w.ask(w.VIP(testbed.V4, 0), 6).ByServer["rs1"]; n != 0 {
		t.Errorf("%d requests to a drained backend", n)
	}
	if n := d.logs.FilterMessage("a button was pressed").Len(); n != 1 {
		t.Errorf("logged %d times", n)
	}
	must(p.Press(button), p.Press("#enable"))
	state(admin.BackendUp)
	if n := w.ask(w.VIP(testbed.V4, 0), 6).ByServer["rs1"]; n != 3 {
		t.Errorf("%d of 6 requests to it once it is enabled", n)
	}
	if all := p.Complaints(); len(all) > 0 {
		t.Errorf("the browser complains: %q", all)
	}

	d.end()
	must(p.Await("document.getElementById('trouble').textContent.startsWith('l4fwd does not answer')"))
	must(p.Await(`document.querySelector('` + button + `').disabled`))
	w.run(text)
	must(p.Await("document.getElementById('live').textContent === 'live'"))
	must(p.Await(`!document.querySelector('` + button + `').disabled && document.getElementById('trouble').hidden`))
	must(p.Press(button), p.Press("#drain"), p.Press("#sure-yes"), p.Await(pill+` === 'drained'`)) // the tab has the token still
}
