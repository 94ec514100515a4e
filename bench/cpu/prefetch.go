package cpu

// Prefetch asks the processor for the cache lines of memory at these offsets,
// in bytes. A hint: what lies beyond the end is not read.
func Prefetch(memory []byte, offsets []uint64) {
	if len(memory) > 0 && len(offsets) > 0 {
		prefetch(&memory[0], &offsets[0], uint64(len(offsets)))
	}
}
