// Package nat rewrites packets in place: the addresses, ports, sequence
// numbers and checksums of a flow that conntrack has found, the TCP options
// that carry the client's address (TOA), ICMP errors about a flow, and the few
// answers l4fwd gives itself (ARP, neighbour solicitation, ping). It also
// chooses what a new Full-NAT flow is rewritten to: initial sequence number
// and local port.
//
// It must never know where a frame came from or goes to (NICs, rings, MACs of
// next hops), which backend is best, or what a configuration file looks like.
// A caller hands it a frame, what packet.Parse learned of it, the flow and the
// directory of addresses.
//
// # Hazards
//
// Checksums are updated incrementally (RFC 1624), never recomputed over a
// payload: a packet that arrives damaged leaves damaged, so that the end-to-end
// check still means something. It follows that every byte changed here under a
// checksum must be accounted for, also where an option puts a 32-bit number at
// an odd offset; the property tests compare each path with a full recompute.
//
// Order matters. A client packet passes StripUOA and StripOption (forged TOA), a SYN
// StripOptions (if packet.ScanSYN finds what for), CutSYN and ClampMSS, then
// InsertTOA, ShiftTimestamps and Forward; a server packet passes LowerMSS and ClampMSS (SYN-ACK only),
// ShiftTimestamps, then Reply; KeepTTL comes last. InsertTOA moves the frame's
// start: after it only the new offset, the new length and the updated packet.Packet
// are true.
//
// A flow with a PROXY header goes through CutSYN, MarkProxy, Track, Tracked and
// InsertProxy before Forward, and through ProxyReply, MarkProxy, Track and Tracked
// before Reply: no byte of the client's may reach the server where the header has
// to be, and only the server's acknowledgement ends that phase.
//
// With UOA the datagram goes through InsertUOA behind Forward or Forward64, which would
// not know it any more; a fragment does not.
//
// With direct return nothing of a client's packet changes but its options, by
// StripUOA, StripOption and ClampMSS. Into a tunnel it goes by DecTTL and Encapsulate,
// which, too, moves the frame's start, or, if it is one like most, by TunnelHead.Put,
// which does both.
//
// Of a datagram in fragments the first goes the way of a whole packet, since its
// checksum is that of the whole, but must keep its length: no InsertTOA, no
// InsertProxy. The others go through Readdress, or Readdress64; in NAT64 towards
// the client NewSplit follows for all of them, since only it puts the fragment
// header in.
//
// A function that returns false has left the frame unfit to be sent: the packet
// does not belong to the flow it was given with, or the ids of the flow mean
// nothing in the directory. The caller drops it. Nothing here reads or writes
// beyond the frame it was given, save for InsertTOA, InsertUOA and Encapsulate, which use the
// headroom of the chunk, and AnswerNS, which may use up to 40 bytes of the frame's
// capacity.
//
// TCP-MD5 and TCP-AO (RFC 2385, RFC 5925) sign addresses and ports and cannot
// pass any NAT; nothing here tries.
package nat
