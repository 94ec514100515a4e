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
	url := func(f testbed.Family, mode string) string {
		return "http://" + bracketed(top.VIP(f, vipOf[mode])) + "/"
	}
	say("")
	say("Everything stays up until Ctrl-C here. Meanwhile, as root in another terminal:")
	say("")
	for _, ns := range top.Namespaces() {
		if ns == top.Switch {
			continue
		}
		say(fmt.Sprintf("  %-8s %s", ns.Role(), enter(ns)))
	}
	say("")
	say("  Full-NAT  " + enter(top.Client) + " curl " + url(testbed.V4, fullNAT))
	say("            " + enter(top.Client) + " curl -g '" + url(testbed.V6, fullNAT) + "'")
	say("  DNAT      " + enter(top.Client) + " curl " + url(testbed.V4, dnat))
	say("  frames    " + enter(top.Servers[0]) + " tcpdump -ni s0 tcp port 8080")
	say("  figures   cat " + d.fwd.stats)
	say("  settings  " + d.fwd.config)
	say(fmt.Sprintf("  stop it   kill -TERM %d    (or -KILL, and watch the interfaces stay clean)", d.fwd.proc.PID()))
	say("")
	select {
	case <-ctx.Done():
		say("")
		say("taking everything down")
		return nil
	case <-d.fwd.proc.Done():
		err := d.fwd.proc.Wait()
		d.scr.log("l4fwd's log", d.fwd.proc.Output())
		if err != nil {
			return fmt.Errorf("l4fwd ended: %w", err)
		}
		say("l4fwd has been stopped; taking everything down")
		return nil
	}
}

// bracketed is an address as a URL has it.
func bracketed(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}
