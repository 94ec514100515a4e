package follow

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/l4fwd/l4fwd/dataplane/route"
)

// hopKey is what a hop id stands for. It names no interface index, so that an
// interface made again gets its hops' ids back.
type hopKey struct {
	state route.HopState // Resolved: sent to addr, or to the destination itself if addr is invalid
	port  uint16
	tag   uint32
	addr  netip.Addr // the neighbour to send to
	mtu   int        // the route's own limit, 0 if none
	name  string     // NotOurs: why
}

// order is the deterministic one in which multipath next hops are preferred.
func (k hopKey) order(o hopKey) int {
	return cmp.Or(cmp.Compare(k.port, o.port), cmp.Compare(k.tag, o.tag), k.addr.Compare(o.addr),
		cmp.Compare(k.mtu, o.mtu), cmp.Compare(k.state, o.state), cmp.Compare(k.name, o.name))
}

// describe is for people.
func (k hopKey) describe(ports []string) string {
	on := ""
	if int(k.port) < len(ports) {
		on = ports[k.port]
	}
	if k.tag != 0 {
		on = fmt.Sprintf("%s VLAN %d", on, k.tag&0xfff)
	}
	switch {
	case k.state == route.NotOurs:
		return k.name
	case k.state == route.Local:
		return "an address of this host, or a broadcast or multicast one"
	case k.state != route.Resolved:
		return "route of type " + k.state.String()
	case k.addr.IsValid():
		return fmt.Sprintf("next hop %s on %s", k.addr, on)
	default:
		return "on-link on " + on
	}
}

// registry gives hops their ids. An id freed by one build is given away by the
// next at the earliest: the table between them does not map to it, so a change
// of meaning always comes with a change of generation.
type registry struct {
	ids  map[hopKey]route.HopID
	keys []hopKey // by id; free ones are zero
	used []bool   // by id, in the build under way
	free []route.HopID
	full bool // an id was refused
}

func newRegistry() *registry {
	return &registry{ids: map[hopKey]route.HopID{}, keys: make([]hopKey, 1), used: make([]bool, 1)}
}

func (r *registry) begin() {
	clear(r.used)
	r.full = false
}

// id returns the id of a key, a new one if need be; 0 if there is none left or
// the key means no route.
func (r *registry) id(k hopKey) route.HopID {
	if k.state == route.NoRoute {
		return 0
	}
	if id, ok := r.ids[k]; ok {
		r.used[id] = true
		return id
	}
	var id route.HopID
	switch {
	case len(r.free) > 0:
		id = r.free[len(r.free)-1]
		r.free = r.free[:len(r.free)-1]
	case len(r.keys) <= 0xffff:
		id = route.HopID(len(r.keys))
		r.keys = append(r.keys, hopKey{})
		r.used = append(r.used, false)
	default:
		r.full = true
		return 0
	}
	r.ids[k], r.keys[id], r.used[id] = id, k, true
	return id
}

// end frees the ids that the build did not use.
func (r *registry) end() {
	for id := 1; id < len(r.keys); id++ {
		if k := r.keys[id]; !r.used[id] && k != (hopKey{}) {
			delete(r.ids, k)
			r.keys[id] = hopKey{}
			r.free = append(r.free, route.HopID(id))
		}
	}
}
