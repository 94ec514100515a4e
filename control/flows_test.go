package control

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/internal/testbed"
	"github.com/l4fwd/l4fwd/packet"
)

// TestFlowFilter: each field alone fits the flow that it describes and no other, and
// what is none is refused.
func TestFlowFilter(t *testing.T) {
	end := func(s string) conntrack.Endpoint {
		ap := netip.MustParseAddrPort(s)
		return conntrack.Endpoint{Addr: packet.AddrFrom(ap.Addr()), Port: ap.Port(), Proto: packet.ProtoTCP}
	}
	flow := dataplane.Flow{
		Service: "web", Mode: conntrack.FullNAT, State: conntrack.Established,
		Client: end("198.51.100.7:40000"), VIP: end("192.0.2.10:80"), Local: end("10.0.1.10:1024"), Backend: end("10.0.1.20:8080"),
		Age: time.Hour, Idle: time.Minute, Packets: [2]uint32{3, 4}, Bytes: [2]uint64{500, 600},
	}
	type filter = admin.FlowFilter
	for _, c := range []struct {
		yes, no filter
	}{
		{filter{}, filter{Service: "we"}},
		{filter{Service: "web"}, filter{Service: "web", Protocol: "udp"}},
		{filter{Protocol: "tcp"}, filter{Protocol: "udp"}},
		{filter{Mode: "full-nat"}, filter{Mode: "dnat"}},
		{filter{States: []string{"syn_sent", "established"}}, filter{States: []string{"syn_sent"}}},
		{filter{Client: "198.51.100.7"}, filter{Client: "198.51.100.8"}},
		{filter{Client: "198.51.100.99/24"}, filter{Client: "198.51.101.0/24"}},
		{filter{Client: "198.51.100.7:40000"}, filter{Client: "198.51.100.7:40001"}},
		{filter{Client: ":40000"}, filter{Client: ":4"}},
		{filter{Client: "0.0.0.0/0"}, filter{Client: "::/0"}},
		{filter{VIP: "192.0.2.10:80"}, filter{VIP: "192.0.2.11"}},
		{filter{Local: "10.0.1.10"}, filter{Local: "10.0.1.10:1025"}},
		{filter{Backend: ":8080"}, filter{Backend: "10.0.1.21:8080"}},
		{filter{MinAge: time.Hour}, filter{MinAge: 2 * time.Hour}},
		{filter{MaxAge: time.Hour}, filter{MaxAge: time.Minute}},
		{filter{MinIdle: time.Minute}, filter{MinIdle: time.Hour}},
		{filter{MaxIdle: time.Minute}, filter{MaxIdle: time.Second}},
		{filter{MinPackets: 7}, filter{MinPackets: 8}},
		{filter{MinBytes: 1100}, filter{MinBytes: 1101}},
		{filter{MaxBytes: 1100}, filter{MaxBytes: 1099}},
	} {
		for q, want := range map[*filter]bool{&c.yes: true, &c.no: false} {
			f, err := readFlowFilter(q)
			if err != nil {
				t.Fatal(err)
			}
			if f.fits(&flow) != want {
				t.Errorf("%+v: %v", *q, !want)
			}
		}
	}
	for _, q := range []filter{
		{Client: "web"}, {VIP: "1.2.3.4/33"}, {Local: ":0"}, {Backend: ":65536"}, {Client: "fe80::1%eth0"},
		{Protocol: "icmp"}, {Mode: "nat"}, {States: []string{"open"}}, {MinIdle: -1},
	} {
		if _, err := readFlowFilter(&q); err == nil {
			t.Errorf("%+v was taken", q)
		}
	}
	for q, want := range map[*filter]bool{{}: true, {States: []string{}}: true, {MinAge: 1}: false, {Service: "web"}: false} {
		if f, err := readFlowFilter(q); err != nil || f.fitsAll() != want {
			t.Errorf("%+v: %v %v", *q, !want, err)
		}
	}
}

