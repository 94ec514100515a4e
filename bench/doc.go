// Package bench measures the forwarder: it makes captures aimed at a
// configuration's services and feeds captures, or packets made on the spot,
// through the workers of package dataplane, over ports of plain memory. It also
// says how two captures differ, and testdata/golden holds what has to come out of
// a replay, to the byte.
//
// It must never know the configuration's file format, a network interface, or
// how a packet is rewritten: what is to be done comes as a dataplane.Spec, and
// what l4fwd did to a packet is read from the packet it sent.
//
// # What a capture cannot contain
//
// A reply from a real server carries what only a running l4fwd knows: which
// backend was chosen, the local address and port, and, in its ACK and SACK
// numbers, the shifted sequence numbers of the client. Replay learns these from
// the packet that l4fwd sends for the flow's first one, a SYN or a datagram,
// and writes them into the replies before they are fed; a reply whose flow has
// not been opened yet is held back until it has. What belongs to which flow is
// told by
//
//   - DNAT: the reply's destination, which is the client's address and port, and
//     its source, a backend of the flow's service;
//   - Full-NAT: a number in the source MAC address of the frame, the same for
//     both directions (see Generate), the destination being a local address and
//     port 0, which no real packet has.
//
// Every other packet is fed as it is. With replies that are completed the
// sequence numbers stand in the client's space and the checksums are made anew.
// Behind a PROXY header, a reply that is no SYN-ACK is taken to acknowledge the
// header, as it does where the client's bare ACK came first.
//
// # What needs no capture
//
// Synthesize opens flows and makes packets of them as it goes, drawn at random,
// so that ten million flows need no file; Matrix does so for kinds of packets in
// turn; Lives takes connections from their SYN to their expiry; Flood has SYNs of
// nobody come among packets of live flows. They time only the feeding, by the
// processor time of the thread, so that a busy machine disturbs them little.
//
// # The limit
//
// Absolute figures drift on shared machines. So the least work that any forwarder
// with a state for each flow must do is measured in turn with ours: the same copy
// from the pristine packet, addresses and ports read, one line of a bucket, one of
// an entry, the header written back, with prefetch. The line of the entry is written
// to as well, in two words: a forwarder with state must at least note when a flow was
// used, and what it counts. Left out, the writes make the limit no faster that could
// be told: 22 ns either way with 65,536 flows, 25 with a million.
//
// The ratio of the forwarder to the limit is what Check holds to bounds. It is no
// proof that less is impossible; it is the same yardstick tomorrow.
//
// # Hazards
//
// Figures of loop 1 and of later loops are not the same thing: the first opens
// the flows and has its replies completed, and its bursts end where a reply has
// to wait for its flow. Report.Steady holds the later ones alone.
//
// Replay uses its Capture up: replies are completed in place, and a completed
// reply is not recognised again. Load it anew for another Replay.
package bench
