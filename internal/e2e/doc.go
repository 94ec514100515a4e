// Package e2e holds tests only: the built l4fwd binary, as `l4fwd run` starts
// it, between real kernels in namespaces. They prove what the parts' own tests
// cannot: that clients get answers, that real servers see who they must see,
// that every frame that leaves is right in the eyes of gopacket, and that the
// machine is as it was when l4fwd is gone.
//
// It must never know how l4fwd works inside. What it learns of it comes from the
// wire, the log, the exit status and --stats-file. Where a test needs to be a
// rival (another AF_XDP socket, another XDP program) it may borrow from the
// packages that can make one.
//
// In TestSessions the judge is the kernel: what random TCP sessions come to
// through l4fwd is compared with what they come to without it, over wires that
// lose, repeat and delay alike.
//
// `go test -short` runs a pairwise selection of the matrix with short
// transfers; without -short every combination with the full loads.
//
// Hazard: time. The machine may be slow and shared, and retransmissions take
// seconds. Nothing here sleeps where it can wait for a condition, and limits
// are generous: a test that passes must not depend on how fast it ran.
//
// Hazard: a forwarder that drops now and then is saved by TCP. Where nothing
// may be lost the tests look at the counters of drops, not at the result alone.
package e2e
