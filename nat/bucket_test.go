package nat

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// TestBucketTwin compares with a bucket that is refilled before each use.
func TestBucketTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate, burst := rapid.IntRange(1, 100_000).Draw(t, "rate"), rapid.IntRange(1, 50).Draw(t, "burst")
		b := NewBucket(rate, burst)
		interval := int64(1e9) / int64(rate)
		level := int64(burst) * interval // in nanoseconds of refill
		now := rapid.Int64Range(0, math.MaxInt64/4).Draw(t, "start")
		for range rapid.IntRange(1, 200).Draw(t, "calls") {
			if got := allow(&b, now); got != (level >= interval) {
				t.Fatalf("allowed %v with %d ns of %d", got, level, interval)
			}
			if level >= interval {
				level -= interval
			}
			pass := rapid.Int64Range(0, 2*interval).Draw(t, "pass")
			now += pass
			level = min(level+pass, int64(burst)*interval)
		}
	})
}

func TestBucketLimits(t *testing.T) {
	for _, c := range []struct {
		name        string
		rate, burst int
		want        int // of 5000 at once
	}{
		{"a few", 100, 7, 7},
		{"one", 1, 1, 1},
		{"no rate", 0, 7, 0},
		{"no burst", 100, 0, 0},
		{"negative", -1, -1, 0},
		{"an hour's at most", 1, 1 << 40, 3600},
		{"faster than a nanosecond", 1 << 40, 3, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := NewBucket(c.rate, c.burst)
			got := 0
			for range 5000 {
				if allow(&b, 1<<60) {
					got++
				}
			}
			if got != c.want {
				t.Errorf("%d tokens, want %d", got, c.want)
			}
		})
	}
	var zero Bucket
	if allow(&zero, 5) {
		t.Error("the zero bucket allows")
	}
	b := NewBucket(10, 1)
	if !allow(&b, 1e9) || allow(&b, 0) || !allow(&b, 11e8) {
		t.Error("a clock that ran backwards")
	}
	if n := testing.AllocsPerRun(100, func() { allow(&b, 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// allow takes a token if there is one.
func allow(b *Bucket, nanos int64) bool {
	ok := b.Has(nanos)
	if ok {
		b.Take(nanos)
	}
	return ok
}

// TestBucketHasTakesNothing: asking is free.
func TestBucketHasTakesNothing(t *testing.T) {
	b := NewBucket(1, 1)
	for range 10 {
		if !b.Has(1e9) {
			t.Fatal("asking took the token")
		}
	}
	b.Take(1e9)
	if b.Has(1e9) {
		t.Error("a second token of one")
	}
}
