package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// GenOptions say what capture Generate makes.
type GenOptions struct {
	Spec  dataplane.Spec // whose services the clients talk to, in turn
	Flows int
	// Packets in all. Fewer than the handshakes need means handshakes alone.
	Packets int
	// Size of a data packet in bytes as it lies on the wire, Ethernet checksum
	// included, preamble and gap not: 64 gives the shortest Ethernet frame, 60
	// bytes in the capture. Where the headers alone take more, as with TCP over
	// IPv6, packets are as short as they can be; handshakes always are. Packets
	// that l4fwd makes longer (TOA, PROXY, NAT64) leave room for that in an MTU of
	// 1500, as both ends are told to.
	Size     int
	Protocol uint8  // packet.ProtoTCP or packet.ProtoUDP; 0 is any
	Family   int    // 4 or 6, of the VIP; 0 is any
	Seed     uint64 // everything random comes from it
}

// Limits of GenOptions.
const (
	MinSize = 64
	MaxSize = 1518
	MaxFlow = min(maxClientFlows, 1<<31-1)
)

// Errors of Generate.
var (
	ErrOptions   = errors.New("options out of range")
	ErrNoService = errors.New("no service matches")
)

// Stream of generated frames: when it begins, and how far apart they are.
const (
	genStart = 1767225600 // 2026-01-01 UTC, seconds
	genGap   = time.Microsecond
)

// handshakeGroup flows shake hands at the same time: their SYNs, then their
// SYN-ACKs, then their ACKs.
const handshakeGroup = 64

// window scale of both sides in generated handshakes.
var (
	synOptions4 = []byte{2, 4, 1460 >> 8, 1460 & 255, 4, 2, 1, 1, 3, 3, 7, 1}
	synOptions6 = []byte{2, 4, 1440 >> 8, 1440 & 255, 4, 2, 1, 1, 3, 3, 7, 1}
)

// Generate writes a capture (pcap, nanoseconds, Ethernet) aimed at the
// services of o.Spec, as the wire at l4fwd would show it: first every flow's
// handshake, or for UDP a datagram each way, then packets of both directions
// drawn at random over all flows. Equal options give equal bytes. Memory is 8
// bytes a flow, however many packets.
//
// Clients' packets are complete. A reply of a Full-NAT flow goes to the first
// local address of its family, port 0; backends are taken in turn; sequence and
// acknowledgement numbers are those the client sees. Replay puts the right
// values in. Both directions of a flow bear its number in the sender's MAC
// address: 02:46 and 02:52, then four bytes.
func Generate(w io.Writer, o GenOptions) error {
	g, err := newGenerator(w, o)
	if err != nil {
		return fmt.Errorf("generate: %w", err)
	}
	if err := g.run(); err != nil {
		return fmt.Errorf("generate: %w", err)
	}
	return nil
}

type generator struct {
	o        GenOptions
	services []*dataplane.ServiceSpec
	clients  clients
	random   random
	next     []sequence // by flow; TCP only
	out      *pcapgo.Writer
	flush    func() error
	at       time.Time
	left     int // packets
	buf      [MaxSize]byte
}

// sequence is the numbers each side sends next, in the client's space.
type sequence struct{ client, server uint32 }

func newGenerator(w io.Writer, o GenOptions) (*generator, error) {
	switch {
	case o.Flows < 1 || o.Flows > MaxFlow:
		return nil, fmt.Errorf("%w: %d flows: want 1 to %d", ErrOptions, o.Flows, MaxFlow)
	case o.Packets < 1:
		return nil, fmt.Errorf("%w: %d packets", ErrOptions, o.Packets)
	case o.Size < MinSize || o.Size > MaxSize:
		return nil, fmt.Errorf("%w: packets of %d bytes: want %d to %d", ErrOptions, o.Size, MinSize, MaxSize)
	}
	g := &generator{o: o, random: random{o.Seed}, at: time.Unix(genStart, 0).UTC(), left: o.Packets}
	for i := range o.Spec.Services {
		if s := &o.Spec.Services[i]; fits(s, &o) {
			g.services = append(g.services, s)
		}
	}
	if len(g.services) == 0 {
		return nil, fmt.Errorf("%w: %s over IPv%s with backends of weight above 0 that its mode can reach", ErrNoService, protocolName(o.Protocol), familyName(o.Family))
	}
	var err error
	if g.clients, err = newClients(&o.Spec); err != nil {
		return nil, err
	}
	g.next = make([]sequence, o.Flows)
	buffered := bufio.NewWriterSize(w, 1<<20)
	g.out, g.flush = pcapgo.NewWriterNanos(buffered), buffered.Flush
	return g, g.out.WriteFileHeader(65535, layers.LinkTypeEthernet)
}

