package main

import (
	"strings"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/packet"
)

func TestCountDrops(t *testing.T) {
	before := map[string]uint64{"no_flow": 10, "no_service": 5, "forwarded": 1}
	after := map[string]uint64{"no_flow": 10, "no_service": 6, "forwarded": 9, "land": 4}
	got := countDrops(before, after, 2*time.Second, false)
	if len(got) != 3 || got[0].Reason != "land" || got[0].Rate != 2 || got[1].Reason != "no_service" || got[2].Reason != "no_flow" || got[2].Rate != 0 {
		t.Errorf("%+v", got)
	}
	drops := 0
	for v := range dataplane.NumVerdicts {
		if v.IsDrop() && v.String() != packet.ErrNone.String() {
			drops++
		}
	}
	if all := countDrops(before, after, time.Second, true); len(all) != drops {
		t.Errorf("%d of %d reasons", len(all), drops)
	}
	var b strings.Builder
	if dropsTable(&b, got[1:2]); !strings.HasPrefix(b.String(), "no_service: 6 packets, 0.5 a second now\n  means\tto a VIP") {
		t.Error(b.String())
	}
}

func TestWrap(t *testing.T) {
	if got := strings.Join(wrap("aa bb cccccccc d", 5), "|"); got != "aa bb|cccccccc|d" {
		t.Error(got)
	}
}
