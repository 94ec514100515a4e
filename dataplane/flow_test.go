package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
)

// conv is one TCP conversation through the rig: it learns how l4fwd changed
// addresses and sequence numbers as a real server would see them.
type conv struct {
	r           *rig
	worker      int
	client, vip string
	backend     string // seen in the first forwarded packet
	local       string // the source the backend sees
	isn         uint32 // the client's ISN as the backend sees it
}

// open sends the handshake and returns the conversation.
func (r *rig) open(worker int, client, vip string) *conv {
	r.t.Helper()
	c := &conv{r: r, worker: worker, client: client, vip: vip}
	syn := verify(r.t, r.one(worker, 0, 1, build(r.t, seg{src: client, dst: vip, syn: true, seq: 1000, opts: []layers.TCPOption{mss(1460)}})))
	tcp := syn.Layer(layers.LayerTypeTCP).(*layers.TCP)
	src, dst := ipOf(syn)
	c.local, c.backend, c.isn = hostPort(src.String(), uint16(tcp.SrcPort)), hostPort(dst.String(), uint16(tcp.DstPort)), tcp.Seq
	reply := c.fromServer(seg{syn: true, ack: true, seq: 9000, ackNum: c.isn + 1, opts: []layers.TCPOption{mss(1460)}})
	if got := reply.Layer(layers.LayerTypeTCP).(*layers.TCP).Ack; got != 1001 {
		r.t.Fatalf("client sees ack %d, want 1001", got)
	}
	c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001})
	return c
}

func hostPort(host string, port uint16) string {
	for _, r := range host {
		if r == ':' {
			return fmt.Sprintf("[%s]:%d", host, port)
		}
	}
	return fmt.Sprintf("%s:%d", host, port)
}

func (c *conv) fromClient(s seg) gopacket.Packet {
	c.r.t.Helper()
	s.src, s.dst = c.client, c.vip
	return verify(c.r.t, c.r.one(c.worker, 0, 1, build(c.r.t, s)))
}

func (c *conv) fromServer(s seg) gopacket.Packet {
	c.r.t.Helper()
	s.src, s.dst = c.backend, c.local
	return verify(c.r.t, c.r.one(c.worker, 1, 0, build(c.r.t, s)))
}

func tcpOf(p gopacket.Packet) *layers.TCP { return p.Layer(layers.LayerTypeTCP).(*layers.TCP) }

// toa is the client's address in p's TOA option, if there is one.
func toa(p gopacket.Packet) []byte {
	for _, o := range tcpOf(p).Options {
		if o.OptionType == 254 {
			return o.OptionData
		}
	}
	return nil
}

func TestTCPLife(t *testing.T) {
	tests := []struct {
		name, client, vip string
		dnat              bool
	}{
		{"full-nat v4", "198.51.100.7:40000", "192.0.2.10:80", false},
		{"full-nat v6", "[2001:db8:c::7]:40000", "[2001:db8::10]:80", false},
		{"dnat v4", "198.51.100.7:40000", "192.0.2.11:80", true},
		{"dnat v6", "[2001:db8:c::7]:40000", "[2001:db8::11]:80", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 1, testSpec())
			c := r.open(0, tt.client, tt.vip)
			if tt.dnat != (c.local == tt.client) {
				t.Errorf("backend sees %s as client %s", c.local, tt.client)
			}
			if tt.dnat != (c.isn == 1000) {
				t.Errorf("ISN %d at the backend", c.isn)
			}
			data := c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 501})
			if got := tcpOf(data).Seq; got != c.isn+1 {
				t.Errorf("data arrives with sequence %d, want %d", got, c.isn+1)
			}
			answer := c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 502, payload: 700})
			src, _ := ipOf(answer)
			if got := hostPort(src.String(), uint16(tcpOf(answer).SrcPort)); got != tt.vip {
				t.Errorf("answer comes from %s, want %s", got, tt.vip)
			}
			if got := tcpOf(answer).Ack; got != 1502 {
				t.Errorf("answer acknowledges %d, want 1502", got)
			}
			c.fromClient(seg{ack: true, fin: true, seq: 1502, ackNum: 9701})
			c.fromServer(seg{ack: true, fin: true, seq: 9701, ackNum: c.isn + 503})
			c.fromClient(seg{ack: true, seq: 1503, ackNum: 9702})
			if got := r.counts(); got.Opened != 1 || got.Drops() != 0 {
				t.Errorf("counts: %+v", got)
			}
		})
	}
}

