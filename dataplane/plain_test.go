package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// twins are two workers of which only the first knows plain packets. Whatever both
// are given, they must do the same.
type twins struct {
	rt   *rapid.T
	t    *testing.T
	rigs [2]*rig
	regs [2]*Registry
	vips []conntrack.Endpoint
	live []*twinFlow
	gen  uint32
}

// twinFlow is a flow as its ends know it.
type twinFlow struct {
	client, vip, backend, local string
	udp                         bool
	seq, ack                    uint32 // what the client has sent, and the server, as the client sees it
	delta                       uint32 // added to seq on its way to the server
	first                       uint32 // what completes the handshake acknowledges
}

// strictService is twinSpec's service with the strict checks. Those whose timestamps
// are translated, or taken for TOA, follow. They need packets of a certain kind, and so
// more of them.
const strictService = 10

// twinSpec is testSpec with as many kinds of service as plain has to tell apart.
func twinSpec(rt *rapid.T) Spec {
	spec := testSpec()
	strict := service("strict", "192.0.2.14:80", packet.ProtoTCP, conntrack.FullNAT, true, "10.0.1.20:8014")
	strict.TCPChecks, strict.TOAOnly = conntrack.ChecksStrict, true
	shifted := service("shifted", "192.0.2.15:80", packet.ProtoTCP, conntrack.FullNAT, false, "10.0.1.20:8015")
	shifted.Timestamps = nat.TSTranslate
	odd := service("odd", "192.0.2.16:80", packet.ProtoTCP, conntrack.FullNAT, false, "10.0.1.20:8016")
	odd.TOAKind = packet.OptTimestamps
	udp6 := service("udp6", "[2001:db8::10]:5000", packet.ProtoUDP, conntrack.FullNAT, false, "[2001:db8:1::20]:5001")
	one := service("one", "192.0.2.17:53", packet.ProtoUDP, conntrack.FullNAT, false, "10.0.1.20:5317")
	one.OnePacket = true
	toa6 := service("toa6", "[2001:db8::16]:80", packet.ProtoTCP, conntrack.FullNAT, true, "[2001:db8:1::20]:8017")
	// Payloads of build's begin as a short header with an ID that is the first's.
	quic := service("quic", "192.0.2.17:443", packet.ProtoUDP, conntrack.FullNAT, false, "10.0.1.20:443", "10.0.1.21:443")
	quic.QUIC = QUICSpec{Layout: QUICLB, ConfigID: 0, IDLength: 1}
	quic.Backends[0].ServerID, quic.Backends[1].ServerID = 0x0f, 0x10
	spec.Services = append(spec.Services, strict, shifted, odd, udp6, one, toa6, quic)
	spec.Services = append(spec.Services, oneWayServices()...)
	spec.KeepTTL = rapid.IntRange(0, 7).Draw(rt, "keep TTL") == 0
	return spec
}

func newTwins(rt *rapid.T, t *testing.T) *twins {
	tw := &twins{rt: rt, t: t, gen: 1}
	spec := twinSpec(rt)
	for _, s := range spec.Services {
		tw.vips = append(tw.vips, s.VIP)
	}
	flows := rapid.SampledFrom([]int{64, 1024}).Draw(rt, "flows") // of the few a quarter at most is half-open
	for i := range tw.rigs {
		tw.rigs[i] = newRigWith(onceDrawn{t, rt}, 1, spec, func(o *Options) { o.Flows = flows })
		tw.regs[i] = NewRegistry(1)
		snap, err := tw.regs[i].Build(spec)
		if err != nil {
			rt.Fatal(err)
		}
		tw.rigs[i].dp.Publish(snap)
		tw.rigs[i].step()
	}
	tw.blind()
	tw.routes()
	return tw
}

// blind makes the second worker's ways ones that plain does not know.
func (tw *twins) blind() {
	for i := range tw.rigs[1].dp.Workers[0].ways {
		to := &tw.rigs[1].dp.Workers[0].ways[i]
		to.header, to.marks = 0, to.marks&^clientsOnly
	}
}

