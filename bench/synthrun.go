package bench

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/l4fwd/l4fwd/dataplane"
)

// rounds measures.
func (s *synth) rounds(ctx context.Context) (*Report, error) {
	stop, err := startProfile(s.o.CPUProfile)
	if err != nil {
		return nil, err
	}
	defer stop()
	s.round(min(s.o.Packets, 4*len(s.flows))) // warms caches up
	if s.limit != nil {
		s.limitRound(min(s.o.Packets, 4*len(s.flows)))
	}
	s.warm = s.fed
	s.fed, s.bytes, s.total = 0, 0, 0
	ns, limits := make([]float64, 0, s.o.Rounds), make([]float64, 0, s.o.Rounds)
	settle()
	before := allocated()
	for i := range s.o.Rounds {
		ns = append(ns, s.round(s.o.Packets))
		if s.limit != nil {
			limits = append(limits, s.limitRound(s.o.Packets))
		}
		if s.o.Progress != nil {
			s.o.Progress(0.5 + 0.5*float64(i+1)/float64(s.o.Rounds))
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	rep := s.report(ns, limits, allocated()-before)
	if s.o.Profile {
		s.profileRound()
		rep.Profile = s.sampler.report()
	}
	if err := s.r.dp.Audit(); err != nil {
		return nil, fmt.Errorf("frames lost or doubled: %w", err)
	}
	return rep, nil
}

// startProfile writes a CPU profile until stop is called; nothing without w.
func startProfile(w io.Writer) (stop func(), err error) {
	if w == nil {
		return func() {}, nil
	}
	if err := pprof.StartCPUProfile(w); err != nil {
		return nil, fmt.Errorf("cpu profile: %w", err)
	}
	return pprof.StopCPUProfile, nil
}

// round feeds n packets in all and returns the nanoseconds each took. Two workers
// side by side need half of what one does.
func (s *synth) round(n int) float64 {
	total, wall, fed := int64(0), int64(0), 0
	for fed < n {
		for q := range s.batches {
			s.batches[q].make(s, q, (n-fed+len(s.batches)-1)/len(s.batches))
		}
		if len(s.batches) == 1 {
			from := s.clock.Now()
			total += s.alone()
			wall += s.clock.Now() - from
		} else {
			total += s.together()
		}
		longest := 0
		for q := range s.batches {
			fed += len(s.batches[q].frames)
			longest = max(longest, len(s.batches[q].frames))
		}
		s.time += int64(longest+dataplane.BurstSize) * packetGap
	}
	s.fed += uint64(fed)
	s.total += total
	s.wall = float64(wall) / float64(fed)
	return float64(total) / float64(fed)
}

// limitRound is round for the limit.
func (s *synth) limitRound(n int) float64 {
	total, fed, bytes := int64(0), 0, s.bytes
	for fed < n {
		b := &s.batches[0]
		b.make(s, 0, n-fed)
		from := s.busy.Now()
		s.limit.feed(b.frames)
		total += s.busy.Since(from)
		fed += len(b.frames)
	}
	s.bytes = bytes
	return float64(total) / float64(fed)
}

// alone feeds the only worker its batch.
func (s *synth) alone() int64 {
	from := s.busy.Now()
	s.drive(0)
	return s.busy.Since(from)
}

// drive feeds worker q its batch, burst by burst.
func (s *synth) drive(q int) {
	w, p, frames := s.r.dp.Workers[q], s.r.ports[q], s.batches[q].frames
	now := s.time
	for at := 0; at < len(frames); at += dataplane.BurstSize {
		burst := frames[at:min(at+dataplane.BurstSize, len(frames))]
		now += int64(len(burst)) * packetGap
		p.Feed(burst, 1)
		for !p.Idle() {
			w.Poll(now)
		}
		if s.sampler != nil {
			s.sampler.note(len(burst))
		}
		if s.pacer != nil {
			s.pacer.done[q].bursts.Add(1)
			for s.pacer.ahead(q) {
				w.Poll(now)
			}
		}
	}
}

// pacer keeps workers side by side, as the packets of one wire would: one that
// had to wait for its core would find its hand-off rings full, which is not what is
// measured.
type pacer struct {
	done []pace
	all  []int32 // bursts each worker has in all
}

// pace is how many bursts a worker has fed, apart from what others write.
type pace struct {
	bursts atomic.Int32
	_      [2*cacheLine - 4]byte
}

// maxAhead is how many bursts a worker may be ahead of another: half of what a
// hand-off ring takes.
const maxAhead = 16

func newPacer(batches []batch) *pacer {
	p := &pacer{done: make([]pace, len(batches))}
	for i := range batches {
		p.all = append(p.all, int32((len(batches[i].frames)+dataplane.BurstSize-1)/dataplane.BurstSize))
	}
	return p
}

// ahead reports whether worker q should wait for another.
func (p *pacer) ahead(q int) bool {
	mine := p.done[q].bursts.Load()
	for i := range p.done {
		if n := p.done[i].bursts.Load(); n < p.all[i] && mine-n > maxAhead {
			return true
		}
	}
	return false
}

// together feeds all workers their batches, each in a thread of its own, and
// returns how long it took until nothing moved.
func (s *synth) together() int64 {
	took := make([]int64, len(s.batches))
	all := int32(len(s.batches))
	end := s.time
	for q := range s.batches {
		end = max(end, s.time+int64(len(s.batches[q].frames))*packetGap)
	}
	s.pacer = nil
	if s.o.Arrival != ArriveHome { // else nothing is handed over
		s.pacer = newPacer(s.batches)
	}
	var ready, finished atomic.Int32
	var done sync.WaitGroup
	for q := range s.batches {
		done.Go(func() {
			ready.Add(1)
			for ready.Load() < all {
				runtime.Gosched()
			}
			from := s.clock.Now()
			s.drive(q)
			w := s.r.dp.Workers[q]
			finished.Add(1)
			for finished.Load() < all { // go on with what others hand over
				w.Poll(end)
			}
			for w.Poll(end) > 0 {
			}
			took[q] = s.clock.Now() - from
		})
	}
	done.Wait()
	return slices.Max(took)
}

// profileRound samples the stages of a round.
func (s *synth) profileRound() {
	s.sampler = newStageSampler(s.clock)
	s.r.dp.Workers[0].Time(&s.sampler.clock)
	fed, bytes, total := s.fed, s.bytes, s.total
	s.round(s.o.Packets)
	s.fed, s.bytes, s.total = fed, bytes, total
	s.r.dp.Workers[0].Time(nil)
}

func (s *synth) report(ns, limits []float64, allocs uint64) *Report {
	counts := s.r.counts()
	steady := newPart(s.fed, s.total)
	rep := &Report{
		Packets: s.opening.Packets + s.warm + s.fed, Seconds: s.opening.Seconds + steady.Seconds,
		Mpps: steady.Mpps, NsPerPacket: steady.NsPerPacket,
		Gbps:  float64(8*(s.bytes+fcs*s.fed)) / max(float64(s.total), 1),
		First: s.opening, Steady: &steady, Rounds: newSpread(ns),
		Loops: s.o.Rounds + 1, Workers: s.o.Workers, Flows: s.r.flows(),
		TableBytes: s.r.dp.TableBytes(), Table: s.r.dp.Backing(),
	}
	if s.o.Workers == 1 { // threads to run side by side take some
		rep.AllocsPerPacket = float64(allocs) / float64(s.fed)
	}
	if s.limit != nil {
		rep.Limit = newLimitReport(ns, limits)
	}
	rep.count(&counts)
	return rep
}
