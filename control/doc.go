// Package control is the daemon: it brings the parts up in an order in which
// nothing is lost, watches over them, and takes them down so that the machine
// is as it was.
//
// It must never know bytes on the wire; those who do are below it (dataplane,
// steer, announce).
//
// # Order
//
// Up: checks; what a crash left is repaired; routes and host addresses are
// known; memory and workers; the XDP program's rules; then NIC by NIC settings,
// XDP, sockets; announcements last, when there is somebody to answer. Down is
// the reverse, XDP first: from that moment the kernel sees every packet again
// and, owning none of the addresses, stays silent.
//
// # One goroutine decides
//
// All state of NICs belongs to the goroutine of Run. Netlink, workers and
// signals reach it through channels, so bringing a NIC up and losing it cannot
// interleave.
//
// Hazard: sockets, sysfs and /proc belong to the network namespace of the
// thread that opens them. The daemon works in the namespace it was started in
// and never changes it.
package control
