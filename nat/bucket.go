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

// Has reports whether there is a token. nanos is a monotonic clock in
// nanoseconds, not negative. No system call, no allocation.
//
// It is apart from Take, so that what turns out to be unanswerable, of which
// anybody can send as much as he likes, costs no token.
func (b *Bucket) Has(nanos int64) bool {
	return b.interval != 0 && max(b.full, nanos)-nanos <= b.depth
}

// Take takes the token that Has has found; nanos is as there.
func (b *Bucket) Take(nanos int64) { b.full = max(b.full, nanos) + b.interval }
