package dataplane

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// TestAnyQueue sends every packet of many flows, both directions, to a worker
// drawn at random: they must all meet their flow.
func TestAnyQueue(t *testing.T) {
	for _, vip := range []string{"192.0.2.10:80", "192.0.2.11:80"} {
		t.Run(vip, func(t *testing.T) {
			r := newRig(t, 3, testSpec())
			rng := rand.New(rand.NewPCG(1, 2))
			for i := range 200 {
				c := r.open(rng.IntN(3), fmt.Sprintf("198.51.100.7:%d", 20000+i), vip)
				c.worker = rng.IntN(3)
				c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10})
				c.worker = rng.IntN(3)
				c.fromClient(seg{ack: true, seq: 1001, ackNum: 9011, payload: 10})
			}
			got := r.counts()
			if got.Drops() != 0 || got.Opened != 200 || got.Verdicts[HandedOver] == 0 {
				t.Errorf("%+v", got)
			}
			var share []uint64
			for _, w := range r.dp.Workers {
				share = append(share, w.Counts().Opened)
				if w.Counts().Opened < 30 {
					t.Errorf("worker %d owns %d of 200 flows", w.ID(), w.Counts().Opened)
				}
			}
			t.Log("flows by worker:", share, "handed over:", got.Verdicts[HandedOver])
		})
	}
}

func TestHandoffRingFullDrops(t *testing.T) {
	r := newRig(t, 2, testSpec())
	// Worker 1 never polls. Fill the ring to it beforehand, or the frames in
	// reach would not do.
	ring := r.dp.mesh.packets[0][1]
	for range handoffSlots {
		ring.put(0, 0)
	}
	ring.publish()
	dropped := func() uint64 { return r.dp.Workers[0].Counts().Verdicts[DropHandoffFull] }
	for i := range 50 {
		r.port[0][0].Feed([][]byte{build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1000+i), dst: "192.0.2.10:80", syn: true})}, 1)
		r.dp.Workers[0].Poll(r.now)
	}
	if dropped() == 0 {
		t.Error("nothing dropped")
	}
	ring.pop(make([]uint64, handoffSlots))
}

func TestDNATTupleConflictTakesAnotherBackend(t *testing.T) {
	spec := testSpec()
	spec.Services = []ServiceSpec{
		service("a", "192.0.2.11:80", packet.ProtoTCP, conntrack.DNAT, false, "10.0.1.20:80", "10.0.1.21:80"),
		service("b", "192.0.2.12:80", packet.ProtoTCP, conntrack.DNAT, false, "10.0.1.20:80", "10.0.1.21:80"),
		service("c", "192.0.2.13:80", packet.ProtoTCP, conntrack.DNAT, false, "10.0.1.20:80", "10.0.1.21:80"),
	}
	r := newRig(t, 1, spec)
	a := r.open(0, "198.51.100.7:40000", "192.0.2.11:80")
	b := r.open(0, "198.51.100.7:40000", "192.0.2.12:80")
	if a.backend == b.backend {
		t.Errorf("both at %s: replies would be mixed up", a.backend)
	}
	r.refused(0, 0, DropTupleConflict, build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.13:80", syn: true}))
}

func TestPortsExhausted(t *testing.T) {
	spec := testSpec()
	spec.Locals = spec.Locals[:2] // both IPv4
	spec.Services = spec.Services[2:3]
	r := newRigWith(t, 1, spec, func(o *Options) {
		o.LocalPorts = []nat.PortRange{{First: 2000, Last: 2003}, {First: 3000, Last: 3001}}
	})
	query := func(i int) []byte {
		return build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1024+i), dst: "192.0.2.10:5000", udp: true})
	}
	seen := map[string]bool{}
	for i := range 6 {
		src, _ := ipOf(verify(t, r.one(0, 0, 1, query(i))))
		seen[src.String()] = true
	}
	if len(seen) != 2 {
		t.Errorf("local addresses used: %v, want both", seen)
	}
	r.refused(0, 0, DropPortsExhausted, query(6))
	if got := r.dp.Workers[0].ServiceCounts()[0].PortsExhausted; got != 1 {
		t.Errorf("service has counted %d", got)
	}
	r.one(0, 0, 1, query(3)) // those that have a flow keep it
	r.now += int64(time.Second)
	r.refused(0, 0, DropPortsExhausted, query(6)) // it would get a late answer of another's
	r.now += int64(2 * time.Second)
	r.one(0, 0, 1, query(6))
}

