package bench_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/bench"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
)

func flood(t testing.TB, o bench.FloodOptions) *bench.FloodReport {
	t.Helper()
	rep, err := bench.Flood(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// Live flows live on and honest clients get in while half-open flows come and
// go.
func TestFlood(t *testing.T) {
	for _, name := range []string{"fnat4", "fnat6", "dnat4"} {
		t.Run(name, func(t *testing.T) {
			rep := flood(t, bench.FloodOptions{
				Spec: loadSpec(t, "all.yaml", name), MaxFlows: 1 << 15, Live: 500, Rate: 100_000,
				Duration: 3 * time.Second, Honest: 200, RTT: 20 * time.Millisecond,
			})
			if rep.Lost != 0 || rep.LiveSent != rep.LivePackets || rep.LivePackets < 8000 {
				t.Errorf("%d live flows lost, %d of %d packets forwarded", rep.Lost, rep.LiveSent, rep.LivePackets)
			}
			// Who is refused at first is let in when it comes again.
			if opened := rep.Opened[0] + rep.Opened[1]; rep.Honest < 280 || opened < rep.Honest*99/100 || rep.Broken+rep.GaveUp != 0 {
				t.Errorf("of %d honest clients, by SYNs, %v got in, %d gave up, %d broken, %d still trying", rep.Honest, rep.Opened, rep.GaveUp, rep.Broken, rep.Trying)
			}
			// A quarter of the table is for half-open flows: the others were refused or
			// made room.
			if full := rep.Dropped["half_open_full"]; rep.SYNs < 260_000 || rep.Evicted+full < 240_000 || rep.Mpps <= 0 || rep.NsPerPacket <= 0 {
				t.Errorf("%+v", rep)
			}
			var b bytes.Buffer
			if err := rep.WriteText(&b); err != nil || !bytes.Contains(b.Bytes(), []byte("live flows: 0 of 500 lost")) {
				t.Errorf("%v\n%s", err, &b)
			}
		})
	}
}

// What a flood does to others is seen: where nobody can come again before it is
// over, many are left out.
func TestFloodKeepsOut(t *testing.T) {
	rep := flood(t, bench.FloodOptions{
		Spec: loadSpec(t, "all.yaml", "fnat4"), MaxFlows: 1 << 12, Live: 100, Rate: 100_000,
		Duration: 600 * time.Millisecond, Honest: 200, RTT: 100 * time.Millisecond,
	})
	opened := rep.Opened[0] + rep.Opened[1] + rep.Opened[2]
	if opened+rep.Broken+rep.Trying != rep.Honest || opened > rep.Honest/2 || rep.GaveUp != 0 {
		t.Errorf("of %d honest clients, by SYNs, %v got in, %d gave up, %d broken, %d still trying", rep.Honest, rep.Opened, rep.GaveUp, rep.Broken, rep.Trying)
	}
}

// Where live flows have every port nobody gets in: whose third SYN is not answered
// gives up, which is not the same as being thrown out.
func TestFloodGiveUp(t *testing.T) {
	spec := loadSpec(t, "all.yaml", "fnat4")
	ports := make([]nat.PortRange, len(spec.Locals))
	live := 0
	for i, a := range spec.Locals {
		ports[i] = nat.PortRange{First: 2000, Last: 2009}
		if a.Is4() {
			live += 10 * len(spec.Services[0].Backends)
		}
	}
	rep := flood(t, bench.FloodOptions{
		Spec: spec, LocalPorts: ports, MaxFlows: 1 << 12, Live: live, Rate: 5000, Duration: 8 * time.Second, Honest: 20,
	})
	want := bench.FloodReport{Honest: rep.Honest, GaveUp: rep.Honest}
	got := bench.FloodReport{Honest: rep.Honest, Opened: rep.Opened, GaveUp: rep.GaveUp, Broken: rep.Broken, Trying: rep.Trying, Lost: rep.Lost}
	if diff := cmp.Diff(want, got); diff != "" || rep.Honest < 70 {
		t.Errorf("dropped %v (-want +got):\n%s", rep.Dropped, diff)
	}
}

// A live flow that is gone afterwards is told: here they idle out.
func TestFloodLost(t *testing.T) {
	spec := loadSpec(t, "all.yaml", "fnat4")
	spec.Services[0].Timeouts[conntrack.Established] = 2 // ticks
	rep := flood(t, bench.FloodOptions{
		Spec: spec, MaxFlows: 1 << 14, Live: 300, LiveShare: 1e-9, Rate: 20_000, Duration: 500 * time.Millisecond, Honest: 1,
	})
	if rep.Lost != 300 {
		t.Errorf("%d of 300 flows lost", rep.Lost)
	}
}

func TestFloodRefuses(t *testing.T) {
	spec := loadSpec(t, "all.yaml", "fnat4")
	for name, c := range map[string]struct {
		o    bench.FloodOptions
		want error
	}{
		"negative": {bench.FloodOptions{Spec: spec, Live: -1}, bench.ErrOptions},
		"share":    {bench.FloodOptions{Spec: spec, LiveShare: 2}, bench.ErrOptions},
		"UDP only": {bench.FloodOptions{Spec: loadSpec(t, "all.yaml", "fnat4u")}, bench.ErrNoService},
	} {
		if _, err := bench.Flood(context.Background(), c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