// feed gives both the same frames and compares what comes of it.
func (tw *twins) feed(nic int, frames ...[]byte) []sentFrame {
	tw.rt.Helper()
	a, b := tw.rigs[0].deliver(0, nic, frames...), tw.rigs[1].deliver(0, nic, frames...)
	if diff := cmp.Diff(b, a, cmp.AllowUnexported(sentFrame{})); diff != "" {
		tw.rt.Fatalf("sent, general and plain:\n%s", diff)
	}
	v, w := tw.rigs[0].dp.Workers[0], tw.rigs[1].dp.Workers[0]
	if diff := cmp.Diff(w.Counts(), v.Counts()); diff != "" {
		tw.rt.Fatalf("counts, general and plain:\n%s", diff)
	}
	if diff := cmp.Diff(w.BackendCounts(), v.BackendCounts()); diff != "" {
		tw.rt.Fatalf("backends, general and plain:\n%s", diff)
	}
	if diff := cmp.Diff(w.table.Stats(), v.table.Stats()); diff != "" {
		tw.rt.Fatalf("flows, general and plain:\n%s", diff)
	}
	for r := conntrack.Ref(0); r <= 64; r++ {
		if e, f := v.table.Entry(r), w.table.Entry(r); *e != *f {
			tw.rt.Fatalf("flow %d, general and plain:\n%+v\n%+v", r, *f, *e)
		}
	}
	return a
}

// addFlow opens a flow and lets both ends speak.
func (tw *twins) addFlow() {
	n := len(tw.live)
	vip := tw.vips[rapid.OneOf(rapid.IntRange(strictService, strictService+2), rapid.IntRange(0, len(tw.vips)-1), rapid.IntRange(len(tw.vips)-len(oneWayServices()), len(tw.vips)-1)).Draw(tw.rt, "service")]
	f := &twinFlow{vip: hostPort(vip.Addr.String(), vip.Port), udp: vip.Proto == packet.ProtoUDP}
	f.client = fmt.Sprintf("198.51.100.%d:%d", 1+n%200, 40000+n)
	if !vip.Addr.Is4() {
		f.client = fmt.Sprintf("[2001:db8:c::%d]:%d", 1+n%200, 40000+n)
	}
	f.seq, f.ack = rapid.Uint32().Draw(tw.rt, "ISN"), rapid.Uint32().Draw(tw.rt, "server ISN")
	opts := []layers.TCPOption{mss(1460)}
	if rapid.Bool().Draw(tw.rt, "scaled") {
		opts = append(opts, layers.TCPOption{OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{uint8(rapid.IntRange(0, 14).Draw(tw.rt, "scale"))}})
	}
	out := tw.feed(0, build(tw.t, seg{src: f.client, dst: f.vip, udp: f.udp, syn: !f.udp, seq: f.seq, opts: opts}))
	if len(out) != 1 {
		return
	}
	var p packet.Packet
	if err := packet.Parse(out[0].bytes, &p); err != packet.ErrNone {
		tw.rt.Fatal(err)
	}
	f.local, f.backend = hostPort(p.Src.String(), p.SrcPort), hostPort(p.Dst.String(), p.DstPort)
	f.delta = p.Seq - f.seq
	tw.live = append(tw.live, f)
	if rapid.IntRange(0, 3).Draw(tw.rt, "answered") == 0 {
		return
	}
	tw.feed(1, build(tw.t, seg{src: f.backend, dst: f.local, udp: f.udp, syn: true, ack: true, seq: f.ack, ackNum: f.seq + 1 + f.delta, opts: opts}))
	f.seq++
	f.ack++
	f.first = f.ack
	tw.feed(0, build(tw.t, seg{src: f.client, dst: f.vip, udp: f.udp, ack: true, seq: f.seq, ackNum: f.ack}))
}

// options are what the segments of twins bear.
var twinOptions = map[string][]layers.TCPOption{
	"none":       nil,
	"timestamps": {nop, nop, {OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: []byte{1, 2, 3, 4, 5, 6, 7, 8}}},
	"sack":       {nop, nop, {OptionType: layers.TCPOptionKindSACK, OptionLength: 10, OptionData: []byte{1, 2, 3, 4, 5, 6, 7, 8}}},
	"toa":        {{OptionType: 254, OptionLength: 8, OptionData: []byte{1, 2, 3, 4, 5, 6}}},
	"others":     {{OptionType: 77, OptionLength: 10, OptionData: []byte{1, 2, 3, 4, 5, 6, 7, 8}}, nop, nop},
}

var nop = layers.TCPOption{OptionType: layers.TCPOptionKindNop, OptionLength: 1}

