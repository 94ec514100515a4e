package bench

import (
	"context"
	"errors"
	"fmt"

	"github.com/l4fwd/l4fwd/dataplane"
)

// What Check looks for allocations in: so many flows, and packets a round.
const (
	allocFlows   = 10_000
	allocPackets = 100_000
	allocRounds  = 2
	allocWorkers = 2
)

// allocations looks for them in packets of every service, of two workers with every
// reply handed over, and where flows begin and end.
func (r *CheckReport) allocations(ctx context.Context, o *CheckOptions) error {
	for i := range o.Spec.Services {
		svc := &o.Spec.Services[i]
		s := SynthOptions{
			Spec: only(&o.Spec, i), LocalPorts: o.LocalPorts, FrameSize: o.FrameSize, Fresh: svc.TOA,
			MaxFlows: 4 * allocFlows, Flows: allocFlows, Packets: allocPackets, Rounds: allocRounds,
		}
		err := r.allocs(o, svc.Name, func(seed uint64) (float64, error) {
			s.Seed = seed
			rep, err := Synthesize(ctx, s)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", svc.Name, err)
			}
			return rep.AllocsPerPacket, nil
		})
		if err != nil {
			return err
		}
	}
	err := r.allocs(o, fmt.Sprintf("%d workers, all replies handed over", allocWorkers), func(seed uint64) (float64, error) {
		return handedOver(ctx, o, seed)
	})
	if err != nil {
		return err
	}
	return r.allocs(o, "whole lives", func(seed uint64) (float64, error) {
		rep, err := Lives(ctx, LivesOptions{
			Spec: only(&o.Spec, 0), LocalPorts: o.LocalPorts, FrameSize: o.FrameSize, Seed: seed,
			Lives: 10_000, Rounds: 2, Kept: 10_000,
		})
		if err != nil {
			return 0, err
		}
		return rep.AllocsPerPacket, nil
	})
}

// allocs adds what measure says, the best of some attempts: now and then the runtime
// allocates something of its own.
func (r *CheckReport) allocs(o *CheckOptions, what string, measure func(seed uint64) (float64, error)) error {
	var best float64
	for i := range o.Attempts {
		n, err := measure(uint64(i))
		if err != nil {
			return err
		}
		if best = n; best == 0 {
			break
		}
	}
	r.add("allocations a packet, "+what, best, 0)
	return nil
}

// errNothingHandedOver is what is wrong with a check that did not check.
var errNothingHandedOver = errors.New("no packet was handed over")

// handedOver is how many heap objects a packet takes of workers that take turns in
// one thread, since threads of their own allocate a few, with every reply handed over.
func handedOver(ctx context.Context, o *CheckOptions, seed uint64) (allocs float64, err error) {
	s, err := newSynth(SynthOptions{
		Spec: only(&o.Spec, 0), LocalPorts: o.LocalPorts, FrameSize: o.FrameSize, Seed: seed,
		MaxFlows: 4 * allocFlows, Flows: allocFlows, Workers: allocWorkers, Arrival: ArriveAway,
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx); err != nil {
		return 0, err
	}
	s.inTurn(allocPackets)
	settle()
	counts := s.r.counts()
	was, before := counts.Verdicts[dataplane.HandedOver], allocated()
	s.inTurn(allocPackets)
	after := allocated()
	counts = s.r.counts()
	if counts.Verdicts[dataplane.HandedOver] == was {
		return 0, errNothingHandedOver
	}
	if err := s.r.dp.Audit(); err != nil {
		return 0, fmt.Errorf("frames lost or doubled: %w", err)
	}
	return float64(after-before) / allocPackets, nil
}

// inTurn feeds n packets or a few more, the workers in turn in the calling thread.
func (s *synth) inTurn(n int) {
	for fed := 0; fed < n; {
		for q := range s.batches {
			s.batches[q].make(s, q, n)
			s.drive(q, s.time)
			fed += len(s.batches[q].frames)
			s.time += int64(len(s.batches[q].frames)+1) * packetGap
		}
		for moving := true; moving; {
			moving = false
			for _, w := range s.r.dp.Workers {
				moving = w.Poll(s.time) > 0 || moving
			}
		}
	}
}
