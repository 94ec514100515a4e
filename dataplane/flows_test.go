package dataplane

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/conntrack"
)

// flowsOf are all flows of a rig's worker, copied slice by slice.
func flowsOf(w *Worker) (all []Flow) {
	for s := new(FlowSlice); !s.Done; {
		w.CopyFlows(s)
		for i := range s.N {
			all = append(all, s.Flow(i))
		}
	}
	return all
}

// TestCopyFlows: a flow is shown as it is, in each mode.
func TestCopyFlows(t *testing.T) {
	for n, k := range modeKinds {
		t.Run(k.name, func(t *testing.T) {
			r := newRig(t, 1, modeSpec(n, 4))
			r.now += int64(time.Second)
			syn := build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.20:80", syn: true, seq: 1000})
			p := verify(t, r.one(0, 0, 1, syn))
			r.now += int64(2 * time.Second)
			r.step()
			got := flowsOf(r.dp.Workers[0])
			want := Flow{
				Service: "web", Mode: k.mode, State: conntrack.SynSent,
				Client: endpoint("198.51.100.7:40000", 6), VIP: endpoint("192.0.2.20:80", 6), Backend: endpoint("10.0.1.20:80", 6),
				Age: 2 * time.Second, Idle: 2 * time.Second, Left: 8 * time.Second,
				Packets: [2]uint32{1, 0}, Bytes: [2]uint64{40, 0},
			}
			if k.mode == conntrack.FullNAT {
				src, _ := ipOf(p)
				want.Local = endpoint(hostPort(src.String(), uint16(tcpOf(p).SrcPort)), 6)
			}
			if diff := cmp.Diff([]Flow{want}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestEndFlows: those that are meant end, both ends hear of it with the numbers that
// they expect, and a flow that took the place of another is not taken for it.
func TestEndFlows(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	gone := r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	stays := r.open(0, "198.51.100.7:40001", "192.0.2.10:80")
	r.deliver(0, 0, build(t, seg{src: "198.51.100.7:40002", dst: "192.0.2.10:5000", udp: true, payload: 10}))
	s := new(FlowSlice)
	w.CopyFlows(s)
	var which []int
	for i := range s.N {
		if s.Flow(i).Client.Port != 40001 {
			which = append(which, i)
		}
	}
	r.sent = nil
	done, ended, resets := w.EndFlows(s, which)
	r.step()
	if done != 2 || ended != 2 || resets != 2 || len(r.sent) != 2 {
		t.Fatalf("%d done, %d ended, %d resets, %d frames", done, ended, resets, len(r.sent))
	}
	for _, f := range r.sent {
		p := tcpOf(verify(t, f.bytes))
		want := gone.isn + 1 // the server's
		if f.nic == 0 {
			want = 9001
		}
		if !p.RST || p.Seq != want {
			t.Errorf("NIC %d: RST %v, sequence %d, want %d", f.nic, p.RST, p.Seq, want)
		}
	}
	left := flowsOf(w)
	if len(left) != 1 || left[0].Client.Port != 40001 {
		t.Errorf("%d flows left", len(left))
	}
	stays.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 10})
	r.now += int64(time.Second)
	r.open(0, gone.client, gone.vip) // in the old place, but another flow
	if done, ended, resets = w.EndFlows(s, which); done != 2 || ended != 0 || resets != 0 || w.Flows() != 2 {
		t.Errorf("again: %d done, %d ended, %d resets, %d flows", done, ended, resets, w.Flows())
	}
}

// TestEndFlowsWaits: where there are no RSTs to be had, nothing ends without.
func TestEndFlowsWaits(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	r.open(0, "198.51.100.7:40000", "192.0.2.10:80")
	for w.farewells.Has(w.nanos) {
		w.farewells.Take(w.nanos)
	}
	s := new(FlowSlice)
	w.CopyFlows(s)
	if done, _, _ := w.EndFlows(s, []int{0}); done != 0 || w.Flows() != 1 {
		t.Errorf("%d done, %d flows", done, w.Flows())
	}
	r.now += int64(time.Second)
	r.step()
	if done, ended, resets := w.EndFlows(s, []int{0}); done != 1 || ended != 1 || resets != 2 {
		t.Errorf("later: %d done, %d ended, %d resets", done, ended, resets)
	}
	r.step()
}

// BenchmarkWalk is what a client's datagram of one of a million flows costs, while
// nobody looks, and while flows are copied between each two bursts, which is as fast as
// a worker under load can be asked; slice-ns is what a slice takes. A quarter of the
// table is full: no more may be half-open, as these flows are.
func BenchmarkWalk(b *testing.B) {
	const flows = 1 << 20
	for _, walk := range []bool{false, true} {
		b.Run(fmt.Sprintf("walk=%v", walk), func(b *testing.B) {
			r := newRigWith(b, 1, testSpec(), func(o *Options) { o.Flows = 4 * flows })
			r.port[0][0].OnSend, r.port[0][1].OnSend = nil, nil
			w := r.dp.Workers[0]
			var bursts [][][]byte
			for i := range flows / BurstSize {
				var frames [][]byte
				for j := range BurstSize {
					n := i*BurstSize + j
					src := fmt.Sprintf("198.51.100.%d:%d", n/50000+1, 1024+n%50000)
					frames = append(frames, build(b, seg{src: src, dst: "192.0.2.11:5000", udp: true, payload: 18}))
				}
				bursts = append(bursts, frames)
				r.port[0][0].Feed(frames, 1)
				w.Poll(r.now)
			}
			if w.Flows() < flows*9/10 {
				b.Fatal(w.Flows())
			}
			s := new(FlowSlice)
			var slices, spent int64
			b.ResetTimer()
			for n := 0; n < b.N; n += BurstSize {
				if walk {
					if s.Done {
						*s = FlowSlice{}
					}
					at := time.Now()
					w.CopyFlows(s)
					spent += int64(time.Since(at))
					slices++
				}
				r.port[0][0].Feed(bursts[n/BurstSize*2654435761%len(bursts)], 1)
				w.Poll(r.now)
			}
			if walk {
				b.ReportMetric(float64(spent)/float64(slices), "slice-ns")
			}
		})
	}
}
