package dataplane

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// streams are packets that are numbered, of flows whose directions each arrive at one
// worker, mostly not the owner.
type streams struct {
	*rig
	rt  *rapid.T
	all []*stream
	reg *Registry
	gen uint32
}

// stream is one direction of a flow.
type stream struct {
	frame   []byte
	worker  int
	nic     int
	fed     uint32
	came    []uint32
	outPort uint16 // which, with its destination, tells it from the others when it is out
	outAddr packet.Addr
}

// streamData is how long the packets' data is, which ends with their number.
const streamData = 8

// next makes the next packet of a stream. Some of TCP have a FIN, so that they take
// another way through the stages than those around them.
func (st *streams) next(d *stream) []byte {
	b := slices.Clone(d.frame)
	var p packet.Packet
	if packet.Parse(b, &p) != packet.ErrNone {
		st.rt.Fatalf("%x", b)
	}
	binary.BigEndian.PutUint32(b[p.End-4:], d.fed)
	diff := packet.DiffBytes(d.frame[p.End-4:p.End], b[p.End-4:p.End])
	if at := p.L4 + packet.TCPChecksum; p.Kind == packet.KindTCP {
		if word := p.L4 + packet.TCPOffset; rapid.IntRange(0, 7).Draw(st.rt, "FIN") == 0 {
			b[p.L4+packet.TCPFlags] |= packet.FIN
			binary.BigEndian.PutUint16(b[at:], packet.Apply(binary.BigEndian.Uint16(b[at:]), packet.DiffBytes(d.frame[word:word+2], b[word:word+2])))
		}
		binary.BigEndian.PutUint16(b[at:], packet.Apply(binary.BigEndian.Uint16(b[at:]), diff))
	} else {
		at = p.L4 + packet.UDPChecksum
		binary.BigEndian.PutUint16(b[at:], packet.ApplyUDP(binary.BigEndian.Uint16(b[at:]), diff))
	}
	d.fed++
	return b
}

// add opens a flow, and makes its two directions streams.
func (st *streams) add() {
	vip := rapid.SampledFrom(testSpec().Services[:5]).Draw(st.rt, "service").VIP
	n := len(st.all)
	client := fmt.Sprintf("198.51.100.%d:%d", 1+n%200, 40000+n)
	if !vip.Addr.Is4() {
		client = fmt.Sprintf("[2001:db8:c::%d]:%d", 1+n%200, 40000+n)
	}
	f := seg{src: client, dst: hostPort(vip.Addr.String(), vip.Port), udp: vip.Proto == packet.ProtoUDP, syn: vip.Proto == packet.ProtoTCP, seq: 1000}
	worker := func() int { return rapid.IntRange(0, len(st.dp.Workers)-1).Draw(st.rt, "worker") }
	out := st.deliver(worker(), 0, build(st.t, f))
	var p packet.Packet
	if len(out) != 1 || packet.Parse(out[0].bytes, &p) != packet.ErrNone {
		st.rt.Fatalf("%d frames", len(out))
	}
	r := f
	r.src, r.dst = hostPort(p.Dst.String(), p.DstPort), hostPort(p.Src.String(), p.SrcPort)
	r.seq, r.ack, r.ackNum = 9000, true, p.Seq+1
	if out := st.deliver(worker(), 1, build(st.t, r)); len(out) != 1 {
		st.rt.Fatalf("%d frames in answer", len(out))
	}
	r.syn, f.syn, f.ack, f.seq, f.ackNum, r.seq = false, false, true, 1001, 9001, 9001
	st.deliver(worker(), 0, build(st.t, f))
	st.sent = nil
	f.payload, r.payload = streamData, streamData
	c := endpoint(client, 0)
	st.all = append(st.all, &stream{frame: build(st.t, f), worker: worker(), nic: 0, outAddr: p.Dst, outPort: p.SrcPort},
		&stream{frame: build(st.t, r), worker: worker(), nic: 1, outAddr: c.Addr, outPort: c.Port})
}

// collect sorts what was sent.
func (st *streams) collect() {
	for _, f := range st.sent {
		var p packet.Packet
		if packet.Parse(f.bytes, &p) != packet.ErrNone || !packet.VerifyIPv4(f.bytes, &p) || !packet.VerifyL4(f.bytes, &p) {
			st.rt.Fatalf("sent %x", f.bytes)
		}
		for _, d := range st.all {
			port := p.SrcPort
			if d.nic == 1 {
				port = p.DstPort
			}
			if d.nic != f.nic && p.Dst == d.outAddr && port == d.outPort {
				d.came = append(d.came, binary.BigEndian.Uint32(f.bytes[p.End-4:]))
			}
		}
	}
	st.sent = nil
}

