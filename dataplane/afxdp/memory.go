package afxdp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// HugePages says whether the UMEM should lie in huge pages.
type HugePages uint8

// The choices.
const (
	// HugePagesAuto takes reserved huge pages where enough are free, else asks
	// for transparent ones.
	HugePagesAuto HugePages = iota
	// HugePagesOn fails with ErrNotSupported where there are not enough
	// reserved ones.
	HugePagesOn
	// HugePagesOff takes ordinary pages.
	HugePagesOff
)

// hugeAlign is what transparent huge pages need, and a multiple of which is
// mapped as reserved ones.
const hugeAlign = 2 << 20

// memory is one anonymous mapping and the aligned part of it that is used.
type memory struct {
	mapping []byte
	used    []byte
	backing string
}

// allocate maps and touches size bytes. Every page is present when it returns,
// so that neither a packet nor the pinning in XDP_UMEM_REG waits for one.
func allocate(size int, huge HugePages) (memory, error) {
	if huge != HugePagesOff {
		m, err := allocateReserved(size)
		if err == nil {
			return m, nil
		}
		if huge == HugePagesOn {
			return memory{}, fmt.Errorf("%w: %d bytes of reserved huge pages: %w", ErrNotSupported, size, err)
		}
	}
	// Room to start on a huge page's boundary; what is left over at both ends is
	// never touched and costs address space only.
	mapping, err := unix.Mmap(-1, 0, size+hugeAlign, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return memory{}, fmt.Errorf("mapping %d bytes: %w", size, err)
	}
	skip := int(-address(mapping) & (hugeAlign - 1))
	m := memory{mapping: mapping, used: mapping[skip : skip+size : skip+size]}
	if huge == HugePagesAuto {
		_ = unix.Madvise(m.used, unix.MADV_HUGEPAGE) // a wish; backing tells what came of it
	}
	if err := populate(m.used); err != nil {
		return memory{}, errors.Join(fmt.Errorf("populating %d bytes: %w", size, err), m.free())
	}
	keepFromChildren(m.mapping)
	m.backing = describe(m.used)
	return m, nil
}

// allocateReserved maps from the pool of reserved huge pages. The kernel
// reserves at mmap, so too few of them is an error here and not a SIGBUS later.
func allocateReserved(size int) (memory, error) {
	length := (size + hugeAlign - 1) &^ (hugeAlign - 1)
	mapping, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB|unix.MAP_HUGE_2MB|unix.MAP_POPULATE)
	if err != nil {
		return memory{}, err
	}
	keepFromChildren(mapping)
	return memory{mapping: mapping, used: mapping[:size:size], backing: fmt.Sprintf("%d reserved huge pages of 2 MiB", length/hugeAlign)}, nil
}

// keepFromChildren: a fork would make the private pages copy-on-write, and our
// next write could then go to a page that is not the one the kernel pinned.
func keepFromChildren(mem []byte) { _ = unix.Madvise(mem, unix.MADV_DONTFORK) }

func populate(mem []byte) error {
	err := unix.Madvise(mem, unix.MADV_POPULATE_WRITE)
	if errors.Is(err, unix.EINVAL) { // before Linux 5.14
		for i := 0; i < len(mem); i += 4096 {
			mem[i] = 0
		}
		return nil
	}
	return err
}

func (m *memory) free() error {
	if m.mapping == nil {
		return nil
	}
	err := unix.Munmap(m.mapping)
	m.mapping, m.used = nil, nil
	return err
}

// describe reads from /proc/self/smaps how much of mem really is in transparent
// huge pages.
func describe(mem []byte) string {
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return "4 KiB pages"
	}
	huge := hugeInside(smaps, uint64(address(mem)), uint64(address(mem))+uint64(len(mem)))
	if huge == 0 {
		return "4 KiB pages"
	}
	return fmt.Sprintf("transparent huge pages, %d of %d KiB", huge>>10, len(mem)>>10)
}

// hugeInside adds up AnonHugePages, in bytes, of the mappings in [from, to).
func hugeInside(smaps []byte, from, to uint64) uint64 {
	var total uint64
	inside := false
	for sc := bufio.NewScanner(bytes.NewReader(smaps)); sc.Scan(); {
		line := sc.Text()
		if rest, ok := strings.CutPrefix(line, "AnonHugePages:"); ok {
			if kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64); err == nil && inside {
				total += kb << 10
			}
			continue
		}
		bounds, _, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		lo, hi, ok := strings.Cut(bounds, "-")
		if !ok {
			continue
		}
		start, err1 := strconv.ParseUint(lo, 16, 64)
		end, err2 := strconv.ParseUint(hi, 16, 64)
		if err1 == nil && err2 == nil {
			inside = start < to && end > from
		}
	}
	return total
}
