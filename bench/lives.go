package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// LivesOptions say what Lives measures.
type LivesOptions struct {
	Spec       dataplane.Spec // whose TCP services the clients talk to, in turn
	LocalPorts []nat.PortRange
	FrameSize  int // as in SynthOptions
	MaxFlows   int // at least what Kept needs
	Seed       uint64
	Family     int
	Size       int // of the packets with payload; 0 is MinSize

	Lives  int // measured in a round; 0 is 100,000
	Rounds int // 0 is 5
	// Kept is how many connections that are over the table holds, about: the
	// workers' clock goes so fast that so many wait for their end. 0 is 262,144.
	Kept int
	// Limit measures the limit (see the package comment) just after, with as many
	// flows as Kept.
	Limit bool
	// CPUProfile and Progress as in SynthOptions.
	CPUProfile io.Writer
	Progress   func(done float64)
}

// livePackets is a life: handshake, two packets with payload each way, both FINs
// and the last ACK.
const livePackets = 10

// wavesAbreast waves of lives go through their steps in turn, so that between
// two packets of one connection there are some thousand of others. Of wavesTimed
// the packets are made together and then fed together, a burst each: a clock that
// is read for each burst, and packets made between two, would be half of what is
// measured.
const (
	wavesAbreast = 64
	wavesTimed   = 16
)

// LivesReport is the result of Lives.
type LivesReport struct {
	Lives     uint64  `json:"lives"`
	PerSecond float64 `json:"lives_per_second"` // median of the rounds
	Best      float64 `json:"best_lives_per_second"`
	Worst     float64 `json:"worst_lives_per_second"`
	// NsPerPacket and NsPerLife are of all rounds, expiry included.
	NsPerPacket     float64           `json:"ns_per_packet"`
	NsPerLife       float64           `json:"ns_per_life"`
	Packets         uint64            `json:"packets"`
	Failed          uint64            `json:"failed"`        // lives whose SYN did not get through
	Kept            int               `json:"kept"`          // flows in the table after the last round
	Expired         uint64            `json:"expired"`       // flows, in the rounds
	ClockSeconds    float64           `json:"clock_seconds"` // that passed for the worker meanwhile
	Left            int               `json:"left"`          // flows in the table when all time is over
	AllocsPerPacket float64           `json:"allocs_per_packet"`
	Dropped         map[string]uint64 `json:"dropped"` // by reason, warming up included
	TableBytes      uint64            `json:"table_bytes"`
	Table           string            `json:"table"`
	Limit           *LimitAlone       `json:"limit,omitempty"`
}

