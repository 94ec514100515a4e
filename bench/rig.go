package bench

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
	"github.com/l4fwd/l4fwd/packet/rss"
)

// portRing is the size of a memory port's rings. As on a NIC that is not
// behind, the frames in use stay few and in the cache.
const portRing = 2 * dataplane.BurstSize

// framesAlone and framesShared are how many frames a worker has: enough for
// its port's rings and a burst, and, with other workers, for all that may wait
// in hand-off rings.
const (
	framesAlone  = 4 * portRing
	framesShared = 8192
)

// rssKey is the key of Microsoft's RSS verification suite, which many NICs
// have unless told otherwise.
var rssKey = []byte{
	0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
	0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
	0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
}

// rig is a data plane over memory ports, one for each worker, which is one
// queue of one NIC.
type rig struct {
	dp     *dataplane.Dataplane
	ports  []*memport.Port
	umem   memory
	chunk  int
	spread *rss.Spread
}

// newRig makes the workers. longest is the longest frame that will be fed.
func newRig(o *Options, longest int) (_ *rig, err error) {
	frames := framesAlone
	if o.Workers > 1 {
		frames = framesShared
	}
	r := &rig{chunk: o.FrameSize}
	if r.umem, err = hugeMemory(uint64(o.Workers * frames * o.FrameSize)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	// A NIC's indirection table has 128 slots as a rule.
	queues := make([]uint32, 128)
	for i := range queues {
		queues[i] = uint32(i % o.Workers)
	}
	if r.spread, err = rss.New(rssKey, queues, o.Workers); err != nil {
		return nil, err
	}
	plan := dataplane.Options{
		Workers: o.Workers, UMEM: r.umem.used, FrameSize: o.FrameSize, Flows: o.MaxFlows,
		Secret: secret(o.Seed), LocalPorts: o.LocalPorts,
	}
	if o.RSSKnown {
		plan.Spread = r.spread
	}
	snap, err := dataplane.NewRegistry(o.Workers).Build(o.Spec)
	if err != nil {
		return nil, err
	}
	if r.dp, err = dataplane.New(plan); err != nil {
		return nil, err
	}
	r.dp.Publish(snap)
	r.dp.PublishRoutes(routes(&o.Spec, longest))
	for _, w := range r.dp.Workers {
		p := memport.New(r.umem.used, o.FrameSize, portRing)
		if err := w.Attach(0, nicMAC, p); err != nil {
			return nil, err
		}
		r.ports = append(r.ports, p)
	}
	return r, nil
}

func (r *rig) close() (err error) {
	if r.dp != nil {
		err = r.dp.Close()
	}
	return errors.Join(err, r.umem.close())
}

// secret is never all zero: that would ask for a random one.
func secret(seed uint64) (s [32]byte) {
	binary.BigEndian.PutUint64(s[:], seed)
	copy(s[8:], "l4fwd bench replay")
	return s
}

// routes leads every real server and everybody else to a neighbour of the
// one NIC.
func routes(spec *dataplane.Spec, longest int) *route.Table {
	mtu := max(1500, longest-packet.EthLen)
	hops := []route.Hop{{},
		route.NewHop(0, [6]byte{2, 0, 0, 0, 0, 1}, nicMAC, 0, mtu),
		route.NewHop(0, [6]byte{2, 0, 0, 0, 0, 2}, nicMAC, 0, mtu)}
	list := []route.Prefix{
		{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Hop: 1},
		{Prefix: netip.MustParsePrefix("::/0"), Hop: 1}}
	for i := range spec.Services {
		for _, b := range spec.Services[i].Backends {
			a := b.Endpoint.Addr.Netip()
			list = append(list, route.Prefix{Prefix: netip.PrefixFrom(a, a.BitLen()), Hop: 2})
		}
	}
	// Tunnels' packets come from here, unless their service says otherwise.
	own := [2]packet.Addr{packet.AddrFrom(netip.MustParseAddr("203.0.113.1")), packet.AddrFrom(netip.MustParseAddr("2001:db8:ffff::1"))}
	return route.New(1, hops, list).WithPeers([]route.Peer{{}, {Own: own}, {Own: own}})
}

// queue is where the NIC puts a frame.
func (r *rig) queue(f []byte) int {
	if len(r.ports) == 1 {
		return 0
	}
	var p packet.Packet
	if packet.Parse(f, &p) != packet.ErrNone {
		return 0
	}
	t := p.Tuple
	switch p.Kind {
	case packet.KindTCP, packet.KindUDP:
	case packet.KindARP:
		return 0
	default: // by addresses alone
		t.Src, t.Dst = p.OuterAddrs(f)
		t.SrcPort, t.DstPort = 0, 0
	}
	return r.spread.Worker(&t)
}

// chunkOf is the number of the UMEM chunk that a slice a port passed lies in:
// it reaches to the UMEM's end.
func (r *rig) chunkOf(f []byte) int { return (cap(r.umem.used) - cap(f)) / r.chunk }

func (r *rig) counts() (c dataplane.Counts) {
	for _, w := range r.dp.Workers {
		n := w.Counts()
		c.Add(&n)
	}
	return c
}

func (r *rig) flows() (n int) {
	for _, w := range r.dp.Workers {
		n += w.Flows()
	}
	return n
}
