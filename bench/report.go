package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/nat"
)

// Report is the result of a Replay. As JSON it is one object.
type Report struct {
	// Packets fed in all loops; Forwarded and the sum of Dropped are what
	// became of them. Packets handed from worker to worker count once.
	Packets uint64 `json:"packets"`
	// Seconds in the pipeline, the copy into frames included: of one worker,
	// or, where several ran side by side, until the last was done.
	Seconds     float64 `json:"seconds"`
	Mpps        float64 `json:"mpps"`
	NsPerPacket float64 `json:"ns_per_packet"` // copy included
	// CoreNsPerPacket is processor time, all workers together, of a Synthesize;
	// median of the rounds. Much less than Workers times NsPerPacket means that
	// others had the cores.
	CoreNsPerPacket float64 `json:"core_ns_per_packet,omitempty"`
	// CopyNsPerPacket is what taking packets from a memory port costs, mostly
	// their copy; PipelineNsPerPacket is the rest. Sampled, each for one
	// worker.
	CopyNsPerPacket     float64 `json:"copy_ns_per_packet"`
	PipelineNsPerPacket float64 `json:"pipeline_ns_per_packet"`
	// Gbps counts frames as fed, with the Ethernet checksum, without preamble
	// and gap.
	Gbps float64 `json:"gbps"`
	// AllocsPerPacket is Go heap objects, over the loops after the first, or
	// over the first if it is the only one.
	AllocsPerPacket float64           `json:"allocs_per_packet"`
	Forwarded       uint64            `json:"forwarded"` // left l4fwd, whatever the direction
	Dropped         map[string]uint64 `json:"dropped"`   // by reason
	Verdicts        map[string]uint64 `json:"verdicts"`  // other outcomes
	TOA             uint64            `json:"toa_inserted"`
	Stages          []StageShare      `json:"stages"` // sampled
	// First is loop 1, which opens the flows; Steady the loops after it,
	// missing if there were none.
	First  Part  `json:"first"`
	Steady *Part `json:"steady,omitempty"`
	// Rounds, Limit and Profile are there if they were asked for: see
	// SynthOptions.
	Rounds  *Spread      `json:"rounds,omitempty"`
	Limit   *LimitReport `json:"limit,omitempty"`
	Profile *Profile     `json:"profile,omitempty"`

	Loops      int    `json:"loops"`
	Workers    int    `json:"workers"`
	Flows      int    `json:"flows"` // in the tables at the end
	TableBytes uint64 `json:"table_bytes"`
	Table      string `json:"table"` // what memory the first worker's table got
	// HeldBack replies had to wait for their flow, Unmatched ones waited in
	// vain and were fed as they are at the end of loop 1.
	HeldBack  uint64 `json:"held_back"`
	Unmatched uint64 `json:"unmatched"`
	// Waiting are fragments for whose first the workers still wait at the end: they
	// are neither forwarded nor dropped.
	Waiting uint64 `json:"waiting"`
}

// Part is some of the loops.
type Part struct {
	Packets     uint64  `json:"packets"`
	Seconds     float64 `json:"seconds"`
	Mpps        float64 `json:"mpps"`
	NsPerPacket float64 `json:"ns_per_packet"`
}

// StageShare is what a stage takes of a packet's time.
type StageShare struct {
	Stage       string  `json:"stage"`
	NsPerPacket float64 `json:"ns_per_packet"`
	Share       float64 `json:"share"` // of all stages, 0 to 1
}

func newPart(packets uint64, nanos int64) Part {
	p := Part{Packets: packets, Seconds: float64(nanos) / 1e9}
	if packets > 0 && nanos > 0 {
		p.NsPerPacket = float64(nanos) / float64(packets)
		p.Mpps = 1e3 / p.NsPerPacket
	}
	return p
}

// count fills in what the workers' counters say.
func (r *Report) count(c *dataplane.Counts) {
	r.Dropped, r.Verdicts = map[string]uint64{}, map[string]uint64{}
	r.TOA = c.TOA[nat.TOAInserted]
	for v := range dataplane.NumVerdicts {
		n := c.Verdicts[v]
		switch {
		case n == 0:
		case v.IsDrop():
			r.Dropped[v.String()] = n
		default:
			r.Verdicts[v.String()] = n
			if v != dataplane.HandedOver {
				r.Forwarded += n
			}
		}
	}
}

