package nat

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// shape is a packet to be built byte by byte, owing nothing to the code under
// test.
type shape struct {
	src, dst packet.Addr
	ports    uint32 // source in the upper half
	udp      bool
	noCsum   bool // UDP without checksum
	vlan     bool
	ttl      uint8
	seq, ack uint32
	flags    uint8
	ipOpts   []byte
	opts     []byte
	payload  []byte
	pad      []byte // behind the datagram
}

// datagram is the IP datagram alone, checksums right.
func (s *shape) datagram() []byte {
	var l4 []byte
	if s.udp {
		l4 = binary.BigEndian.AppendUint32(nil, s.ports)
		l4 = binary.BigEndian.AppendUint16(l4, uint16(8+len(s.payload)))
		l4 = append(l4, 0, 0)
	} else {
		l4 = binary.BigEndian.AppendUint32(nil, s.ports)
		l4 = binary.BigEndian.AppendUint32(l4, s.seq)
		l4 = binary.BigEndian.AppendUint32(l4, s.ack)
		l4 = append(l4, byte((20+len(s.opts))/4<<4), s.flags, 0x20, 0x00, 0, 0, 0x12, 0x34)
		l4 = append(l4, s.opts...)
	}
	l4 = append(l4, s.payload...)
	proto := byte(6)
	if s.udp {
		proto = 17
	}
	var ip []byte
	if s.src.Is4() {
		ip = append(ip, byte(0x45+len(s.ipOpts)/4), 0)
		ip = binary.BigEndian.AppendUint16(ip, uint16(20+len(s.ipOpts)+len(l4)))
		ip = append(ip, 0xab, 0xcd, 0x40, 0, s.ttl, proto, 0, 0)
		ip = binary.BigEndian.AppendUint32(ip, s.src.V4())
		ip = binary.BigEndian.AppendUint32(ip, s.dst.V4())
		ip = append(ip, s.ipOpts...)
	} else {
		ip = append(ip, 0x60, 0, 0x12, 0x34)
		ip = binary.BigEndian.AppendUint16(ip, uint16(len(l4)))
		ip = append(ip, proto, s.ttl)
		ip = append(ip, addrBytes(s.src)...)
		ip = append(ip, addrBytes(s.dst)...)
	}
	d := append(ip, l4...)
	recompute(d, len(ip), proto, s.noCsum)
	return d
}

// frame is the whole Ethernet frame.
func (s *shape) frame() []byte {
	f := ether(s.src.Is4(), s.vlan)
	f = append(f, s.datagram()...)
	return append(f, s.pad...)
}

func ether(v4, vlan bool) []byte {
	f := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	if vlan {
		f = append(f, 0x81, 0, 0x60, 0x64)
	}
	if v4 {
		return append(f, 8, 0)
	}
	return append(f, 0x86, 0xdd)
}

func addrBytes(a packet.Addr) []byte {
	if a.Is4() {
		return binary.BigEndian.AppendUint32(nil, a.V4())
	}
	b := a.Netip().As16()
	return b[:]
}