func TestTOA(t *testing.T) {
	r := newRig(t, 1, testSpec())
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	want := []byte{0x9c, 0x40, 198, 51, 100, 7}
	data := c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 100})
	if got := toa(data); string(got) != string(want) {
		t.Errorf("first data carries TOA %x, want %x", got, want)
	}
	c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 101, payload: 10})
	data = c.fromClient(seg{ack: true, seq: 1101, ackNum: 9011, payload: 100})
	if got := toa(data); got != nil {
		t.Errorf("TOA %x after the client acknowledged server data", got)
	}
	forged := layers.TCPOption{OptionType: 254, OptionLength: 8, OptionData: []byte{0, 80, 10, 9, 8, 7}}
	data = c.fromClient(seg{ack: true, seq: 1201, ackNum: 9011, payload: 100, opts: []layers.TCPOption{forged}})
	if got := toa(data); got != nil {
		t.Errorf("forged TOA %x passed", got)
	}
}

func TestForgedTOAGoesInDNATToo(t *testing.T) {
	r := newRig(t, 1, testSpec())
	c := r.open(0, "198.51.100.7:40000", "192.0.2.11:80")
	forged := layers.TCPOption{OptionType: 254, OptionLength: 8, OptionData: []byte{0, 80, 10, 9, 8, 7}}
	data := c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 100, opts: []layers.TCPOption{forged}})
	if got := toa(data); got != nil {
		t.Errorf("forged TOA %x passed", got)
	}
}

func TestMSSLeavesRoomForTOA(t *testing.T) {
	r := newRig(t, 1, testSpec())
	syn := verify(t, r.one(0, 0, 1, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true, seq: 1, opts: []layers.TCPOption{mss(1460)}})))
	src, dst := ipOf(syn)
	tcp := tcpOf(syn)
	got := verify(t, r.one(0, 1, 0, build(t, seg{
		src: hostPort(dst.String(), uint16(tcp.DstPort)), dst: hostPort(src.String(), uint16(tcp.SrcPort)),
		syn: true, ack: true, seq: 5, ackNum: tcp.Seq + 1, opts: []layers.TCPOption{mss(1460)}})))
	if v := binary.BigEndian.Uint16(tcpOf(got).Options[0].OptionData); v != 1452 {
		t.Errorf("MSS %d, want 1452", v)
	}
}

func TestUDP(t *testing.T) {
	for _, vip := range []string{"192.0.2.10:5000", "192.0.2.11:5000"} {
		for _, noCsum := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/nocsum=%v", vip, noCsum), func(t *testing.T) {
				r := newRig(t, 1, testSpec())
				q := verify(t, r.one(0, 0, 1, build(t, seg{src: "198.51.100.7:4000", dst: vip, udp: true, payload: 33, noCsum: noCsum})))
				src, dst := ipOf(q)
				u := q.Layer(layers.LayerTypeUDP).(*layers.UDP)
				if noCsum != (u.Checksum == 0) {
					t.Errorf("checksum %#x", u.Checksum)
				}
				a := verify(t, r.one(0, 1, 0, build(t, seg{udp: true, payload: 34,
					src: hostPort(dst.String(), uint16(u.DstPort)), dst: hostPort(src.String(), uint16(u.SrcPort))})))
				src, _ = ipOf(a)
				if got := hostPort(src.String(), uint16(a.Layer(layers.LayerTypeUDP).(*layers.UDP).SrcPort)); got != vip {
					t.Errorf("answer from %s, want %s", got, vip)
				}
			})
		}
	}
}

