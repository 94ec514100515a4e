package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/why"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/dataplane/steer"
	"github.com/l4fwd/l4fwd/packet"
)

// explainer says what would become of packets: of the running daemon's, or as a
// configuration has it.
type explainer struct {
	cfg    *config.Config
	rules  steer.Rules
	nics   []whyNIC // by the data plane's number
	dp     *dataplane.Dataplane
	routes *route.Table
	now    func() int64
	// look has each worker call a function.
	look func(func(*dataplane.Worker)) error
	// backends are those of a service, as they are.
	backends func(service string) ([]admin.BackendInfo, error)
}

// whyNIC is an interface.
type whyNIC struct {
	name string
	mac  [6]byte
	up   bool
}

// why answers a request. From any goroutine but that of Run.
func (d *Daemon) why(ctx context.Context, q admin.WhyRequest, out *admin.Output) error {
	x := &explainer{
		now:      func() int64 { return d.clock() },
		look:     func(f func(*dataplane.Worker)) error { return d.onWorkers(ctx, f) },
		backends: func(service string) ([]admin.BackendInfo, error) { return d.Backends(ctx, service) },
	}
	err := d.onLoop(ctx, func() {
		x.cfg, x.rules, x.dp, x.routes = d.cfg, d.rules, d.dp, d.latest.Load()
		for _, l := range d.links {
			n := whyNIC{name: l.name, up: l.serves()}
			copy(n.mac[:], l.mac)
			x.nics = append(x.nics, n)
		}
	})
	if err != nil {
		return err
	}
	all, err := x.explain(&q)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(all)
}

// explain answers a request.
func (x *explainer) explain(q *admin.WhyRequest) ([]admin.Why, error) {
	if (q.Packet == nil) == (len(q.Frames) == 0) || len(q.Frames) > admin.MaxWhy {
		return nil, admin.Refusal(admin.ErrInvalid, fmt.Errorf("expected a packet, or 1 to %d frames", admin.MaxWhy))
	}
	nic := -1
	if q.Interface != "" {
		if nic = slices.IndexFunc(x.nics, func(n whyNIC) bool { return n.name == q.Interface }); nic < 0 {
			return nil, admin.Refusal(admin.ErrNotFound, fmt.Errorf("%s is none of the interfaces of the configuration", q.Interface))
		}
	}
	frames := q.Frames
	if q.Packet != nil {
		f, err := x.build(q.Packet, nic)
		if err != nil {
			return nil, admin.Refusal(admin.ErrInvalid, err)
		}
		frames = [][]byte{f}
	}
	out := make([]admin.Why, 0, len(frames))
	for _, f := range frames {
		one, err := x.one(f, nic, q.Packet == nil)
		if err != nil {
			return nil, err
		}
		out = append(out, *one)
	}
	return out, nil
}

// build makes the frame of a packet that somebody describes.
func (x *explainer) build(q *admin.WhyPacket, nic int) ([]byte, error) {
	p := why.Packet{Source: q.Source, Destination: q.Destination, Seq: q.Seq, Ack: q.Ack, Payload: q.Payload, TTL: q.TTL}
	for proto, name := range flowProtocols {
		if name == q.Protocol {
			p.Protocol = proto
		}
	}
	if p.Protocol == 0 {
		return nil, fmt.Errorf("protocol %q: expected tcp or udp", q.Protocol)
	}
	if p.TTL == 0 {
		p.TTL = 64
	}
	p.Flags = packet.SYN
	if q.Flags != "" {
		var err error
		if p.Flags, err = why.ParseFlags(q.Flags); err != nil {
			return nil, err
		}
	}
	port, hop := x.arrival(p.Source.Addr())
	if nic < 0 {
		nic = port
	}
	var from [6]byte
	var tag uint16
	tagged := hop.HeaderLen == route.VLANLen && nic == port
	if from = [6]byte{2, 0, 0, 0, 0, 1}; hop.State == route.Resolved && nic == port {
		copy(from[:], hop.Header[packet.EthDst:])
	}
	if tagged {
		tag = uint16(hop.Header[packet.VLANTCI])<<8 | uint16(hop.Header[packet.VLANTCI+1])
	}
	return p.Frame(x.nics[nic].mac, from, tag, tagged)
}

// arrival is the NIC by which packets from a come, if they come by the way that leads
// there; else the first.
func (x *explainer) arrival(a netip.Addr) (nic int, hop *route.Hop) {
	hop = &route.Hop{}
	if x.routes != nil && a.IsValid() {
		hop = x.routes.Hop(x.routes.Lookup(packet.AddrFrom(a)))
	}
	if hop.State == route.Resolved || hop.State == route.Unresolved {
		if int(hop.Port) < len(x.nics) {
			return int(hop.Port), hop
		}
	}
	return 0, &route.Hop{}
}

// one explains a frame. captured says that it was not made for the NIC, which it is
// taken for, whatever MAC address it is to.
func (x *explainer) one(frame []byte, nic int, captured bool) (*admin.Why, error) {
	a := &admin.Why{Packet: why.Describe(frame), Sent: []admin.WhySent{}}
	var p packet.Packet
	parsed := packet.Parse(frame, &p)
	if nic < 0 {
		nic = 0
		if parsed == packet.ErrNone && p.Kind != packet.KindARP {
			src, _ := p.OuterAddrs(frame)
			nic, _ = x.arrival(src.Netip())
		}
	}
	n := &x.nics[nic]
	a.Interface = n.name
	if captured && len(frame) >= packet.EthLen {
		frame = x.readdress(a, frame, n)
	}
	d := x.rules.Decide(frame, n.mac)
	a.XDP = admin.WhyXDP{Taken: d.Taken(), Outcome: d.Counter.String(), Rule: x.ruleWords(&d)}
	if !d.Taken() {
		return a, nil
	}
	if !n.up {
		a.Notes = append(a.Notes, n.name+" is not in service now: nothing comes by it")
	}
	t, err := x.dp.NewTrial(frame, uint8(nic), x.dp.Home(frame), x.now())
	if errors.Is(err, dataplane.ErrTrialFrame) && captured {
		a.Unanswered = err.Error() + ": no NIC of l4fwd's receives one so large. A host's own capture shows packets " +
			"before its NIC cuts them (TSO) or after it has joined them (GRO)"
		return a, nil
	}
	if errors.Is(err, dataplane.ErrTrialFrame) {
		return nil, admin.Refusal(admin.ErrInvalid, err)
	}
	if err != nil {
		return nil, err
	}
	o, err := t.Run(x.look)
	if err != nil {
		return nil, err
	}
	return a, x.tell(a, frame, o)
}

// readdress makes a captured frame one to the NIC, and says so.
func (x *explainer) readdress(a *admin.Why, frame []byte, n *whyNIC) []byte {
	dst, _ := why.MACs(frame)
	if dst[0]&1 != 0 || [6]byte(dst) == n.mac {
		return frame
	}
	a.Notes = append(a.Notes, fmt.Sprintf("it is to the MAC address %v, and %s has %s: XDP leaves such a frame to the kernel; this is of one to %s",
		dst, n.name, macOf(n.mac), n.name))
	out := slices.Clone(frame)
	copy(out, n.mac[:])
	return out
}
