package demo

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// keep prints how to play with what is there and waits for the end.
func (d *demo) keep(ctx context.Context) error {
	top := d.net.top
	say := d.scr.line
	enter := func(ns *testbed.Namespace) string { return "nsenter --net=" + ns.Path() }
	curl := func(f testbed.Family, m *mode) string {
		url := fmt.Sprintf("http://%s/", netip.AddrPortFrom(d.net.vip(f, m), m.webPort()))
		return fmt.Sprintf("  %-9s %s curl -g '%s'", m.name, enter(top.Client), url)
	}
	say("")
	say("Everything stays up until Ctrl-C here. Meanwhile, as root in another terminal:")
	say("")
	for _, ns := range top.Namespaces() {
		if ns == top.Switch {
			continue
		}
		say(fmt.Sprintf("  %-9s %s", ns.Role(), enter(ns)))
	}
	say("")
	for _, m := range d.modes {
		for _, f := range testbed.Families {
			say(curl(f, m))
		}
	}
	say(fmt.Sprintf("  frames    %s tcpdump -ni %s '%s'", enter(top.Switch), top.Servers[0].Role(), d.modes[0].filter()))
	for _, f := range d.fwds {
		say(fmt.Sprintf("  %-9s settings in %s, figures in %s", f.name, f.config, f.stats))
		say(fmt.Sprintf("            kill -TERM %d stops it (or -KILL, and watch the interfaces stay clean)", f.proc.PID()))
	}
	say("")
	select {
	case <-ctx.Done():
		say("")
		say("taking everything down")
		return nil
	case f := <-d.ended:
		err := f.proc.Wait()
		d.scr.log(f.name+"'s log", f.proc.Output())
		if err != nil {
			return fmt.Errorf("%s ended: %w", f.name, err)
		}
		say(f.name + " has been stopped; taking everything down")
		return nil
	}
}

// filter is tcpdump's for the requests on a server's wire.
func (m *mode) filter() string {
	if m.name == tunnel {
		return m.wrap.filter
	}
	return fmt.Sprintf("tcp port %d", testbed.PortHTTP)
}
