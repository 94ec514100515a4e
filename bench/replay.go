package bench

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/l4fwd/l4fwd/bench/cpu"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/nat"
)

// Options of Replay.
type Options struct {
	Spec       dataplane.Spec
	LocalPorts []nat.PortRange // by local address, in Spec's order
	FrameSize  int             // UMEM chunk in bytes, a power of two; 0 is 2048
	MaxFlows   int             // flow table capacity, all workers together
	Workers    int             // 0 is 1
	// Loops over the capture, or, if Duration is set, as many as it takes.
	// 0 is 1.
	Loops    int
	Duration time.Duration
	// Seed stands for every secret: hash keys, ports, sequence numbers.
	Seed uint64
	// RSSKnown lets the workers know how packets are spread over them, so that
	// flows are at home where they arrive; else packets are handed over as on
	// NICs whose RSS key cannot be read.
	RSSKnown bool
	// Output, if set, gets a capture of every frame that leaves. With several
	// workers they then take turns in one thread, so that the order, too, is
	// always the same, and the figures say nothing of speed.
	Output io.Writer
	// Limit measures the limit (see the package comment) after each loop but the
	// first, over the same packets, and takes the processor time of the thread for
	// time. It needs several Loops, one worker, no Output and no Profile: see
	// CanLimit.
	Limit bool
	// Profile measures the stages of every burst of the loops after the first; it
	// needs one worker and no Output. CPUProfile, if set, gets a pprof profile of
	// those loops. Without such loops both are an error.
	Profile    bool
	CPUProfile io.Writer
	// Progress, if set, is called now and then from the measuring thread with
	// the part done, 0 to 1.
	Progress func(done float64)
}

// Replay feeds a capture through workers over memory ports and reports what
// became of the packets and how long it took. It uses the capture up.
//
// Loop 1 feeds the packets in the order of the capture, replies completed and
// held back as the package comment tells. Later loops feed what goes on in
// between: handshakes are left out of them, since every flow is open, and if
// there is more than one loop, so are all FIN and RST, for the flows must live
// on. (A handshake here is SYN, SYN-ACK and the first empty ACK after it; of
// UDP the first datagram each way.)
//
// The workers' clock is the capture's: it goes on over the loops, never back.
// Equal captures and options give equal output to the byte.
func Replay(ctx context.Context, c *Capture, o Options) (*Report, error) {
	o.FrameSize = orDefault(o.FrameSize, 2048)
	o.MaxFlows = orDefault(o.MaxFlows, 1<<20)
	o.Workers = orDefault(o.Workers, 1)
	o.Loops = orDefault(o.Loops, 1)
	rep, err := replay(ctx, c, &o)
	if err != nil {
		return nil, fmt.Errorf("replay %s: %w", c.Name, err)
	}
	return rep, nil
}

func orDefault(v, d int) int {
	if v == 0 {
		return d
	}
	return v
}

func replay(ctx context.Context, c *Capture, o *Options) (rep *Report, err error) {
	if o.Workers < 1 || o.Workers > 255 || o.Loops < 1 {
		return nil, fmt.Errorf("%w: %d workers, %d loops", ErrOptions, o.Workers, o.Loops)
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	longest := 0
	for i, f := range c.Frames {
		if room := o.FrameSize - memport.Headroom; len(f) > room {
			return nil, fmt.Errorf("packet %d: %d bytes are more than frames of %d can take (%d)", i+1, len(f), o.FrameSize, room)
		}
		longest = max(longest, len(f))
	}
	r, err := newRig(o, longest)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := r.close(); err == nil {
			err = e
		}
	}()
	m := newMeter(r, c, o)
	if err := m.firstLoop(ctx); err != nil {
		return nil, err
	}
	if err := m.laterLoops(ctx); err != nil {
		return nil, err
	}
	if err := m.out.finish(); err != nil {
		return nil, err
	}
	if err := r.dp.Audit(); err != nil {
		return nil, fmt.Errorf("frames lost or doubled: %w", err)
	}
	return m.report(), nil
}

