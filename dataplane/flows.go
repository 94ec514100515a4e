package dataplane

import (
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// FlowSliceLen is how many flows a FlowSlice holds: 32 KiB, some microseconds of
// copying.
const FlowSliceLen = 256

// FlowSlice is a copy of some of a worker's flows, and the place in the table where
// the next ones are. A zero one stands before the first flow. It is its user's but
// while CopyFlows or EndFlows run.
type FlowSlice struct {
	N    int  // flows in it
	Done bool // there are no more

	next    conntrack.Ref
	tick    uint32
	snap    *Snapshot
	refs    [FlowSliceLen]conntrack.Ref
	entries [FlowSliceLen]conntrack.Entry
}

// Flow is one flow as it was when it was copied.
type Flow struct {
	Service                     string // its name
	Mode                        conntrack.Mode
	State                       conntrack.State
	Client, VIP, Local, Backend conntrack.Endpoint // Local is zero but in Full-NAT
	Age                         time.Duration      // since it began
	// Idle is since its last packet, and Left until it expires without another. Where
	// its service's timeouts have changed since, or half-open flows had to hurry, it
	// has been idle for less.
	Idle, Left time.Duration
	// Packets and IP bytes by direction, as received. The packets count from 0 again
	// after 2^32.
	Packets [2]uint32
	Bytes   [2]uint64
}

// CopyFlows makes s the flows that follow those in it, or the first. A flow that lives
// while all are copied, slice by slice, is met once, whatever comes and goes
// meanwhile. For the worker's thread, or inside Do: it takes a few microseconds.
func (w *Worker) CopyFlows(s *FlowSlice) {
	s.N, s.next = w.table.CopyFrom(max(s.next, 1), s.refs[:], s.entries[:])
	s.Done = s.next == 0
	s.tick, s.snap = w.tick, w.snap
}

// Flow is the i-th of the slice.
func (s *FlowSlice) Flow(i int) Flow { return s.snap.flow(&s.entries[i], s.tick) }

// flow is what people are shown of an entry at a tick.
func (s *Snapshot) flow(e *conntrack.Entry, tick uint32) Flow {
	dir, svc := &s.Directory, &s.Services[e.Service]
	f := Flow{
		Service: svc.Name, Mode: e.Mode, State: e.State,
		Client: conntrack.Endpoint{Addr: e.Client, Port: e.ClientPort, Proto: e.Proto},
		VIP:    dir.Services[e.Service], Backend: dir.Backends[e.Backend],
		Age: ticks(tick - e.Created), Left: ticks(e.Expires - tick),
		Packets: e.Packets, Bytes: [2]uint64{e.Bytes[conntrack.Forward], e.ReplyBytes()},
	}
	if e.Mode == conntrack.FullNAT {
		f.Local = conntrack.Endpoint{Addr: dir.Locals[e.Local], Port: e.LocalPort, Proto: e.Proto}
	}
	f.Idle = min(ticks(tick-(e.Expires-svc.Policy.Timeouts[e.State])), f.Age)
	return f
}

// ticks is a span of conntrack's clock, which it counts signed; what is negative is 0.
func ticks(n uint32) time.Duration {
	return time.Duration(max(int32(n), 0)) * time.Second / conntrack.TicksPerSecond
}

// endAtOnce bounds one EndFlows: two RSTs a flow, and what waits for a NIC is at most
// two bursts.
const endAtOnce = 16

// EndFlows ends flows of the slice, by their place in it, as if they had idled out:
// both ends of an established TCP connection get a RST with the sequence number that
// they expect, where that is known. One that is no longer there is left out. It
// returns how many of which it is done with, which may be fewer than there are, since
// it takes its time and its RSTs from the worker: come back for the rest. ended are
// those that were there, resets the RSTs sent.
//
// For the worker's thread, or inside Do.
func (w *Worker) EndFlows(s *FlowSlice, which []int) (done, ended, resets int) {
	before := w.count.Refusals
	for _, i := range which[:min(len(which), endAtOnce)] {
		r, e := s.refs[i], w.table.Entry(s.refs[i])
		if sameFlow(e, &s.entries[i]) {
			if nat.Resettable(e) && !w.canSayFarewell() {
				break
			}
			w.giveUp(r)
			w.close(r, EndKilled)
			ended++
		}
		done++
	}
	return done, ended, int(w.count.Refusals - before)
}

// sameFlow reports whether e still is the flow that was.
func sameFlow(e, was *conntrack.Entry) bool {
	return e.Proto != 0 && e.Proto == was.Proto && e.Created == was.Created && e.Client == was.Client && e.ClientPort == was.ClientPort &&
		e.Service == was.Service && e.Backend == was.Backend && e.Local == was.Local && e.LocalPort == was.LocalPort && e.Mode == was.Mode
}

// canSayFarewell reports whether both ends of a flow may be sent a RST now.
func (w *Worker) canSayFarewell() bool {
	b := w.farewells
	if !b.Has(w.nanos) {
		return false
	}
	b.Take(w.nanos)
	return b.Has(w.nanos)
}

// HasSent reports whether a flow of this tuple has gone to a server at this address by
// direct return, of TCP with such a sequence number not long ago. In a function for Do.
func (w *Worker) HasSent(tuple *packet.Tuple, seq uint32, server packet.Addr) bool {
	r, dir, ok := w.table.Lookup(tuple, &w.snap.Directory)
	if !ok || dir != conntrack.Forward {
		return false
	}
	e := w.table.Entry(r)
	return e.Mode == conntrack.DirectReturn && w.snap.Directory.Backends[e.Backend].Addr == server &&
		(e.Proto != packet.ProtoTCP || e.HasSent(seq))
}