func TestTableFull(t *testing.T) {
	r := newRigWith(t, 1, testSpec(), func(o *Options) { o.Flows = 16 })
	query := func(i int) []byte {
		return build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1024+i), dst: "192.0.2.11:5000", udp: true})
	}
	answer := func(i int) []byte {
		return build(t, seg{src: "10.0.1.20:5000", dst: fmt.Sprintf("198.51.100.7:%d", 1024+i), udp: true})
	}
	for i := range 16 {
		r.one(0, 0, 1, query(i))
		r.one(0, 1, 0, answer(i))
	}
	r.refused(0, 0, DropTableFull, query(16))
	r.one(0, 0, 1, query(7)) // an established flow never makes room
}

func TestHalfOpenMakesRoom(t *testing.T) {
	r := newRigWith(t, 1, testSpec(), func(o *Options) { o.Flows = 16 })
	for i := range 100 {
		r.one(0, 0, 1, build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1024+i), dst: "192.0.2.11:80", syn: true}))
		r.now += int64(100 * time.Millisecond) // slow enough for handshakes
	}
	if c := r.counts(); c.Opened != 100 || c.Evicted != 96 {
		t.Errorf("opened %d, evicted %d; want 100, 96", c.Opened, c.Evicted)
	}
	var active int64
	for _, b := range r.dp.Workers[0].BackendCounts() {
		active += b.Active
	}
	if active != 4 {
		t.Errorf("%d flows active at backends, want 4", active)
	}
}

// TestAnswers lets gopacket judge what the worker says to ARP, neighbour
// solicitation and ping for a VIP and a local address.
func TestAnswers(t *testing.T) {
	r := newRig(t, 1, testSpec())
	arp := func(target []byte) []byte {
		return serialize(t,
			&layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: []byte{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeARP},
			&layers.ARP{AddrType: 1, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
				SourceHwAddress: clientMAC[:], SourceProtAddress: []byte{198, 51, 100, 7}, DstHwAddress: make([]byte, 6), DstProtAddress: target})
	}
	for _, target := range [][]byte{{192, 0, 2, 10}, {10, 0, 1, 11}} {
		got := gopacket.NewPacket(r.one(0, 0, 0, arp(target)), layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeARP).(*layers.ARP)
		if got.Operation != 2 || string(got.SourceHwAddress) != string(nicMAC[0][:]) || string(got.SourceProtAddress) != string(target) {
			t.Errorf("ARP answer %+v", got)
		}
	}
	r.refused(0, 0, DropNotOurs, arp([]byte{192, 0, 2, 99}))

	ip := &layers.IPv4{Version: 4, TTL: 3, Protocol: layers.IPProtocolICMPv4, SrcIP: []byte{198, 51, 100, 7}, DstIP: []byte{192, 0, 2, 10}}
	ping := serialize(t, &layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: nicMAC[0][:], EthernetType: layers.EthernetTypeIPv4}, ip,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 7, Seq: 9}, gopacket.Payload("hello"))
	pong := verify(t, r.one(0, 0, 0, ping)).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if pong.TypeCode.Type() != 0 || pong.Id != 7 || pong.Seq != 9 {
		t.Errorf("ping answer %+v", pong)
	}

	target := endpoint("[2001:db8:1::10]:1", 6).Addr.Netip().AsSlice()
	group := append([]byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff}, target[13:]...)
	ip6 := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: addr("2001:db8:c::7").Netip().AsSlice(), DstIP: group}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, 0)}
	_ = icmp.SetNetworkLayerForChecksum(ip6)
	ns := serialize(t, &layers.Ethernet{SrcMAC: clientMAC[:], DstMAC: append([]byte{0x33, 0x33}, group[12:]...), EthernetType: layers.EthernetTypeIPv6}, ip6, icmp,
		&layers.ICMPv6NeighborSolicitation{TargetAddress: target, Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: clientMAC[:]}}})
	na := verify(t, r.one(0, 0, 0, ns)).Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
	if string(na.TargetAddress) != string(target) || na.Flags&0x60 != 0x60 {
		t.Errorf("NA %+v", na)
	}
}

func serialize(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return append([]byte(nil), buf.Bytes()...)
}

