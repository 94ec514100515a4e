package dataplane

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// A QUIC connection is known by the ID that its server chose, not by the client's
// address (RFC 9000 section 5.1), which changes when a NAT forgets it or the client
// moves to another network (section 9). A server that puts into the IDs who it is gets
// its connections from wherever they come. Who that is stands in the clear, so that a
// client can choose its server, and so can whoever forges a client's address: what it
// sends in a flow's name with another server's ID moves the flow, until the client's
// next datagram moves it back.

// QUICLayout is where in a connection ID a server says who it is.
type QUICLayout uint8

// The layouts.
const (
	// NoQUIC looks at no connection ID.
	NoQUIC QUICLayout = iota
	// QUICKatran is katran's: the two highest bits are a version; behind them 1 has an id
	// of 16 bits; 2 and 3 have one in the three or four bytes after the first. IDs are
	// of at least 8 bytes.
	QUICKatran
	// QUICDPVS is DPVS's: behind a byte of anything three bits, the number of bytes of
	// the server's address less one, and one, whether there is a port; then the lowest
	// so many bytes of the address and the port. IDs are of at least 7 bytes.
	QUICDPVS
	// QUICLB is the plaintext algorithm of draft-ietf-quic-load-balancers: three bits
	// name the configuration; the bytes after the first are the id, and four at least
	// are any.
	QUICLB
)

// QUICSpec is how a service routes by connection ID.
type QUICSpec struct {
	Layout   QUICLayout
	ConfigID uint8 // QUICLB: 0 to 6
	IDLength uint8 // QUICLB: bytes, 1 to 8
	// Of the configuration that QUICLB's servers had before, of which IDs are still
	// about; without one its length is 0.
	FormerID, FormerLength uint8
}

// What IDs need at least, in bytes.
const (
	minKatranID = 8
	minDPVSID   = 7
	minNonce    = 4
)

// quicRoutes finds a service's backends by connection ID.
type quicRoutes struct {
	layout QUICLayout
	// lengths are those of ids, by the configuration's number; 0 where there is none.
	lengths [8]uint8
	// servers has backend ids by the number that a connection ID carries, and for
	// QUICDPVS by the port, 0 without, and in place of a protocol the number of bytes.
	servers nameTable
}

// newQUICRoutes is nil without a layout. ids are those of s's backends.
func newQUICRoutes(s *ServiceSpec, ids []uint32) *quicRoutes {
	if s.QUIC.Layout == NoQUIC {
		return nil
	}
	keys := make(map[nameKey]int32)
	add := func(number uint64, port uint16, n, backend int) {
		k := nameKey{packet.Addr{Lo: number}, port, uint8(n)}
		if _, taken := keys[k]; !taken { // the first of those that are alike, as DPVS does
			keys[k] = int32(ids[backend])
		}
	}
	for i := range s.Backends {
		b := &s.Backends[i]
		if !b.serves() {
			continue
		}
		if s.QUIC.Layout != QUICDPVS {
			add(b.ServerID, 0, 0, i)
			continue
		}
		longest := 8
		if b.Endpoint.Addr.Is4() {
			longest = 4
		}
		for n := 1; n <= longest; n++ {
			low := b.Endpoint.Addr.Lo & (^uint64(0) >> (64 - 8*n))
			add(low, 0, n, i)
			add(low, b.Endpoint.Port, n, i)
		}
	}
	q := &quicRoutes{layout: s.QUIC.Layout, servers: newNameTable(keys)}
	q.lengths[s.QUIC.FormerID&7] = s.QUIC.FormerLength
	q.lengths[s.QUIC.ConfigID&7] = s.QUIC.IDLength
	return q
}

// server is the backend that the connection ID of a client's datagram names: nobody if
// it says nothing, or, with known set, if it says something that is no backend's name.
func (q *quicRoutes) server(datagram []byte) (backend uint32, known bool) {
	cid := packet.QUICServerID(datagram)
	var number uint64
	var port uint16
	var n uint8
	switch q.layout {
	case QUICKatran:
		if number = katranNumber(cid); number == 0 {
			return nobody, false
		}
	case QUICDPVS:
		if number, port, n = dpvsServer(cid); n == 0 {
			return nobody, false
		}
	case QUICLB:
		if len(cid) == 0 {
			return nobody, false
		}
		end := 1 + int(q.lengths[cid[0]>>5])
		if end == 1 || len(cid) < end+minNonce {
			return nobody, false
		}
		for _, b := range cid[1:end] {
			number = number<<8 | uint64(b)
		}
	}
	return uint32(q.servers.find(packet.Addr{Lo: number}, port, n)), true
}

