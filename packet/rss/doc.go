// Package rss computes what a NIC does when it spreads packets over its
// receive queues: the Toeplitz hash of a packet's addresses and ports and the
// indirection table behind it (Microsoft, "RSS hashing types"; Linux
// Documentation/networking/scaling.rst).
//
// It must never know how a NIC is asked for its key; it is given one.
//
// Hazard: a NIC hashes what it parses. Fragments, and protocols other than TCP
// and UDP, it hashes by addresses alone, so nothing here is true of them.
package rss
