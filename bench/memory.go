package bench

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// hugePage is the size of a large page on amd64, and of most on arm64.
const hugePage = 2 << 20

// memory is mapped memory, taken at once and in huge pages where the kernel gives
// them, as the flow table's and the UMEM's of AF_XDP is. Small pages would be measured
// along: a core's TLB knows fewer of them than a data plane has frames.
type memory struct {
	mapping []byte
	used    []byte // of the size asked for, from a huge page's boundary on
}

func hugeMemory(size uint64) (m memory, err error) {
	room := (size+hugePage-1)&^(hugePage-1) + hugePage
	if m.mapping, err = unix.Mmap(-1, 0, int(room), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return m, fmt.Errorf("memory of %d bytes: %w", size, err)
	}
	skip := -address(m.mapping) & (hugePage - 1)
	whole := m.mapping[skip : skip+room-hugePage]
	_ = unix.Madvise(whole, unix.MADV_HUGEPAGE)
	if err := unix.Madvise(whole, unix.MADV_POPULATE_WRITE); err != nil && !errors.Is(err, unix.EINVAL) {
		return m, errors.Join(fmt.Errorf("memory of %d bytes: %w", size, err), m.close())
	}
	_ = unix.Madvise(whole, unix.MADV_COLLAPSE)
	m.used = whole[:size:size]
	return m, nil
}

func (m *memory) close() error {
	if m.mapping == nil {
		return nil
	}
	err := unix.Munmap(m.mapping)
	m.mapping, m.used = nil, nil
	return err
}