// TestICMPErrorFollowsItsFlow has a router behind the backend's side complain
// about a packet of the flow.
func TestICMPErrorFollowsItsFlow(t *testing.T) {
	r := newRig(t, 2, testSpec())
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	out := r.deliver(0, 0, build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 100}))
	if len(out) != 1 {
		t.Fatal("no data packet")
	}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: []byte{10, 0, 1, 1}, DstIP: addr(c.local[:len("10.0.1.10")]).Netip().AsSlice()}
	e := serialize(t, &layers.Ethernet{SrcMAC: serverMAC[:], DstMAC: nicMAC[1][:], EthernetType: layers.EthernetTypeIPv4}, ip,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: 1400}, gopacket.Payload(out[0].bytes[14:14+20+8]))
	for worker := range 2 {
		got := verify(t, r.one(worker, 1, 0, e))
		icmp := got.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		inner := icmp.Payload
		if _, dst := ipOf(got); dst.String() != "198.51.100.7" {
			t.Errorf("error goes to %v", dst)
		}
		if string(inner[12:20]) != string([]byte{198, 51, 100, 7, 192, 0, 2, 10}) {
			t.Errorf("embedded addresses % d", inner[12:20])
		}
		if p := binary.BigEndian.Uint16(inner[20:]); p != 40000 {
			t.Errorf("embedded port %d", p)
		}
		if s := binary.BigEndian.Uint32(inner[24:]); s != 1001 {
			t.Errorf("embedded sequence %d", s)
		}
	}
}

func TestExpiry(t *testing.T) {
	r := newRig(t, 1, testSpec())
	r.one(0, 0, 1, build(t, seg{src: "198.51.100.7:4000", dst: "192.0.2.10:5000", udp: true}))
	w := r.dp.Workers[0]
	for end := r.now + int64(time.Hour); r.now < end && w.Counts().Expired == 0; r.now += int64(time.Second) {
		w.Poll(r.now)
	}
	if w.Counts().Expired != 1 || w.table.Len() != 0 {
		t.Errorf("%+v", w.Counts())
	}
	for _, b := range w.BackendCounts() {
		if b.Active != 0 {
			t.Errorf("active %d", b.Active)
		}
	}
}

// TestNoAllocation covers a hit, a miss that opens, a refusal, garbage, an
// answer and expiry.
func TestNoAllocation(t *testing.T) {
	r := newRig(t, 2, testSpec())
	c := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	data := build(t, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 10})
	reply := build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10})
	syn := build(t, seg{src: "198.51.100.8:1", dst: "192.0.2.10:80", syn: true})
	udp := build(t, seg{src: "198.51.100.8:1", dst: "192.0.2.11:5000", udp: true})
	port := binary.BigEndian.Uint16
	n := uint16(1)
	for _, p := range r.port {
		p[0].OnSend, p[1].OnSend = nil, nil
	}
	tests := []struct {
		name string
		list [][]byte
		each func()
	}{
		{"hits", [][]byte{data, reply, data, reply}, nil},
		{"opening", [][]byte{syn, udp}, func() {
			n++
			binary.BigEndian.PutUint16(syn[34:], n)
			binary.BigEndian.PutUint16(udp[34:], n)
			_ = port
		}},
		{"refused", [][]byte{build(t, seg{src: c.client, dst: "192.0.2.10:81", syn: true}), data[:30], {1}, {}}, nil},
		{"garbage", [][]byte{make([]byte, 60)}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			allocs := testing.AllocsPerRun(500, func() {
				if tt.each != nil {
					tt.each()
				}
				r.now += int64(10 * time.Millisecond)
				r.port[0][0].Feed(tt.list, 1)
				r.step()
			})
			if allocs != 0 {
				t.Errorf("%v allocations", allocs)
			}
		})
	}
}

