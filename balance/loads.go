package balance

import "sync/atomic"

// Loads is how many flows each backend has, by the word of each worker, for the
// kinds that count. A worker writes its own counters only, any worker reads all of
// them; that of each is of some moment, and no two need be of the same one. The
// counters of a worker are in cache lines of their own.
type Loads struct {
	of [][]*loadChunk // by worker, by id / chunkIDs
}

const chunkIDs = 1024

// loadChunk is as large as a page, and so aligned to one.
type loadChunk [chunkIDs]atomic.Int32

// NewLoads returns Loads without room for any backend.
func NewLoads(workers int) *Loads { return &Loads{of: make([][]*loadChunk, workers)} }

// Grow returns the same Loads with room for backends below id. Those that there were
// go on to work, and share what they have room for. Control plane only, one at a time.
func (l *Loads) Grow(id int) *Loads {
	out := NewLoads(len(l.of))
	for w, chunks := range l.of {
		chunks = chunks[:len(chunks):len(chunks)]
		for len(chunks)*chunkIDs < id {
			chunks = append(chunks, new(loadChunk))
		}
		out.of[w] = chunks
	}
	return out
}

// Copy has the same numbers, and goes on by itself.
func (l *Loads) Copy() *Loads {
	out := NewLoads(len(l.of))
	for w, chunks := range l.of {
		for _, c := range chunks {
			n := new(loadChunk)
			for i := range c {
				n[i].Store(c[i].Load())
			}
			out.of[w] = append(out.of[w], n)
		}
	}
	return out
}

// Set says that a worker, the caller, has n flows of backend id.
func (l *Loads) Set(worker int, id uint32, n int64) {
	l.of[worker][id/chunkIDs][id%chunkIDs].Store(int32(n))
}

// Sum is how many flows backend id has, all workers together.
func (l *Loads) Sum(id uint32) uint64 {
	var n int64
	for _, chunks := range l.of {
		n += int64(chunks[id/chunkIDs][id%chunkIDs].Load())
	}
	return uint64(max(n, 0))
}
