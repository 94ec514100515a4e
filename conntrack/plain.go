package conntrack

import "github.com/l4fwd/l4fwd/packet"

// TrackPlain is Track for what nearly all packets are, in a few steps: a segment
// of an established connection with ACK, perhaps with data, and without SYN, FIN
// or RST, or a datagram of a flow that has been answered, or from a client that has not been
// while half-open flows are not scarce. Such a packet counts, moves windows and
// deadline, and nothing else. pass is false for any other packet,
// and for one that has to be dropped; then nothing has changed, and Track decides.
//
// timeout is, in ticks, what the service's Policy has for Established, or for
// UDPTwoWay, oneWay what it has for UDPOneWay, and strict whether its Checks are ChecksStrict. p is KindTCP or
// KindUDP and belongs to flow r.
func (t *Table) TrackPlain(r Ref, d Dir, p *packet.Packet, now, timeout, oneWay uint32, strict bool) (pass bool) {
	e := &t.entries[r]
	d &= 1
	if p.Kind == packet.KindTCP {
		if !e.plain(p) {
			return false
		}
		me, peer := &e.Win[d], &e.Win[d^1]
		ack := p.Ack - e.SeqDelta&-uint32(d) // only the server's move
		end := p.Seq + payloadLen(p)
		if me.admits(peer, p.Seq, end) && peer.covers(me, ack) {
			me.send(end, e.window(d, p))
			peer.acknowledge(ack)
			if e.Flags&ServerAcked == 0 && d == Forward {
				e.noteServerAcked(ack)
			}
		} else if strict {
			return false
		}
	} else if e.State != UDPTwoWay || e.Flags&HalfOpen != 0 {
		if e.State != UDPOneWay || d != Forward || t.hdr.halfLen > t.pressure {
			return false
		}
		timeout = oneWay
	}
	e.Packets[d]++
	e.Bytes[d] += uint64(p.End - p.L3)
	if deadline := now + timeout; before(deadline, e.Expires) {
		t.setExpires(r, e, deadline)
	} else {
		e.Expires = deadline // the wheel comes by no later than before
	}
	return true
}

// plain reports whether p, a TCP segment, leaves the state of its flow as it is.
func (e *Entry) plain(p *packet.Packet) bool {
	const deciding = packet.ACK | packet.FIN | packet.SYN | packet.RST
	return p.TCPFlags&deciding == packet.ACK && e.State == Established &&
		e.Flags&(HalfOpen|HasServerISN) == HasServerISN && e.Mode != DirectReturn
}