func TestReusedPortStartsAfresh(t *testing.T) {
	r := newRig(t, 1, testSpec())
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	c.fromClient(seg{ack: true, fin: true, seq: 1001, ackNum: 9001})
	c.fromServer(seg{ack: true, fin: true, seq: 9001, ackNum: c.isn + 2})
	c.fromClient(seg{ack: true, seq: 1002, ackNum: 9002})
	r.now += 1e9
	again := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	if again.backend != c.backend {
		t.Errorf("backend %s, had %s and it still serves", again.backend, c.backend)
	}
	if again.isn == c.isn {
		t.Error("the old sequence numbers again")
	}
	if got := r.counts(); got.Reopened != 1 {
		t.Errorf("%d reopened", got.Reopened)
	}
}

func TestRoundRobinOverBackends(t *testing.T) {
	r := newRig(t, 1, testSpec())
	seen := map[string]int{}
	for i := range 10 {
		seen[r.open(0, fmt.Sprintf("198.51.100.7:%d", 40000+i), "192.0.2.10:80").backend]++
	}
	if seen["10.0.1.20:8080"] != 5 || seen["10.0.1.21:8080"] != 5 {
		t.Errorf("spread %v", seen)
	}
}

func TestDrops(t *testing.T) {
	const client, vip = "198.51.100.7:40000", "192.0.2.10:80"
	noRoute := testSpec()
	noRoute.Services[0].Backends = []BackendSpec{{Endpoint: endpoint("10.77.0.1:80", 6), Weight: 1}}
	unresolved := testSpec()
	unresolved.Services[0].Backends = []BackendSpec{{Endpoint: endpoint("10.0.9.1:80", 6), Weight: 1}}
	drained := testSpec()
	drained.Services[0].Backends[0].Weight, drained.Services[0].Backends[1].Weight = 0, 0
	tests := []struct {
		name  string
		spec  Spec
		want  Verdict
		frame seg
	}{
		{"no service on the port", testSpec(), DropNoService, seg{src: client, dst: "192.0.2.10:81", syn: true}},
		{"no service for the protocol", testSpec(), DropNoService, seg{src: client, dst: vip, udp: true}},
		{"ACK without flow", testSpec(), DropNoFlow, seg{src: client, dst: vip, ack: true}},
		{"RST without flow", testSpec(), DropNoFlow, seg{src: client, dst: vip, rst: true}},
		{"SYN-ACK without flow", testSpec(), DropNoFlow, seg{src: client, dst: vip, syn: true, ack: true}},
		{"reply without flow", testSpec(), DropNoFlow, seg{src: "10.0.1.20:8080", dst: "10.0.1.10:5000", ack: true}},
		{"all drained", drained, DropNoBackend, seg{src: client, dst: vip, syn: true}},
		{"no route", noRoute, DropNoRoute, seg{src: client, dst: vip, syn: true}},
		{"unresolved", unresolved, DropNeighbour, seg{src: client, dst: vip, syn: true}},
		{"martian", testSpec(), malformedNamed("martian_source"), seg{src: "127.0.0.1:5", dst: vip, syn: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 1, tt.spec)
			r.refused(0, 0, tt.want, build(t, tt.frame))
		})
	}
}

func malformedNamed(name string) Verdict {
	for v := dropMalformed; v < numDrops; v++ {
		if v.String() == name {
			return v
		}
	}
	panic("no verdict " + name)
}

func TestUnresolvedAsksTheControlPlane(t *testing.T) {
	spec := testSpec()
	spec.Services[0].Backends = []BackendSpec{{Endpoint: endpoint("10.0.9.1:80", 6), Weight: 1}}
	r := newRig(t, 1, spec)
	r.refused(0, 0, DropNeighbour, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true}))
	if e, ok := r.dp.Workers[0].Event(); !ok || e.Kind != EventResolve || e.Addr != addr("10.0.9.1") {
		t.Errorf("event %+v, %v", e, ok)
	}
}

