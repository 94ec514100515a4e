package nat

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// TSPolicy is what becomes of the TCP timestamps option on its way to a service.
type TSPolicy uint8

// The policies. What each is for is in docs/configuration.md.
const (
	TSKeep      TSPolicy = iota // goes through as it is
	TSStrip                     // erased from the client's SYN: nobody uses it (StripOptions)
	TSTranslate                 // moved onto one clock: see ShiftTimestamps
)

// The policy TSTranslate keeps TCP timestamps (RFC 7323) alive in Full-NAT. To a
// server, all clients behind a local address are one host, whose timestamp clock
// must not run backwards: on a reused tuple PAWS (section 5, and RFC 6191 for
// TIME_WAIT) would take a new client's segments for old ones. So every flow's
// clock is moved by a constant, its delta, such that each begins where l4fwd's own
// clock stands:
//
//	client to server: TSval + delta      server to client: TSecr - delta
//
// The server's own clock, TSval towards the client and TSecr back, stays.

// timestampShift makes ticks of 2^19 ns, 1907 a second, out of nanoseconds:
// faster than a client's clock of up to 1000 a second, so that a flow never runs
// ahead of those that come after it, and by enough for drift. It takes 13 days to
// the sign bit; TIME_WAIT is over by then. A client whose clock is faster (RFC 7323
// section 5.4 allows none above 1000) can overrun it on a tuple that is reused at
// once.
const timestampShift = 19

// Timestamp returns what the first TSval of a flow from local address src to real
// server dst should become at nanos, a monotonic clock in nanoseconds. It only
// grows (modulo 2^32) for one such pair, also from one port to the next, since some
// old servers remember one timestamp a host. Between pairs the keyed hash lies, so
// that the value tells nobody how long l4fwd has been up.
func (s *ISN) Timestamp(src, dst packet.Addr, nanos int64) uint32 {
	// 32 bytes where Next hashes 12 or 36: SipHash takes the length in.
	var m [32]byte
	src.Put16(m[0:])
	dst.Put16(m[16:])
	return uint32(uint64(nanos+s.epoch)>>timestampShift) + uint32(sipHash24(s.k0, s.k1, m[:]))
}

// ShiftTimestamps moves the timestamps of a TCP packet of a flow by its delta:
// TSval of a client's packet up, TSecr of a server's down. It may stand before or
// after Forward and Reply. The option may begin at any offset; each of several is
// moved, and one of a wrong length is left. A TSecr of zero, or without ACK, is no
// echo (RFC 7323 section 3.2) and stays. The checksum is updated incrementally.
//
// A segment quoted by an ICMP error is not put right: hosts know it by its
// addresses, ports and sequence number. RSTs of our own carry no timestamps: a
// receiver does not judge a RST by them (RFC 7323 section 5.2).
//
// delta is, for the flow's whole life, Timestamp less the TSval of its first SYN
// (packet.ScanOptions). It reports whether there was any option.
func ShiftTimestamps(frame []byte, p *packet.Packet, d conntrack.Dir, delta uint32) (found bool) {
	if !hasOptions(frame, p) || d == conntrack.Reply && p.TCPFlags&packet.ACK == 0 {
		return false
	}
	field := 2 // TSval, from the option's kind byte
	if d == conntrack.Reply {
		field, delta = 6, -delta
	}
	if onlyTimestamps(frame, p) {
		at := int(p.L4) + packet.TCPMinLen + 2 + field
		applyTCP(frame[p.L4:], shiftEcho(frame[at:], d, delta))
		return true
	}
	var diff uint16
	for it := packet.Options(frame, p); it.Next(); {
		if it.Kind != packet.OptTimestamps || it.Len != packet.OptTimestampsLen {
			continue
		}
		found = true
		at := it.Off + field
		diff = packet.AddDiff(diff, packet.DiffAt(shiftEcho(frame[at:], d, delta), at-int(p.L4)))
	}
	if found {
		applyTCP(frame[p.L4:], diff)
	}
	return found
}

// shiftEcho is shift32, but leaves an echo of zero.
func shiftEcho(b []byte, d conntrack.Dir, delta uint32) uint16 {
	if d == conntrack.Reply && binary.BigEndian.Uint32(b) == 0 {
		return 0
	}
	return shift32(b, delta)
}
