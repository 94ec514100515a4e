package dataplane

// Stage is a part of a burst's way through a worker.
type Stage uint8

// The stages, in order.
const (
	StageReceive  Stage = iota // RX ring; with a memory port, the copy
	StageParse                 // headers of all packets, the tuples' hashes, buckets asked for
	StageLookup                // buckets, then entries compared
	StageForward               // scheduling, tracking, rewriting, next hop
	StageTransmit              // TX and completion rings, fill ring, timers
	NumStages
)

var stageNames = [NumStages]string{"receive", "parse", "lookup", "forward", "transmit"}

// String is the stage's name in reports.
func (s Stage) String() string {
	if s < NumStages {
		return stageNames[s]
	}
	return "invalid"
}

// StageClock samples where a worker's time goes, in rounds in which it saw packets. By
// how many queues they came does not show: their stages add up.
type StageClock struct {
	Now   func() int64 // nanoseconds
	Every uint32       // rounds, of which one is sampled; at least 1

	Nanos   [NumStages]int64 // of the sampled rounds
	Packets uint64           // seen in them

	this  [NumStages]int64 // the round that is being sampled
	round uint32
	on    bool
	last  int64
}

// Time makes the worker's rounds be sampled by c, or, if nil, not. Before Run
// or inside Do; c belongs to the worker until it is taken away.
func (w *Worker) Time(c *StageClock) { w.stages = c }

// begin starts a round.
func (c *StageClock) begin() {
	if c.round++; c.round >= c.Every {
		c.round, c.on, c.this = 0, true, [NumStages]int64{}
		c.last = c.Now()
	}
}

// mark ends a stage. Nothing but a compare where no clock is set.
func (w *Worker) mark(s Stage) {
	if w.stages != nil && w.stages.on {
		w.stages.stamp(s)
	}
}

func (c *StageClock) stamp(s Stage) {
	now := c.Now()
	c.this[s] += now - c.last
	c.last = now
}

// end closes a round in which n packets were seen.
func (c *StageClock) end(n int) {
	if !c.on {
		return
	}
	c.on = false
	if n == 0 {
		return
	}
	c.stamp(StageTransmit)
	for s, took := range c.this {
		c.Nanos[s] += took
	}
	c.Packets += uint64(n)
}
