// Package follow watches the kernel's links, addresses, routes and neighbours
// over netlink and turns them into what the data plane reads: a route.Table of
// ready next hops, the set of the host's own addresses, and events about the
// data NICs. It also asks the kernel to resolve neighbours and to keep the
// important ones resolved, since packets that bypass the kernel do not remind
// it to.
//
// It must never know packets, flows or services.
//
// How it reads: a notification only says which part is out of date; that part
// is then read again as a whole. The kernel does not announce everything it
// drops (IPv4 routes of a link that goes down vanish silently) and loses
// notifications when the socket's buffer is full, so a state patched by
// notifications drifts, and one that is read again cannot.
//
// Limits. Only the main table counts (and the local one, for the host's own
// and broadcast addresses): policy routing, VRFs and routes with a TOS are not
// followed. Of a multipath route one next hop is used, the first usable one in
// the order of data NIC, VLAN and gateway address; flows are not spread over
// the others. A route's tunnel encapsulation makes it "not ours" where the
// netlink library can read it (MPLS, SEG6, BPF). Nexthop objects are seen
// while sysctl net.ipv4.nexthop_compat_mode is 1, its default. A VLAN
// interface directly on a data NIC is served, and whatever Options.VLANs name;
// one on a VLAN, other bridges, bonds and macvlans on a data NIC are not ours.
//
// Hazard: an interface that is deleted and made again has a new index. All is
// matched by name; hop ids survive, and so does a flow's cached hop.
//
// Hazard: gateways and what Keep names are verified when they grow stale; any
// other neighbour is used as long as the kernel keeps it, as it last was known.
//
// Hazard: a neighbour seen for the first time gets a hop of its own, and that
// is a new generation. Flows then look up their hop once more.
//
// Hazard: callbacks run on the goroutine of Run, one at a time. One that
// blocks stops everything here.
package follow