// check looks whether what is asked for can be measured together.
func (o *Options) check() error {
	several := o.Loops > 1 || o.Duration > 0
	switch {
	case o.Profile && o.Limit:
		return fmt.Errorf("%w: a profile of the stages reads the clock, which would count in the ratio to the limit: one of the two", ErrOptions)
	case o.Limit && !o.CanLimit():
		return fmt.Errorf("%w: the limit wants several loops, not a duration, one worker and no output", ErrOptions)
	case o.Profile && (o.Workers > 1 || o.Output != nil):
		return fmt.Errorf("%w: a profile of the stages wants one worker and no output", ErrOptions)
	case (o.Profile || o.CPUProfile != nil) && !several:
		return fmt.Errorf("%w: a profile is of the loops after the first, so it wants several, or a duration", ErrOptions)
	}
	return nil
}

// CanLimit reports whether the limit can be measured with the other options.
func (o *Options) CanLimit() bool {
	return o.Loops > 1 && o.Duration == 0 && o.Workers <= 1 && o.Output == nil && !o.Profile
}

// meter is a replay under way.
type meter struct {
	o       *Options
	r       *rig
	c       *Capture
	a       *analysis
	out     *output
	clocks  []dataplane.StageClock
	started time.Time
	since   int64 // when the later loops began, by now
	until   int   // how many loops drive goes on for
	sampler *stageSampler
	// By loop, nanoseconds a packet, where the limit is measured.
	rounds, limits []float64

	order      []int32 // what loop 1 fed, in its order
	time       int64   // capture time of the last burst, nanoseconds; see base
	loops      int
	allocs     uint64 // heap objects allocated while it counted
	allocsOver uint64 // packets they are for
	bytes      uint64 // fed, without Ethernet checksums
	part       [2]struct {
		packets uint64
		nanos   int64
	} // loop 1, later loops
	heldBack, unmatched uint64
}

// base is the capture time of the first packet, so that no time is zero.
const base = int64(time.Second)

// several reports whether there will be more than one loop.
func (m *meter) several() bool { return m.o.Loops > 1 || m.o.Duration > 0 }

func newMeter(r *rig, c *Capture, o *Options) *meter {
	m := &meter{
		o: o, r: r, c: c, a: analyse(c, &o.Spec), started: time.Now(), time: base, until: o.Loops,
		clocks: make([]dataplane.StageClock, o.Workers),
	}
	m.out = newOutput(r, o.Output, c.Start)
	return m
}

// now is a monotonic clock.
func (m *meter) now() int64 { return int64(time.Since(m.started)) }

// sampled is one round in so many that the stage clocks look at: reading a
// clock takes about as long as a stage does for one packet.
const sampled = 16

// watch lets the stage clocks run.
func (m *meter) watch() {
	if m.o.Profile && m.several() {
		m.sampler = newStageSampler(cpu.NewClock())
		m.r.dp.Workers[0].Time(&m.sampler.clock)
		return
	}
	for i, w := range m.r.dp.Workers {
		m.clocks[i] = dataplane.StageClock{Now: m.now, Every: sampled}
		w.Time(&m.clocks[i])
	}
}

// allocated is how many heap objects have been allocated since the start.
func allocated() uint64 {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.Mallocs
}

func (m *meter) report() *Report {
	counts := m.r.counts()
	first, later := &m.part[0], &m.part[1]
	all := newPart(first.packets+later.packets, first.nanos+later.nanos)
	rep := &Report{
		Packets: all.Packets, Seconds: all.Seconds, Mpps: all.Mpps, NsPerPacket: all.NsPerPacket,
		Gbps:  float64(8*(m.bytes+fcs*all.Packets)) / max(float64(first.nanos+later.nanos), 1),
		First: newPart(first.packets, first.nanos),
		Loops: m.loops, Workers: m.o.Workers, Flows: m.r.flows(),
		TableBytes: m.r.dp.TableBytes(), Table: m.r.dp.Backing(),
		HeldBack: m.heldBack, Unmatched: m.unmatched,
	}
	if later.packets > 0 {
		s := newPart(later.packets, later.nanos)
		rep.Steady = &s
	}
	if m.allocsOver > 0 {
		rep.AllocsPerPacket = float64(m.allocs) / float64(m.allocsOver)
	}
	rep.count(&counts)
	for _, w := range m.r.dp.Workers {
		rep.Waiting += uint64(w.FragmentsWaiting())
	}
	rep.time(m.clocks)
	if m.sampler != nil {
		rep.Profile = m.sampler.report()
	}
	if m.limits != nil {
		rep.Rounds, rep.Limit = newSpread(m.rounds), newLimitReport(m.rounds, m.limits)
	}
	return rep
}
