// Package route is the immutable answer to "where does a packet for this
// address go": a longest-prefix match over both families that yields the
// number of a next hop, and for each next hop a ready Ethernet header. The
// control plane builds a Table (package control/follow) and publishes it; a
// worker reads it and nothing else.
//
// It must never know where routes come from: no netlink, no sockets, no clock,
// no names of interfaces. A Port is the index of a data NIC in the order the
// configuration names them.
//
// Hazard: a flow caches a HopID together with Table.Gen and may use it only
// while the published table has that very Gen. A neighbour that changes its
// MAC address changes Hops and not Gen, so cache the id, never the Hop.
//
// Hazard: Gen starts at a random value (see control/follow), since a flow
// table can outlive the process that filled it. 0 is never a generation.
//
// Hazard: a Table is shared by all workers. Nothing in it may be written after
// New returns, Hops included.
package route
