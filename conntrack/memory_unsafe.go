package conntrack

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapping is a memfd and its pages in this process.
type mapping struct {
	file     *os.File
	base     unsafe.Pointer // first byte, aligned to hugePage
	size     uint64         // bytes usable
	reserved unsafe.Pointer // the address range around it
	length   uintptr        // of the address range
	backing  string
}

// createMemory makes a memfd of at least size zero bytes and maps it: from the
// pool of huge pages if that suffices, else from ordinary memory, which is
// taken at once unless lazy, and made huge where the kernel can.
func createMemory(name string, size uint64, lazy bool) (mapping, error) {
	if !lazy && freeHugePages()*hugePage >= size {
		m, err := newMemfd(name, roundUp(size, hugePage), unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
		if err == nil {
			// Reserved by mapping already; zeroed now, not under traffic.
			err = m.populate(hugePage)
			m.backing = fmt.Sprintf("memfd, %d MiB in 2 MiB pages of the huge page pool", m.size>>20)
		}
		if err == nil {
			return m, nil
		}
		// Somebody was faster, or a cgroup forbids it: ordinary memory then.
		if err := m.close(); err != nil {
			return mapping{}, err
		}
	}
	m, err := newMemfd(name, size, 0)
	if err != nil {
		return mapping{}, err
	}
	if lazy {
		m.backing = "memfd, 4 KiB pages taken on first use"
		return m, nil
	}
	if err := m.populate(pageSize); err != nil {
		return mapping{}, errors.Join(fmt.Errorf("populate %d bytes: %w", m.size, err), m.close())
	}
	// MADV_HUGEPAGE does nothing on a memfd where shmem_enabled is "never";
	// MADV_COLLAPSE does not ask it. Failure leaves the pages as they are.
	collapse := unix.Madvise(m.bytes(), unix.MADV_COLLAPSE)
	m.backing = describe(m.size, hugeBytes(uintptr(m.base)), collapse)
	return m, nil
}

// populate has the kernel allocate all pages now, so that running out is an
// error here and not a crash under traffic. Before Linux 5.14 it can only be
// asked by touching them.
func (m *mapping) populate(page int) error {
	err := unix.Madvise(m.bytes(), unix.MADV_POPULATE_WRITE)
	if errors.Is(err, unix.EINVAL) {
		touch(m.bytes(), page)
		return nil
	}
	return err
}

// touch writes to every page of fresh, zeroed memory.
func touch(b []byte, page int) {
	for i := 0; i < len(b); i += page {
		b[i] = 0
	}
}

// newMemfd makes, sizes, seals and maps a memfd. The seals keep whoever else
// gets the descriptor from cutting the memory off under us.
func newMemfd(name string, size uint64, flags int) (mapping, error) {
	fd, err := unix.MemfdCreate("l4fwd-"+name, flags|unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return mapping{}, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return mapping{}, errors.Join(fmt.Errorf("ftruncate to %d bytes: %w", size, err), file.Close())
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		return mapping{}, errors.Join(fmt.Errorf("seal: %w", err), file.Close())
	}
	return mapFile(file, size)
}

// openMemory maps a duplicate of a descriptor from newMemfd.
func openMemory(fd int) (mapping, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return mapping{}, fmt.Errorf("duplicate descriptor: %w", err)
	}
	file := os.NewFile(uintptr(dup), "flows")
	st, err := file.Stat()
	if err != nil {
		return mapping{}, errors.Join(err, file.Close())
	}
	if st.Size() < int64(unsafe.Sizeof(header{})) {
		return mapping{}, errors.Join(fmt.Errorf("%w: %d bytes", ErrLayout, st.Size()), file.Close())
	}
	m, err := mapFile(file, uint64(st.Size()))
	m.backing = "memfd of a predecessor"
	return m, err
}

// mapFile maps size bytes of file, which it owns from here on, at an address
// aligned to huge pages: without that no huge page can be mapped as one.
func mapFile(file *os.File, size uint64) (mapping, error) {
	m := mapping{file: file, size: size, length: uintptr(roundUp(size, hugePage) + hugePage)}
	var err error
	m.reserved, err = unix.MmapPtr(-1, 0, nil, m.length, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return mapping{}, errors.Join(fmt.Errorf("reserve %d bytes of addresses: %w", m.length, err), file.Close())
	}
	m.base = unsafe.Add(m.reserved, -uintptr(m.reserved)&(hugePage-1))
	_, err = unix.MmapPtr(int(file.Fd()), 0, m.base, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED)
	if err != nil {
		return mapping{}, errors.Join(fmt.Errorf("map %d bytes: %w", size, err), m.close())
	}
	return m, nil
}

// bytes is the whole mapping.
func (m *mapping) bytes() []byte { return unsafe.Slice((*byte)(m.base), m.size) }

// close unmaps the memory and closes the file; a second call does nothing.
func (m *mapping) close() error {
	if m.file == nil {
		return nil
	}
	err := errors.Join(unix.MunmapPtr(m.reserved, m.length), m.file.Close())
	*m = mapping{backing: m.backing}
	return err
}