// packetOf is a packet of flow f: mostly the next one, at times anything.
func (tw *twins) packetOf(f *twinFlow, reply bool) []byte {
	rt := tw.rt
	s := seg{src: f.client, dst: f.vip, udp: f.udp, seq: f.seq, ackNum: f.ack, srcMAC: clientMAC}
	if reply {
		s.src, s.dst, s.seq, s.ackNum, s.srcMAC = f.backend, f.local, f.ack, f.seq+f.delta, serverMAC
	}
	odd := func(name string) bool { return rapid.IntRange(0, 11).Draw(rt, name) == 0 }
	s.ack, s.payload = true, rapid.SampledFrom([]int{0, 0, 1, 6, 7, 100, 1440, 1441, 1448, 1449, 1460, 1461}).Draw(rt, "payload")
	s.opts = twinOptions[rapid.SampledFrom([]string{"none", "none", "none", "timestamps", "timestamps", "sack", "toa", "others"}).Draw(rt, "options")]
	near := rapid.SampledFrom([]uint32{0, 1, 100, 1 << 16, 1<<16 + 1, 1 << 17, 1 << 18, 1<<31 - 1, 1 << 31})
	if odd("sequence") {
		s.seq += near.Draw(rt, "off") * rapid.SampledFrom([]uint32{1, ^uint32(0)}).Draw(rt, "sign")
	}
	if odd("acknowledgement") {
		s.ackNum += near.Draw(rt, "off") * rapid.SampledFrom([]uint32{1, ^uint32(0)}).Draw(rt, "sign")
	}
	if !reply && rapid.IntRange(0, 3).Draw(rt, "old acknowledgement") == 0 {
		s.ackNum = f.first
	}
	s.ttl = rapid.SampledFrom([]uint8{64, 64, 64, 255, 2, 1}).Draw(rt, "TTL")
	if odd("sender") {
		s.srcMAC = serverMAC
	}
	if odd("VLAN") {
		s.vlan = 7
	}
	if odd("flags") {
		flags := rapid.Uint8().Draw(rt, "bits")
		s.syn, s.fin, s.rst, s.ack = flags&1 != 0, flags&2 != 0, flags&4 != 0, flags&8 != 0
	}
	if !odd("lost") {
		if reply {
			f.ack += uint32(s.payload)
		} else {
			f.seq += uint32(s.payload)
		}
	}
	b := build(tw.t, s)
	at := 14
	if s.vlan != 0 {
		at = 18
	}
	if b[at]>>4 == 4 && odd("fragmentable") {
		b = freely(b)
	}
	if odd("marked") {
		b[at+1] = rapid.Byte().Draw(rt, "TOS")
	}
	if netip.MustParseAddrPort(s.src).Addr().Is4() {
		at += 20
	} else {
		at += 40
	}
	if at += 16; f.udp {
		at -= 10
	}
	if odd("checksum") {
		binary.BigEndian.PutUint16(b[at:], rapid.SampledFrom([]uint16{0, 0xffff, 1, 0x1234}).Draw(rt, "wrong"))
	}
	if !f.udp && odd("window") {
		binary.BigEndian.PutUint16(b[at-2:], rapid.Uint16().Draw(rt, "bytes"))
	}
	if odd("padded") {
		b = append(b, make([]byte, 16)...)
	}
	return tw.damage(b)
}

// routes publishes others: with a new generation or without, and hops of all sorts.
func (tw *twins) routes() {
	rt := tw.rt
	tw.gen += rapid.Uint32Range(0, 1).Draw(rt, "new generation")
	t := testRoutesOf(tw.gen, rapid.SampledFrom([]uint16{1500, 1500, 1400, 576}).Draw(rt, "MTU"))
	hops := append([]route.Hop(nil), t.Hops...)
	for i := 1; i <= 2; i++ {
		switch rapid.IntRange(0, 5).Draw(rt, "hop") {
		case 0:
			hops[i].State = route.Unresolved
		case 1:
			hops[i] = route.NewHop(hops[i].Port, [6]byte{2, 9, 9, 9, 9, byte(i)}, nicMAC[i-1], 0x81000000|5, int(hops[i].MTU))
		case 2:
			hops[i].Port = 9
		}
	}
	t = t.WithHops(hops).WithPeers(tw.peers())
	for _, r := range tw.rigs {
		r.dp.PublishRoutes(t)
	}
}

