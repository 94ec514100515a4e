package bench

import (
	"slices"

	"github.com/l4fwd/l4fwd/bench/cpu"
	"github.com/l4fwd/l4fwd/dataplane"
)

// StageTimes is what a stage took of packets' time, burst by burst, the clock's
// own readings taken off.
type StageTimes struct {
	Stage  string  `json:"stage"`
	Mean   float64 `json:"mean_ns_per_packet"`
	Median float64 `json:"median_ns_per_packet"`
	P99    float64 `json:"p99_ns_per_packet"` // of bursts
	Share  float64 `json:"share"`             // of all stages, 0 to 1
}

// Profile is the stages of every burst of some packets.
type Profile struct {
	Stages []StageTimes `json:"stages"`
	Bursts int          `json:"bursts"`
	Clock  string       `json:"clock"`         // what the time was read from
	Cost   int64        `json:"clock_cost_ns"` // of a reading
}

// stageSampler keeps what a StageClock says of each burst.
type stageSampler struct {
	clock dataplane.StageClock
	time  *cpu.Clock
	last  [dataplane.NumStages]int64
	seen  [dataplane.NumStages][]float32 // nanoseconds a packet
}

// maxSamples bounds what a sampler keeps.
const maxSamples = 1 << 16

func newStageSampler(c *cpu.Clock) *stageSampler {
	s := &stageSampler{clock: dataplane.StageClock{Now: c.Now, Every: 1}, time: c}
	for i := range s.seen {
		s.seen[i] = make([]float32, 0, maxSamples)
	}
	return s
}

// note keeps what has passed since the last note, in which n packets were fed
// in one round.
func (s *stageSampler) note(n int) {
	if len(s.seen[0]) == maxSamples || n == 0 {
		return
	}
	for i, total := range s.clock.Nanos {
		took := max(total-s.last[i]-s.time.Cost(), 0)
		s.seen[i] = append(s.seen[i], float32(took)/float32(n))
		s.last[i] = total
	}
}

func (s *stageSampler) report() *Profile {
	p := &Profile{Bursts: len(s.seen[0]), Clock: s.time.Source(), Cost: s.time.Cost()}
	if p.Bursts == 0 {
		return p
	}
	var total float64
	for i, seen := range s.seen {
		var sum float64
		for _, v := range seen {
			sum += float64(v)
		}
		slices.Sort(seen)
		t := StageTimes{
			Stage: dataplane.Stage(i).String(), Mean: sum / float64(len(seen)),
			Median: float64(seen[len(seen)/2]), P99: float64(seen[len(seen)*99/100]),
		}
		total += t.Mean
		p.Stages = append(p.Stages, t)
	}
	for i := range p.Stages {
		p.Stages[i].Share = p.Stages[i].Mean / max(total, 1e-9)
	}
	return p
}
