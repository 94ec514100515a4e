package bench_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/l4fwd/l4fwd/bench"
	"github.com/l4fwd/l4fwd/nat"
)

func lives(t testing.TB, o bench.LivesOptions) *bench.LivesReport {
	t.Helper()
	rep, err := bench.Lives(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// Every connection opens, ends and is forgotten, in every mode and family, and
// as many expire as begin.
func TestLives(t *testing.T) {
	for _, name := range []string{"fnat4", "fnat6", "dnat4", "dnat6", ""} {
		t.Run(name, func(t *testing.T) {
			o := bench.LivesOptions{Spec: loadSpec(t, "all.yaml"), Lives: 10_000, Rounds: 2, Kept: 5000, Size: 100}
			if name != "" {
				o.Spec = loadSpec(t, "all.yaml", name)
			}
			rep := lives(t, o)
			for range 3 {
				if rep.AllocsPerPacket == 0 {
					break
				}
				rep = lives(t, o)
			}
			if rep.Failed != 0 || len(rep.Dropped) != 0 || rep.Left != 0 || rep.AllocsPerPacket != 0 {
				t.Errorf("%d failed, dropped %v, %d left, %g allocations a packet", rep.Failed, rep.Dropped, rep.Left, rep.AllocsPerPacket)
			}
			if rep.Lives < 20_000 || rep.Packets < 10*rep.Lives*9/10 || rep.PerSecond <= 0 || rep.NsPerLife <= 0 {
				t.Errorf("%+v", rep)
			}
			if off := float64(rep.Expired)/float64(rep.Lives) - 1; off < -0.2 || off > 0.2 {
				t.Errorf("%d lives, %d expired meanwhile", rep.Lives, rep.Expired)
			}
			// Kept ones and those under way, which are some thousand.
			if rep.Kept < 4000 || rep.Kept > 15_000 {
				t.Errorf("%d kept", rep.Kept)
			}
			var b bytes.Buffer
			if err := rep.WriteText(&b); err != nil || !bytes.Contains(b.Bytes(), []byte("TCP lives of 10 packets")) {
				t.Errorf("%v\n%s", err, &b)
			}
		})
	}
}

// Where ports run out connections fail, are counted, and leave nothing behind.
func TestLivesFail(t *testing.T) {
	spec := loadSpec(t, "all.yaml", "fnat4")
	ports := make([]nat.PortRange, len(spec.Locals))
	for i := range ports {
		ports[i] = nat.PortRange{First: 2000, Last: 2099}
	}
	// The clock goes slowly enough that nobody's handshake takes so long that his
	// port would go to another.
	rep := lives(t, bench.LivesOptions{Spec: spec, LocalPorts: ports, Lives: 60_000, Rounds: 1, Kept: 50_000})
	if rep.Failed < 1000 || rep.Failed >= rep.Lives || rep.Dropped["ports_exhausted"] < rep.Failed || rep.Left != 0 {
		t.Errorf("%+v", rep)
	}
}

func TestLivesRefuses(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	spec := loadSpec(t, "all.yaml", "fnat4")
	for name, c := range map[string]struct {
		o    bench.LivesOptions
		want error
	}{
		"negative":   {bench.LivesOptions{Spec: spec, Lives: -1}, bench.ErrOptions},
		"UDP only":   {bench.LivesOptions{Spec: loadSpec(t, "all.yaml", "fnat4u")}, bench.ErrNoService},
		"cancelled":  {bench.LivesOptions{Spec: spec, Lives: 100, Kept: 100}, context.Canceled},
		"long frame": {bench.LivesOptions{Spec: spec, Size: bench.MaxSize + 1}, bench.ErrOptions},
	} {
		if _, err := bench.Lives(ctx, c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