// TestPlainTwin: a packet that plain takes comes out as it would have otherwise, to
// the byte, and leaves the same flow, the same windows, deadlines and counts behind.
func TestPlainTwin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tw := newTwins(rt, t)
		for range 4 {
			tw.addFlow()
		}
		rt.Repeat(map[string]func(*rapid.T){
			"flow": func(rt *rapid.T) {
				if len(tw.live) > 32 {
					rt.Skip()
				}
				tw.addFlow()
			},
			"packets": func(rt *rapid.T) { tw.burst() },
			"more":    func(rt *rapid.T) { tw.burst() },
			"later": func(rt *rapid.T) {
				d := rapid.OneOf(rapid.Int64Range(0, 3e9), rapid.Int64Range(0, 400e9)).Draw(rt, "time")
				for _, r := range tw.rigs {
					r.now += d
				}
			},
			"routes": func(rt *rapid.T) { tw.routes() },
			"reload": func(rt *rapid.T) { tw.reload() },
		})
	})
}

// burst lets packets of few flows arrive together, in both directions.
func (tw *twins) burst() {
	if len(tw.live) == 0 {
		return
	}
	var frames [][]byte
	for range rapid.IntRange(1, 24).Draw(tw.rt, "packets") {
		f := tw.live[rapid.IntRange(0, len(tw.live)-1).Draw(tw.rt, "flow")]
		frames = append(frames, tw.packetOf(f, rapid.Bool().Draw(tw.rt, "reply")))
	}
	tw.feed(rapid.IntRange(0, 1).Draw(tw.rt, "NIC"), frames...)
}

// TestPlainTakes: plain knows what nearly all packets are, and nothing else.
func TestPlainTakes(t *testing.T) {
	const client4, client6 = "198.51.100.7:40000", "[2001:db8:c::7]:40000"
	ack := seg{ack: true, seq: 1001, ackNum: 9001, payload: 10}
	with := func(change func(*seg)) seg {
		s := ack
		change(&s)
		return s
	}
	tests := []struct {
		name, client, vip string
		s                 seg
		plain             bool
	}{
		{"full-nat v4", client4, "192.0.2.10:80", ack, true},
		{"full-nat v6", client6, "[2001:db8::10]:80", ack, true},
		{"dnat v4", client4, "192.0.2.11:80", ack, true},
		{"dnat v6", client6, "[2001:db8::11]:80", ack, true},
		{"timestamps", client4, "192.0.2.11:80", with(func(s *seg) { s.opts = twinOptions["timestamps"] }), true},
		{"sack", client4, "192.0.2.11:80", with(func(s *seg) { s.opts = twinOptions["sack"] }), false},
		{"forged TOA", client4, "192.0.2.11:80", with(func(s *seg) { s.opts = twinOptions["toa"] }), false},
		{"fin", client4, "192.0.2.11:80", with(func(s *seg) { s.fin = true }), false},
		{"rst", client4, "192.0.2.11:80", with(func(s *seg) { s.rst = true }), false},
		{"ttl", client4, "192.0.2.11:80", with(func(s *seg) { s.ttl = 1 }), false},
		{"mtu", client4, "192.0.2.11:80", with(func(s *seg) { s.payload = 1460 }), true},
		{"too big", client4, "192.0.2.11:80", with(func(s *seg) { s.payload = 1461 }), false},
		{"nat64", client6, "[2001:db8::64]:80", ack, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 1, testSpec())
			c := r.open(0, tt.client, tt.vip)
			tt.s.src, tt.s.dst = tt.client, tt.vip
			if v := r.plain(build(t, tt.s)); v != undecided != tt.plain {
				t.Errorf("client's: verdict %d", v)
			}
			tt.s.src, tt.s.dst, tt.s.seq, tt.s.ackNum = c.backend, c.local, 9001, c.isn+1
			if tt.name == "forged TOA" {
				return // there is none from a server
			}
			if v := r.plain(build(t, tt.s)); v != undecided != tt.plain {
				t.Errorf("server's: verdict %d", v)
			}
		})
	}
}

// TestPlainTOAHeadroom: a frame that came with no room before it gets no TOA, and
// nothing of its neighbour's is written.
func TestPlainTOAHeadroom(t *testing.T) {
	const client = "198.51.100.7:40001"
	for _, tt := range []struct {
		room uint64
		want nat.TOAResult
	}{{4, nat.TOANoHeadroom}, {7, nat.TOANoHeadroom}, {8, nat.TOAInserted}, {12, nat.TOAInserted}, {64, nat.TOAInserted}} {
		r := newRig(t, 1, testSpec())
		c := r.open(0, client, "192.0.2.10:80")
		before := r.dp.Workers[0].Counts().TOA
		v := r.plainAt(tt.room, build(t, seg{src: client, dst: "192.0.2.10:80", ack: true, seq: c.isn + 1, ackNum: 9001, payload: 6}))
		got := r.dp.Workers[0].Counts().TOA
		before[tt.want]++
		if v != Forwarded || got != before {
			t.Errorf("%d bytes of room: verdict %d, counts %v, want %v", tt.room, v, got, before)
		}
	}
}

