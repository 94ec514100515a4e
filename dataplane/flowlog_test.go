package dataplane

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// auditLogs: each flow that was ever opened lives, or its end has been logged, or there
// was no room for that; of all rigs' dataplanes, whatever a test has done with them.
func auditLogs(t testing.TB, dp *Dataplane) {
	t.Helper()
	for _, w := range dp.Workers {
		if w.log == nil || w.snap == nil {
			continue
		}
		all := true
		for i := range w.snap.Services {
			all = all && w.snap.Services[i].LogOneIn == 1
		}
		read, flows := w.log.next, uint64(w.Flows())
		if c := w.Counts(); all && c.Opened != read+c.FlowLogLost+flows {
			t.Errorf("worker %d: %d flows opened, %d ends logged, %d without room, %d alive", w.ID(), c.Opened, read, c.FlowLogLost, flows)
		}
	}
}

// ends are the flows of a worker's log that have not been read.
func (r *rig) ends(worker int) (all []LoggedFlow) {
	for f := (LoggedFlow{}); r.dp.Workers[worker].log.Read(&f); {
		all = append(all, f)
	}
	return all
}

// pass lets time pass in steps that the wheel keeps up with.
func (r *rig) pass(d time.Duration) {
	for end := r.now + int64(d); r.now < end; {
		r.now = min(end, r.now+int64(time.Second))
		r.step()
	}
}

