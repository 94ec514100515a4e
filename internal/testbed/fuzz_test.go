package testbed

import "testing"

// FuzzCheckFrame: no frame makes the checker panic, and what the checker says
// does not depend on what it saw before.
func FuzzCheckFrame(f *testing.F) {
	for _, s := range samples(f) {
		f.Add(s)
		f.Add(s[:len(s)/2])
	}
	used := newChecker(DefaultTOAKind)
	f.Fuzz(func(t *testing.T, frame []byte) {
		_, a := used.check(frame, true)
		b := CheckFrame(frame)
		if (a == nil) != (b == nil) {
			t.Errorf("used checker says %v, a new one %v", a, b)
		}
	})
}
