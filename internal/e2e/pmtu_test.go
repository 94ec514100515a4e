package e2e

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// sender listens at the device of who sends bulk.
type sender struct {
	ear *testbed.Sniffer

	mu     sync.Mutex
	most   int // bytes of packet that pass
	before int // longer packets sent before an error came
	after  int // and after one
	since  int // full packets sent since the last that was longer
	errors []icmpError
}

func (s *sender) watch(frame []byte, outgoing bool) {
	if len(frame) < ethernet {
		return
	}
	d, ok := datagramOf(frame[ethernet:])
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case outgoing && d.proto == protoTCP && d.size > s.most:
		if s.since = 0; len(s.errors) == 0 {
			s.before++
		} else {
			s.after++
		}
	case outgoing && d.proto == protoTCP && d.size > 1000:
		s.since++
	case !outgoing:
		if e, ok := errorOf(d); ok && e.tooBig {
			s.errors = append(s.errors, e)
		}
	}
}

// begin starts afresh.
func (s *sender) begin(most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.most, s.before, s.after, s.since, s.errors = most, 0, 0, 0, nil
}

// narrowing is a place where only small packets pass.
type narrowing struct {
	name   string
	upload bool // on the way to the server
	lb     bool // l4fwd itself must tell, else a router does
	// workers of l4fwd; what a router says may reach another than the flow's.
	workers int
	halves  bool // of DNAT, in place of every kind
}

// TestPathMTU: path MTU discovery works through l4fwd in both directions,
// whether l4fwd or a router beyond it finds a packet too big. Nobody's own MTU
// or MSS says anything of the narrow place.
func TestPathMTU(t *testing.T) {
	rows := []narrowing{
		{name: "upload, a router before the server", upload: true, workers: 2},
		{name: "download, a router before the client", workers: 1},
		{name: "upload, l4fwd's way to the server", upload: true, lb: true, workers: 1},
		{name: "download, l4fwd's way to the client", lb: true, workers: 2},
	}
	for _, row := range rows {
		if row.halves = true; !testing.Short() || !row.upload {
			rows = append(rows, row)
		}
	}
	if !testing.Short() {
		for _, row := range rows {
			row.workers = 3 - row.workers
			rows = append(rows, row)
		}
	}
	for _, row := range rows {
		of := "every kind"
		if row.halves {
			of = "halves"
		}
		t.Run(fmt.Sprintf("%s/%d workers/%s", row.name, row.workers, of), func(t *testing.T) { row.discover(t) })
	}
}

// discover uses every kind, or the halves of DNAT in both families.
func (row narrowing) discover(t *testing.T) {
	const mtu = 1400
	r, at, server := routed(t, row.workers, testbed.SnifferOptions{Every: 20})
	from := server // before whom sends
	if row.upload {
		at, from = server, at
	}
	if row.lb {
		at.narrowLB(mtu)
	} else {
		at.narrowHost(mtu)
	}
	ear := &sender{}
	ear.ear = sniff(t, from.host.NS, from.host.Name, testbed.SnifferOptions{Every: 20, Watch: ear.watch})
	r.relay()
	used, all := pairKinds, r.allKinds(1, 0)
	for _, k := range proxyKinds[:3] {
		s := r.service(k, "hash", testbed.PortHash, portRelay)
		s.Weights = []int{1, 0}
		all = append(all, s)
	}
	if row.halves {
		used, all = []kind{{mode: dnat, client: testbed.V4, server: testbed.V4}, {mode: dnat, client: testbed.V6, server: testbed.V6}}, halves(1, 0)
	}
	d := program{args: []string{"--workers", fmt.Sprint(row.workers)}}.start(t, r.LB, r.Config(all))
	r.warmUp(1, 0)
	for _, k := range used {
		if t.Failed() { // each failure takes its time
			break
		}
		from.forgetPaths() // to the server several kinds are one path
		t.Run(k.String(), func(t *testing.T) { path{k, row, mtu}.discover(t, r, ear) })
	}
	d.stop()
}

// path is a kind's way through a narrow place of mtu bytes.
type path struct {
	kind
	narrowing
	mtu int
}