// katranNumber is a server's number, 0 if there is none.
func katranNumber(cid []byte) uint64 {
	if len(cid) < minKatranID {
		return 0
	}
	v := binary.BigEndian.Uint64(cid)
	switch v >> 62 {
	case 1:
		return v << 2 >> 48
	case 2:
		return v << 8 >> 40
	case 3:
		return v << 8 >> 32
	}
	return 0
}

// dpvsServer is the lowest n bytes of a server's address and its port, 0 for any; n is
// 0 if there is none.
func dpvsServer(cid []byte) (low uint64, port uint16, n uint8) {
	if len(cid) < minDPVSID {
		return 0, 0, 0
	}
	head := cid[1]
	n = head>>5 + 1
	ports := 2 * int(head>>4&1)
	rest := cid[1:]
	if len(rest) < int(n)+ports+1 {
		return 0, 0, 0
	}
	// Everything lies half a byte off.
	for i := range int(n) {
		low = low<<8 | uint64(rest[i]&0xf<<4|rest[i+1]>>4)
	}
	if ports != 0 {
		at := rest[n : n+3]
		port = uint16(at[0])<<12 | uint16(at[1])<<4 | uint16(at[2]>>4)
	}
	return low, port, n
}

// datagram is what row i, UDP or the first fragment of it, has of UDP's payload.
func (w *Worker) datagram(i int) []byte {
	p, frame := &w.b.pkt[i], w.frame(i)
	end := min(p.End, p.L4+binary.BigEndian.Uint16(frame[p.L4+packet.UDPLength:]))
	if end < p.Payload {
		return nil
	}
	return frame[p.Payload:end]
}

// quicServer is the backend that row i, which opens a flow of service id, names by its
// connection ID; nobody if that is for the scheduler to say.
func (w *Worker) quicServer(i int, svc *Service, id uint32) uint32 {
	if w.b.nic[i]&advised != 0 {
		return nobody // it has been asked before it went to its template's owner
	}
	backend, known := svc.quic.server(w.datagram(i))
	c := &w.here.Services[id]
	switch {
	case backend != nobody:
		c.QUICRouted++
	case known:
		c.QUICUnknown++
	default:
		c.QUICNone++
	}
	return backend
}

// elsewhere is what becomes of row i, a client's packet of flow r, if the flow's backend
// is no longer where it is to go. undecided means that it is.
func (w *Worker) elsewhere(i int, r conntrack.Ref) Verdict {
	e := w.table.Entry(r)
	switch m := w.ways[e.Backend].marks; {
	case m&cids != 0 && w.misrouted(i, e):
		return w.reroute(i, r)
	case m&left != 0:
		return w.orphaned(i, r, conntrack.Forward)
	}
	return undecided
}

// misrouted reports whether row i, a client's packet of flow e, names another backend
// than e's by its connection ID.
func (w *Worker) misrouted(i int, e *conntrack.Entry) bool {
	if w.b.pkt[i].Kind != packet.KindUDP && !w.frags.first {
		return false // a fragment that has no header
	}
	backend, _ := w.snap.Services[e.Service].quic.server(w.datagram(i))
	return backend != nobody && backend != e.Backend
}

// reroute makes row i, which is misrouted, open a flow to the backend that it names. Flow
// r ends: its client's port is another connection's now, or that connection has come
// from elsewhere.
func (w *Worker) reroute(i int, r conntrack.Ref) Verdict {
	id := w.table.Entry(r).Service
	w.here.Services[id].QUICMoved++
	w.close(r, EndMoved)
	return w.begin(i, int32(id))
}

// openNamed opens a flow for row i to the backend that its connection ID names, and to
// no other, which would know nothing of the connection.
func (w *Worker) openNamed(i int, svc *Service, id, backend uint32) Verdict {
	if svc.limited && !w.hold(backend) {
		return DropBackendsFull
	}
	r, v := w.insert(i, svc, id, backend)
	if v != Forwarded {
		return v
	}
	return w.begun(i, r)
}