// Lives measures whole TCP connections, from SYN to the expiry of what is left
// of them: new flow, new local port, scheduling, tracking and timers included.
// Packets are made as in Synthesize and only their feeding is timed, as there.
func Lives(ctx context.Context, o LivesOptions) (*LivesReport, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o.Lives, o.Rounds, o.Kept = orDefault(o.Lives, 100_000), orDefault(o.Rounds, 5), orDefault(o.Kept, 1<<18)
	if o.Lives < 1 || o.Rounds < 1 || o.Kept < 1 {
		return nil, fmt.Errorf("lives: %w: %d rounds of %d lives, %d kept", ErrOptions, o.Rounds, o.Lives, o.Kept)
	}
	s, err := newSynth(SynthOptions{
		Spec: answering(o.Spec), LocalPorts: o.LocalPorts, FrameSize: o.FrameSize, Seed: o.Seed, Size: o.Size, Family: o.Family,
		MaxFlows: max(o.MaxFlows, 2*(o.Kept+wavesAbreast*handshakeGroup)),
		Protocol: packet.ProtoTCP, Flows: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("lives: %w", err)
	}
	l := newLiver(s, &o)
	rep, err := l.measure(ctx)
	if err == nil && o.Limit {
		rep.Limit, err = limitAfter(ctx, s, o.Kept)
	}
	if err = errors.Join(err, s.close()); err != nil {
		return nil, fmt.Errorf("lives: %w", err)
	}
	return rep, nil
}

// liver lives the lives.
type liver struct {
	o      *LivesOptions
	s      *synth
	pupil  *pupil
	watch  [wavesTimed]*watcher
	waves  []wave
	next   int   // wave
	number int   // of the next client
	last   bool  // no more lives begin
	pace   int64 // of the workers' clock, nanoseconds a burst
	err    error

	lives, failed, packets uint64
	nanos                  int64
}

// wave is lives that do everything together.
type wave struct {
	step   int // livePackets: over; beyond it: so many turns until it begins
	first  int // number of its first client
	lives  [handshakeGroup]synthFlow
	frames [][]byte // of this step
	buf    []byte
}

func newLiver(s *synth, o *LivesOptions) *liver {
	l := &liver{o: o, s: s, pupil: newPupil(s), waves: make([]wave, wavesAbreast)}
	for i := range l.watch {
		l.watch[i] = newWatcher(s)
	}
	for i := range l.waves {
		v := &l.waves[i]
		v.step = livePackets + i%livePackets // so that one step of all ten comes after another
		v.frames = make([][]byte, 0, handshakeGroup)
		v.buf = make([]byte, handshakeGroup*(max(s.o.Size, minCaptured, handshakeRoom)+cacheLine))
	}
	timeWait := int64(s.services[0].Timeouts[conntrack.TimeWait]) * int64(time.Second) / conntrack.TicksPerSecond
	l.pace = max(timeWait*dataplane.BurstSize/(int64(o.Kept)*livePackets), 1)
	return l
}

// turn lets the next wavesTimed waves make a step each.
func (l *liver) turn() {
	waves := l.waves[l.next : l.next+wavesTimed]
	l.next = (l.next + wavesTimed) % len(l.waves)
	for i := range waves {
		l.make(&waves[i])
	}
	from := l.s.busy.Now()
	for i := range waves {
		l.s.time += l.pace
		if v := &waves[i]; v.step == 0 {
			l.watch[i].on(len(v.frames))
			l.s.feed(0, v.frames, l.s.time)
			l.watch[i].off()
		} else {
			l.s.feed(0, v.frames, l.s.time)
		}
	}
	l.nanos += l.s.busy.Since(from)
	for i := range waves {
		l.learn(&waves[i], l.watch[i])
	}
}

// learn takes note of what became of a wave's step.
func (l *liver) learn(v *wave, w *watcher) {
	switch {
	case v.step > livePackets: // has not begun
		v.step--
		return
	case v.step == livePackets:
		return
	}
	for i := 0; v.step == 0 && i < len(v.lives); i++ {
		if o := &w.sent[i]; o.n == 0 {
			l.failed++
		} else if err := l.pupil.learn(&v.lives[i], o.head[:o.n], v.first+i, 0); l.err == nil {
			l.err = err
		}
	}
	l.packets += uint64(len(v.frames))
	if v.step++; v.step == livePackets {
		l.lives += handshakeGroup
	}
}

// make makes the wave's packets.
func (l *liver) make(v *wave) {
	v.frames = v.frames[:0]
	if v.step > livePackets || v.step == livePackets && l.last {
		return
	}
	if v.step == livePackets {
		v.step, v.first = 0, l.number
		v.lives = [handshakeGroup]synthFlow{}
		l.number += handshakeGroup
	}
	at := 0
	for i := range v.lives {
		w := &v.lives[i]
		if v.step > 0 && !w.open {
			continue
		}
		g := l.packet(w, v.first+i, v.step)
		n := (max(g.headerLen()+g.payload, minCaptured) + cacheLine - 1) &^ (cacheLine - 1)
		v.frames = append(v.frames, g.build(v.buf[at:at+n]))
		at += n
	}
}

// packet is what is sent in a step of a life.
func (l *liver) packet(w *synthFlow, k, step int) segment {
	if step < 3 {
		return l.s.handshakeOf(w, k, step)
	}
	reply := step == 4 || step == 6 || step == 8
	g := l.s.segmentOf(w, k, reply)
	next := &w.client
	if reply {
		next = &w.server
	}
	switch {
	case step < 7:
		g.load(l.s.service(k), l.s.o.Size, reply)
		*next += uint32(g.payload)
	case step < 9:
		g.flags = packet.FIN | packet.ACK
		*next++
	default:
		g.flags = packet.ACK
	}
	return g
}

// run lives so many lives more, about.
func (l *liver) run(lives int) {
	for want := l.lives + uint64(lives); l.lives < want; {
		l.turn()
	}
}

func (l *liver) measure(ctx context.Context) (*LivesReport, error) {
	// Until as many expire as begin.
	for warm := l.o.Kept + l.o.Kept/4 + wavesAbreast*handshakeGroup; warm > 0; warm -= l.o.Lives {
		l.run(min(warm, l.o.Lives))
		if err := errors.Join(l.err, ctx.Err()); err != nil {
			return nil, err
		}
	}
	stop, err := startProfile(l.o.CPUProfile)
	if err != nil {
		return nil, err
	}
	defer stop()
	was := l.s.r.counts()
	clock := l.s.time
	l.lives, l.failed, l.packets, l.nanos = 0, 0, 0, 0
	rates := make([]float64, 0, l.o.Rounds)
	settle()
	before := allocated()
	for i := range l.o.Rounds {
		lives, nanos := l.lives, l.nanos
		l.run(l.o.Lives)
		rates = append(rates, float64(l.lives-lives)/max(float64(l.nanos-nanos), 1)*1e9)
		if l.o.Progress != nil {
			l.o.Progress(float64(i+1) / float64(l.o.Rounds))
		}
		if err := errors.Join(l.err, ctx.Err()); err != nil {
			return nil, err
		}
	}
	allocs := allocated() - before
	is := l.s.r.counts()
	rep := &LivesReport{
		Lives: l.lives, Packets: l.packets, Failed: l.failed, Kept: l.s.r.flows(),
		NsPerPacket: float64(l.nanos) / float64(l.packets), NsPerLife: float64(l.nanos) / float64(l.lives),
		Expired: is.Expired - was.Expired, ClockSeconds: float64(l.s.time-clock) / 1e9,
		AllocsPerPacket: float64(allocs) / float64(l.packets),
		TableBytes:      l.s.r.dp.TableBytes(), Table: l.s.r.dp.Backing(),
	}
	rep.PerSecond, rep.Best, rep.Worst = summary(rates)
	l.finish(rep)
	return rep, l.s.r.dp.Audit()
}

// finish lets all lives end and their time pass.
func (l *liver) finish(rep *LivesReport) {
	l.last = true
	for range livePackets * wavesAbreast / wavesTimed {
		l.turn()
	}
	longest := uint32(0)
	for _, svc := range l.s.services {
		for _, t := range svc.Timeouts {
			longest = max(longest, t)
		}
	}
	const tick = int64(time.Second) / conntrack.TicksPerSecond
	for end := l.s.time + int64(longest+conntrack.TicksPerSecond)*tick; l.s.time < end && l.s.r.flows() > 0; l.s.time += tick {
		for range 256 { // a round has time for so many flows only
			l.s.r.dp.Workers[0].Poll(l.s.time)
		}
	}
	rep.Left = l.s.r.flows()
	var all Report
	counts := l.s.r.counts()
	all.count(&counts)
	rep.Dropped = all.Dropped
}

// summary is median, largest and smallest.
func summary(rates []float64) (mid, best, worst float64) {
	s := newSpread(rates)
	return s.Median, s.Worst, s.Best
}

// WriteJSON writes the report as one JSON object.
func (r *LivesReport) WriteJSON(w io.Writer) error { return writeJSON(w, r) }

// WriteText writes the report for people.
func (r *LivesReport) WriteText(w io.Writer) error {
	p := &printer{w: w}
	p.linef("%d TCP lives of %d packets: %.2f million a second (median; best %.2f, worst %.2f)", r.Lives, livePackets, r.PerSecond/1e6, r.Best/1e6, r.Worst/1e6)
	p.linef("  %.0f ns a life, %.1f ns a packet, expiry included", r.NsPerLife, r.NsPerPacket)
	r.Limit.writeBeside(p)
	p.linef("  %d failed, %d expired meanwhile, %d kept in the table, %.1f s by the worker's clock", r.Failed, r.Expired, r.Kept, r.ClockSeconds)
	writeDropped(p, r.Dropped)
	p.linef("allocations a packet: %g", r.AllocsPerPacket)
	p.linef("flow table %.1f MiB (%s), %d flows left when all time was over", float64(r.TableBytes)/(1<<20), r.Table, r.Left)
	return p.err
}
