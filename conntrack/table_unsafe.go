package conntrack

import "unsafe"

const entrySize = uint32(unsafe.Sizeof(Entry{}))

// header is the start of the memory.
func (m *mapping) header() *header { return (*header)(m.base) }

// views are the arrays in the memory, which must be at least l.size long.
// They are no Go memory: the garbage collector neither scans nor frees them,
// and they fault once the mapping is closed.
func (m *mapping) views(l layout) ([]halfLink, []clockShift, []bucket, []Entry) {
	return unsafe.Slice((*halfLink)(unsafe.Add(m.base, l.offHalf)), l.flows+1),
		unsafe.Slice((*clockShift)(unsafe.Add(m.base, l.offClock)), l.flows+1),
		unsafe.Slice((*bucket)(unsafe.Add(m.base, l.offBucket)), l.buckets),
		unsafe.Slice((*Entry)(unsafe.Add(m.base, l.offFlow)), l.flows+1)
}
