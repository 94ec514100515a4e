package control

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/packet"
)

// flowModes are the names of modes in flows, as the configuration has them.
var flowModes = map[conntrack.Mode]string{
	conntrack.FullNAT: "full-nat", conntrack.DNAT: "dnat", conntrack.DNATOneWay: "dnat-one-way", conntrack.DirectReturn: "direct-return",
}

// flowProtocols are the names of protocols in flows.
var flowProtocols = map[uint8]string{packet.ProtoTCP: "tcp", packet.ProtoUDP: "udp"}

// flowFilter is an admin.FlowFilter that has been read.
type flowFilter struct {
	*admin.FlowFilter
	ends   [4]flowEnd // client, VIP, local, backend
	proto  uint8      // 0: any
	mode   conntrack.Mode
	modal  bool // mode is asked for
	states [conntrack.NumStates]bool
}

// flowEnd is what one end of a flow is to be; what is zero is not asked for.
type flowEnd struct {
	in   netip.Prefix
	port uint16
}

// readFlowFilter reads it. The error names all that is wrong.
func readFlowFilter(q *admin.FlowFilter) (*flowFilter, error) {
	f := &flowFilter{FlowFilter: q}
	var errs []error
	for i, e := range []struct{ name, text string }{{"client", q.Client}, {"vip", q.VIP}, {"local", q.Local}, {"backend", q.Backend}} {
		var err error
		if f.ends[i], err = readFlowEnd(e.text); err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", e.name, e.text, err))
		}
	}
	for p, name := range flowProtocols {
		if name == q.Protocol {
			f.proto = p
		}
	}
	if f.proto == 0 && q.Protocol != "" {
		errs = append(errs, fmt.Errorf("protocol %q: want tcp or udp", q.Protocol))
	}
	for m, name := range flowModes {
		if name == q.Mode {
			f.mode, f.modal = m, true
		}
	}
	if q.Mode != "" && !f.modal {
		errs = append(errs, fmt.Errorf("mode %q: want full-nat, dnat, dnat-one-way or direct-return", q.Mode))
	}
	for s := range conntrack.NumStates {
		f.states[s] = len(q.States) == 0 || slices.Contains(q.States, s.String())
	}
	for _, name := range q.States {
		if !slices.ContainsFunc(flowStates(), func(s string) bool { return s == name }) {
			errs = append(errs, fmt.Errorf("state %q: want one of %s", name, strings.Join(flowStates(), ", ")))
		}
	}
	if q.MinAge < 0 || q.MaxAge < 0 || q.MinIdle < 0 || q.MaxIdle < 0 {
		errs = append(errs, errors.New("times cannot be negative"))
	}
	return f, errors.Join(errs...)
}

// flowStates are the states that a flow can have, in words.
func flowStates() []string {
	out := make([]string, conntrack.NumStates)
	for s := range conntrack.NumStates {
		out[s] = s.String()
	}
	return out
}

// readFlowEnd reads an address, a prefix, address:port, or :port; "" is any.
func readFlowEnd(s string) (e flowEnd, err error) {
	if s == "" {
		return e, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return whole(a, 0)
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return whole(ap.Addr(), ap.Port())
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return flowEnd{in: p.Masked()}, nil
	}
	port, ok := strings.CutPrefix(s, ":")
	if n, err := strconv.ParseUint(port, 10, 16); ok && err == nil && n > 0 {
		return flowEnd{port: uint16(n)}, nil
	}
	return e, errors.New("want address, prefix, address:port or :port")
}

// whole is the end with just that address.
func whole(a netip.Addr, port uint16) (flowEnd, error) {
	a = a.Unmap()
	if a.Zone() != "" {
		return flowEnd{}, errors.New("flows have no zones")
	}
	return flowEnd{in: netip.PrefixFrom(a, a.BitLen()), port: port}, nil
}

// is reports whether an end of a flow is what is asked for.
func (e *flowEnd) is(p *conntrack.Endpoint) bool {
	return (e.port == 0 || e.port == p.Port) && (!e.in.IsValid() || e.in.Contains(p.Addr.Netip()))
}

// fits reports whether a flow is meant.
func (f *flowFilter) fits(w *dataplane.Flow) bool {
	packets := uint64(w.Packets[0]) + uint64(w.Packets[1])
	bytes := w.Bytes[0] + w.Bytes[1]
	return f.states[w.State] && (f.proto == 0 || f.proto == w.Client.Proto) && (!f.modal || f.mode == w.Mode) &&
		(f.Service == "" || f.Service == w.Service) &&
		f.MinAge <= w.Age && (f.MaxAge == 0 || w.Age <= f.MaxAge) && f.MinIdle <= w.Idle && (f.MaxIdle == 0 || w.Idle <= f.MaxIdle) &&
		f.MinPackets <= packets && f.MinBytes <= bytes && (f.MaxBytes == 0 || bytes <= f.MaxBytes) &&
		f.ends[0].is(&w.Client) && f.ends[1].is(&w.VIP) && f.ends[2].is(&w.Local) && f.ends[3].is(&w.Backend)
}

// fitsAll reports whether nothing is asked for.
func (f *flowFilter) fitsAll() bool {
	q := *f.FlowFilter
	if len(q.States) == 0 {
		q.States = nil
	}
	return reflect.ValueOf(q).IsZero()
}
