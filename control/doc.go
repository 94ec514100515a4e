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
// known; ports of the host's own addresses are nobody else's; memory and
// workers; the XDP program's rules; settings and program of every NIC; sockets;
// announcements last, when there is somebody to answer. Down is the reverse, XDP
// first and on all NICs: from that moment the kernel sees every packet again
// and, owning none of the addresses, stays silent.
//
// # NICs come and go
//
// A NIC that was deleted is given up, its frames are taken back, and whatever
// appears under its name is taken into service. One that was only switched off
// keeps program, sockets and settings; the workers, which have met its error,
// are told when it is on again. The others serve on meanwhile.
//
// # Change
//
// What is effective is the configuration, what a reload has removed and still drains
// (leave.go), what people have ordered (orders.go) and what health checks have found.
// spec makes one order for the data plane of all that; whoever changes a part of it calls
// republish. A reload is all or nothing: each step that can fail comes before one that
// cannot be taken back (apply).
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
