package capture

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
)

// Describe says in one line what became of a frame and why: the verdict, the flow with
// its service, server and addresses, and who saw it where.
func Describe(f *dataplane.TapFrame, worker int, nic string) string {
	parts := []string{outcome(f)}
	if f.Service != "" {
		parts = append(parts, "service "+f.Service)
	}
	if f.Flow {
		parts = append(parts, flow(f))
	}
	where := fmt.Sprintf("received by %s", nic)
	if f.Point == dataplane.TapTX {
		where = fmt.Sprintf("sent by %s", nic)
	}
	if f.Queue >= 0 {
		where += fmt.Sprintf(" queue %d", f.Queue)
	} else {
		where += ", kept or handed over"
	}
	return strings.Join(append(parts, fmt.Sprintf("%s, worker %d", where, worker)), "; ")
}

// outcome is the verdict in words.
func outcome(f *dataplane.TapFrame) string {
	switch {
	case f.Own:
		return "of l4fwd's own accord"
	case f.Verdict.IsDrop() && f.Point == dataplane.TapTX:
		return "l4fwd's answer to what it dropped: " + f.Verdict.String()
	case f.Verdict.IsDrop():
		return "dropped: " + f.Verdict.String()
	}
	return f.Verdict.String()
}

// flow is who talks to whom, and, in Full-NAT, as who.
func flow(f *dataplane.TapFrame) string {
	s := "client " + address(f.Client) + ", VIP " + address(f.VIP)
	if f.Mode == conntrack.FullNAT {
		s += ", local " + address(f.Local)
	}
	s += ", backend " + address(f.Backend)
	if f.Dir == conntrack.Reply {
		s += ", reply"
	}
	return s
}

func address(e conntrack.Endpoint) string {
	return netip.AddrPortFrom(e.Addr.Netip(), e.Port).String()
}