// told are the limits that a sender may be told: in its own family, and while
// TOA or a PROXY header is added to the client's packets, that much less.
func (p path) told(r *rig, client netip.AddrPort) (most, least int) {
	const longerIn6, toa4, toa6 = 20, 8, 20
	most = p.mtu
	if p.translated() && p.upload {
		most += longerIn6
	} else if p.translated() {
		most -= longerIn6
	}
	switch least = most; {
	case !p.upload || p.mode != fullNAT:
	case p.proxy != "":
		least -= p.proxyLen(client, r.vip(p.client, p.vip, testbed.PortHash))
	case p.client == testbed.V4:
		least -= toa4
	default:
		least -= toa6
	}
	return most, least
}

// discover sends bulk through the narrow place.
func (p path) discover(t *testing.T, r *rig, ear *sender) {
	most, _ := p.told(r, netip.AddrPort{})
	tr := testbed.Transfer{To: r.vip(p.client, p.vip, testbed.PortHash), Up: 1000, Down: 10 << 20, Timeout: limit}
	if !testing.Short() {
		tr.Down = 100 << 20
	}
	if p.upload {
		tr.Up, tr.Down = tr.Down, tr.Up
	}
	ear.begin(most)
	res, err := tr.Run(t.Context(), r.Client)
	if err != nil {
		t.Fatal(err)
	}
	ear.ear.CatchUp()
	ear.mu.Lock()
	defer ear.mu.Unlock()
	t.Logf("%d MiB in %s; packets above %d bytes: %d before the first of %d errors, %d after; then %d full ones",
		max(tr.Up, tr.Down)>>20, res.Duration.Round(time.Millisecond), most, ear.before, len(ear.errors), ear.after, ear.since)
	if len(ear.errors) == 0 {
		t.Fatal("nobody has told the sender")
	}
	if ear.before == 0 || ear.since < 1000 {
		t.Errorf("%d packets above %d bytes before the first error, %d full ones since the last such", ear.before, most, ear.since)
	}
	_, least := p.told(r, res.Client)
	told := most
	for _, e := range ear.errors {
		if told = min(told, e.mtu); e.mtu != most && e.mtu != least {
			t.Errorf("told %d bytes, want %d or %d", e.mtu, most, least)
		}
		if err := p.checkError(r, e); err != nil {
			t.Error(err)
		}
	}
	r.checkLearned(t, p, ear.errors[0].about.dst.Addr(), told)
}

// checkError looks at who tells, and of what.
func (p path) checkError(r *rig, e icmpError) error {
	if p.upload {
		vip, self := r.vip(p.client, p.vip, testbed.PortHash), r.ClientAddr(p.client, 0)
		if e.from != vip.Addr() || e.to != self || e.about.src.Addr() != self || e.about.dst != vip {
			return fmt.Errorf("%+v: want the VIP to tell of a packet to it", e)
		}
		return nil
	}
	self := netip.AddrPortFrom(r.ServerAddr(p.server, 0), testbed.PortHash)
	if p.proxy != "" {
		self = netip.AddrPortFrom(self.Addr(), portRelay)
	}
	if p.mode == dsrL2 { // the server answers as the VIP, and l4fwd is not on the way
		self = r.vip(p.client, p.vip, testbed.PortHash)
	}
	if e.to != self.Addr() || e.about.src != self {
		return fmt.Errorf("%+v: want an error about a packet from %s", e, self)
	}
	peer := e.about.dst.Addr()
	switch {
	case p.mode == fullNAT && (!r.IsLocal(peer) || e.from != peer):
		return fmt.Errorf("%+v: want a local address to tell of a packet to it", e)
	case p.mode != fullNAT && peer != r.ClientAddr(p.client, 0):
		return fmt.Errorf("%+v: want an error about a packet to the client", e)
	case p.mode == dnat && p.lb && e.from != r.VIP(p.client, p.vip):
		return fmt.Errorf("%+v: want the VIP to tell", e)
	case p.mode != fullNAT && !p.lb && e.from != lastByte(testbed.ClientNet[p.client].Addr(), 254):
		return fmt.Errorf("%+v: want the router to tell", e)
	}
	return nil
}

// checkLearned looks at what the sender's kernel has learned of the path.
func (r *rig) checkLearned(t *testing.T, p path, peer netip.Addr, mtu int) {
	t.Helper()
	ns := r.Topology.Servers[0]
	if p.upload {
		ns = r.Client
	}
	routes, err := ns.Netlink().RouteGet(peer.AsSlice())
	if err != nil || len(routes) != 1 {
		t.Fatalf("route to %s: %v, %v", peer, routes, err)
	}
	if routes[0].MTU != mtu {
		t.Errorf("the sender's kernel holds the path MTU to %s to be %d, want %d", peer, routes[0].MTU, mtu)
	}
}
