package dataplane

import "github.com/l4fwd/l4fwd/nat"

// Counts is what a worker has done since it started. Only its thread writes
// it; Worker.Counts takes a copy.
type Counts struct {
	Verdicts         [NumVerdicts]uint64 // packets by outcome
	TOA              [nat.NumTOAResults]uint64
	UOA              [nat.NumUOAResults]uint64
	Received         uint64 // frames from RX rings
	Adopted          uint64 // frames handed over by other workers
	Sent             uint64 // frames accepted by TX rings
	Bursts           uint64 // receive calls that brought something
	FullBursts       uint64 // of those, the ones that filled the burst: a sign of load
	Rounds           uint64 // calls of Poll
	BusyRounds       uint64 // of those, the ones that saw packets
	BusyNanos        uint64 // from the beginning of such a round to that of the next
	Opened           uint64 // flows
	Reopened         uint64 // flows started afresh by a new SYN
	Expired          uint64 // flows that idled out
	Evicted          uint64 // half-open flows that made room for newer ones
	TemplatesEvicted uint64 // templates of persistence that did
	Refusals         uint64 // ICMP errors and RSTs sent of our own accord
	Split            uint64 // packets that left in fragments of our making
	FlowLogLost      uint64 // flows whose end found no room in the FlowLog
	LostEvents       uint64 // words to the control plane that found no room
}

// Add sums o into c.
func (c *Counts) Add(o *Counts) {
	for i := range c.Verdicts {
		c.Verdicts[i] += o.Verdicts[i]
	}
	for i := range c.TOA {
		c.TOA[i] += o.TOA[i]
	}
	for i := range c.UOA {
		c.UOA[i] += o.UOA[i]
	}
	c.Received += o.Received
	c.Adopted += o.Adopted
	c.Sent += o.Sent
	c.Bursts += o.Bursts
	c.FullBursts += o.FullBursts
	c.Rounds += o.Rounds
	c.BusyRounds += o.BusyRounds
	c.BusyNanos += o.BusyNanos
	c.Opened += o.Opened
	c.Reopened += o.Reopened
	c.Expired += o.Expired
	c.Evicted += o.Evicted
	c.TemplatesEvicted += o.TemplatesEvicted
	c.Refusals += o.Refusals
	c.Split += o.Split
	c.FlowLogLost += o.FlowLogLost
	c.LostEvents += o.LostEvents
}

// Drops is the number of packets that went nowhere.
func (c *Counts) Drops() uint64 {
	var n uint64
	for v := range numDrops {
		n += c.Verdicts[v]
	}
	return n
}

// Counts is a copy of the worker's counters. For the worker's own thread, or
// inside Do.
func (w *Worker) Counts() Counts {
	c := w.count
	c.LostEvents = w.events.lost
	return c
}

// Flows is how many flows the worker holds; like Counts.
func (w *Worker) Flows() int { return w.table.Len() }

// Room is what a worker's flow table holds and may hold.
type Room struct {
	Flows, MaxFlows       int
	HalfOpen, MaxHalfOpen int // those that must prove yet that both ends exist
}

// Room says how full the worker's flow table is; like Counts.
func (w *Worker) Room() Room {
	t := w.table
	return Room{Flows: t.Len(), MaxFlows: t.Cap(), HalfOpen: t.HalfOpenLen(), MaxHalfOpen: t.HalfOpenCap()}
}

// FreeFrames is how many of its frames lie in its pool; like Counts.
func (w *Worker) FreeFrames() int { return len(w.pool.free) }

// BackendCounts is this worker's count for each backend id, to be copied
// before Do's function returns.
func (w *Worker) BackendCounts() []BackendCount { return w.here.Backends }

// FormerCount is this worker's count of backends that are gone and whose ids others have:
// together with BackendCounts it is all there ever was. Like BackendCounts.
func (w *Worker) FormerCount() BackendCount { return w.here.former }

// ServiceCounts is this worker's count for each service id; like BackendCounts.
func (w *Worker) ServiceCounts() []ServiceCount { return w.here.Services }
