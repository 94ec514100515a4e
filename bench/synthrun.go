package bench

import (
	"context"
	"fmt"
	"io"
	"runtime/pprof"

	"github.com/l4fwd/l4fwd/dataplane"
)

// warmPackets are at least fed before it counts, so that caches, the memory for
// packets and the processor's predictions are warm.
const warmPackets = 20_000

// rounds measures.
func (s *synth) rounds(ctx context.Context) (*Report, error) {
	stop, err := startProfile(s.o.CPUProfile)
	if err != nil {
		return nil, err
	}
	defer stop()
	warm := max(min(s.o.Packets, 4*len(s.flows)), warmPackets)
	s.round(warm)
	if s.limits != nil {
		s.limitRound(warm)
	}
	s.warm = s.fed
	s.fed, s.bytes, s.total = 0, 0, 0
	ns, limits, cores := make([]float64, 0, s.o.Rounds), make([]float64, 0, s.o.Rounds), make([]float64, 0, s.o.Rounds)
	settle()
	before := allocated()
	for i := range s.o.Rounds {
		ns = append(ns, s.round(s.o.Packets))
		cores = append(cores, s.cores)
		if s.limits != nil {
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
	rep.CoreNsPerPacket = median(cores)
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
	if len(s.batches) > 1 {
		return s.roundOfAll(n)
	}
	total, wall, fed := int64(0), int64(0), 0
	for fed < n {
		b := &s.batches[0]
		s.bytes += b.make(s, 0, n-fed)
		busy, from := s.busy.Now(), s.clock.Now()
		s.drive(0, s.time)
		wall += s.clock.Now() - from
		total += s.busy.Since(busy)
		fed += len(b.frames)
		s.time += int64(len(b.frames)+1) * packetGap
	}
	s.fed += uint64(fed)
	s.total += total
	s.wall, s.cores = float64(wall)/float64(fed), float64(total)/float64(fed)
	return s.cores
}

// roundOfAll is round for several workers.
func (s *synth) roundOfAll(n int) float64 {
	b := newSideBySide(s, n, nil)
	fed := b.run()
	total, busy := b.times()
	s.fed += uint64(fed)
	s.total += total
	s.wall, s.cores = float64(total)/float64(fed), float64(busy)/float64(fed)
	return s.wall
}

// limitRound is round for the limit. The flows are as before when it is over: what the
// limit is fed the forwarder never sees, and a gap in the numbers of every flow is not what
// it is measured with.
func (s *synth) limitRound(n int) float64 {
	s.saved = append(s.saved[:0], s.flows...)
	defer func() { copy(s.flows, s.saved) }()
	if len(s.batches) > 1 {
		b := newSideBySide(s, n, s.limits)
		fed := b.run()
		wall, _ := b.times()
		return float64(wall) / float64(fed)
	}
	total, fed := int64(0), 0
	for fed < n {
		b := &s.batches[0]
		b.make(s, 0, n-fed)
		from := s.busy.Now()
		s.limits[0].feed(b.frames)
		total += s.busy.Since(from)
		fed += len(b.frames)
	}
	return float64(total) / float64(fed)
}

// drive feeds worker q its batch, burst by burst, from now on by its clock.
func (s *synth) drive(q int, now int64) {
	frames := s.batches[q].frames
	for at := 0; at < len(frames); at += dataplane.BurstSize {
		burst := frames[at:min(at+dataplane.BurstSize, len(frames))]
		now += int64(len(burst)) * packetGap
		s.feed(q, burst, now)
		if s.sampler != nil {
			s.sampler.note(len(burst))
		}
	}
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
	if s.limits != nil {
		rep.Limit = newLimitReport(ns, limits)
	}
	rep.count(&counts)
	return rep
}