// fits reports whether packets can be made for the service.
func fits(s *dataplane.ServiceSpec, o *GenOptions) bool {
	v4 := s.VIP.Addr.Is4()
	if o.Protocol != 0 && s.VIP.Proto != o.Protocol || o.Family == 4 && !v4 || o.Family == 6 && v4 {
		return false
	}
	for _, b := range s.Backends {
		family := b.Endpoint.Addr.Is4()
		if b.Weight == 0 {
			continue
		}
		if s.Mode == conntrack.FullNAT && !placeholder(&o.Spec, family).IsZero() || s.Mode == conntrack.DNAT && family == v4 || oneWay(s) {
			return true
		}
	}
	return false
}

// oneWay reports whether only clients' packets of the service come by.
func oneWay(s *dataplane.ServiceSpec) bool { return s.Mode.OneWay() }

// answering is spec without services of that kind, and without return halves.
func answering(spec dataplane.Spec) dataplane.Spec {
	spec.Services = slices.DeleteFunc(slices.Clone(spec.Services), func(s dataplane.ServiceSpec) bool { return oneWay(&s) || s.ReturnOnly })
	return spec
}

// placeholder is the local address that stands in replies before they are
// completed.
func placeholder(spec *dataplane.Spec, v4 bool) packet.Addr {
	for _, a := range spec.Locals {
		if a.Is4() == v4 {
			return a
		}
	}
	return packet.Addr{}
}

func protocolName(p uint8) string {
	switch p {
	case packet.ProtoTCP:
		return "tcp"
	case packet.ProtoUDP:
		return "udp"
	}
	return "tcp or udp"
}

func familyName(f int) string {
	if f == 0 {
		return "4 or IPv6"
	}
	return fmt.Sprint(f)
}

// run makes all packets.
func (g *generator) run() error {
	for first := 0; first < g.o.Flows; first += handshakeGroup {
		last := min(first+handshakeGroup, g.o.Flows)
		for step := range 3 {
			for k := first; k < last; k++ {
				if s := g.handshake(k, step); s.flags != 0 || s.proto == packet.ProtoUDP {
					if err := g.write(&s); err != nil {
						return err
					}
				}
			}
		}
	}
	for g.left > 0 {
		s := g.data(g.random.below(g.o.Flows), g.random.next()>>63 != 0)
		if err := g.write(&s); err != nil {
			return err
		}
	}
	return g.flush()
}

// handshake is a flow's packet in step 0, 1 or 2; the zero segment if there is
// none, as of the side that does not come by.
func (g *generator) handshake(k, step int) segment {
	svc := g.service(k)
	if step == 1 && oneWay(svc) {
		return segment{}
	}
	if s := g.handshakeOfBoth(k, step); step == 1 || !svc.ReturnOnly {
		return s
	}
	return segment{}
}

func (g *generator) handshakeOfBoth(k, step int) segment {
	s := g.address(k, step == 1)
	q := &g.next[k]
	if s.proto == packet.ProtoUDP {
		if step == 2 {
			return segment{}
		}
		return s
	}
	options := synOptions4
	if !s.src.Is4() {
		options = synOptions6
	}
	switch step {
	case 0:
		isn := mix(g.o.Seed ^ uint64(k)*0x9e3779b97f4a7c15)
		*q = sequence{uint32(isn), uint32(isn >> 32)}
		s.flags, s.seq, s.options = packet.SYN, q.client, options
		q.client++
	case 1:
		s.flags, s.seq, s.ack, s.options = packet.SYN|packet.ACK, q.server, q.client, options
		q.server++
	case 2:
		s.flags, s.seq, s.ack = packet.ACK, q.client, q.server
	}
	return s
}

