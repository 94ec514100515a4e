package e2e

import (
	"bufio"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// A session that failed is held again by -session SEED -sessions 1.
var (
	firstSession = flag.Int("session", 0, "seed of TestSessions' first session")
	sessionCount = flag.Int("sessions", 0, "how many; 0 = its own choice")
)

// road is a way from the client to the servers: by the kernel's own routing, or
// through l4fwd in some mode.
type road struct {
	name   string
	judge  bool // no l4fwd
	kind        // of the others; the vip is the road's number
	client string
	extra  string // a line of its services' own
}

const translated = "timestamps: translate"

// roads are all of them. Where addresses are of one family the kernels on both
// sides have agreed on the same options, timestamps apart.
func roads() []road {
	all := []road{
		{name: "direct/v4", judge: true, kind: kind{client: testbed.V4, server: testbed.V4}},
		{name: "direct/v6", judge: true, kind: kind{client: testbed.V6, server: testbed.V6}},
	}
	for _, f := range testbed.Families {
		all = append(all, road{kind: kind{mode: dnat, client: f, server: f}, client: "none"})
		for _, c := range []string{"none", "toa", "proxy-v1", "proxy-v2"} {
			all = append(all, road{kind: kind{mode: fullNAT, client: f, server: f}, client: c})
		}
	}
	for _, c := range []string{"none", "toa", "proxy-v2"} {
		all = append(all, road{kind: kind{mode: fullNAT, client: testbed.V6, server: testbed.V4}, client: c})
	}
	for _, k := range kinds {
		if k.mode == fullNAT {
			all = append(all, road{kind: k, client: "toa", extra: translated})
		}
	}
	for i := range all {
		if r := &all[i]; !r.judge {
			r.vip = i
			r.name = strings.TrimSuffix(r.kind.String()+"/"+r.client+"/"+r.extra, "/")
		}
	}
	return all
}

func (r road) proxy() bool { return strings.HasPrefix(r.client, "proxy") }

// bakery is the number of a session of no script, for cookies.
const bakery = 999

const toaKind = 253

// portOf is the port of a session on a road, on the VIP and on the server: it
// tells the wires whose plan to follow.
func portOf(roadIndex, session int) uint16 { return uint16(10000 + roadIndex*1000 + session) }

// outcome is what the two ends of each of a session's connections have seen.
type outcome struct{ Client, Server []transcript }

// court is a network with wires that do harm, where sessions are held.
type court struct {
	*testbed.Topology
	t        *testing.T
	roads    []road
	scripts  []script
	sniffers []*testbed.Sniffer
}

// convene makes a court. The servers' kernels and the client's are of their time
// but for the second server, which is old-fashioned.
func convene(t *testing.T, workers int, scripts []script) *court {
	t.Helper()
	c := &court{t: t, roads: roads(), scripts: scripts,
		Topology: testbed.Up(t, testbed.TopologyOptions{Impaired: true, Queues: workers, StaticNeighbours: true})}
	if err := c.Forwarding(true); err != nil {
		t.Fatal(err)
	}
	for _, ns := range append([]*testbed.Namespace{c.Client}, c.Servers...) {
		set(t, ns, "net.ipv4.tcp_fastopen", "3")
		set(t, ns, "net.ipv4.tcp_fastopen_key", "1-2-3-4") // one for all servers
		set(t, ns, "net.ipv4.tcp_fastopen_blackhole_timeout_sec", "0")
		set(t, ns, "net.ipv4.tcp_ecn", "1")
		// What one session suffers is none of the next one's business.
		set(t, ns, "net.ipv4.tcp_no_metrics_save", "1")
	}
	c.oldFashioned(c.Servers[1])
	set(t, c.Servers[1], "net.ipv4.tcp_ecn", "0")
	for _, d := range c.Facing {
		c.sniffers = append(c.sniffers, sniff(t, c.Wires, d.Name, testbed.SnifferOptions{Direction: testbed.Incoming, TOAKind: toaKind}))
	}
	for i := range c.roads {
		for k, s := range scripts {
			c.ClientWire.Plan(portOf(i, k), s.plans[0])
			c.ServerWire.Plan(portOf(i, k), s.plans[1])
		}
	}
	return c
}

// oldFashioned takes from a kernel what RFC 7323 and RFC 2018 brought.
func (c *court) oldFashioned(ns *testbed.Namespace) {
	for _, option := range []string{"window_scaling", "sack", "timestamps"} {
		set(c.t, ns, "net.ipv4.tcp_"+option, "0")
	}
}

func set(t *testing.T, ns *testbed.Namespace, key, value string) {
	t.Helper()
	if err := ns.Sysctl(key, value); err != nil {
		t.Fatal(err)
	}
}

// config is a service for each session on each road that leads through l4fwd.
func (c *court) config() string {
	var all []testbed.Service
	for i, r := range c.roads {
		if r.judge {
			continue
		}
		add := func(k, server int) {
			weights := []int{0, 0}
			weights[server] = 1
			all = append(all, testbed.Service{
				Name: fmt.Sprintf("%s-%d", strings.NewReplacer("/", "-", ": ", "-").Replace(r.name), k), Family: r.server, Address: c.VIP(r.kind.client, r.vip),
				Port: portOf(i, k), BackendPort: portOf(i, k), Protocol: "tcp", Mode: r.mode, ClientAddress: r.client, Weights: weights, Extra: r.extra,
			})
		}
		add(bakery, 0)
		for k, s := range c.scripts {
			add(k, s.server)
		}
	}
	// time_wait and close are where flows end. In the others they are left where
	// the packet that would have ended them was lost and both ends are gone, or
	// where a RST says the latest that the other end has acknowledged, which ends
	// the connection for that end, and not the latest that was sent, which alone
	// l4fwd believes.
	return c.Config(all, "timeouts: {tcp_syn_sent: 8s, tcp_syn_recv: 8s, tcp_established: 15s, tcp_fin_wait: 15s,"+
		" tcp_close_wait: 15s, tcp_last_ack: 15s, tcp_time_wait: 2s, tcp_close: 2s}",
		"max_flows: 65536",
		// 254 is Fast Open's, too, for clients that got no answer to the real one.
		fmt.Sprint("toa_kind: ", toaKind))
}

// atOnce is how many scripts are played at the same time, on all roads.
const atOnce = 15

// hold runs all sessions on all roads.
func (c *court) hold() [][]outcome {
	out := make([][]outcome, len(c.roads))
	for i := range c.roads {
		out[i] = make([]outcome, len(c.scripts))
	}
	var wg sync.WaitGroup
	turn := make(chan struct{}, atOnce)
	for k := range c.scripts {
		turn <- struct{}{}
		wg.Go(func() {
			var roads sync.WaitGroup
			for i := range c.roads {
				roads.Go(func() { out[i][k] = c.session(i, k) })
			}
			roads.Wait()
			<-turn
		})
	}
	wg.Wait()
	return out
}

// session runs one on a road.
func (c *court) session(roadIndex, k int) (o outcome) {
	r, s := c.roads[roadIndex], c.scripts[k]
	at := netip.AddrPortFrom(c.ServerAddr(r.server, s.server), portOf(roadIndex, k))
	to := at
	if !r.judge {
		to = netip.AddrPortFrom(c.VIP(r.kind.client, r.vip), at.Port())
	}
	var l *net.TCPListener
	var err error
	if s.open != turnedAway {
		if l, err = s.listen(c.Topology.Servers[s.server], at); err != nil {
			return outcome{Server: []transcript{{Open: err.Error()}}}
		}
		defer func() { _ = l.Close() }()
	}
	var from *netip.AddrPort
	for i := range s.acts {
		m := meeting{road: r, script: s, act: i, listener: l, to: to, from: from}
		m.hold(c.Client)
		o.Client, o.Server = append(o.Client, m.client), append(o.Server, m.server)
		from = &m.self
	}
	return o
}

// meeting is one connection of a session.
type meeting struct {
	road     road
	script   script
	act      int
	listener *net.TCPListener // nil = nobody listens
	to       netip.AddrPort
	from     *netip.AddrPort // the client's, if it is given

	self           netip.AddrPort // the client's, when dialed is closed
	dialed         chan struct{}
	together       chan struct{}
	gone           [2]chan struct{}
	client, server transcript
}

// hold has both ends run to their end.
func (m *meeting) hold(ns *testbed.Namespace) {
	m.dialed, m.together = make(chan struct{}), make(chan struct{})
	m.gone = [2]chan struct{}{make(chan struct{}), make(chan struct{})}
	m.expect(sessionTime)
	var wg sync.WaitGroup
	wg.Go(func() { defer close(m.gone[0]); m.holdClient(ns) })
	wg.Go(func() { defer close(m.gone[1]); m.holdServer() })
	wg.Wait()
	if m.script.hasty {
		// Whether the server hears of the connection, and the client of the
		// server's options, is chance.
		m.server, m.client.Options = transcript{}, ""
	}
}

// expect lets the server wait for the client so long from now.
func (m *meeting) expect(d time.Duration) {
	if m.listener != nil {
		_ = m.listener.SetDeadline(time.Now().Add(d)) // Accept would tell
	}
}

func (m *meeting) holdClient(ns *testbed.Namespace) {
	conn, err := m.script.dial(ns, m.to, m.from)
	if err != nil {
		m.client.Open = why(err)
		m.expect(lastChance)
		close(m.dialed)
		return
	}
	m.self = endsOf(conn).self
	close(m.dialed)
	m.client = newEnd(0, conn, m).run(m.script.acts[m.act].steps[0])
	if m.script.hasty {
		m.expect(lastChance)
	}
}

func (m *meeting) holdServer() {
	if m.listener == nil {
		return
	}
	conn, err := m.listener.Accept()
	if err != nil {
		m.server.Open = why(err)
		return
	}
	<-m.dialed
	if m.road.proxy() {
		// Not a byte more than the header.
		client, vip, err := readProxy(bufio.NewReader(iotest.OneByteReader(conn)))
		if err != nil || client != m.self || vip != m.to {
			m.server.Open = fmt.Sprintf("PROXY header: %s to %s, %v", client, vip, err)
			_ = conn.Close()
			return
		}
	}
	m.server = newEnd(1, conn, m).run(m.script.acts[m.act].steps[1])
}

// baked gives the client a Fast Open cookie for each road: it keeps one for each
// address it connects to.
func (c *court) baked() {
	c.t.Helper()
	s := script{open: fastOpen, acts: []act{{}}}
	a := author{s: &s}
	a.send(0, 1)
	a.send(1, 1)
	endings[0].write(a)
	for i, r := range c.roads {
		at := netip.AddrPortFrom(c.ServerAddr(r.server, 0), portOf(i, bakery))
		to := at
		if !r.judge {
			to = netip.AddrPortFrom(c.VIP(r.kind.client, r.vip), at.Port())
		}
		l, err := s.listen(c.Topology.Servers[0], at)
		if err != nil {
			c.t.Fatal(err)
		}
		m := meeting{road: r, script: s, listener: l, to: to}
		m.hold(c.Client)
		if m.client.End != "eof" {
			c.t.Errorf("%s: a first connection: %+v, %+v", r.name, m.client, m.server)
		}
		_ = l.Close()
	}
}

const shortSessions = 38

// TestSessions: random TCP sessions through bad wires end through l4fwd as they do
// by the kernel's own routing, which is the judge. What is compared: how a
// connection opens, the bytes each end receives up to where somebody breaks it off
// (all of them if nobody does) and that they are the right ones, how it ends at
// each end, and the options that the two kernels have agreed on. Not compared: how
// much of what was on its way arrives before a RST, and time.
func TestSessions(t *testing.T) {
	count := *sessionCount
	if count == 0 && testing.Short() {
		count = shortSessions
	} else if count == 0 {
		count = 2 * len(endings) * len(harms) // each with each
	}
	var scripts []script
	for i := range count {
		scripts = append(scripts, newScript(uint64(*firstSession+i)))
	}
	for workers := 1; workers <= 2; workers++ {
		t.Run(fmt.Sprintf("%d-workers", workers), func(t *testing.T) {
			t.Parallel() // most of the time is spent waiting for timers
			c := convene(t, workers, scripts)
			if workers == 2 {
				c.oldFashioned(c.Client)
			}
			c.sit(workers)
		})
	}
}

// sit holds the sessions and judges them, and l4fwd by what it is left with.
func (c *court) sit(workers int) {
	t := c.t
	d := program{args: []string{"--workers", fmt.Sprint(workers)}}.start(t, c.LB, c.config())
	c.baked()
	before := d.stats()
	start := time.Now()
	got := c.hold()
	t.Logf("%d sessions on %d roads in %s", len(c.scripts), len(c.roads), time.Since(start))
	c.judge(got)
	after := d.until("no flow", func(s stats) bool { return s.Flows == 0 })
	for reason, n := range after.drops(before) {
		switch reason {
		case "bad_rst", "no_flow", "proxy_refused":
			// Answers to copies of segments that come late, and such copies
			// themselves, when the client's port is in use again; with PROXY the
			// answer to a late copy of a SYN whose connection is over.
			if n > after.forwarding()/50 {
				t.Errorf("%d drops as %s among %d packets", n, reason, after.forwarding())
			}
		default:
			t.Errorf("%d drops as %s", n, reason)
		}
	}
	if after.Refusals > after.Opened/50 {
		t.Errorf("l4fwd has sent %d RSTs for %d flows", after.Refusals, after.Opened)
	}
	const perQueue = 8192 // the default
	d.until("every frame back", func(s stats) bool { return s.frames() == uint64(workers*len(c.LBDevices())*perQueue) })
	for _, s := range c.sniffers {
		if r := s.Report(); r.TOAOnSYN > 0 || r.TCP == 0 {
			t.Errorf("%d SYNs with TOA in %d segments", r.TOAOnSYN, r.TCP)
		}
	}
	for _, w := range []*testbed.Wire{c.ClientWire, c.ServerWire} {
		for _, way := range []testbed.Way{testbed.ToServer, testbed.ToClient} {
			n := w.Counts(way)
			t.Logf("%+v", n)
			if n.Missed > 0 {
				t.Errorf("a wire has lost %d frames of its own accord", n.Missed)
			}
		}
	}
	d.stop()
}

// TestScripts: the short selection has everything there is.
func TestScripts(t *testing.T) {
	seen := make(map[string]int)
	for seed := range shortSessions {
		s := newScript(uint64(seed))
		seen[endings[s.ending].name]++
		seen[harms[s.harm].name]++
		seen[openingNames[s.open]]++
		seen[fmt.Sprintf("rs%d", s.server+1)]++
		seen[fmt.Sprintf("%d connections", len(s.acts))]++
		for _, a := range s.acts {
			for _, x := range append(a.steps[0], a.steps[1]...) {
				seen[verbs[x.do]]++
			}
		}
		if s.String() != newScript(uint64(seed)).String() {
			t.Errorf("seed %d makes two scripts", seed)
		}
	}
	want := len(endings) + len(harms) + len(openingNames) + len(verbs) + 4
	if want -= 2; len(seen) != want { // "refused" and "abandoned" are an opening and an ending each
		t.Errorf("%d things seen, want %d: %v", len(seen), want, seen)
	}
}

// judge compares each session with the same one on the direct road.
func (c *court) judge(got [][]outcome) {
	for k, s := range c.scripts {
		var bad []string
		for i, r := range c.roads {
			direct := 0
			if r.kind.client == testbed.V6 {
				direct = 1
			}
			want, got := r.comparable(s, got[direct][k]), r.comparable(s, got[i][k])
			if !cmp.Equal(want, got) {
				bad = append(bad, fmt.Sprintf("%s\n     got %+v\n  direct %+v", r.name, got, want))
			}
		}
		if len(bad) > 0 {
			c.t.Errorf("%s\n%s", s, strings.Join(bad, "\n"))
		}
	}
}

// comparable leaves out of an outcome what the road changes on purpose, or chance
// does. Full-NAT takes timestamps from the SYN, TOA and PROXY take Fast Open's data.
// Whether a client that has a cookie uses it depends on what became of its SYNs to that
// address before, and whether the server takes it on the local address. A SYN that
// comes again asks for no ECN, and a second connection's SYN may come too early.
func (r road) comparable(s script, o outcome) outcome {
	var without []string
	if r.mode == fullNAT && r.extra != translated {
		without = append(without, "timestamps ")
	}
	if len(s.acts) > 1 {
		without = append(without, "ecn ")
	}
	ask := s.open == plain || s.open == noCookie && (r.judge || r.client == "none")
	strip := func(all []transcript) []transcript {
		all = slices.Clone(all)
		for i := range all {
			if !ask {
				all[i].Options = ""
			}
			for _, w := range without {
				all[i].Options = strings.ReplaceAll(all[i].Options, w, "")
			}
		}
		return all
	}
	return outcome{strip(o.Client), strip(o.Server)}
}