// TestManyThreads runs three workers on real threads, hand-off between all of
// them, while another goroutine exchanges ports, snapshots and routes under
// their feet. The audit at the end wants every frame.
func TestManyThreads(t *testing.T) {
	const workers = 3
	r := newRig(t, workers, testSpec())
	var frames [][]byte
	for i := range 300 {
		f := build(t, seg{src: fmt.Sprintf("198.51.100.7:%d", 1000+i), dst: "192.0.2.11:5000", udp: true, payload: i})
		if i%3 == 0 && i > 100 {
			pieces := cut(f, uint32(i), 72)
			slices.Reverse(pieces)
			frames = append(frames, pieces...)
			continue
		}
		frames = append(frames, f)
	}
	for i := range 100 {
		c := r.open(i%workers, fmt.Sprintf("198.51.100.8:%d", 1000+i), "192.0.2.10:80")
		frames = append(frames, build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 1, payload: i}))
	}
	for _, ports := range r.port {
		ports[0].OnSend, ports[1].OnSend = nil, nil
		ports[0].Feed(frames, 1<<30)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for _, w := range r.dp.Workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := w.Run(Run{CPU: -1, Adaptive: w.ID() == 1, Clock: Monotonic(), Stop: &stop}); err != nil {
				t.Error(err)
			}
		}()
	}
	registry := NewRegistry(workers)
	for i := range 30 {
		spec := testSpec()
		for j := range spec.Services { // schedulers that ask all workers, limits that come and go
			s := &spec.Services[j]
			s.Scheduler = []balance.Kind{balance.LeastConn, balance.TwoChoices, balance.RoundRobin}[(i+j)%3]
			s.Backends[0].MaxConnections = uint32(i % 3 * 50)
		}
		snap, err := registry.Build(spec)
		if err != nil {
			t.Fatal(err)
		}
		r.dp.Publish(snap)
		r.dp.PublishRoutes(testRoutes(uint32(i)))
		w := r.dp.Workers[i%workers]
		var closed []Port
		if err := w.Do(t.Context(), func(w *Worker) { closed = w.Detach(0) }); err != nil {
			t.Fatal(err)
		}
		fresh := memport.New(r.dp.umem, testFrame, testRing)
		fresh.Feed(frames, 1<<30)
		if err := w.Do(t.Context(), func(w *Worker) {
			for _, p := range closed {
				w.Adopt(p.Held(nil))
			}
			if err := w.Attach(0, nicMAC[0], fresh); err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	stop.Store(true)
	for _, w := range r.dp.Workers {
		w.Wake()
	}
	wg.Wait()
	c := r.counts()
	if c.Received < 10000 || c.Verdicts[HandedOver] == 0 || c.Sent == 0 || c.Verdicts[DropFragmentDuplicate] == 0 || c.Verdicts[Replied] < 1000 {
		t.Errorf("%+v", c)
	}
	t.Logf("%d received, %d handed over, %d sent", c.Received, c.Verdicts[HandedOver], c.Sent)
}

func BenchmarkPipeline(b *testing.B) {
	r := newRig(b, 1, testSpec())
	var frames [][]byte
	for i := range 1000 {
		c := r.open(0, fmt.Sprintf("198.51.100.7:%d", 1024+i), "192.0.2.10:80")
		frames = append(frames,
			build(b, seg{src: c.client, dst: c.vip, ack: true, seq: 1001, ackNum: 9001, payload: 6}),
			build(b, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 1, payload: 6}))
	}
	p := r.port[0][0]
	p.OnSend, r.port[0][1].OnSend = nil, nil
	p.Feed(frames, 1<<40)
	b.ResetTimer()
	b.ReportAllocs()
	for n := 0; n < b.N; {
		n += r.dp.Workers[0].Poll(1)
	}
}

// TestSpreadNeedsNoHandoff gives the rig NICs that hash as l4fwd was told:
// every packet of a Full-NAT flow, both directions, must arrive at its owner.
func TestSpreadNeedsNoHandoff(t *testing.T) {
	const workers = 4
	key := make([]byte, 52)
	for i := range key {
		key[i] = byte(i*37 + 11)
	}
	nic := newNIC(workers, key)
	r := newRigWith(t, workers, testSpec(), func(o *Options) { o.Spread = nic.told(t) })
	queueOf := func(src, dst string) int {
		s, d := endpoint(src, 6), endpoint(dst, 6)
		return nic.worker(s.Addr, d.Addr, s.Port, d.Port)
	}
	for i := range 200 {
		vip, client := "192.0.2.10:80", fmt.Sprintf("198.51.100.7:%d", 20000+i)
		if i%2 == 1 {
			vip, client = "[2001:db8::10]:80", fmt.Sprintf("[2001:db8:c::7]:%d", 20000+i)
		}
		c := &conv{r: r, client: client, vip: vip, worker: queueOf(client, vip)}
		syn := verify(t, r.one(c.worker, 0, 1, build(t, seg{src: client, dst: vip, syn: true, seq: 1000})))
		src, dst := ipOf(syn)
		c.local, c.backend, c.isn = hostPort(src.String(), uint16(tcpOf(syn).SrcPort)), hostPort(dst.String(), uint16(tcpOf(syn).DstPort)), tcpOf(syn).Seq
		c.worker = queueOf(c.backend, c.local)
		c.fromServer(seg{syn: true, ack: true, seq: 9000, ackNum: c.isn + 1})
	}
	if c := r.counts(); c.Verdicts[HandedOver] != 0 || c.Opened != 200 {
		t.Errorf("%d of %d flows' packets handed over", c.Verdicts[HandedOver], c.Opened)
	}
	for _, w := range r.dp.Workers {
		if w.Counts().Opened < 20 {
			t.Errorf("worker %d owns %d of 200 flows", w.ID(), w.Counts().Opened)
		}
	}
	// One that strays is brought home all the same.
	c := r.open(1, "198.51.100.7:9", "192.0.2.10:80")
	for c.worker = range workers {
		c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1, payload: 5})
		c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 5})
	}
}
