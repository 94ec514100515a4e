package conntrack

// trackUDP: a flow is one-way until the server answers. Until then it counts
// as half-open, for anybody can send datagrams from invented addresses. Some
// servers never answer (syslog, statsd), so while half-open flows are scarce one
// whose client goes on sending is taken for young: those that fell silent go first.
func (t *Table) trackUDP(r Ref, e *Entry, d Dir, now uint32, to *Timeouts) {
	s := e.State
	if s == UDPOnePacket {
		t.trackOnePacket(r, e, d, now, to)
		return
	}
	switch {
	case d == Reply:
		s = UDPTwoWay
		t.proven(r, e)
	case s != UDPTwoWay:
		s = UDPOneWay
	}
	was := e.Expires
	t.settle(r, e, s, now, to)
	if t.hdr.halfLen > t.pressure && e.Expires != was { // once a tick
		t.postpone(r)
	}
}
