package dataplane

import (
	"slices"

	"github.com/l4fwd/l4fwd/balance"
)

// builtSet is a Set and what it was made of.
type builtSet struct {
	*balance.Set
	policy   balance.Policy
	backends []balance.Backend
	seed     uint64
}

// set is the Set of a service: the one it has, if nothing has changed, since some take
// long to build.
func (r *Registry) set(id int, p balance.Policy, backends []balance.Backend, seed uint64) (*balance.Set, error) {
	if was, ok := r.sets[id]; ok && was.policy == p && was.seed == seed && slices.Equal(was.backends, backends) {
		return was.Set, nil
	}
	s, err := balance.New(p, backends, seed)
	if err == nil {
		r.sets[id] = builtSet{s, p, backends, seed}
	}
	return s, err
}
