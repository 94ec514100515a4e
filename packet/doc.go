// Package packet reads Ethernet frames: one Parse into a small fixed struct,
// offsets of the fields that others rewrite, one's complement checksums and
// TCP option walking. It works on bytes the caller owns and keeps none of
// them.
//
// It must never know flows, configuration, interfaces or rings: whether a
// packet is wanted, and where it goes, is decided above.
//
// Hazard, trust: every byte of a frame is an attacker's. Parse is the only
// place where lengths are believed, after checking; all offsets it hands out
// lie within the frame, so code that follows may index by them. They hold for
// the frame parsed and no longer once bytes are inserted or removed.
//
// Hazard, padding: the frame may be longer than the datagram (Ethernet's
// 60-byte minimum, trailers). Packet.End is where the datagram ends; nothing
// beyond it is data, and copying it out would leak.
//
// Hazard, ICMP errors: their Tuple is that of the embedded packet, reversed.
// The outer addresses are to be had from Packet.OuterAddrs only.
//
// Hazard, checksums: Parse verifies none. Incremental updates (RFC 1624) keep
// a wrong checksum wrong, so corruption on the way is still found by the
// receiver; recomputing would hide it. The one's complement zero has two
// forms, 0x0000 and 0xffff: see Apply and ApplyUDP.
package packet