// onceDrawn is a test for what takes a testing.TB, and one of rapid's where it matters:
// it fails, and cleans up, after each of the many times that rapid runs it.
type onceDrawn struct {
	testing.TB
	rt *rapid.T
}

func (d onceDrawn) Cleanup(f func())             { d.rt.Cleanup(f) }
func (d onceDrawn) Error(what ...any)            { d.rt.Error(what...) }
func (d onceDrawn) Errorf(f string, what ...any) { d.rt.Errorf(f, what...) }
func (d onceDrawn) Fatal(what ...any)            { d.rt.Fatal(what...) }
func (d onceDrawn) Fatalf(f string, what ...any) { d.rt.Fatalf(f, what...) }

// TestStreamsInOrder: whichever worker polls when, and whatever is published meanwhile,
// the packets of one direction of a flow that arrive by one queue leave in order, each
// once.
func TestStreamsInOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		workers := rapid.IntRange(2, 4).Draw(rt, "workers")
		st := &streams{rig: newRig(onceDrawn{t, rt}, workers, testSpec()), rt: rt, reg: NewRegistry(workers), gen: 1}
		st.publish(testSpec())
		for range 5 {
			st.add()
		}
		rt.Repeat(map[string]func(*rapid.T){
			"feed": func(*rapid.T) { st.feed() },
			"more": func(*rapid.T) { st.feed() },
			"poll": func(rt *rapid.T) { st.poll() },
			"polls": func(rt *rapid.T) {
				for range rapid.IntRange(1, 8).Draw(rt, "polls") {
					st.poll()
				}
			},
			"publish": func(rt *rapid.T) {
				spec := testSpec()
				for i := range rapid.IntRange(0, 3).Draw(rt, "more locals") {
					spec.Locals = append(spec.Locals, addr(fmt.Sprintf("10.0.1.%d", 100+i)))
				}
				spec.Locals = spec.Locals[rapid.IntRange(0, 1).Draw(rt, "fewer"):]
				if rapid.Bool().Draw(rt, "a local one is a VIP") {
					extra := spec.Services[0]
					extra.Name, extra.VIP.Addr, extra.VIP.Port = "extra", addr("10.0.1.11"), 9
					spec.Services = append(spec.Services, extra)
				}
				st.publish(spec)
			},
			"routes": func(rt *rapid.T) {
				st.gen++
				st.dp.PublishRoutes(testRoutes(st.gen))
			},
		})
		st.end()
	})
}

func (st *streams) publish(spec Spec) {
	snap, err := st.reg.Build(spec)
	if err != nil {
		st.rt.Fatal(err)
	}
	st.dp.Publish(snap)
}

func (st *streams) poll() {
	w := st.dp.Workers[rapid.IntRange(0, len(st.dp.Workers)-1).Draw(st.rt, "worker")]
	w.Poll(st.now)
	st.collect()
}

// feed gives a port that is idle packets of the streams that arrive there.
func (st *streams) feed() {
	worker, nic := rapid.IntRange(0, len(st.dp.Workers)-1).Draw(st.rt, "worker"), rapid.IntRange(0, 1).Draw(st.rt, "NIC")
	var here []*stream
	for _, d := range st.all {
		if d.worker == worker && d.nic == nic {
			here = append(here, d)
		}
	}
	if p := st.port[worker][nic]; len(here) > 0 && p.Idle() {
		var list [][]byte
		for range rapid.IntRange(1, 80).Draw(st.rt, "packets") {
			list = append(list, st.next(here[rapid.IntRange(0, len(here)-1).Draw(st.rt, "stream")]))
		}
		p.Feed(list, 1)
	}
}

// end lets all that is under way arrive.
func (st *streams) end() {
	for i := 0; i < 40; i++ {
		for _, w := range st.dp.Workers {
			w.Poll(st.now)
		}
		st.collect()
	}
	n := st.counts()
	lost, fed, came := n.Verdicts[DropTxFull]+n.Verdicts[DropHandoffFull], uint64(0), uint64(0)
	if n.Drops() != lost {
		st.rt.Errorf("drops: %v", n.Verdicts)
	}
	for i, d := range st.all {
		if !slices.IsSorted(d.came) || len(slices.Compact(slices.Clone(d.came))) != len(d.came) {
			st.rt.Errorf("stream %d at worker %d: %d", i, d.worker, d.came)
		}
		fed, came = fed+uint64(d.fed), came+uint64(len(d.came))
	}
	if came+lost != fed {
		st.rt.Errorf("of %d packets %d came and %d were lost", fed, came, lost)
	}
}