// time fills in what the stage clocks say of the steady loops.
func (r *Report) time(clocks []dataplane.StageClock) {
	var nanos [dataplane.NumStages]int64
	var packets uint64
	var total int64
	for i := range clocks {
		packets += clocks[i].Packets
		for s, n := range clocks[i].Nanos {
			nanos[s] += n
			total += n
		}
	}
	if packets == 0 {
		return
	}
	for s, n := range nanos {
		r.Stages = append(r.Stages, StageShare{
			Stage:       dataplane.Stage(s).String(),
			NsPerPacket: float64(n) / float64(packets),
			Share:       float64(n) / float64(max(total, 1)),
		})
	}
	r.CopyNsPerPacket = r.Stages[dataplane.StageReceive].NsPerPacket
	for _, s := range r.Stages[dataplane.StageReceive+1:] {
		r.PipelineNsPerPacket += s.NsPerPacket
	}
}

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error { return writeJSON(w, r) }

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// writeDropped writes how many packets were dropped, by reason.
func writeDropped(p *printer, by map[string]uint64) {
	var dropped uint64
	for _, n := range by {
		dropped += n
	}
	p.linef("dropped %d", dropped)
	for _, v := range slices.Sorted(maps.Keys(by)) {
		p.linef("  %-24s %d", v, by[v])
	}
}

// WriteText writes the report for people.
func (r *Report) WriteText(w io.Writer) error {
	p := &printer{w: w}
	p.linef("%d packets in %.3f s: %.2f Mpps, %.1f ns a packet, %.2f Gbit/s", r.Packets, r.Seconds, r.Mpps, r.NsPerPacket, r.Gbps)
	p.linef("  loop 1       %12d packets %8.2f Mpps %8.1f ns a packet (opens the flows)", r.First.Packets, r.First.Mpps, r.First.NsPerPacket)
	if s := r.Steady; s != nil {
		p.linef("  loops 2-%-4d %12d packets %8.2f Mpps %8.1f ns a packet", r.Loops, s.Packets, s.Mpps, s.NsPerPacket)
	}
	if len(r.Stages) > 0 {
		p.linef("sampled: copy %.1f ns, pipeline %.1f ns a packet", r.CopyNsPerPacket, r.PipelineNsPerPacket)
		for _, s := range r.Stages {
			p.linef("  %-10s %6.1f ns %5.1f %%", s.Stage, s.NsPerPacket, 100*s.Share)
		}
	}
	r.writeRounds(p)
	p.linef("forwarded %d", r.Forwarded)
	for _, v := range slices.Sorted(maps.Keys(r.Verdicts)) {
		p.linef("  %-24s %d", v, r.Verdicts[v])
	}
	writeDropped(p, r.Dropped)
	if r.HeldBack > 0 {
		p.linef("%d replies waited for their flow, %d of them in vain", r.HeldBack, r.Unmatched)
	}
	if r.Waiting > 0 {
		p.linef("%d fragments still wait for the first of their datagram", r.Waiting)
	}
	p.linef("allocations a packet: %g", r.AllocsPerPacket)
	p.linef("%d flows, %d worker(s), flow tables %.1f MiB (%s)", r.Flows, r.Workers, float64(r.TableBytes)/(1<<20), r.Table)
	return p.err
}

// writeRounds writes what was measured round by round.
func (r *Report) writeRounds(p *printer) {
	if s := r.Rounds; s != nil {
		p.linef("%d rounds: median %.1f, best %.1f, worst %.1f ns a packet", s.Rounds, s.Median, s.Best, s.Worst)
		if r.CoreNsPerPacket > 0 { // a replay of a capture has not measured it
			p.linef("processor time, all workers: %.1f ns a packet", r.CoreNsPerPacket)
		}
	}
	if l := r.Limit; l != nil {
		p.linef("limit: median %.1f, best %.1f, worst %.1f ns a packet", l.Median, l.Best, l.Worst)
		p.linef("ratio to limit: %.2f (median of rounds), %.2f (best to best)", l.Ratio, l.BestRatio)
	}
	if f := r.Profile; f != nil {
		p.linef("stages over %d bursts, by the %s (%d ns a reading, taken off):", f.Bursts, f.Clock, f.Cost)
		for _, s := range f.Stages {
			p.linef("  %-10s mean %6.1f  median %6.1f  p99 %6.1f ns a packet  %5.1f %%", s.Stage, s.Mean, s.Median, s.P99, 100*s.Share)
		}
	}
}

// printer keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) linef(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}
