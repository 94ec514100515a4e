package dataplane

import (
	"fmt"
	"slices"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// maxLocals is what Entry.Local can name.
const maxLocals = 1 << 16

// LocalIDs is a set of local address ids.
type LocalIDs [maxLocals]bool

// addLocals gives local addresses their ids and notes their ports, if any are given. With
// an error there are as many ids as before.
func (r *Registry) addLocals(addrs []packet.Addr, ports []nat.PortRange) (v4, v6 []uint16, err error) {
	r.ports = slices.Clone(r.ports) // the last snapshot's
	var fresh []int
	for i, a := range addrs {
		if _, known := r.locals.ids[a]; !known && len(r.locals.free) == 0 && len(r.locals.list) == maxLocals {
			for _, id := range fresh {
				r.locals.forget(id)
			}
			return nil, nil, fmt.Errorf("more than %d local addresses, with those that are no more and may have flows: try it later", maxLocals)
		}
		id, added := r.locals.id(a)
		if added {
			fresh = append(fresh, id)
			if id < len(r.ports) {
				r.ports[id] = nat.PortRange{} // another's
			}
		}
		if i < len(ports) {
			for len(r.ports) <= id {
				r.ports = append(r.ports, nat.PortRange{})
			}
			r.ports[id] = ports[i]
		}
		if a.Is4() {
			v4 = append(v4, uint16(id))
		} else {
			v6 = append(v6, uint16(id))
		}
	}
	return v4, v6, nil
}

// noteLocals remembers which local addresses the last spec had.
func (r *Registry) noteLocals(spec *Spec) {
	r.builds++
	has := make([]bool, len(r.locals.list))
	for _, list := range [...][]packet.Addr{spec.Locals, spec.FormerLocals} {
		for _, a := range list {
			if id, ok := r.locals.ids[a]; ok {
				has[id] = true
			}
		}
	}
	for len(r.left) < len(has) {
		r.left = append(r.left, 0)
	}
	for id := range has {
		switch {
		case has[id]:
			r.left[id] = 0
		case r.left[id] == 0:
			r.left[id] = r.builds
		}
	}
}

// LeftLocals is how many local addresses have ids that the last spec did not have, as
// Locals or FormerLocals, and the number of that spec for ForgetLocals.
func (r *Registry) LeftLocals() (n int, build uint64) {
	for id, left := range r.left {
		if left != 0 && !r.locals.list[id].IsZero() {
			n++
		}
	}
	return n, r.builds
}

// ForgetLocals gives up the ids of local addresses that no spec from the given one on had
// and that are not in used, and returns how many. used has those of all flows, each worker
// looked at when it had, or was about to take, that spec's snapshot or a later one.
func (r *Registry) ForgetLocals(used *LocalIDs, build uint64) (n int) {
	r.unshare()
	for id, left := range r.left {
		if left != 0 && left <= build && !used[id] && !r.locals.list[id].IsZero() {
			r.locals.forget(id)
			n++
		}
	}
	return n
}

// Locals adds the local addresses of the flows of s to a set.
func (s *FlowSlice) Locals(to *LocalIDs) {
	for i := range s.entries[:s.N] {
		if e := &s.entries[i]; e.Mode == conntrack.FullNAT {
			to[e.Local] = true
		}
	}
}
