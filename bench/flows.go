package bench

import (
	"encoding/binary"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// role is what a frame of a capture is to replay.
type role uint8

const (
	roleOther  role = iota // fed as it is
	roleClient             // client's packet to a service
	roleReply              // to be completed with what l4fwd did to its flow
)

// mark is what else is to be known of a frame.
type mark uint8

const (
	markTeaches mark = 1 << iota // what l4fwd makes of it tells how the flow is translated
	markOpening                  // part of a handshake: fed in the first loop only
	markClosing                  // ends a connection: fed only if there is one loop
)

// frameInfo is the analysis of a frame. flow is an index, -1 for none.
type frameInfo struct {
	flow int32
	role role
	mark mark
}

// flow is a client's flow as found in the capture and, later, as l4fwd
// translates it.
type flow struct {
	service int32
	// What the real server sees, once a packet left: it answers the other way
	// round. delta is added to the client's sequence numbers.
	server, local         packet.Addr
	serverPort, localPort uint16
	learned               bool
	delta                 uint32
	header                uint32 // length of the PROXY header, which the server got before the client's data

	serverNext uint32 // while opening: the ISN+1 of a SYN-ACK, see seen
	seen       uint8
	window     uint32 // number of the window that a packet of the flow is in
	role       role   // of the last one in it
}

// Bits of flow.seen.
const (
	seenSYNACK = 1 << iota
	seenACK
	seenDatagram
	seenAnswer
)

// analysis is a capture sorted by flows.
type analysis struct {
	spec   *dataplane.Spec
	frames []frameInfo
	flows  []flow

	vips     map[conntrack.Endpoint]int32
	backends map[conntrack.Endpoint][]int32 // services by backend
	locals   map[packet.Addr]bool
	tuples   map[packet.Tuple]int32
	numbers  map[uint32]int32    // flows by the number in generated MAC addresses
	clients  map[clientKey]int32 // DNAT flows by what replies carry
}

type clientKey struct {
	addr    packet.Addr
	port    uint16
	service int32
}

// analyse sorts the frames by flows. Replies may stand before their flow's
// first packet, so it goes over the capture twice.
func analyse(c *Capture, spec *dataplane.Spec) *analysis {
	a := &analysis{
		spec:   spec,
		frames: make([]frameInfo, len(c.Frames)),
		vips:   map[conntrack.Endpoint]int32{}, backends: map[conntrack.Endpoint][]int32{},
		locals: map[packet.Addr]bool{}, tuples: map[packet.Tuple]int32{},
		numbers: map[uint32]int32{}, clients: map[clientKey]int32{},
	}
	for i := range spec.Services {
		s := &spec.Services[i]
		a.vips[s.VIP] = int32(i)
		for _, b := range s.Backends {
			a.backends[b.Endpoint] = append(a.backends[b.Endpoint], int32(i))
		}
	}
	for _, l := range spec.Locals {
		a.locals[l] = true
	}
	for i, f := range c.Frames {
		a.frames[i].flow = -1
		a.client(f, &a.frames[i])
	}
	for i, f := range c.Frames {
		a.reply(f, &a.frames[i])
	}
	a.tuples, a.numbers, a.clients = nil, nil, nil
	return a
}

// client looks whether the frame is a client's packet to a service.
func (a *analysis) client(f []byte, info *frameInfo) {
	var p packet.Packet
	if packet.Parse(f, &p) != packet.ErrNone || p.Kind != packet.KindTCP && p.Kind != packet.KindUDP {
		return
	}
	service, ok := a.vips[conntrack.Endpoint{Addr: p.Dst, Port: p.DstPort, Proto: p.Proto}]
	if !ok {
		return
	}
	k, ok := a.tuples[p.Tuple]
	if !ok {
		k = int32(len(a.flows))
		a.flows = append(a.flows, flow{service: service})
		a.tuples[p.Tuple] = k
	}
	info.flow, info.role = k, roleClient
	if binary.BigEndian.Uint16(f[packet.EthSrc:]) == clientOUI {
		a.numbers[binary.BigEndian.Uint32(f[packet.EthSrc+2:])] = k
	}
	if a.spec.Services[service].Mode == conntrack.DNAT {
		a.clients[clientKey{p.Src, p.SrcPort, service}] = k
	}
	if p.Kind == packet.KindUDP || p.TCPFlags&(packet.SYN|packet.ACK) == packet.SYN {
		info.mark |= markTeaches
	}
}

// reply looks whether the frame is a reply that can be completed, and marks
// what opens and closes flows.
func (a *analysis) reply(f []byte, info *frameInfo) {
	var p packet.Packet
	if packet.Parse(f, &p) != packet.ErrNone || p.Kind != packet.KindTCP && p.Kind != packet.KindUDP {
		return
	}
	if info.role == roleOther {
		k, ok := a.answered(f, &p)
		if !ok {
			if p.TCPFlags&(packet.FIN|packet.RST) != 0 {
				info.mark |= markClosing
			}
			return
		}
		info.flow, info.role = k, roleReply
	}
	w := &a.flows[info.flow]
	reply := info.role == roleReply
	switch {
	case p.Kind == packet.KindUDP && !reply && w.seen&seenDatagram == 0:
		w.seen |= seenDatagram
		info.mark |= markOpening
	case p.Kind == packet.KindUDP && reply && w.seen&seenAnswer == 0:
		w.seen |= seenAnswer
		info.mark |= markOpening
	case p.TCPFlags&packet.SYN != 0:
		info.mark |= markOpening
		if reply {
			w.serverNext = p.Seq + 1
			w.seen |= seenSYNACK
		}
	case p.TCPFlags&(packet.FIN|packet.RST) != 0:
		info.mark |= markClosing
	case !reply && w.seen == seenSYNACK && p.Kind == packet.KindTCP && p.Payload == p.End && p.Ack == w.serverNext:
		w.seen |= seenACK
		info.mark |= markOpening
	}
}

// answered finds the flow that a packet from a backend belongs to.
func (a *analysis) answered(f []byte, p *packet.Packet) (int32, bool) {
	for _, service := range a.backends[conntrack.Endpoint{Addr: p.Src, Port: p.SrcPort, Proto: p.Proto}] {
		if k, ok := a.clients[clientKey{p.Dst, p.DstPort, service}]; ok {
			return k, true
		}
		if a.locals[p.Dst] && p.DstPort == 0 && binary.BigEndian.Uint16(f[packet.EthSrc:]) == serverOUI {
			if k, ok := a.numbers[binary.BigEndian.Uint32(f[packet.EthSrc+2:])]; ok {
				return k, true
			}
		}
	}
	return 0, false
}

// learn takes note of what l4fwd made of in, a packet that teaches. svc is the
// flow's service.
func (w *flow) learn(in, out []byte, svc *dataplane.ServiceSpec) {
	var was, is packet.Packet
	if packet.Parse(in, &was) != packet.ErrNone || packet.Parse(out, &is) != packet.ErrNone {
		return
	}
	w.server, w.serverPort = is.Dst, is.DstPort
	w.local, w.localPort = is.Src, is.SrcPort
	w.delta = is.Seq - was.Seq
	w.header = uint32(nat.ProxyLen(
		&conntrack.Entry{Client: was.Src, ClientPort: was.SrcPort, Proto: was.Proto},
		&conntrack.Directory{Services: []conntrack.Endpoint{svc.VIP}}, svc.Proxy))
	w.learned = true
}

// complete writes into a reply what only l4fwd knew: both addresses and ports,
// ACK and SACK numbers, checksums. Once a frame: a second time would move the
// numbers again.
func (w *flow) complete(f []byte) {
	var p packet.Packet
	if packet.Parse(f, &p) != packet.ErrNone || p.V6 == w.server.Is4() {
		return
	}
	h := f[p.L3:]
	if p.V6 {
		w.server.Put16(h[packet.IPv6Src:])
		w.local.Put16(h[packet.IPv6Dst:])
	} else {
		w.server.Put4(h[packet.IPv4Src:])
		w.local.Put4(h[packet.IPv4Dst:])
		binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], 0)
		n := int(p.L4 - p.L3)
		binary.BigEndian.PutUint16(h[packet.IPv4Checksum:], packet.Checksum(h[:n], 0))
	}
	h = f[p.L4:p.End]
	binary.BigEndian.PutUint16(h, w.serverPort)
	binary.BigEndian.PutUint16(h[2:], w.localPort)
	if p.Kind == packet.KindUDP {
		h = h[:binary.BigEndian.Uint16(h[packet.UDPLength:])]
		if binary.BigEndian.Uint16(h[packet.UDPChecksum:]) != 0 {
			putChecksum(h, w.server, w.local, packet.ProtoUDP)
		}
		return
	}
	if p.TCPFlags&packet.ACK != 0 {
		delta := w.delta
		if p.TCPFlags&packet.SYN == 0 {
			delta += w.header
		}
		binary.BigEndian.PutUint32(h[packet.TCPAck:], p.Ack+delta)
		for it := packet.Options(f, &p); it.Next(); {
			if it.Kind != packet.OptSACK {
				continue
			}
			for at := it.Off + 2; at+4 <= it.Off+it.Len; at += 4 {
				binary.BigEndian.PutUint32(f[at:], binary.BigEndian.Uint32(f[at:])+delta)
			}
		}
	}
	putChecksum(h, w.server, w.local, packet.ProtoTCP)
}