func TestPassesWhatIsNotOurs(t *testing.T) {
	r := newRig(t, 1, testSpec())
	in := build(t, seg{src: "10.0.1.20:80", dst: "198.51.100.9:555", ack: true, payload: 5})
	out := r.one(0, 1, 0, in)
	src, dst := ipOf(verify(t, out))
	if src.String() != "10.0.1.20" || dst.String() != "198.51.100.9" {
		t.Errorf("%v → %v", src, dst)
	}
	if got := r.counts().Verdicts[Passed]; got != 1 {
		t.Errorf("%d passed", got)
	}
}

func TestVerdictNames(t *testing.T) {
	seen := map[string]Verdict{}
	for v := range NumVerdicts {
		if v == dropMalformed { // packet.ErrNone: never counted
			continue
		}
		name := v.String()
		if old, dup := seen[name]; dup || name == "" || name == "unknown" {
			t.Errorf("verdict %d is called %q, as is %d", v, name, old)
		}
		seen[name] = v
	}
}

func TestEveryRefusalOfConntrackHasADrop(t *testing.T) {
	for out := conntrack.Outcome(1); out < conntrack.NumOutcomes; out++ {
		if out != conntrack.Pass && out != conntrack.Reopen && untracked[out] == DropInternal {
			t.Errorf("%v has none", out)
		}
	}
}

// TestAnswersANewNeighbour has a client whose neighbour entry is missing: the
// answer goes to where its packet came from, and the kernel is asked.
func TestAnswersANewNeighbour(t *testing.T) {
	r := newRig(t, 1, testSpec())
	hops := []route.Hop{{},
		route.NewHop(0, [6]byte{}, nicMAC[0], 0, 1500),
		route.NewHop(1, serverMAC, nicMAC[1], 0, 1500)}
	hops[1].State = route.Unresolved
	prefix := func(s string, id route.HopID) route.Prefix {
		return route.Prefix{Prefix: netip.MustParsePrefix(s), Hop: id}
	}
	table := route.New(7, hops, []route.Prefix{prefix("198.51.100.0/24", 1), prefix("10.0.1.0/24", 2)})
	r.dp.PublishRoutes(table)
	ask := build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.11:5000", udp: true, srcMAC: clientMAC})
	reply := build(t, seg{src: "10.0.1.20:5000", dst: "198.51.100.7:4000", udp: true})
	r.one(0, 0, 1, ask)
	if out := r.one(0, 1, 0, reply); [6]byte(out[:6]) != clientMAC || [6]byte(out[6:12]) != nicMAC[0] {
		t.Errorf("answer goes to % x", out[:12])
	}
	if e, ok := r.dp.Workers[0].Event(); !ok || e.Kind != EventResolve || e.Addr != addr("198.51.100.7") {
		t.Errorf("event %+v, %v", e, ok)
	}
	// From the servers' side it is no neighbour of the NIC the way back leads to.
	r.one(0, 1, 1, build(t, seg{src: "198.51.100.8:4000", dst: "192.0.2.11:5000", udp: true, srcMAC: clientMAC}))
	r.refused(0, 1, DropNeighbour, build(t, seg{src: "10.0.1.20:5000", dst: "198.51.100.8:4000", udp: true}))
	// Once the kernel knows, its word counts.
	known := [6]byte{2, 9, 9, 9, 9, 9}
	r.dp.PublishRoutes(table.WithHops([]route.Hop{{}, route.NewHop(0, known, nicMAC[0], 0, 1500), hops[2]}))
	if out := r.one(0, 1, 0, reply); [6]byte(out[:6]) != known {
		t.Errorf("answer goes to % x, the kernel says % x", out[:6], known)
	}
}