// data is flow k's next packet with payload; a reply only where there are any, and
// nothing else of a return half.
func (g *generator) data(k int, reply bool) segment {
	reply = reply && !oneWay(g.service(k)) || g.service(k).ReturnOnly
	s := g.address(k, reply)
	s.load(g.service(k), g.o.Size, reply)
	if s.proto == packet.ProtoUDP {
		return s
	}
	q := &g.next[k]
	if reply {
		s.seq, s.ack = q.server, q.client
		q.server += uint32(s.payload)
		return s
	}
	s.seq, s.ack = q.client, q.server
	q.client += uint32(s.payload)
	return s
}

// load makes s a data packet of size bytes on the wire, as far as there is room
// for it, and sets the TCP flags of one. reply is set for what a server sends.
func (s *segment) load(svc *dataplane.ServiceSpec, size int, reply bool) {
	s.payload = max(size-fcs-s.headerLen(), 0)
	// NAT64 makes a reply longer by the difference of the IP headers, and servers
	// have been told to leave room for that.
	if reply && s.src.Is4() != svc.VIP.Addr.Is4() {
		const longer = packet.IPv6Len - packet.IPv4MinLen
		s.payload = min(s.payload, packet.EthLen+1500-longer-s.headerLen())
	}
	if !reply && oneWay(svc) && len(svc.Backends) > 0 { // a client learns what fits the tunnel
		more := svc.Tunnel.Overhead(svc.Backends[0].Endpoint.Addr.Is4())
		s.payload = min(s.payload, packet.EthLen+1500-more-s.headerLen())
	}
	if s.proto == packet.ProtoUDP {
		return
	}
	s.flags = packet.ACK
	if s.payload > 0 {
		s.flags |= packet.PSH
	}
	if reply {
		return
	}
	// A client has been told to leave room for TOA or the PROXY header.
	room := packet.EthLen + 1500
	switch {
	case svc.TOA && s.src.Is4():
		room -= 8
	case svc.TOA:
		room -= 20
	case svc.Proxy != nat.NoProxy:
		room -= nat.MaxProxyLen
	}
	s.payload = min(s.payload, room-s.headerLen())
}

func (g *generator) service(k int) *dataplane.ServiceSpec { return g.services[k%len(g.services)] }

// address fills in what tells where a packet of flow k goes.
func (g *generator) address(k int, reply bool) segment {
	svc := g.service(k)
	v4 := svc.VIP.Addr.Is4()
	client, port := g.clients.client(k, !v4)
	s := segment{proto: svc.VIP.Proto, flow: uint32(k)}
	if !reply {
		s.oui = clientOUI
		s.src, s.srcPort, s.dst, s.dstPort = client, port, svc.VIP.Addr, svc.VIP.Port
		return s
	}
	s.oui = serverOUI
	rs := &svc.Backends[k/len(g.services)%len(svc.Backends)].Endpoint
	s.src, s.srcPort, s.dst, s.dstPort = rs.Addr, rs.Port, client, port
	if svc.Mode == conntrack.FullNAT {
		s.dst, s.dstPort = placeholder(&g.o.Spec, rs.Addr.Is4()), 0
	}
	return s
}

// write appends the frame to the capture.
func (g *generator) write(s *segment) error {
	f := s.build(g.buf[:])
	g.left--
	err := g.out.WritePacket(gopacket.CaptureInfo{Timestamp: g.at, CaptureLength: len(f), Length: len(f)}, f)
	g.at = g.at.Add(genGap)
	return cause(err, g.flush)
}

// cause is err as the buffered writer met it, which pcapgo tells as text only:
// flushing a writer that has failed says why again.
func cause(err error, flush func() error) error {
	if err == nil {
		return nil
	}
	if first := flush(); first != nil {
		return first
	}
	return err
}