// TestFlowEnds: each way for a flow to end gives one record, which says so.
func TestFlowEnds(t *testing.T) {
	const client, vip = "198.51.100.7:40000", "192.0.2.10:80"
	type world struct {
		*rig
		publish func(Spec)
		c       *conv
	}
	for _, c := range []struct {
		name  string
		spec  func() Spec
		do    func(*world) // with an open connection
		end   End
		state conntrack.State
		idle  time.Duration
	}{
		{"fin", nil, func(w *world) {
			w.c.fromClient(seg{ack: true, fin: true, seq: 1001, ackNum: 9001})
			w.c.fromServer(seg{ack: true, fin: true, seq: 9001, ackNum: w.c.isn + 2})
			w.c.fromClient(seg{ack: true, seq: 1002, ackNum: 9002})
			w.pass(time.Minute)
		}, EndFIN, conntrack.TimeWait, 10 * time.Second},
		{"fin, then another", nil, func(w *world) {
			w.c.fromServer(seg{ack: true, fin: true, seq: 9001, ackNum: w.c.isn + 1})
			w.c.fromClient(seg{ack: true, fin: true, seq: 1001, ackNum: 9002})
			w.c.fromServer(seg{ack: true, seq: 9002, ackNum: w.c.isn + 2})
			w.open(0, client, vip)
		}, EndFIN, conntrack.TimeWait, 0},
		{"reset by the client", nil, func(w *world) {
			w.c.fromClient(seg{rst: true, ack: true, seq: 1001, ackNum: 9001})
			w.pass(time.Minute)
		}, EndResetClient, conntrack.Closed, 10 * time.Second},
		{"reset by the server", nil, func(w *world) {
			w.c.fromServer(seg{rst: true, ack: true, seq: 9001, ackNum: w.c.isn + 1})
			w.open(0, client, vip)
		}, EndResetServer, conntrack.Closed, 0},
		{"reset by the server, after a FIN", nil, func(w *world) {
			w.c.fromClient(seg{ack: true, fin: true, seq: 1001, ackNum: 9001})
			w.c.fromServer(seg{ack: true, seq: 9001, ackNum: w.c.isn + 2})
			w.c.fromServer(seg{rst: true, ack: true, seq: 9001, ackNum: w.c.isn + 2})
			w.pass(time.Minute)
		}, EndResetServer, conntrack.Closed, 10 * time.Second},
		{"idle", nil, func(w *world) { w.pass(3 * time.Hour) }, EndTimeout, conntrack.Established, 124 * time.Minute},
		{"killed", nil, func(w *world) {
			s := new(FlowSlice)
			w.dp.Workers[0].CopyFlows(s)
			w.dp.Workers[0].EndFlows(s, []int{0})
			w.step()
		}, EndKilled, conntrack.Established, 0},
		{"backend gone", nil, func(w *world) {
			w.publish(without(t, orphanSpec(BackendDownReset), w.c.backend))
			w.pass(5 * time.Second)
			w.deliver(0, 0, build(t, seg{src: client, dst: vip, ack: true, seq: 1001, ackNum: 9001, payload: 10}))
			w.pass(time.Second)
		}, EndBackendGone, conntrack.Established, 0},
		{"backend gone, rescheduled", func() Spec { return orphanSpec(BackendDownReschedule) }, func(w *world) {
			w.publish(without(t, orphanSpec(BackendDownReschedule), w.c.backend))
			w.deliver(0, 0, build(t, seg{src: client, dst: vip, ack: true, seq: 1001, ackNum: 9001, payload: 10}))
		}, EndBackendGone, conntrack.Established, 0},
		{"deserted", nil, func(w *world) {
			spec := orphanSpec(BackendDownReset)
			for i := range spec.Services[0].Backends {
				if b := &spec.Services[0].Backends[i]; b.Endpoint == endpoint(w.c.backend, 6) {
					b.Weight = 0
				}
			}
			w.publish(spec)
			w.pass(2 * time.Minute)
			w.deliver(0, 0, build(t, seg{src: client, dst: vip, syn: true, seq: 5}))
		}, EndReopened, conntrack.Established, 2 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := orphanSpec(BackendDownReset)
			if c.spec != nil {
				spec = c.spec()
			}
			w := &world{rig: newRig(t, 1, spec)}
			g := NewRegistry(1)
			w.publish = func(s Spec) {
				snap, err := g.Build(s)
				if err != nil {
					t.Fatal(err)
				}
				w.dp.Publish(snap)
				w.step()
			}
			w.publish(spec)
			w.now += int64(time.Second)
			w.c = w.open(0, client, vip)
			if got := w.ends(0); len(got) > 0 {
				t.Fatalf("already: %+v", got)
			}
			was := flowsOf(w.dp.Workers[0])[0]
			c.do(w)
			got := w.ends(0)
			if len(got) != 1 {
				t.Fatalf("%d records: %+v", len(got), got)
			}
			f := got[0]
			if f.End != c.end || f.State != c.state || f.Nanos > w.now || f.Packets[0] < was.Packets[0] || f.Bytes[1] < was.Bytes[1] || f.Idle != c.idle || f.Age < c.idle {
				t.Errorf("ended by %v in state %v: %+v", f.End, f.State, f)
			}
			f.State, f.Age, f.Idle, f.Left, f.Packets, f.Bytes = was.State, was.Age, was.Idle, was.Left, was.Packets, was.Bytes
			if diff := cmp.Diff(was, f.Flow); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestFlowEndsWithoutAConnection: likewise for what never was one, or no TCP.
func TestFlowEndsWithoutAConnection(t *testing.T) {
	one := func(t *testing.T, r *rig, end End, state conntrack.State) {
		t.Helper()
		got := r.ends(0)
		if len(got) != 1 || got[0].End != end || got[0].State != state {
			t.Errorf("want %v in %v: %+v", end, state, got)
		}
	}
	const client = "198.51.100.7:40000"
	t.Run("SYN", func(t *testing.T) {
		r := newRig(t, 1, testSpec())
		r.begin(client, "192.0.2.10:80", 1000)
		r.pass(time.Minute)
		one(t, r, EndTimeout, conntrack.SynSent)
	})
	t.Run("refused", func(t *testing.T) {
		r := newRig(t, 1, testSpec())
		c, _ := r.begin(client, "192.0.2.10:80", 1000)
		c.fromServer(seg{rst: true, ack: true, ackNum: c.isn + 1})
		r.pass(time.Minute)
		one(t, r, EndResetServer, conntrack.Closed)
	})
	t.Run("another SYN", func(t *testing.T) {
		r := newRig(t, 1, testSpec())
		r.begin(client, "192.0.2.10:80", 1000)
		r.pass(2 * time.Second)
		r.begin(client, "192.0.2.10:80", 5000)
		one(t, r, EndReopened, conntrack.SynSent)
	})
	t.Run("evicted", func(t *testing.T) {
		r := newRigWith(t, 1, testSpec(), func(o *Options) { o.Flows = 16 })
		for i := range 4 {
			r.begin(fmt.Sprintf("198.51.100.7:%d", 40000+i), "192.0.2.11:80", 1000)
		}
		r.pass(2 * time.Second)
		r.begin("198.51.100.7:40009", "192.0.2.11:80", 1000)
		one(t, r, EndEvicted, conntrack.SynSent)
	})
	t.Run("datagram", func(t *testing.T) {
		r := newRig(t, 1, testSpec())
		r.deliver(0, 0, build(t, seg{src: client, dst: "192.0.2.10:5000", udp: true, payload: 10}))
		r.pass(3 * time.Minute)
		one(t, r, EndTimeout, conntrack.UDPOneWay)
	})
	t.Run("moved", func(t *testing.T) {
		r, _ := quicRig(t, 1)
		for id := range 2 {
			r.deliver(0, 0, udpFrame(t, client, quicVIPs["dnat"], quicShort(byte(id+1))))
		}
		one(t, r, EndMoved, conntrack.UDPOneWay)
	})
	t.Run("one packet of direct return", func(t *testing.T) {
		spec := testSpec()
		s := service("one", "192.0.2.16:53", packet.ProtoUDP, conntrack.DNATOneWay, false, "10.0.1.20:54", "10.0.1.21:54")
		s.OnePacket = true
		spec.Services = append(spec.Services, s)
		r := newRig(t, 1, spec)
		for range 2 {
			r.deliver(0, 0, build(t, seg{src: client, dst: "192.0.2.16:53", udp: true, payload: 10}))
		}
		one(t, r, EndAnother, conntrack.UDPOnePacket)
	})
}

// TestFlowLogFull: what finds no room is counted, and what was there stays as it was.
func TestFlowLogFull(t *testing.T) {
	r := newRig(t, 1, testSpec())
	w := r.dp.Workers[0]
	w.LogFlows(NewFlowLog(4))
	for i := range 6 {
		r.begin(fmt.Sprintf("198.51.100.7:%d", 40000+i), "192.0.2.11:80", 1000)
		r.pass(11 * time.Second)
	}
	got := r.ends(0)
	if c := w.Counts(); len(got) != 4 || c.FlowLogLost != 2 || got[0].Client.Port != 40000 || got[3].Client.Port != 40003 {
		t.Errorf("%d lost, %d read: %+v", c.FlowLogLost, len(got), got)
	}
	r.begin("198.51.100.7:41000", "192.0.2.11:80", 1000)
	r.pass(11 * time.Second)
	if got = r.ends(0); len(got) != 1 || got[0].Client.Port != 41000 {
		t.Errorf("afterwards: %+v", got)
	}
	for i := range w.log.records {
		if w.log.records[i].snap != nil {
			t.Errorf("record %d keeps a snapshot", i)
		}
	}
}

// TestFlowLogOff: flows of a service that wants none are none of the log's.
func TestFlowLogOff(t *testing.T) {
	spec := testSpec()
	for i := range spec.Services {
		spec.Services[i].LogOneIn = 0
	}
	r := newRig(t, 1, spec)
	r.begin("198.51.100.7:40000", "192.0.2.10:80", 1000)
	r.pass(time.Minute)
	if got := r.ends(0); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

// TestChosen: one in n is chosen, of whatever flows, the same ones each time, and those of
// a larger n are among those of a smaller one.
func TestChosen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint32Range(1, 200).Draw(t, "n")
		base := rapid.Uint64().Draw(t, "base")
		vary := rapid.IntRange(0, 2).Draw(t, "vary")
		vip := endpoint("192.0.2.10:80", 6)
		const flows = 20000
		count, more := 0, 0
		for i := range uint64(flows) {
			e := conntrack.Entry{Client: packet.Addr{Hi: base, Lo: base}, ClientPort: uint16(base), Proto: 6}
			switch vary { // what attackers and load generators vary
			case 0:
				e.ClientPort += uint16(i)
				e.Client.Lo += i >> 16
			case 1:
				e.Client.Lo += i
			case 2:
				e.Client.Hi += i
			}
			yes := chosen(&e, &vip, n)
			if chosen(&e, &vip, 2*n) {
				if more++; !yes {
					t.Fatalf("flow %d is one in %d but none in %d", i, 2*n, n)
				}
			}
			if yes {
				count++
			}
		}
		want := flows / float64(n)
		if d := math.Abs(float64(count) - want); d > 6*math.Sqrt(want)+1 {
			t.Errorf("%d chosen of %d, want one in %d", count, flows, n)
		}
	})
}

// TestFlowLogAllocates nothing, whether flows are logged or there is no room.
func TestFlowLogAllocates(t *testing.T) {
	r := newRig(t, 1, testSpec())
	r.step()
	w := r.dp.Workers[0]
	w.LogFlows(NewFlowLog(1 << 10))
	e := conntrack.Entry{Proto: 6}
	if n := testing.AllocsPerRun(2000, func() {
		w.logEnd(&e, EndTimeout)
		w.log.publish()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	var f LoggedFlow
	for w.log.Read(&f) {
	}
	w.LogFlows(nil)
}
