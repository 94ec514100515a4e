package dataplane

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
)

// TestReopenWithProxy: a client takes the port of a connection that is over
// again. Its SYN goes out once, rewritten once, and its frame is freed once.
func TestReopenWithProxy(t *testing.T) {
	for _, vip := range []string{"192.0.2.13:80", "[2001:db8::13]:80"} {
		t.Run(vip, func(t *testing.T) {
			client := "198.51.100.7:40000"
			if vip[0] == '[' {
				client = "[2001:db8:c::7]:40000"
			}
			r := newRig(t, 1, testSpec())
			c := &conv{r: r, client: client, vip: vip}
			syn := c.fromClient(seg{syn: true, seq: 1000})
			src, dst := ipOf(syn)
			c.local, c.backend, c.isn = hostPort(src.String(), uint16(tcpOf(syn).SrcPort)), hostPort(dst.String(), 8013), tcpOf(syn).Seq
			c.fromServer(seg{rst: true, ack: true, ackNum: c.isn + 1})
			again := tcpOf(c.fromClient(seg{syn: true, seq: 70000}))
			if !again.SYN || again.ACK || again.DstPort != 8013 {
				t.Errorf("%+v", again)
			}
			if n := r.counts(); n.Reopened != 1 || n.Sent != 3 || n.Drops() != 0 {
				t.Errorf("%d reopened, %d sent, %d drops", n.Reopened, n.Sent, n.Drops())
			}
		})
	}
}

// TestNoFlowForWhatGoesNoFurther: a packet whose TTL is used up must not cost a
// flow and a local port.
func TestNoFlowForWhatGoesNoFurther(t *testing.T) {
	r := newRig(t, 1, testSpec())
	for i := range 20 {
		r.deliver(0, 0, build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 3000+i), dst: "192.0.2.10:80", syn: true, ttl: 1}),
			build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 3000+i), dst: "192.0.2.10:5000", udp: true, ttl: 1}))
	}
	if n := r.counts(); n.Opened != 0 || n.Verdicts[DropTTL] != 40 || n.Refusals != 40 {
		t.Errorf("%d flows opened, %d dropped, %d errors", n.Opened, n.Verdicts[DropTTL], n.Refusals)
	}
}

// TestNoAnswerToOurselves: what claims to come from one of our own addresses is
// forged or a loop, and gets no answer of any kind.
func TestNoAnswerToOurselves(t *testing.T) {
	spec := testSpec()
	spec.Services[0].ResetStray = true
	r := newRig(t, 1, spec)
	for name, s := range map[string]seg{
		"stray segment":       {src: "192.0.2.11:80", dst: "192.0.2.10:80", ack: true},
		"TTL, service":        {src: "10.0.1.10:80", dst: "192.0.2.10:80", syn: true, ttl: 1},
		"TTL, no service":     {src: "10.0.1.10:80", dst: "192.0.2.10:81", syn: true, ttl: 1},
		"TTL, UDP":            {src: "10.0.1.11:5000", dst: "192.0.2.10:5000", udp: true, ttl: 1},
		"stray, from a local": {src: "10.0.1.10:2000", dst: "192.0.2.10:80", syn: true, ack: true},
	} {
		if out := r.deliver(0, 0, build(t, s)); len(out) != 0 {
			t.Errorf("%s: %d frames out", name, len(out))
		}
	}
	if n := r.counts(); n.Refusals != 0 || n.Opened != 0 {
		t.Errorf("%d answers, %d flows", n.Refusals, n.Opened)
	}
}

// TestTracerouteFloodLeavesMTU: who makes TTLs run out must not use up the errors
// that others' path MTU discovery waits for.
func TestTracerouteFloodLeavesMTU(t *testing.T) {
	r := newRig(t, 1, testSpec())
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	flood := build(t, seg{src: "198.51.100.9:1", dst: "192.0.2.10:80", syn: true, ttl: 1})
	for range 2 * refusalBurst {
		r.deliver(0, 0, flood)
	}
	r.answered(0, 0, 0, DropTooBig, build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 1500}))
}

