package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// A service with ReturnOnly has its clients' packets brought to the real servers by
// somebody else, by DNAT; here come the answers, whose source has to become the VIP.
// That needs no flow: a server's address and port say which VIP it answers for. So
// answers may come here by whatever way, and change it.

// answerer is a real server of a service with ReturnOnly.
type answerer struct {
	service, backend uint32
	// tracked says that a DNAT service has the server, too: where a packet's flow
	// would be has to be asked first.
	tracked bool
}

// nameAnswerers lists the real servers of services with ReturnOnly.
func (s *Snapshot) nameAnswerers() (table nameTable, all []answerer) {
	tracked := make(map[conntrack.Endpoint]bool)
	keys := make(map[nameKey]int32)
	for _, draining := range [...]bool{true, false} { // who lives has the last word
		for id := range s.Services {
			svc := &s.Services[id]
			if svc.Draining != draining || svc.Set == nil && !draining || svc.Mode != conntrack.DNAT {
				continue
			}
			for _, b := range svc.Backends {
				if rs := s.Directory.Backends[b]; svc.ReturnOnly {
					keys[nameKey{rs.Addr, rs.Port, rs.Proto}] = int32(len(all))
					all = append(all, answerer{service: uint32(id), backend: b})
				} else {
					tracked[rs] = true
				}
			}
		}
	}
	for i := range all {
		all[i].tracked = tracked[s.Directory.Backends[all[i].backend]]
	}
	return newNameTable(keys), all
}

// answererOf is the real server that p, addressed to nobody here, is an answer of, or
// an ICMP error about what it got; nil if there is none.
func (s *Snapshot) answererOf(p *packet.Packet) *answerer {
	if len(s.answerers) == 0 {
		return nil
	}
	i := s.answering.find(p.Src, p.SrcPort, p.Proto)
	if i < 0 {
		return nil
	}
	return &s.answerers[i]
}

// answerFor sends row i, which from's server has answered a client of its VIP, on to
// the client. What TCP's numbers may be is not known here, so they are not looked at.
func (w *Worker) answerFor(i int, from *answerer) Verdict {
	p, frame := &w.b.pkt[i], w.frame(i)
	e := &w.passing
	*e = conntrack.Entry{
		Client: p.Dst, ClientPort: p.DstPort, Service: from.service, Backend: from.backend,
		Proto: p.Proto, Mode: conntrack.DNAT,
	}
	if !nat.Prepare(e, &w.snap.Directory) {
		return DropInternal
	}
	if p.Kind == packet.KindICMPError {
		// The tuple is of the packet within, which anybody can make up: what it says
		// must be where the error goes.
		if _, dst := p.OuterAddrs(frame); dst != p.Dst {
			return DropNoFlow
		}
		return w.relayError(i, e, conntrack.Reply)
	}
	later := false
	if p.Kind == packet.KindFragment {
		nat.RenewID(frame, p, w.b.newID[i]) // the VIP's other servers count theirs apart
		if later = p.Fragment(frame).Offset != 0; !later {
			if err := p.FirstFragment(frame); err != packet.ErrNone {
				return malformed(err)
			}
			w.frags.first = true
		}
	}
	v := w.sendAnswer(i, e, later)
	w.frags.first = false
	return v
}

// sendAnswer rewrites row i, a packet of e's server, and queues it for the client.
// later is set for a fragment without ports of its own.
func (w *Worker) sendAnswer(i int, e *conntrack.Entry, later bool) Verdict {
	p, frame := &w.b.pkt[i], w.frame(i)
	if w.spent(p, frame) {
		if later {
			return DropTTL
		}
		return w.ttlExceeded(i, w.serverPeer(p, e))
	}
	hop, v := w.clientHop(e)
	if hop == nil {
		return v
	}
	n := p.IPLen()
	split := n > int(hop.MTU)
	if split && !w.divides(i, e, conntrack.Reply) {
		if later {
			return DropTooBig
		}
		return w.tooBig(i, w.serverPeer(p, e), int(hop.MTU))
	}
	if later {
		if !nat.Readdress(frame, p, e, conntrack.Reply, &w.snap.Directory) {
			return DropInternal
		}
	} else {
		if svc := &w.snap.Services[e.Service]; svc.MSSClamp != 0 && p.TCPFlags&packet.SYN != 0 && p.Kind == packet.KindTCP {
			nat.ClampMSS(frame, p, w.mssLimit(e, svc, 0))
		}
		if !nat.Reply(frame, p, e, &w.snap.Directory) {
			return DropInternal
		}
	}
	if w.snap.KeepTTL {
		nat.KeepTTL(frame, p)
	}
	w.here.Backends[e.Backend].sent(conntrack.Reply, n)
	if split {
		return w.sendSplit(i, hop, packet.Fragment{}, Replied)
	}
	return w.send(i, hop, Replied)
}
