package dataplane

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/packet"
)

// wide is an MTU for all that the tests' frames hold.
const wide = 1700

// freely is a frame of gopacket's as a sender without path MTU discovery has it.
func freely(f []byte) []byte {
	f = slices.Clone(f)
	if f[14]>>4 == 4 {
		binary.BigEndian.PutUint32(f[14+packet.IPv4ID:], 0xbeef0000)
		f[24], f[25] = 0, 0
		binary.BigEndian.PutUint16(f[24:], packet.Checksum(f[14:34], 0))
	}
	return f
}

// narrow makes all ways out of this MTU.
func (r *rig) narrow(mtu uint16) {
	r.dp.PublishRoutes(testRoutesOf(uint32(r.now)<<12|uint32(mtu), mtu))
	r.step()
}

// splitRow is a datagram too large for its way out.
type splitRow struct {
	name   string
	nic    int
	frame  []byte
	mtu    uint16
	pieces []int // lengths of the packets that leave
	keeps  bool  // its identification
	v      Verdict
}

// splitRows opens flows for its datagrams.
func splitRows(t testing.TB, r *rig) []splitRow {
	udp := func(src, dst string, n int) []byte {
		return freely(build(t, seg{src: src, dst: dst, udp: true, payload: n}))
	}
	const c4, c6 = "198.51.100.7:4000", "[2001:db8:c::7]:4000"
	back := func(client, vip string, n int) []byte {
		out := r.one(0, 0, 1, build(t, seg{src: client, dst: vip, udp: true}))
		return udp(dstOf(out), srcOf(out), n)
	}
	tcp := r.open(0, c6, "[2001:db8::64]:80")
	segment := freely(build(t, seg{src: tcp.backend, dst: tcp.local, ack: true, seq: 9001, ackNum: tcp.isn + 1, payload: 1450}))
	return []splitRow{
		{"client, Full-NAT", 0, udp(c4, "192.0.2.10:5000", 1400), 1300, []int{1300, 148}, false, Forwarded},
		{"client, DNAT", 0, udp(c4, "192.0.2.11:5000", 1400), 576, []int{572, 572, 324}, true, Forwarded},
		{"new client", 0, udp("198.51.100.8:4000", "192.0.2.10:5000", 1600), 1500, []int{1500, 148}, false, Forwarded},
		{"server, Full-NAT", 1, back(c4, "192.0.2.10:5000", 1400), 1300, []int{1300, 148}, false, Replied},
		{"server, DNAT", 1, back(c4, "192.0.2.11:5000", 1400), 1300, []int{1300, 148}, false, Replied},
		{"server, NAT64", 1, back(c6, "[2001:db8::64]:5000", 1472), 1500, []int{1280, 296}, false, Replied},
		{"server, NAT64, by little", 1, back(c6, "[2001:db8::64]:5000", 1453), 1500, []int{1280, 277}, false, Replied},
		{"server, NAT64, TCP", 1, segment, 1400, []int{1280, 286}, false, Replied},
		{"client, NAT64, less than IPv6 knows", 0, udp(c6, "[2001:db8::64]:5000", 1200), 1000, []int{996, 252}, false, Forwarded},
		{"of a stranger's flow", 1, udp("10.0.1.20:999", "198.51.100.9:4000", 1400), 1300, []int{1300, 148}, true, Passed},
	}
}

// lengths are those of the IP packets in frames.
func lengths(t testing.TB, frames []sentFrame) (out []int) {
	for _, f := range frames {
		var p packet.Packet
		if err := packet.Parse(f.bytes, &p); err != packet.ErrNone {
			t.Fatalf("%v: % x", err, f.bytes)
		}
		out = append(out, p.IPLen())
	}
	return out
}

// TestSplit: what may be fragmented and is too large for its way out leaves in
// fragments, which together are what leaves where there is more room, and counts
// as one packet.
func TestSplit(t *testing.T) {
	for workers := 1; workers <= 2; workers++ {
		r := newRigWith(t, workers, testSpec(), func(*Options) {})
		for _, c := range splitRows(t, r) {
			t.Run(c.name, func(t *testing.T) {
				r.now++
				r.narrow(wide)
				want := r.one(0, c.nic, 1-c.nic, c.frame)
				r.narrow(c.mtu)
				before := r.counts()
				out := r.deliver(0, c.nic, c.frame)
				if d := cmp.Diff(c.pieces, lengths(t, out)); d != "" {
					t.Errorf("lengths (-want +got)\n%s", d)
				}
				got, id := whole(t, out)
				if d := cmp.Diff(plainly(want), got); d != "" {
					t.Errorf("(-in one piece +in fragments)\n%s", d)
				}
				verify(t, got)
				if c.keeps != (id == 0xbeef) {
					t.Errorf("identification %#x", id)
				}
				n := r.counts()
				if n.Verdicts[c.v] != before.Verdicts[c.v]+1 || n.Drops() != before.Drops() || n.Split != before.Split+1 {
					t.Errorf("counts %v", n)
				}
			})
		}
	}
}

