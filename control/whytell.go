package control

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/why"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/dataplane/steer"
	"github.com/l4fwd/l4fwd/docs"
	"github.com/l4fwd/l4fwd/packet"
)

func macOf(m [6]byte) string { return net.HardwareAddr(m[:]).String() }

// ruleWords says by which rule XDP decides.
func (x *explainer) ruleWords(d *steer.Decision) string {
	end := fmt.Sprintf("%s %v", flowProtocols[d.Proto], netip.AddrPortFrom(d.Addr, d.Port))
	if d.Port == 0 {
		end = fmt.Sprintf("%v", d.Addr)
	}
	switch d.Counter {
	case steer.PassOther:
		if d.Port == steer.DHCPClient {
			return fmt.Sprintf("a DHCP server's answer to %s, %s: alone of all to it this is the host's, which may be getting the address back",
				end, x.whose(d.Addr))
		}
		return "no rule is about it"
	case steer.PassForeignMAC:
		return "it is to another MAC address"
	case steer.PassMalformed:
		return "its headers are cut short or contradict each other"
	case steer.PassFragment:
		return fmt.Sprintf("a later fragment to %s, an address of the host: it follows its first one, of which nothing is known here", end)
	case steer.TakeAddress:
		return fmt.Sprintf("%s is %s, and no address of the host: all to it is taken", end, x.whose(d.Addr))
	case steer.TakeService:
		return fmt.Sprintf("%s is a service, at an address of the host", end)
	case steer.TakeRange:
		return fmt.Sprintf("%s is within the ports of a local address, which is the host's", end)
	case steer.TakeReturn:
		return fmt.Sprintf("it comes from %s, a backend whose answers come back here", end)
	case steer.TakeICMPError:
		return fmt.Sprintf("an ICMP error about what l4fwd sent from or to %s", end)
	case steer.TakeNeighbour:
		return fmt.Sprintf("it asks who has %s, which is %s", end, x.whose(d.Addr))
	}
	return d.Counter.String()
}

// whose says what an address is to l4fwd.
func (x *explainer) whose(a netip.Addr) string {
	for i := range x.cfg.Services {
		if s := &x.cfg.Services[i]; s.Address.Addr() == a {
			return "the VIP of service " + s.Name
		}
	}
	for l := range x.cfg.Locals() {
		if l == a {
			return "a local address"
		}
	}
	return "an address that a reload has removed"
}

// tell says what a trial has found.
func (x *explainer) tell(a *admin.Why, frame []byte, o *dataplane.Outcome) error {
	a.Service, a.Reply, a.Worker = o.Service, o.Dir == conntrack.Reply && o.Before != nil, &o.Worker
	if a.Service == "" && o.Before != nil {
		a.Service = o.Before.Service
	}
	if o.Before != nil {
		f := flowOf(o.Worker, o.Before)
		a.Flow = &f
	}
	if o.Opened {
		f := flowOf(o.Worker, o.After)
		a.Opens = &f
	}
	if !o.Decided {
		a.Notes = append(a.Notes, "a fragment without ports: it waits for the first one of its datagram, and shares its fate; whether that has come is not known here")
		return nil
	}
	a.Verdict, a.Dropped = o.Verdict.String(), o.Verdict.IsDrop()
	for _, d := range docs.Drops() {
		if a.Dropped && d.Reason == a.Verdict {
			a.Means, a.Cause, a.Do = d.Means, d.Cause, d.Do
		}
	}
	for i := range o.Sent {
		a.Sent = append(a.Sent, x.sent(frame, &o.Sent[i]))
	}
	x.hop(a, frame, o)
	x.note(a, o)
	return x.choice(a, o)
}

// sent is a frame that leaves.
func (x *explainer) sent(frame []byte, f *dataplane.SentFrame) admin.WhySent {
	dst, _ := why.MACs(f.Data)
	s := admin.WhySent{Packet: why.Describe(f.Data), Own: f.Own, To: dst.String(), Frame: f.Data}
	if int(f.NIC) < len(x.nics) {
		s.Interface = x.nics[f.NIC].name
	}
	if !f.Own {
		s.Changes = why.Compare(frame, f.Data)
	}
	return s
}

// hop is where the packet goes, or would if there were a way.
func (x *explainer) hop(a *admin.Why, frame []byte, o *dataplane.Outcome) {
	var to packet.Addr
	flow := o.After
	if flow == nil {
		flow = o.Before
	}
	switch {
	case flow != nil && o.Dir == conntrack.Forward:
		to = flow.Backend.Addr
	case flow != nil:
		to = flow.Client.Addr
	case o.Verdict == dataplane.Passed || o.Verdict == dataplane.Replied || o.Verdict == dataplane.DropNoRoute:
		var p packet.Packet
		if packet.Parse(frame, &p) == packet.ErrNone && p.Kind != packet.KindARP {
			_, to = p.OuterAddrs(frame)
		}
	}
	if to.IsZero() {
		return
	}
	id := o.Routes.Lookup(to)
	h := o.Routes.Hop(id)
	a.Hop = &admin.WhyHop{To: to.Netip(), State: h.State.String()}
	if h.State != route.Resolved && h.State != route.Unresolved {
		return
	}
	a.Hop.MTU = int(h.MTU)
	if int(h.Port) < len(x.nics) {
		a.Hop.Interface = x.nics[h.Port].name
	}
	if g := o.Routes.Gateway(id); !g.IsZero() && g != to {
		via := g.Netip()
		a.Hop.Gateway = &via
	}
}

