package nat

// Bucket is a token bucket: it limits what l4fwd sends of its own accord, ICMP
// errors (RFC 4443 section 2.4 f demands it, RFC 1812 section 4.3.2.8 advises it)
// and RSTs. One worker owns it. The zero value allows nothing.
//
// It holds the time at which the bucket will be full again rather than a level,
// so that an idle one needs no refilling.
type Bucket struct {
	full     int64 // nanoseconds
	interval int64 // between two tokens, 0: none ever come
	depth    int64 // how far full may lie ahead before a token is taken
}

const nanosPerSecond = 1e9

// NewBucket returns a full bucket of burst tokens that gains perSecond each
// second, at most 1e9. If either is below 1 it allows nothing; burst is cut to
// what an hour brings.
func NewBucket(perSecond, burst int) Bucket {
	if perSecond < 1 || burst < 1 {
		return Bucket{}
	}
	interval := int64(nanosPerSecond / min(perSecond, nanosPerSecond))
	burst = min(burst, int(3600*nanosPerSecond/interval))
	return Bucket{interval: interval, depth: int64(burst-1) * interval}
}

// Allow takes a token and reports whether there was one. nanos is a monotonic
// clock in nanoseconds, not negative. No system call, no allocation.
func (b *Bucket) Allow(nanos int64) bool {
	full := max(b.full, nanos)
	if b.interval == 0 || full-nanos > b.depth {
		return false
	}
	b.full = full + b.interval
	return true
}
