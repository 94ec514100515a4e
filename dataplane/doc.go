// Package dataplane is the forwarder: workers that each own a core, some
// receive queues, a flow table and their share of the frames, and carry a
// packet from ring to ring without asking anybody.
//
// It must never know YAML, HTTP or a file. The control plane hands it finished
// immutable things: a [Snapshot] of services and a route.Table of next hops,
// both swapped in by an atomic pointer that a worker loads once a burst.
//
// # One writer
//
// Everything a [Worker] holds is written by its own thread alone, so nothing
// here takes a lock and no counter is atomic. Whoever wants to look inside,
// be it to read a counter or to exchange a port, sends a function with
// [Worker.Do]; the worker runs it between two bursts. Such a function must be
// short: no packet moves while it runs.
//
// # Frames
//
// A frame has one owner at any time: a pool, the kernel (a ring of a [Port]),
// a hand-off ring, a table of fragments, or the burst being processed. A frame that is
// handed over is the other worker's from then on. Who has got more than he has given sends
// as many back, whichever they are, but for a few bursts, so hand-off cannot starve anybody.
// [Dataplane.Audit] proves the sum.
//
// # The hot path
//
// What run() reaches must not allocate, lock, log, read the clock, use a map
// or call through an interface for each packet; interface calls per burst are
// fine. Tests assert the first, review has to assert the rest.
//
// # Assembly
//
// On amd64 parts of glance and plain are in assembly. Hazard: nothing there checks a type,
// and a bound only where the code says so. Offsets and constants follow the Go code by
// themselves, orders of operands and what a field means do not; so whoever changes plain,
// glance or what they read of an entry changes both, and TestSegmentsTwin and
// TestGlancesTwin tell. What is prefetched no test sees, only a benchmark. Every hop that
// is Resolved must have a header, as NewHop's have.
package dataplane