// TestSplitRefuses: what forbids it is not fragmented, nor what there is no frame
// for, and nothing of it leaves.
func TestSplitRefuses(t *testing.T) {
	r := newRig(t, 1, testSpec())
	rows := splitRows(t, r)
	for _, c := range rows {
		r.now++
		r.narrow(c.mtu)
		w := r.dp.Workers[0]
		all := slices.Clone(w.pool.take(len(w.pool.free)))
		w.pool.free = append(w.pool.free, all[0]) // one is not enough
		all = all[1:]
		r.refused(0, c.nic, DropNoFrame, c.frame)
		w.pool.free = append(w.pool.free, all...)
		if c.frame[14]>>4 == 6 {
			continue
		}
		whole := slices.Clone(c.frame)
		whole[14+packet.IPv4Frag] |= packet.IPv4DontFragment >> 8
		binary.BigEndian.PutUint16(whole[24:], packet.Apply(binary.BigEndian.Uint16(whole[24:]), packet.IPv4DontFragment))
		before := r.counts().Verdicts[DropTooBig]
		out := r.deliver(0, c.nic, whole)
		if n := r.counts().Verdicts[DropTooBig] - before; n != 1 || len(out) > 1 || len(out) == 1 && out[0].nic != c.nic {
			t.Errorf("%s, DF: %d too big, %d frames out", c.name, n, len(out))
		}
	}
	six := build(t, seg{src: "[2001:db8:c::7]:4000", dst: "[2001:db8::64]:5000", udp: true, payload: 1233})
	r.narrow(1000)
	if _, told := r.answered(0, 0, 0, DropTooBig, six).NetworkLayer().(*layers.IPv6); !told {
		t.Error("no ICMPv6 error")
	}
	r.narrow(27)
	r.refused(0, rows[0].nic, DropTooBig, rows[0].frame)
}

// tightPort takes half of what it is given.
type tightPort struct{ *memport.Port }

func (p tightPort) Transmit(d []unix.XDPDesc) int { return p.Port.Transmit(d[:len(d)/2]) }

// TestSplitFull: of fragments for which the ring has no room none is lost without
// a trace, and the packet counts as dropped if its first one is.
func TestSplitFull(t *testing.T) {
	r := newRig(t, 1, testSpec())
	c := splitRows(t, r)[1]
	r.now++
	r.narrow(68)
	r.dp.Workers[0].queues[1].Port = tightPort{r.port[0][1]}
	before := r.counts()
	out := r.deliver(0, 0, slices.Repeat([][]byte{c.frame}, 6)...)
	n := r.counts()
	sent, forwarded := n.Sent-before.Sent, n.Verdicts[Forwarded]-before.Verdicts[Forwarded]
	lost := n.Verdicts[DropTxFull] - before.Verdicts[DropTxFull]
	if sent != uint64(len(out)) || lost == 0 || forwarded == 0 || forwarded+lost != 6 {
		t.Errorf("%d sent, %d out, %d forwarded, %d lost", sent, len(out), forwarded, lost)
	}
}

// TestSplitDoesNotAllocate, nor do fragments that change family.
func TestSplitDoesNotAllocate(t *testing.T) {
	r := newRig(t, 1, testSpec())
	rows := splitRows(t, r)
	for _, c := range rows {
		in := [][]byte{c.frame}
		if c.v == Replied {
			in = append(in, cut(c.frame, 7, 1200)...)
		}
		r.now++
		r.narrow(c.mtu)
		r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
		before := r.counts().Split
		if allocs := testing.AllocsPerRun(100, func() {
			r.now += 1e6
			r.port[0][c.nic].Feed(in, 1)
			r.step()
		}); allocs != 0 || r.counts().Split < before+100 {
			t.Errorf("%s: %v allocations, %d packets split", c.name, allocs, r.counts().Split-before)
		}
	}
}

// TestShortenedSYNIsWhole: a SYN that fits once TOA has taken its data leaves as it is, and
// does not count as one that was split.
func TestShortenedSYNIsWhole(t *testing.T) {
	for _, keep := range []bool{false, true} { // with KeepTTL nothing is plain
		spec := testSpec()
		spec.KeepTTL = keep
		r := newRig(t, 1, spec)
		out := r.deliver(0, 0, freely(build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true, seq: 1000, payload: 1461})))
		if n := r.counts(); len(out) != 1 || n.Verdicts[Forwarded] != 1 || n.Split != 0 {
			t.Errorf("TTL kept %v: %d frames, %d forwarded, %d split", keep, len(out), n.Verdicts[Forwarded], n.Split)
		}
	}
}
