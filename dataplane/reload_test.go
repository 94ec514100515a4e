package dataplane

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/packet"
)

// TestFlowsOutliveTheirService: a service and its local address are taken out
// of the configuration; flows go on whatever queue their packets come by, new
// ones are refused.
func TestFlowsOutliveTheirService(t *testing.T) {
	for _, vip := range []string{"192.0.2.10:80", "192.0.2.11:80"} {
		t.Run(vip, func(t *testing.T) {
			const workers = 3
			r := newRig(t, workers, testSpec())
			g := NewRegistry(workers)
			snap, err := g.Build(testSpec())
			if err != nil {
				t.Fatal(err)
			}
			r.dp.Publish(snap)
			var all []*conv
			for i := range 30 {
				all = append(all, r.open(i%workers, fmt.Sprintf("198.51.100.7:%d", 20000+i), vip))
			}
			spec := testSpec()
			spec.Locals = spec.Locals[1:]
			kept := spec.Services[:0]
			for _, s := range spec.Services {
				if s.VIP.Addr != endpoint(vip, 6).Addr {
					kept = append(kept, s)
				}
			}
			spec.Services = kept
			if snap, err = g.Build(spec.after(testSpec())); err != nil {
				t.Fatal(err)
			}
			r.dp.Publish(snap)
			for _, c := range all {
				for c.worker = range workers {
					c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10})
					c.fromClient(seg{ack: true, seq: 1001, ackNum: 9011, payload: 10})
				}
			}
			before := r.counts().Opened
			if out := r.deliver(0, 0, build(t, seg{src: "198.51.100.9:999", dst: vip, syn: true})); len(out) != 0 || r.counts().Opened != before {
				t.Errorf("a new flow to a service that is gone: %+v", out)
			}
		})
	}
}

// TestHandedToTheWrongOne: while workers take over a snapshot one after the
// other they may disagree about who owns what. The flow must not begin where
// its later packets will not look for it.
func TestHandedToTheWrongOne(t *testing.T) {
	const workers = 3
	r := newRig(t, workers, testSpec())
	g := NewRegistry(workers)
	empty := testSpec()
	empty.Services = empty.Services[3:4] // the VIP of the others is not ours yet
	old, err := g.Build(empty)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := g.Build(testSpec())
	if err != nil {
		t.Fatal(err)
	}
	for late := range workers {
		for i, w := range r.dp.Workers {
			w.nextSnap.Store(fresh)
			if i == late {
				w.nextSnap.Store(old)
			}
		}
		client := fmt.Sprintf("198.51.100.7:%d", 1000+late)
		r.deliver(late, 0, build(t, seg{src: client, dst: "192.0.2.10:80", syn: true}))
		c, v := endpoint(client, 6), endpoint("192.0.2.10:80", 6)
		tu := packet.Tuple{Src: c.Addr, SrcPort: c.Port, Dst: v.Addr, DstPort: v.Port, Proto: 6}
		for _, w := range r.dp.Workers {
			if _, _, ok := w.table.Lookup(&tu, &fresh.Directory); ok && w.owners.forward(&tu) != w.id {
				t.Errorf("worker %d holds a flow of worker %d", w.id, w.owners.forward(&tu))
			}
		}
		// Fragments pass through two rings, and no more.
		for id := range uint32(20) {
			client := fmt.Sprintf("198.51.100.8:%d", 1000+20*uint32(late)+id)
			before := r.counts().Adopted
			r.deliver(late, 0, pieceOf(build(t, seg{src: client, dst: "192.0.2.10:5000", udp: true, payload: 592}), id, span{0, 200, true}))
			if n := r.counts().Adopted - before; n > 2 {
				t.Fatalf("a fragment was handed over %d times", n)
			}
		}
	}
}

// TestWorkersShareNoCacheLine: what a worker counts with every packet must not
// lie beside what its neighbour counts.
func TestWorkersShareNoCacheLine(t *testing.T) {
	spec := testSpec()
	spec.Services[0].Backends[0].MaxConnections = 9
	snap, err := NewRegistry(8).Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	const line = 64
	owner := map[uintptr]int{}
	claim := func(w int, what any) {
		v := reflect.ValueOf(what)
		from := v.Pointer()
		to := from + uintptr(v.Len())*v.Type().Elem().Size()
		for l := from / line; l <= (to-1)/line; l++ {
			if o, ok := owner[l]; ok && o != w {
				t.Errorf("%v of worker %d shares a cache line with worker %d", v.Type(), w, o)
			}
			owner[l] = w
		}
	}
	for w := range snap.Locality {
		l := &snap.Locality[w]
		claim(w, l.Schedulers)
		claim(w, l.ways)
		claim(w, l.Backends)
		claim(w, l.held)
	}
}

// TestBeforeTheFirstSnapshot: a worker that has not been told anything yet
// drops what it gets.
func TestBeforeTheFirstSnapshot(t *testing.T) {
	umem := make([]byte, testFrames*testFrame)
	dp, err := New(Options{Workers: 1, UMEM: umem, FrameSize: testFrame, Flows: 16, Secret: [32]byte{1}, Unpopulated: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(dp.Audit(), dp.Close()); err != nil {
			t.Error(err)
		}
	})
	w, p := dp.Workers[0], memport.New(umem, testFrame, testRing)
	if err := w.Attach(0, nicMAC[0], p); err != nil {
		t.Fatal(err)
	}
	p.Feed([][]byte{build(t, seg{src: "198.51.100.7:40000", dst: "192.0.2.10:80", syn: true}), make([]byte, 60)}, 1)
	w.Poll(1)
	if n := w.Counts(); n.Received != 2 || n.Drops() != 2 || len(w.BackendCounts()) != 0 {
		t.Errorf("%+v", n)
	}
}
