package control

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/why"
	"github.com/l4fwd/l4fwd/internal/testbed"
	"github.com/l4fwd/l4fwd/packet"
)

// syn asks about a new connection of the client's.
func (w *world) syn(port uint16) admin.WhyRequest {
	return admin.WhyRequest{Packet: &admin.WhyPacket{
		Protocol: "tcp", Source: netip.AddrPortFrom(w.ClientAddr(testbed.V4, 0), port),
		Destination: netip.AddrPortFrom(w.VIP(testbed.V4, 0), testbed.VIPPortHTTP),
	}}
}

// TestExplain: without a daemon the answer is that of one that has just been started;
// what is not there is said.
func TestExplain(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 2, StaticNeighbours: true})
	cfg, err := config.Parse("test.yaml", []byte(w.Config(testbed.Services(0, "full-nat", "toa", "sh"), small...)))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Workers = 3
	ask := func(q admin.WhyRequest) (out []admin.Why, err error) {
		check(t, w.LB.Do(func() error { out, err = Explain(t.Context(), cfg, q); return nil }))
		return out, err
	}
	one, err := ask(w.syn(4000))
	if err != nil || len(one) != 1 || one[0].Verdict != "forwarded" || one[0].Opens == nil || one[0].Choice == nil || !one[0].Choice.Fixed ||
		len(one[0].Choice.Backends) != 2 || len(one[0].Sent) != 1 || one[0].Sent[0].Interface != w.LBServer.Name || one[0].Interface != w.LBClient.Name {
		t.Fatalf("%+v %v", one, err)
	}
	for range 3 { // sh does not change its mind, on whatever worker
		next, err := ask(w.syn(uint16(4001)))
		if err != nil || next[0].Choice.Backend != one[0].Choice.Backend {
			t.Errorf("%+v %v, before it was %v", next, err, one[0].Choice.Backend)
		}
	}
	for _, q := range []admin.WhyRequest{{}, {Frames: make([][]byte, admin.MaxWhy+1)}, {Packet: &admin.WhyPacket{Protocol: "sctp"}}} {
		if out, err := ask(q); !errors.Is(err, admin.ErrInvalid) {
			t.Errorf("%+v: %v %v", q, out, err)
		}
	}
	if out, err := ask(admin.WhyRequest{Frames: [][]byte{nil, make([]byte, 3), make([]byte, 14)}}); err != nil || len(out) != 3 || out[0].XDP.Taken {
		t.Errorf("of no frames at all: %+v %v", out, err)
	}
	// One frame as a host with segmentation offload captures it does not spoil the rest.
	large := make([]byte, 9000)
	p := why.Packet{Protocol: packet.ProtoTCP, Source: netip.AddrPortFrom(w.ClientAddr(testbed.V4, 0), 4000),
		Destination: netip.AddrPortFrom(w.VIP(testbed.V4, 0), testbed.VIPPortHTTP), Flags: packet.SYN, TTL: 64}
	syn, err := p.Frame([6]byte{2}, [6]byte{4}, 0, false)
	check(t, err)
	copy(large, syn)
	if out, err := ask(admin.WhyRequest{Frames: [][]byte{large, syn}}); err != nil || len(out) != 2 ||
		!strings.Contains(out[0].Unanswered, "9000 bytes") || out[1].Unanswered != "" || out[1].Verdict != "forwarded" {
		t.Errorf("%+v %v", out, err)
	}
	if cfg.Interfaces[0].Name = "nosuch0"; cfg.Interfaces[0].Name != "" {
		out, err := ask(w.syn(4000))
		if err != nil || len(out) != 1 || out[0].Verdict == "" {
			t.Errorf("without an interface: %+v %v", out, err)
		}
	}
}

// TestWhyBesideTraffic: the workers go on while they are asked, and nobody notices.
func TestWhyBesideTraffic(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 2})
	d := w.run(w.Config(testbed.Services(0, "full-nat", "toa", "wlc"), append([]string{"workers: 1"}, small...)...))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	asked := make(chan error, 1)
	go func() {
		c := admin.NewClient(d.cfg.AdminSocket)
		defer c.Close()
		for port := range uint16(20) {
			out, err := c.Why(ctx, w.syn(20000+port))
			if err != nil || len(out) != 1 || !out[0].XDP.Taken {
				asked <- errors.Join(errors.New("no answer"), err)
				return
			}
		}
		asked <- nil
	}()
	for answered := false; !answered; {
		l := testbed.HTTPLoad{To: netip.AddrPortFrom(w.VIP(testbed.V4, 0), testbed.VIPPortHTTP), Requests: 50, Timeout: 20 * time.Second}
		if r, err := l.Run(ctx, w.Client); err != nil || r.OK != 50 {
			t.Fatalf("%v %+v", err, r)
		}
		select {
		case err := <-asked:
			check(t, err)
			answered = true
		default:
		}
	}
	d.end()
}
