package control

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestOrders: what people say of a backend takes effect at once, in one service or in
// all, holds over reloads, is shown, and is taken back.
func TestOrders(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 2})
	text := w.Config(testbed.Services(0, "full-nat", "", "wrr", 2, 2), append(small, "drain_timeout: 1h")...)
	d := w.run(text)
	c := admin.NewClient(d.cfg.AdminSocket)
	defer c.Close()
	vip, ctx := w.VIP(testbed.V4, 0), t.Context()
	one := netip.AddrPortFrom(w.ServerAddr(testbed.V4, 0), testbed.PortHTTP)
	name := d.cfg.Services[0].Name
	order := func(a admin.Action, backend string, weight uint32) []admin.BackendInfo {
		t.Helper()
		got, err := c.Order(ctx, admin.Order{Action: a, Backend: backend, Weight: weight})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	// share is how many of 12 requests the first server got.
	share := func() int { t.Helper(); return w.ask(vip, 12).ByServer["rs1"] }
	is := func(state admin.BackendState, weight uint32, action admin.Action) {
		t.Helper()
		all, err := c.Backends(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		want := admin.BackendInfo{Service: name, Address: one, State: state, Weight: weight, Configured: 2}
		if action != "" {
			want.Ordered = &admin.Ordered{Action: action}
			if action == admin.Weigh {
				want.Ordered.Weight = weight
			}
		}
		ignore := []cmp.Option{cmpopts.IgnoreFields(admin.BackendInfo{}, "Flows", "Active", "BytesTo", "BytesFrom"),
			cmpopts.IgnoreFields(admin.Ordered{}, "Since"), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })}
		if diff := cmp.Diff(want, all[0], ignore...); diff != "" {
			t.Error(diff)
		}
	}
	l := w.call(vip, testbed.VIPPortHTTP)
	for range 3 {
		if w.mustSay(l) == "rs1" {
			break
		}
		l = w.call(vip, testbed.VIPPortHTTP)
	}
	is(admin.BackendUp, 2, "")
	order(admin.Drain, name+"/"+one.String(), 0)
	is(admin.BackendDrained, 0, admin.Drain)
	if n := share(); n != 0 || w.mustSay(l) != "rs1" {
		t.Errorf("drained: %d new flows", n)
	}
	order(admin.Weigh, one.String(), 6)
	spelled := fmt.Sprintf("%s:0%d", one.Addr(), one.Port())
	if all := order(admin.Weigh, spelled, 6); len(all) != 1 || all[0].Weight != 6 {
		t.Errorf("an order for %s: %+v", spelled, all)
	}
	is(admin.BackendUp, 6, admin.Weigh)
	if n := share(); n != 9 {
		t.Errorf("weights 6 and 2: %d of 12", n)
	}
	r := d.reload(strings.Replace(text, "weight: 2}", "weight: 1}", 1))
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "`weight 6` holds for "+one.String()) {
		t.Errorf("warnings %q", r.Warnings)
	}
	if n := share(); n != 9 {
		t.Errorf("after a reload: %d of 12", n)
	}
	d.reload(text)
	order(admin.Enable, one.String(), 0)
	is(admin.BackendUp, 2, "")
	order(admin.Disable, one.String(), 0)
	is(admin.BackendDisabled, 0, admin.Disable)
	if n := share(); n != 0 {
		t.Errorf("disabled: %d new flows", n)
	}
	if _, err := l.say(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection to a disabled backend: %v", err)
	}
	all, err := c.Services(ctx)
	if err != nil || all[0].Taking != 1 || all[0].Backends != 2 || all[0].Flows == 0 || all[0].Scheduler != "wrr" {
		t.Errorf("%+v %v", all, err)
	}
	// Who leaves, and comes back, has no orders any more.
	d.reload(fewer(text, one))
	if all, err := c.Backends(ctx, name); err != nil || len(all) != 2 || all[1].State != admin.BackendLeaving || all[1].Until == nil || all[1].Flows == 0 {
		t.Errorf("%+v %v", all, err)
	}
	d.reload(text)
	is(admin.BackendUp, 2, "")
	for _, tt := range []struct {
		o    admin.Order
		kind error
		want string
	}{
		{admin.Order{Action: admin.Drain, Backend: "10.9.9.9:80"}, admin.ErrNotFound, "no service has the backend 10.9.9.9:80"},
		{admin.Order{Action: admin.Drain, Backend: "nobody/" + one.String()}, admin.ErrNotFound, "no service"},
		{admin.Order{Action: admin.Drain, Backend: "rs1"}, admin.ErrInvalid, "expected ADDRESS:PORT"},
		{admin.Order{Action: "boost", Backend: one.String()}, admin.ErrInvalid, "expected drain"},
		{admin.Order{Action: admin.Weigh, Backend: one.String(), Weight: 65536}, admin.ErrInvalid, "expected 0 to 65535"},
	} {
		if _, err := c.Order(ctx, tt.o); !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt.o, err)
		}
	}
	if _, err := c.Backends(ctx, "nobody"); !errors.Is(err, admin.ErrNotFound) {
		t.Error(err)
	}
	d.noneLost()
	d.end()
	w.clean()
}
