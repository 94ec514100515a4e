package peers

import (
	"fmt"
	"strings"
)

// sysfsMask is a set of one CPU, or of none if cpu is negative, as the kernel
// prints and takes it (lib/bitmap.c, bitmap_parse): groups of 32 bits in
// hexadecimal, the highest first, with commas between.
func sysfsMask(cpu int) string {
	if cpu < 0 {
		return "0"
	}
	return fmt.Sprintf("%x", 1<<(cpu%32)) + strings.Repeat(",00000000", cpu/32)
}

// nginxMask is a set of one CPU as nginx's worker_cpu_affinity takes it: a binary
// digit for each, CPU 0 the last.
func nginxMask(cpu int) string { return "1" + strings.Repeat("0", cpu) }