// TestPlainNearerDeadline: a deadline that comes nearer is not plain, for the wheel may
// come by too late for it.
func TestPlainNearerDeadline(t *testing.T) {
	const client = "198.51.100.7:40001"
	for more, want := range map[uint32]Verdict{0: Forwarded, 1: undecided} {
		r := newRig(t, 1, testSpec())
		c := r.open(0, client, "192.0.2.10:80")
		w := r.dp.Workers[0]
		for ref := conntrack.Ref(1); ref <= 64; ref++ {
			if e := w.table.Entry(ref); e.State == conntrack.Established {
				e.Expires = w.tick + w.ways[e.Backend].timeout + more
			}
		}
		if v := r.plain(build(t, seg{src: client, dst: "192.0.2.10:80", ack: true, seq: c.isn + 1, ackNum: 9001, payload: 6})); v != want {
			t.Errorf("%d ticks nearer: verdict %d, want %d", more, v, want)
		}
	}
}

// plain gives the only worker's plain a frame, and returns its word.
func (r *rig) plain(frame []byte) Verdict {
	r.t.Helper()
	return r.plainAt(memport.Headroom, frame)
}

// plainAt is plain with so much room before the frame.
func (r *rig) plainAt(room uint64, frame []byte) Verdict {
	r.t.Helper()
	w := r.dp.Workers[0]
	at := w.pool.take(1)[0] + room
	w.b.desc[0] = unix.XDPDesc{Addr: at, Len: uint32(copy(w.umem[at:], frame))}
	if n := w.parse(1); n != 1 {
		r.t.Fatal("no packet of a flow")
	}
	w.find(1)
	c := w.b.look.Found[0]
	if c.Ref() == 0 {
		r.t.Fatal("no flow")
	}
	alone := plainAlone[client]
	if c.Dir() != conntrack.Forward {
		alone = plainAlone[server]
	}
	v := alone(w)
	if v == undecided {
		w.release(at)
	}
	w.flush()
	return v
}

// plainAlone is actFor for the only packet of a burst, as far as that knows it.
func plainAlone[S sender](w *Worker) Verdict {
	pass := plain[S, v4]
	if w.b.ip[0] >= isV6 {
		pass = plain[S, v6]
	}
	switch at, toa := pass(w, []uint8{0}, 0); {
	case at != 0:
		return Forwarded + Verdict(len(*new(S)))
	case w.b.ip[0] == 0: // as in actFor
		return undecided
	case toa:
		return w.plainTOA(0)
	}
	return w.rarely(0)
}

// TestRarelyAsksTheRoutes: what rarely knows goes by the routes that are, not by those
// it has gone by before.
func TestRarelyAsksTheRoutes(t *testing.T) {
	spec := testSpec()
	quic := service("quic", "192.0.2.17:443", packet.ProtoUDP, conntrack.FullNAT, false, "10.0.1.20:443")
	quic.QUIC = QUICSpec{Layout: QUICLB, ConfigID: 0, IDLength: 1}
	oneWay := service("oneway", "192.0.2.18:443", packet.ProtoUDP, conntrack.DNATOneWay, false, "10.0.1.20:443")
	spec.Services = append(spec.Services, quic, oneWay)
	for _, vip := range []string{"192.0.2.17:443", "192.0.2.18:443"} {
		r := newRig(t, 1, spec)
		f := build(t, seg{src: "198.51.100.7:4000", dst: vip, udp: true, payload: 20})
		for range 3 {
			r.one(0, 0, 1, f)
		}
		p := func(s string, id route.HopID) route.Prefix {
			return route.Prefix{Prefix: netip.MustParsePrefix(s), Hop: id}
		}
		r.dp.PublishRoutes(route.New(2, []route.Hop{{}, // the same two hops, the other way round
			route.NewHop(1, serverMAC, nicMAC[1], 0, 1500), route.NewHop(0, clientMAC, nicMAC[0], 0, 1500)},
			[]route.Prefix{p("198.51.100.0/24", 2), p("10.0.1.0/24", 1)}))
		r.one(0, 0, 1, f)
	}
}
