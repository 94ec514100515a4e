//go:build amd64 || arm64

package dataplane

// prefetchFrames asks for the lines where packets begin, to be written: by the
// addresses in packed descriptors, see packDesc, in umem.
func prefetchFrames(umem []byte, packed []uint64) {
	if len(umem) > 0 && len(packed) > 0 {
		prefetchPacked(&umem[0], &packed[0], uint64(len(packed)))
	}
}

// prefetchPacked asks for the line at each of the n addresses, the low 40 bits of
// each word, from base on. A hint: wherever they lead, nothing is read.
//
//go:noescape
func prefetchPacked(base *byte, packed *uint64, n uint64)
