// Package conntrack is the flow table of one worker: which packets belong
// together, what state their connection is in, and when it is forgotten. The
// table lives in a memfd, off the Go heap and without pointers, so that the
// garbage collector never sees a flow and a successor process can map it.
//
// It must never know network interfaces, configuration files, schedulers, or
// how a packet is rewritten. It is told ids of services, backends and local
// addresses, and resolves them only through a Directory to compare tuples.
//
// Hazard: nothing here is synchronised. One worker owns a Table with every
// Entry in it; all methods, the read-only ones included, are its alone.
//
// Hazard: an *Entry points outside the Go heap. It stays mapped until Close,
// but stands for the flow only until Remove, or an eviction inside Insert,
// frees it, and the entry freed last is the first to be used again. Hold a Ref
// or an *Entry no longer than a burst; after a Remove or an eviction in the
// middle of one, ask Holds before using what was found earlier.
//
// Hazard: a Cand is a guess from a 16-bit tag. Only Find, which compares the
// whole tuple, turns it into a flow.
//
// Hazard: ticks are uint32 and wrap after eight years. All compares are signed
// differences, so a deadline must lie less than 2^31 ticks ahead (Timeouts are
// limited to MaxTimeout), and the clock passed in must never run backwards.
//
// Hazard: two processes may have the memory mapped while one takes over from
// the other. The header says whether the layout fits; it does not arbitrate.
// The old process must have stopped touching the table before Attach.
package conntrack
