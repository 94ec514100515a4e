// Package testbed builds small networks of Linux network namespaces with real
// kernels' TCP on both ends, for the end-to-end tests and for `l4fwd demo`:
// namespaces, veth pairs, bridges, trunks of VLANs, wires that lose and repeat
// frames, whole topologies, HTTP, TCP and UDP servers and clients, a sniffer that
// recomputes every checksum, and a keeper of child processes.
//
// It must never know how l4fwd works inside: it sees frames, addresses, a
// configuration file as text and a process. It imports nothing of this module,
// so that what it judges shares no code with its judge.
//
// Threads. A namespace belongs to a thread, not to a goroutine. Everything that
// enters one goes through Namespace.Do, which runs the function on a goroutine
// locked to its thread; a goroutine started inside the function, a name lookup
// or a dual-stack dial runs elsewhere, in the original namespace. Sockets keep
// the namespace they were made in, so only their creation needs care.
// /proc/self means the main thread; code meant for Do uses /proc/thread-self.
//
// Processes. The kernel delivers a child's parent-death signal when the thread
// that forked it ends, not the process. Cmd therefore keeps that thread alive
// for as long as the child, and a killed test takes its children with it. /sys
// of a child still shows the network devices of the namespace in which /sys was
// mounted; set Cmd.PrivateSysfs where that matters.
//
// Leftovers. Names carry the pid of their maker. Namespaces whose maker is gone
// are removed by Sweep, which Main calls; those kept on purpose live as long as
// their maker does.
//
// Checksums. Offloads of both ends of every veth are switched off: with them on
// the kernel neither computes nor verifies a checksum between namespaces, and a
// forwarder that corrupts every packet would pass.
package testbed