// note adds what the answer does not know.
func (x *explainer) note(a *admin.Why, o *dataplane.Outcome) {
	add := func(s string) { a.Notes = append(a.Notes, s) }
	if o.Crowded {
		add("half-open flows are as many as there may be: whether one makes way changes from moment to moment")
	}
	if o.NoPort {
		add("towards the first backend no local port was found; whether others have one was not asked")
	}
	if o.Opened && o.After.Mode == conntrack.FullNAT && o.After.Client.Proto == packet.ProtoTCP {
		add("the sequence number that the server sees goes with the time: another one by the time that the packet comes")
	}
	if o.Kind == packet.KindFragment {
		add("fragments of its datagram that have come already are not known here")
	}
}

// choice says how the backend of a new flow is chosen.
func (x *explainer) choice(a *admin.Why, o *dataplane.Outcome) error {
	at := slices.IndexFunc(x.cfg.Services, func(s config.Service) bool { return s.Name == a.Service })
	chosen := o.Verdict == dataplane.DropNoBackend || o.Verdict == dataplane.DropBackendsFull || o.Verdict == dataplane.DropPortsExhausted || o.Verdict == dataplane.DropTupleConflict
	if at < 0 || !o.Opened && !chosen {
		return nil
	}
	s := &x.cfg.Services[at]
	all, err := x.backends(s.Name)
	if err != nil {
		return err
	}
	c := &admin.WhyChoice{Backends: []admin.WhyBackend{}}
	if o.Opened {
		c.Backend = addrPort(&o.After.Backend)
	}
	c.Reason, c.Fixed = x.reason(s, o)
	total := uint64(0)
	for i := range all {
		if all[i].State == admin.BackendUp {
			total += shareOf(s, all[i].Weight)
		}
	}
	for i := range all {
		c.Backends = append(c.Backends, whyBackend(s, &all[i], total))
	}
	a.Choice = c
	return nil
}

// shareOf is the part of a backend in its service's new flows.
func shareOf(s *config.Service, weight uint32) uint64 {
	if s.Scheduler == config.RR || s.Scheduler == config.LC {
		return min(uint64(weight), 1)
	}
	return uint64(weight)
}

func whyBackend(s *config.Service, info *admin.BackendInfo, total uint64) admin.WhyBackend {
	b := admin.WhyBackend{Address: info.Address, State: info.State, Weight: info.Weight, Active: info.Active}
	if info.State == admin.BackendUp && total > 0 {
		b.Share = float64(shareOf(s, info.Weight)) / float64(total)
	}
	switch {
	case info.Ordered != nil && info.State != admin.BackendUp:
		b.Reason = "by order: " + string(info.Ordered.Action)
	case info.Health != nil && info.State == admin.BackendDown:
		b.Reason = info.Health.Reason
	}
	for i := range s.Backends {
		if s.Backends[i].Address == info.Address {
			b.Max = uint32(s.Backends[i].MaxConnections)
		}
	}
	return b
}

// reason says why it is this backend, and whether another packet just before would leave
// it at that.
func (x *explainer) reason(s *config.Service, o *dataplane.Outcome) (reason string, fixed bool) {
	const turn = "; each new flow, on this worker, moves it on"
	switch {
	case o.Verdict == dataplane.DropNoBackend:
		return "no backend takes new flows", true
	case o.Verdict == dataplane.DropBackendsFull:
		return "all backends have as many flows as they may have", false
	case !o.Opened:
		return "none of the backends that were tried will do", false
	case o.Stays.Port != 0 && o.Stays == o.After.Backend:
		return fmt.Sprintf("persistence keeps the client's prefix with it for %v yet", o.StaysFor.Round(100*time.Millisecond)), true
	case s.Persistence.Timeout != 0:
		return fmt.Sprintf("%v chooses for the client's prefix, which persistence then keeps with it", s.Scheduler), false
	case o.Before != nil && o.Before.Backend == o.After.Backend:
		return "a flow that begins anew keeps its backend while that takes new flows", true
	}
	switch s.Scheduler {
	case config.SH, config.Maglev:
		return fmt.Sprintf("%v of the client's %v: the same on every machine with these backends", s.Scheduler, hashedBy(s)), true
	case config.LC:
		return "lc: it has the fewest flows" + turn, false
	case config.WLC:
		return "wlc: it has the fewest flows for its weight" + turn, false
	case config.P2C:
		return "p2c: of two drawn at random it has fewer flows for its weight" + turn, false
	}
	return fmt.Sprintf("%v: it is its turn", s.Scheduler) + turn, false
}

// hashedBy is what a hashed scheduler looks at.
func hashedBy(s *config.Service) string {
	if s.Hash == config.HashAddressPort || s.Scheduler == config.Maglev && s.Hash != config.HashAddress {
		return "address and port"
	}
	return "address"
}
