// Package peers is `l4fwd bench peers`: it measures l4fwd beside DPDK's testpmd,
// nftables, HAProxy, nginx and the kernel's own routing, all in one run, doing
// the same work in networks of their own that are built alike: 64-byte UDP
// datagrams, HTTP with a connection for each request, bulk TCP, the time of a
// request on a connection that stays, and what l4fwd does while there is nothing
// to do. What comes out is a table, JSON, and charts.
//
// # What makes the figures comparable, and what does not
//
// One CPU is the forwarder's, another everybody else's. Every offload is off, for
// all. The rounds go from forwarder to forwarder, because machines drift: ratios
// within one run mean something, figures of two runs side by side do not. Each
// forwarder is tried in several arrangements of the kernel's work ([Arrangement])
// and measured in that which was best for it; on veth that decides more than code
// does. veth has copy mode only, so the kernel's own work on a packet is most of
// what is measured.
//
// # What is checked
//
// A figure counts only if the clients had no error, no more arrived than was
// sent, and the server has seen a local address, or the client's own where none
// is to be put in its place. What fails is shown as failed, with its reason.
//
// # Hazards
//
// It needs root, and two CPUs that nobody else uses. It makes three network
// namespaces for each forwarder, touches nothing outside of them, and takes
// everything down again on every way out of [Run]. It installs nothing; what is
// wanting is in the report, with Debian's package.
package peers
