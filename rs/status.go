package rs

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Status is what is attached and what it has counted.
type Status struct {
	About
	// Links are where the kernel has it attached; Gone of them have lost what
	// they were attached to.
	Links int `json:"links"`
	Gone  int `json:"gone,omitempty"`
	// Counters by name, those of TOACounter, DecapCounter or UOACounter.
	Counters map[string]uint64 `json:"counters"`
}

// Counts are the counters in their order.
func (s Status) Counts() []Count {
	names := counterNames(s.Program)
	out := make([]Count, len(names))
	for i, n := range names {
		out[i] = Count{n, s.Counters[n]}
	}
	return out
}

// List asks the kernel what is attached, by any process, in any cgroup or network
// namespace. It needs CAP_SYS_ADMIN.
func List() ([]Status, error) {
	found := make(map[ebpf.ProgramID]*Status)
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil || info.Cgroup() == nil && info.XDP() == nil {
			continue // gone meanwhile, or of a kind that is not ours
		}
		s, seen := found[info.Program]
		if !seen {
			if s, err = statusOf(info.Program); err != nil {
				return nil, err
			}
			found[info.Program] = s
		}
		if s == nil {
			continue
		}
		s.Links++
		if !live(info) {
			s.Gone++
		}
	}
	if err := it.Err(); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("%w: this needs CAP_SYS_ADMIN (run as root): %w", ErrPermission, err)
		}
		return nil, fmt.Errorf("list bpf_links: %w", err)
	}
	var out []Status
	for _, s := range found {
		if s != nil {
			out = append(out, *s)
		}
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(cmp.Compare(b.Program, a.Program), a.Since.Compare(b.Since), cmp.Compare(a.PID, b.PID))
	})
	return out, nil
}

// mainPrograms are those that know what they are about, one of each kind.
var mainPrograms = []string{toaProgL4fwdToaOps, decapProgL4fwdDecap, uoaProgL4fwdUoa}

// statusOf is nil for a program that is not ours, or that went away meanwhile.
func statusOf(id ebpf.ProgramID) (s *Status, err error) {
	p, err := ebpf.NewProgramFromID(id)
	if err == nil {
		defer func() { _ = p.Close() }()
		var info *ebpf.ProgramInfo
		if info, err = p.Info(); err == nil && (slices.Contains(mainPrograms, info.Name)) {
			s, err = read(info)
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("program %d: %w", id, err)
	}
	return s, nil
}

// read finds the maps of one of our programs and reads them.
func read(info *ebpf.ProgramInfo) (*Status, error) {
	var s Status
	ids, _ := info.MapIDs()
	var stats *ebpf.Map
	about := false
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, fmt.Errorf("map %d: %w", id, err)
		}
		defer func() { _ = m.Close() }()
		mi, err := m.Info()
		if err != nil {
			return nil, fmt.Errorf("map %d: %w", id, err)
		}
		switch mi.Name {
		case aboutMap:
			text, err := m.LookupBytes(uint32(0))
			if err != nil {
				return nil, fmt.Errorf("map %s: %w", mi.Name, err)
			}
			if err := json.Unmarshal(text, &s.About); err != nil {
				return nil, fmt.Errorf("map %s: %w", mi.Name, err)
			}
			about = true
		case toaMapStats:
			stats = m
		}
	}
	if stats == nil || !about {
		return nil, errors.New("it is not of this version of l4fwd")
	}
	counts, err := readCounts(stats, counterNames(s.Program))
	if err != nil {
		return nil, err
	}
	s.Counters = make(map[string]uint64)
	for _, c := range counts {
		s.Counters[c.Name] = c.Value
	}
	return &s, nil
}
