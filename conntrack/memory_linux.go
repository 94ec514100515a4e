package conntrack

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

const hugePage = 2 << 20

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// freeHugePages is how many 2 MiB pages the pool can still give away; 0 if
// that cannot be read. Pages others reserved but did not touch yet count as
// free in the kernel's file, so that mapping them may still fail.
func freeHugePages() uint64 {
	const pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
	free := readUint(pool + "free_hugepages")
	return free - min(free, readUint(pool+"resv_hugepages"))
}

func readUint(path string) uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// hugeBytes is how many bytes of the mapping that starts at base are mapped as
// huge pages of shared memory; 0 if that cannot be read.
func hugeBytes(base uintptr) uint64 {
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return 0
	}
	_, b, ok := bytes.Cut(b, fmt.Appendf(nil, "%x-", base))
	if !ok {
		return 0
	}
	_, b, ok = bytes.Cut(b, []byte("ShmemPmdMapped:"))
	if !ok {
		return 0
	}
	f := bytes.Fields(b[:min(len(b), 64)])
	if len(f) == 0 {
		return 0
	}
	n, err := strconv.ParseUint(string(f[0]), 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}

// describe says what a populated mapping of size bytes got, of which huge are
// in huge pages, after MADV_COLLAPSE gave the error collapse.
func describe(size, huge uint64, collapse error) string {
	switch {
	case huge > 0 && huge >= size&^(hugePage-1):
		return fmt.Sprintf("memfd, %d MiB populated and collapsed to 2 MiB pages", size>>20)
	case huge > 0:
		return fmt.Sprintf("memfd, %d MiB populated, %d MiB of it collapsed to 2 MiB pages", size>>20, huge>>20)
	case collapse != nil:
		return fmt.Sprintf("memfd, %d MiB populated in 4 KiB pages (MADV_COLLAPSE: %v)", size>>20, collapse)
	}
	return fmt.Sprintf("memfd, %d MiB populated in 4 KiB pages", size>>20)
}
