package conntrack

// trackUDP: a flow is one-way until the server answers. Until then it counts
// as half-open, for anybody can send datagrams from invented addresses.
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
	t.settle(r, e, s, now, to)
}