// slowSum is the one's complement sum as RFC 1071 defines it.
func slowSum(b []byte) uint32 {
	var sum uint32
	for i, c := range b {
		if i%2 == 0 {
			sum += uint32(c) << 8
		} else {
			sum += uint32(c)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum
}

// recompute sets all checksums of the datagram d afresh, whatever they were.
func recompute(d []byte, l4 int, proto byte, noCsum bool) {
	addrs := d[8:]
	if d[0]>>4 == 6 {
		addrs = addrs[:32]
	} else {
		addrs = addrs[4:12]
		binary.BigEndian.PutUint16(d[10:], 0)
		binary.BigEndian.PutUint16(d[10:], ^uint16(slowSum(d[:l4])))
	}
	pseudo := append([]byte{}, addrs...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(d)-l4))
	pseudo = append(pseudo, 0, 0, 0, proto)
	field := map[byte]int{6: 16, 17: 6, 1: 2, 58: 2}[proto]
	if proto == 1 {
		pseudo = nil
	}
	at := d[l4+field:]
	binary.BigEndian.PutUint16(at, 0)
	if noCsum {
		return
	}
	c := ^uint16(slowSum(append(pseudo, d[l4:]...)))
	if c == 0 && proto == 17 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(at, c)
}

// Data is data to gopacket, whatever service a local port is known for.
func init() {
	for port := range 1 << 16 {
		layers.RegisterTCPPortLayerType(layers.TCPPort(port), gopacket.LayerTypePayload)
		layers.RegisterUDPPortLayerType(layers.UDPPort(port), gopacket.LayerTypePayload)
	}
}

// judge has gopacket look at the checksums of a frame.
func judge(t rapid.TB, frame []byte) {
	t.Helper()
	pkt := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	net := pkt.NetworkLayer()
	if ip, ok := net.(*layers.IPv4); ok && slowSum(ip.Contents) != 0xffff {
		t.Fatalf("IPv4 checksum is wrong\n% x", frame)
	}
	switch l := pkt.TransportLayer().(type) {
	case *layers.TCP:
		if err := l.SetNetworkLayerForChecksum(net); err != nil {
			t.Fatal(err)
		}
		if c, err := l.ComputeChecksum(); err != nil || c != 0 {
			t.Fatalf("TCP checksum is off by %#x, %v\n% x", c, err, frame)
		}
	case *layers.UDP:
		if l.Checksum == 0 {
			return
		}
		if err := l.SetNetworkLayerForChecksum(net); err != nil {
			t.Fatal(err)
		}
		out := gopacket.NewSerializeBuffer()
		o := gopacket.SerializeOptions{ComputeChecksums: true}
		was := l.Checksum
		if err := gopacket.SerializeLayers(out, o, l, gopacket.Payload(l.Payload)); err != nil {
			t.Fatal(err)
		}
		got := binary.BigEndian.Uint16(out.Bytes()[6:])
		if was != got && !(got == 0 && was == 0xffff) {
			t.Fatalf("UDP checksum %#x, want %#x\n% x", was, got, frame)
		}
	default:
		t.Fatalf("gopacket: %v\n% x", pkt.ErrorLayer(), frame)
	}
}

// parse is packet.Parse where it must accept.
func parse(t rapid.TB, frame []byte) packet.Packet {
	t.Helper()
	var p packet.Packet
	if err := packet.Parse(frame, &p); err != packet.ErrNone {
		t.Fatalf("%v\n% x", err, frame)
	}
	return p
}

// flow is an entry with the directory it belongs to.
type flow struct {
	e   conntrack.Entry
	dir conntrack.Directory
}

func newFlow(client, vip, local, server string, mode conntrack.Mode) *flow {
	c, v, s := netip.MustParseAddrPort(client), netip.MustParseAddrPort(vip), netip.MustParseAddrPort(server)
	l := netip.MustParseAddrPort(local)
	f := &flow{}
	f.e = conntrack.Entry{
		Client: packet.AddrFrom(c.Addr()), ClientPort: c.Port(), LocalPort: l.Port(),
		Service: 1, Backend: 2, Local: 1, Proto: packet.ProtoTCP, Mode: mode,
	}
	f.dir = conntrack.Directory{
		Services: []conntrack.Endpoint{{}, {Addr: packet.AddrFrom(v.Addr()), Port: v.Port(), Proto: packet.ProtoTCP}},
		Backends: []conntrack.Endpoint{{}, {}, {Addr: packet.AddrFrom(s.Addr()), Port: s.Port(), Proto: packet.ProtoTCP}},
		Locals:   []packet.Addr{{}, packet.AddrFrom(l.Addr())},
	}
	if !Prepare(&f.e, &f.dir) {
		panic("Prepare")
	}
	return f
}

func flow4(mode conntrack.Mode) *flow {
	return newFlow("198.51.100.7:49153", "192.0.2.10:80", "10.0.1.10:20001", "10.0.1.20:8080", mode)
}

func flow6(mode conntrack.Mode) *flow {
	return newFlow("[2001:db8:9::7]:49153", "[2001:db8::10]:80", "[2001:db8:1::10]:20001", "[2001:db8:1::20]:8080", mode)
}

// fromClient gives s the addresses and ports of a client's packet, fromServer
// those of a server's.
func (f *flow) fromClient(s shape) shape {
	vip := f.dir.Services[f.e.Service]
	s.src, s.dst, s.ports = f.e.Client, vip.Addr, uint32(f.e.ClientPort)<<16|uint32(vip.Port)
	return s
}

func (f *flow) fromServer(s shape) shape {
	rs := f.dir.Backends[f.e.Backend]
	s.src, s.dst, s.ports = rs.Addr, f.e.Client, uint32(rs.Port)<<16|uint32(f.e.ClientPort)
	if f.e.Mode == conntrack.FullNAT {
		s.dst, s.ports = f.dir.Locals[f.e.Local], uint32(rs.Port)<<16|uint32(f.e.LocalPort)
	}
	return s
}

// toServer and toClient are what the rewrite must make of them.
func (f *flow) toServer(s shape) shape {
	r := f.fromServer(s)
	r.src, r.dst, r.ports = r.dst, r.src, r.ports<<16|r.ports>>16
	r.ttl--
	r.seq += f.e.SeqDelta
	return r
}

func (f *flow) toClient(s shape) shape {
	r := f.fromClient(s)
	r.src, r.dst, r.ports = r.dst, r.src, r.ports<<16|r.ports>>16
	r.ttl--
	if r.flags&packet.ACK != 0 {
		r.ack -= f.e.SeqDelta
		r.opts = slowShift(r.opts, -f.e.SeqDelta)
	}
	return r
}

// slowShift moves the SACK blocks of a copy of the options.
func slowShift(opts []byte, delta uint32) []byte {
	opts = append([]byte{}, opts...)
	for i := 0; i < len(opts) && opts[i] != 0; {
		if opts[i] == 1 {
			i++
			continue
		}
		if i+1 == len(opts) || opts[i+1] < 2 || i+int(opts[i+1]) > len(opts) {
			break
		}
		if opts[i] == 5 {
			for j := i + 2; j+4 <= i+int(opts[i+1]); j += 4 {
				binary.BigEndian.PutUint32(opts[j:], binary.BigEndian.Uint32(opts[j:])+delta)
			}
		}
		i += int(opts[i+1])
	}
	return opts
}

// edgy draws numbers near the ends of the range more often than chance would:
// there the two zeros of one's complement hide.
func edgy(t *rapid.T, name string) uint32 {
	return rapid.OneOf(rapid.Uint32(), rapid.SampledFrom([]uint32{0, 1, 0xffff, 0x10000, 0xffff0000, 0xfffffffe, 0xffffffff})).Draw(t, name)
}

func port(t *rapid.T, name string) uint16 {
	return rapid.OneOf(rapid.Uint16Min(1), rapid.SampledFrom([]uint16{1, 0xfffe, 0xffff})).Draw(t, name)
}

func drawFlow(t *rapid.T, v6, udp bool) *flow {
	host := func(name string, net uint64) packet.Addr {
		n := uint64(edgy(t, name))
		if v6 {
			return packet.Addr{Hi: 0x20010db8_00000000 | net<<16 | n&0xffff, Lo: n * 0x1_0001_0001}
		}
		return packet.Addr{Lo: 0xffff_00000000 | net<<24 | n&0xffffff}
	}
	f := &flow{e: conntrack.Entry{
		Client: host("client", 60), ClientPort: port(t, "client port"), LocalPort: port(t, "local port"),
		Proto: packet.ProtoTCP, Mode: conntrack.Mode(rapid.IntRange(0, 1).Draw(t, "mode")),
		SeqDelta: edgy(t, "delta"),
	}}
	f.dir = conntrack.Directory{
		Services: []conntrack.Endpoint{{Addr: host("vip", 61), Port: port(t, "vip port")}},
		Backends: []conntrack.Endpoint{{Addr: host("server", 62), Port: port(t, "server port")}},
		Locals:   []packet.Addr{host("local", 63)},
	}
	if udp {
		f.e.Proto = packet.ProtoUDP
	}
	if !Prepare(&f.e, &f.dir) {
		t.Fatal("Prepare")
	}
	return f
}

// drawOptions draws TCP options at all alignments, now and then a malformed one,
// padded to a multiple of 4.
func drawOptions(t *rapid.T) []byte {
	var o []byte
	for range rapid.IntRange(0, 6).Draw(t, "options") {
		var next []byte
		switch rapid.SampledFrom([]string{"nop", "mss", "sack", "ts", "toa", "other", "plain ts"}).Draw(t, "option") {
		case "nop":
			next = []byte{1}
		case "mss":
			next = binary.BigEndian.AppendUint16([]byte{2, 4}, port(t, "mss"))
		case "sack":
			n := rapid.IntRange(1, 4).Draw(t, "blocks")
			next = []byte{5, byte(2 + 8*n)}
			for range 2 * n {
				next = binary.BigEndian.AppendUint32(next, edgy(t, "edge"))
			}
		case "ts":
			next = []byte{8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
		case "toa":
			n := rapid.SampledFrom([]int{2, 3, 8, 20}).Draw(t, "length")
			next = append([]byte{254, byte(n)}, rapid.SliceOfN(rapid.Byte(), n-2, n-2).Draw(t, "data")...)
		case "other":
			n := rapid.IntRange(2, 9).Draw(t, "length")
			next = append([]byte{30, byte(n)}, rapid.SliceOfN(rapid.Byte(), n-2, n-2).Draw(t, "data")...)
		case "plain ts":
			next = []byte{1, 1, 8, 10, 9, 9, 9, 9, 7, 7, 7, 7}
		}
		if len(o)+len(next) <= maxOptions {
			o = append(o, next...)
		}
	}
	fill := byte(rapid.IntRange(0, 1).Draw(t, "fill"))
	if len(o) > 0 && rapid.IntRange(0, 9).Draw(t, "malformed") == 0 {
		fill = rapid.SampledFrom([]byte{254, 77}).Draw(t, "bad kind")
		if len(o)%4 == 0 && len(o) < maxOptions {
			o = append(o, fill)
		}
	}
	for len(o)%4 != 0 {
		o = append(o, fill)
	}
	return o
}

func drawShape(t *rapid.T, v6, udp bool) shape {
	s := shape{
		udp: udp, vlan: rapid.Bool().Draw(t, "vlan"), ttl: uint8(rapid.IntRange(2, 255).Draw(t, "ttl")),
		seq: edgy(t, "seq"), ack: edgy(t, "ack"), flags: rapid.Byte().Draw(t, "flags"),
		payload: rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0xff}), 0, 40).Draw(t, "payload"),
		pad:     make([]byte, rapid.IntRange(0, 9).Draw(t, "pad")),
	}
	if udp {
		s.noCsum = !v6 && rapid.Bool().Draw(t, "no checksum")
	} else {
		s.opts = drawOptions(t)
	}
	if !v6 {
		s.ipOpts = bytesOf(1, 4*rapid.IntRange(0, 2).Draw(t, "IP options"))
	}
	return s
}

func bytesOf(b byte, n int) []byte {
	s := make([]byte, n)
	for i := range s {
		s[i] = b
	}
	return s
}

// TestShapes shows that the builder and the judges agree.
func TestShapes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6, udp := rapid.Bool().Draw(t, "v6"), rapid.Bool().Draw(t, "udp")
		f := drawFlow(t, v6, udp)
		s := f.fromClient(drawShape(t, v6, udp))
		frame := s.frame()
		p := parse(t, frame)
		if !packet.VerifyIPv4(frame, &p) || !packet.VerifyL4(frame, &p) {
			t.Fatalf("% x", frame)
		}
		s.opts = nil // gopacket refuses some of them
		judge(t, s.frame())
	})
}