// TestProxyChangedUnderFlows: flows go on as they began when the service begins or
// ceases to have PROXY headers.
func TestProxyChangedUnderFlows(t *testing.T) {
	for _, tt := range []struct {
		name         string
		before, then nat.ProxyVersion
	}{{"switched on", nat.NoProxy, nat.ProxyV2}, {"switched off", nat.ProxyV1, nat.NoProxy}, {"other version", nat.ProxyV1, nat.ProxyV2}} {
		t.Run(tt.name, func(t *testing.T) {
			const workers, vip = 2, "192.0.2.13:80"
			r := newRig(t, workers, testSpec())
			g := NewRegistry(workers)
			publish := func(v nat.ProxyVersion) {
				t.Helper()
				spec := testSpec()
				spec.Services[7].Proxy = v
				was := testSpec()
				was.Services[7].Proxy = tt.before
				snap, err := g.Build(spec.after(was))
				if err != nil {
					t.Fatal(err)
				}
				r.dp.Publish(snap)
				r.step()
			}
			publish(tt.before)
			r.now = int64(5e9)
			size := func(v nat.ProxyVersion) uint32 {
				return [...]uint32{0, uint32(len("PROXY TCP4 198.51.100.7 192.0.2.13 40000 80\r\n")), 28}[v]
			}
			start := func(client string) *conv {
				c := &conv{r: r, client: client, vip: vip}
				syn := c.fromClient(seg{syn: true, seq: 1000})
				src, dst := ipOf(syn)
				c.local, c.backend, c.isn = hostPort(src.String(), uint16(tcpOf(syn).SrcPort)), hostPort(dst.String(), 8013), tcpOf(syn).Seq
				c.fromServer(seg{syn: true, ack: true, seq: 9000, ackNum: c.isn + 1})
				return c
			}
			c := start("198.51.100.7:40000")
			publish(tt.then)
			n := size(tt.before)
			first := tcpOf(c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 10}))
			if len(first.Payload) != int(n)+10 || first.Seq != c.isn+1 {
				t.Errorf("%d bytes at %d, want %d at 1", len(first.Payload), first.Seq-c.isn, n+10)
			}
			if ack := tcpOf(c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 11 + n})).Ack; ack != 1011 {
				t.Errorf("acknowledges %d, want 1011", ack)
			}
			if next := tcpOf(c.fromClient(seg{ack: true, seq: 1011, ackNum: 9001, payload: 10})); next.Seq != c.isn+11+n {
				t.Errorf("at %d, want %d", next.Seq-c.isn, 11+n)
			}
			fresh := start("198.51.100.7:40001")
			if got := tcpOf(fresh.fromClient(seg{ack: true, seq: 1001, ackNum: 9001})); len(got.Payload) != int(size(tt.then)) {
				t.Errorf("a new flow's header has %d bytes, want %d", len(got.Payload), size(tt.then))
			}
			// Over, and the port taken again: a new flow.
			c.fromClient(seg{rst: true, ack: true, seq: 1021, ackNum: 9001})
			again := start(c.client)
			if got := tcpOf(again.fromClient(seg{ack: true, seq: 1001, ackNum: 9001})); len(got.Payload) != int(size(tt.then)) {
				t.Errorf("the next flow's header has %d bytes, want %d", len(got.Payload), size(tt.then))
			}
		})
	}
}

// TestRefusalAsksForNeighbour: after a restart nothing is known of a client on our
// own network. Its next segment must get the RST that this one cannot.
func TestRefusalAsksForNeighbour(t *testing.T) {
	spec := testSpec()
	spec.Services[0].ResetStray = true
	r := newRig(t, 1, spec)
	hop := route.NewHop(0, [6]byte{}, nicMAC[0], 0, 1500)
	hop.State = route.Unresolved
	r.dp.PublishRoutes(route.New(2, []route.Hop{{}, hop}, []route.Prefix{{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Hop: 1}}))
	r.refused(0, 0, DropNoFlow, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", ack: true, seq: 5, ackNum: 77}))
	if e, ok := r.dp.Workers[0].Event(); !ok || e.Kind != EventResolve || e.Addr != addr("198.51.100.7") {
		t.Errorf("%+v, %v", e, ok)
	}
}
