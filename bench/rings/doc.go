// Package rings measures l4fwd's AF_XDP rings (dataplane/afxdp) beside those of
// github.com/asavie/xdp, in one run, on veth pairs in a network namespace of its
// own: what a worker pays for taking packets off a ring and giving the kernel
// fresh frames, and for having packets sent. It is what the choice of rings rests
// on.
//
// Both are filled by the same packet socket, so that only the ring's side of the
// work is timed, and that by the thread's processor time. It needs root. Its
// figures are of copy mode, which is all that veth has.
//
// [Bare] is the smallest forwarder over our rings, to see beside a real one.
package rings
