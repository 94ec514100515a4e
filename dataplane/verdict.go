package dataplane

import "github.com/l4fwd/l4fwd/packet"

// Verdict is a packet's outcome. The zero value drops, so that a forgotten
// path loses a packet instead of a promise; every drop has its own name, which
// is also its metric label.
type Verdict uint8

// Drops. What the operator can do about each is in docs/drops.md.
const (
	DropInternal            Verdict = iota // no path decided: a bug
	DropNoService                          // to a VIP, but no service on that port and protocol
	DropNoFlow                             // belongs to no flow and may not start one
	DropNoBackend                          // every backend has weight 0, or none is left
	DropBackendsFull                       // every backend has as many flows as it may have
	DropBackendGone                        // the flow's backend is no more, see BackendDown
	DropPortsExhausted                     // no free local port towards the backend
	DropTupleConflict                      // DNAT: another VIP's flow has this (client, backend) pair
	DropTableFull                          // the flow table is full
	DropBucketFull                         // its part of the flow table is full
	DropHalfOpenFull                       // no half-open flow may make room yet; the SYN is let in when it comes again
	DropTTL                                // TTL or hop limit used up
	DropFragment                           // an IP fragment of neither TCP nor UDP
	DropFragmentDuplicate                  // the same fragment has come before
	DropFragmentOverlap                    // contradicts another fragment of its datagram (RFC 5722), or waited for one that does
	DropFragmentCondemned                  // of a datagram dropped for overlap or number of pieces
	DropFragmentScattered                  // of a datagram in too many pieces
	DropFragmentTableFull                  // no room to remember another datagram in fragments
	DropFragmentSourceLimit                // its source has its share of that room
	DropFragmentHoldLimit                  // came before its first fragment, and too many wait
	DropFragmentExpired                    // its first fragment did not come in time
	DropFragmentProxy                      // from a client of a service with PROXY headers
	DropFragmentSYN                        // a client's SYN in fragments
	DropFragmentNoChecksum                 // from IPv4 to IPv6, but UDP without checksum (RFC 7915 section 4.5)
	DropTooBig                             // larger than the egress MTU
	DropBadRST                             // RST outside the window (RFC 5961)
	DropBadSeq                             // TCP segment outside the window, where tcp_checks is strict
	DropBadSYN                             // SYN from the server, or SYN-ACK from the client
	DropBadFlags                           // TCP flags that no host sends
	DropIPChecksum                         // IPv4 header checksum is wrong, and the packet's new header would hide it
	DropProxy                              // the PROXY header cannot be put where it belongs
	DropTOA                                // TOA cannot be put in, and the service sends nothing without it
	DropICMPTruncated                      // ICMP error whose embedded packet cannot be translated
	DropNoRoute                            // the kernel has no route
	DropBlackhole                          // the kernel's route is a blackhole, unreachable or prohibit
	DropForeignRoute                       // the route leaves by a NIC that is not a data-plane NIC
	DropLocalRoute                         // the kernel's route ends at this host itself
	DropNeighbour                          // next hop not resolved yet; the kernel was asked
	DropOffLink                            // dsr-l2: the backend is behind a router
	DropLoop                               // dsr-l2: the backend itself has sent it here
	DropNoSource                           // tunnel: no source address for its packets
	DropPortDown                           // the egress NIC is gone or down
	DropTxFull                             // the TX ring is full
	DropNoFrame                            // to leave in fragments, but no frame is free for them
	DropHandoffFull                        // the ring to the flow's owner is full
	DropNotOurs                            // addressed to nothing that is configured
	DropUnsupported                        // a protocol nobody forwards, to a VIP or local address
	numDropsOwn
)

// Malformed packets: one verdict for each packet.Err.
const (
	dropMalformed = numDropsOwn
	numDrops      = dropMalformed + Verdict(packet.NumErrs)
)

// Other outcomes.
const (
	Forwarded  Verdict = numDrops + iota // client to backend
	Replied                              // backend to client
	Passed                               // no flow; routed onward untouched
	Answered                             // ARP, ND or ping, answered from the frame itself
	HandedOver                           // given to the flow's owner, counted again there
	NumVerdicts
)

// own marks what l4fwd sends of its own accord; no packet has it for a verdict.
const own = NumVerdicts

var verdictNames = [...]string{
	DropInternal: "internal", DropNoService: "no_service", DropNoFlow: "no_flow",
	DropNoBackend: "no_backend", DropBackendsFull: "backends_full", DropBackendGone: "backend_gone",
	DropPortsExhausted: "ports_exhausted",
	DropTupleConflict:  "tuple_conflict", DropTableFull: "table_full",
	DropBucketFull: "bucket_full", DropHalfOpenFull: "half_open_full", DropTTL: "ttl_exceeded", DropFragment: "fragment",
	DropFragmentDuplicate: "fragment_duplicate", DropFragmentOverlap: "fragment_overlap",
	DropFragmentCondemned: "fragment_condemned", DropFragmentScattered: "fragment_scattered",
	DropFragmentTableFull: "fragment_table_full", DropFragmentSourceLimit: "fragment_source_limit",
	DropFragmentHoldLimit: "fragment_hold_limit", DropFragmentExpired: "fragment_expired",
	DropFragmentProxy: "fragment_proxy", DropFragmentSYN: "fragment_syn", DropFragmentNoChecksum: "fragment_no_checksum",
	DropTooBig: "too_big", DropBadRST: "bad_rst", DropBadSeq: "bad_sequence",
	DropBadSYN: "bad_syn", DropBadFlags: "bad_tcp_flags",
	DropIPChecksum: "bad_ip_checksum",
	DropProxy:      "proxy_refused", DropTOA: "toa_refused", DropICMPTruncated: "icmp_truncated", DropNoRoute: "no_route",
	DropBlackhole: "blackhole_route", DropForeignRoute: "foreign_route",
	DropLocalRoute: "local_route",
	DropNeighbour:  "neighbour_unresolved", DropOffLink: "backend_off_link", DropLoop: "loop",
	DropNoSource: "no_tunnel_source", DropPortDown: "port_down",
	DropTxFull: "tx_ring_full", DropNoFrame: "no_frame", DropHandoffFull: "handoff_full", DropNotOurs: "not_ours",
	DropUnsupported: "unsupported_protocol",
	Forwarded:       "forwarded", Replied: "replied", Passed: "passed",
	Answered: "answered", HandedOver: "handed_over",
}

// malformed is the drop for a parse error.
func malformed(e packet.Err) Verdict { return dropMalformed + Verdict(e) }

// IsDrop reports whether the packet went nowhere.
func (v Verdict) IsDrop() bool { return v < numDrops }

// String is the metric label: lower case, words joined by underscores.
func (v Verdict) String() string {
	switch {
	case v >= dropMalformed && v < numDrops:
		return packet.Err(v - dropMalformed).String()
	case v < NumVerdicts:
		return verdictNames[v]
	}
	return "invalid"
}
