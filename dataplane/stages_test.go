package dataplane

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestStageClock: of every third round the stages are told, if it saw packets, and they
// are all of its time.
func TestStageClock(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	now, read := int64(0), 0
	c := StageClock{Every: 3, Now: func() int64 { now += 10; read++; return now }}
	w.Time(&c)
	syn := build(t, seg{src: "198.51.100.7:1", dst: "192.0.2.10:80", syn: true, seq: 1})
	for _, step := range []struct {
		frames  int
		packets uint64
	}{{1, 0}, {0, 0}, {2, 2}, {1, 2}, {1, 2}, {0, 2}, {0, 2}, {0, 2}, {1, 3}} {
		before := now
		was := c.Nanos
		r.port[0][0].Feed([][]byte{syn, syn}[:step.frames], 1)
		w.Poll(1)
		if c.Packets != step.packets {
			t.Fatalf("%+v: %d packets", step, c.Packets)
		}
		var took int64
		for s := range c.Nanos {
			took += c.Nanos[s] - was[s]
		}
		if took > 0 && took != now-before-10 || (took > 0) != (step.packets > 0 && step.frames > 0 && now > before) {
			t.Errorf("%+v: %d of %d ns told", step, took, now-before)
		}
	}
	for s, n := range c.Nanos {
		if n == 0 {
			t.Errorf("no time in %v", Stage(s))
		}
	}
	w.Time(nil)
	read = 0
	for range 4 {
		w.Poll(1)
	}
	if d := cmp.Diff(0, read); d != "" {
		t.Errorf("a clock that was taken away is read: %s", d)
	}
}