// FuzzFlowEnd: whatever is typed, no panic, and what is taken has an address or a port.
func FuzzFlowEnd(f *testing.F) {
	for _, s := range []string{"", ":80", "10.0.0.0/8", "[2001:db8::1]:80", "::ffff:1.2.3.4", "fe80::1%l"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := readFlowEnd(s)
		if err == nil && s != "" && e == (flowEnd{}) {
			t.Errorf("%q is any", s)
		}
	})
}

// TestFlows: live connections are listed as they are, counted, and ended, so that both
// ends know at once; the others do not notice.
func TestFlows(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 2, Queues: 2})
	d := w.run(w.Config(testbed.Services(0, "full-nat", "toa", "rr"), append(small, "workers: 2")...))
	c := admin.NewClient(d.cfg.AdminSocket)
	defer c.Close()
	ctx, vip := t.Context(), w.VIP(testbed.V4, 0)
	lines := map[string]*line{}
	for range 2 {
		l := w.call(vip, testbed.VIPPortHTTP)
		lines[w.mustSay(l)] = l
	}
	list := func(q admin.FlowsRequest) (all []admin.Flow) {
		t.Helper()
		if err := c.Flows(ctx, q, func(f *admin.Flow) error { all = append(all, *f); return nil }); err != nil {
			t.Fatal(err)
		}
		return all
	}
	one := netip.AddrPortFrom(w.ServerAddr(testbed.V4, 0), testbed.PortHTTP)
	filter := admin.FlowFilter{Backend: one.String(), States: []string{"established"}}
	got := list(admin.FlowsRequest{FlowFilter: filter})
	if len(got) != 1 {
		t.Fatalf("%+v", got)
	}
	f := got[0]
	if f.Local == nil || f.BytesTo == 0 || f.BytesFrom == 0 || f.PacketsTo < 3 || f.Age > 60 || f.Idle > f.Age || f.Left < 7000 {
		t.Errorf("%+v", f)
	}
	want := admin.Flow{
		Service: d.cfg.Services[0].Name, Protocol: "tcp", Mode: "full-nat", State: "established",
		Client: lines["rs1"].LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort(), VIP: netip.AddrPortFrom(vip, testbed.VIPPortHTTP), Backend: one,
		Local: f.Local, Worker: f.Worker, Age: f.Age, Idle: f.Idle, Left: f.Left,
		PacketsTo: f.PacketsTo, PacketsFrom: f.PacketsFrom, BytesTo: f.BytesTo, BytesFrom: f.BytesFrom,
	}
	if diff := cmp.Diff(want, f, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if n := len(list(admin.FlowsRequest{Limit: 1})); n != 1 {
		t.Errorf("limit 1: %d", n)
	}
	if n, err := c.CountFlows(ctx, admin.FlowFilter{States: filter.States}); err != nil || n.Flows != 2 {
		t.Errorf("%d established, %v", n.Flows, err)
	}
	for kind, q := range map[error]admin.FlowFilter{admin.ErrNotFound: {Service: "wbe"}, admin.ErrInvalid: {Client: "web"}} {
		if _, err := c.CountFlows(ctx, q); !errors.Is(err, kind) {
			t.Errorf("%+v: %v", q, err)
		}
	}
	if _, err := c.KillFlows(ctx, admin.KillFlowsRequest{}); !errors.Is(err, admin.ErrInvalid) || !strings.Contains(err.Error(), "all flows") {
		t.Errorf("kill without a filter: %v", err)
	}
	k, err := c.KillFlows(ctx, admin.KillFlowsRequest{FlowFilter: filter})
	if err != nil || k != (admin.KilledFlows{Ended: 1, Resets: 2}) {
		t.Errorf("%+v %v", k, err)
	}
	if _, err := lines["rs1"].say(); err == nil || !strings.Contains(err.Error(), "reset by peer") {
		t.Errorf("a connection that was ended: %v", err)
	}
	if w.mustSay(lines["rs2"]) != "rs2" {
		t.Error("the other one is not as it was")
	}
	if k, err = c.KillFlows(ctx, admin.KillFlowsRequest{All: true}); err != nil || k.Ended == 0 {
		t.Errorf("all: %+v %v", k, err)
	}
	if left := list(admin.FlowsRequest{}); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}
