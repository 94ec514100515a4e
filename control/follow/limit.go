package follow

import (
	"net/netip"
	"time"
)

// limit is what has been learned of the way to a destination beyond its next hop.
type limit struct {
	mtu   int
	until time.Time
}

// limitFor is how long it holds without being learned again, as RFC 1191 section 6.3
// and RFC 8201 section 5.3 recommend: the path may have become wider.
const limitFor = 10 * time.Minute

// maxLimits bounds how many destinations may have one.
const maxLimits = 1 << 16

// Limit notes that the way to a destination carries packets of mtu bytes, IP header
// included, and no larger ones. For some minutes its next hop says so too, unless it is
// narrower itself. It tells whether that is news. May be called by anyone.
func (f *Follower) Limit(dst netip.Addr, mtu int) (news bool) {
	dst = dst.Unmap()
	f.mu.Lock()
	old, known := f.limits[dst]
	if known && old.mtu < mtu || !known && len(f.limits) >= maxLimits {
		f.mu.Unlock()
		return false
	}
	f.limits[dst] = limit{mtu, time.Now().Add(limitFor)}
	f.mu.Unlock()
	if known && old.mtu == mtu {
		return false
	}
	f.mark(dirtyKeep)
	return true
}

// limited returns the limits that still hold, and forgets the others.
func (f *Follower) limited(now time.Time) map[netip.Addr]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[netip.Addr]int, len(f.limits))
	for a, l := range f.limits {
		if now.After(l.until) {
			delete(f.limits, a)
		} else {
			out[a] = l.mtu
		}
	}
	return out
}
