package follow

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/route"
)

// Resolve asks for what is missing to send to a destination: the neighbour
// itself where it is on-link, else the gateway of its route. It never blocks,
// may be called by anyone, is dropped under a flood, and asks the kernel about
// one neighbour at most once a second. The answer comes as a new table.
func (f *Follower) Resolve(dst netip.Addr) {
	select {
	case f.asks <- dst:
	default:
	}
}

// Keep replaces the set of destinations (real servers, above all) whose next
// hops shall stay resolved whether or not anybody asks, which the gateways of
// all routes by data NICs do anyway. Those on-link have a hop of their own
// even before they are resolved, so that the generation does not change when
// they are. The slice is copied. May be called by anyone, before Run too.
func (f *Follower) Keep(dsts []netip.Addr) {
	f.mu.Lock()
	f.keep = slices.Clone(dsts)
	f.mu.Unlock()
	f.mark(dirtyKeep)
}

// Describe says for people what a hop of the last table is: which gateway on
// which NIC, or why it is none of ours. Empty for an id without a meaning.
func (f *Follower) Describe(id route.HopID) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id == 0 || int(id) >= len(f.keys) || f.keys[id] == (hopKey{}) {
		return ""
	}
	return f.keys[id].describe(f.opt.Links)
}

func (f *Follower) ask(dst netip.Addr) {
	if k, ok := f.build.target(dst); ok {
		f.solicit(k)
	}
}

// probe looks after the gateways and the kept destinations.
func (f *Follower) probe() {
	f.mu.Lock()
	keep := f.keep
	f.mu.Unlock()
	for k := range f.build.gateways {
		f.solicit(k)
	}
	for _, a := range keep {
		f.ask(a)
	}
}

// Neighbours in these states need no reminder: known for certain, or asked for
// at this moment. NUD_PERMANENT must not get one: a request with NTF_USE makes
// the kernel forget that the entry was permanent.
const nudSettled = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE |
	unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_INCOMPLETE

// solicit makes the kernel resolve a neighbour, or verify a stale one, as if
// it had a packet for it (NTF_USE, include/uapi/linux/neighbour.h).
func (f *Follower) solicit(k neighKey) {
	if f.state.neighs[k].state&nudSettled != 0 || !f.build.egress[k.link].link.up || !f.asked.allow(k, time.Now()) {
		return
	}
	err := f.handle.NeighSet(&netlink.Neigh{
		LinkIndex: k.link, IP: net.IP(k.addr.AsSlice()), Flags: netlink.NTF_USE, State: unix.NUD_NONE,
	})
	if err != nil {
		f.log.Debug("the kernel does not resolve a neighbour",
			zap.Stringer("address", k.addr), zap.Int("ifindex", k.link), zap.Error(err))
	}
}

// limiter bounds what is asked of the kernel: each neighbour once a second,
// and in all no more than a kernel's neighbour table and the wire can bear
// when somebody scans a connected /64 through us.
type limiter struct {
	last  map[neighKey]time.Time
	begin time.Time // of the second being counted
	count int
}

const (
	askEvery   = time.Second
	asksPerSec = 512
)

func newLimiter() limiter { return limiter{last: map[neighKey]time.Time{}} }

func (l *limiter) allow(k neighKey, now time.Time) bool {
	if now.Sub(l.begin) >= time.Second {
		l.begin, l.count = now, 0
		for k, t := range l.last { // at most as many as were asked lately
			if now.Sub(t) >= askEvery {
				delete(l.last, k)
			}
		}
	}
	if t, ok := l.last[k]; ok && now.Sub(t) < askEvery || l.count >= asksPerSec {
		return false
	}
	l.last[k] = now
	l.count++
	return true
}
