package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/nat"
)

// MatrixOptions say what Matrix measures. Fields as in SynthOptions.
type MatrixOptions struct {
	Spec                   dataplane.Spec // each service is a row
	LocalPorts             []nat.PortRange
	FrameSize, MaxFlows    int
	Seed                   uint64
	Flows, Packets, Rounds int
	Size                   int
	// Workers, above 1, adds rows for so many workers and the first service.
	Workers  int
	Progress func(done float64)
}

// MatrixReport is the result of Matrix.
type MatrixReport struct {
	Flows  int         `json:"flows"`
	Rounds int         `json:"rounds"`
	Rows   []MatrixRow `json:"rows"`
}

// MatrixRow is a kind of traffic.
type MatrixRow struct {
	Name string `json:"name"`
	Spread
	// ToFirst is the median of the rounds' ratios to the first row, of ns a packet;
	// with several workers the other way round, of packets in the same time, by
	// the wall.
	ToFirst float64 `json:"to_first"`
	// ToLimit is the median of the rounds' ratios to the limit, or to as many limits
	// side by side as there are workers. So with n workers n times the ratio of the
	// first row's ToLimit to this one is what ToFirst would be if the machine's cores
	// did not get into each other's way.
	ToLimit float64 `json:"to_limit"`
	// Cores is processor time, in nanoseconds a packet, of all workers together;
	// median. Where it is much less than workers times the wall's, others had
	// their cores.
	Cores   float64 `json:"core_ns_per_packet"`
	Dropped uint64  `json:"dropped"`
	Workers int     `json:"workers"`
}

// matrixRow is a row under way.
type matrixRow struct {
	name   string
	s      *synth
	ns     []float64
	wall   []float64
	cores  []float64
	limits []float64
}

// Matrix measures the services one beside another: a round of each in turn, so
// that what the machine does besides weighs on all. A service with TOA is measured
// with fresh flows, where every packet of a client bears it.
func Matrix(ctx context.Context, o MatrixOptions) (rep *MatrixReport, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o.Packets, o.Rounds = orDefault(o.Packets, 500_000), orDefault(o.Rounds, 5)
	if o.Workers < 0 || o.Workers > 255 {
		return nil, fmt.Errorf("matrix: %w: %d workers", ErrOptions, o.Workers)
	}
	rows, err := matrixRows(&o)
	defer func() {
		for _, r := range rows {
			err = errors.Join(err, r.s.close())
		}
		if err != nil {
			rep, err = nil, fmt.Errorf("matrix: %w", err)
		}
	}()
	if err != nil {
		return nil, err
	}
	for i, r := range rows {
		if err := r.s.open(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		r.s.round(max(min(o.Packets, 4*o.Flows), warmPackets)) // warms caches up
		r.s.limitRound(max(min(o.Packets, 4*o.Flows), warmPackets))
		if o.Progress != nil {
			o.Progress(0.5 * float64(i+1) / float64(len(rows)))
		}
	}
	settle()
	for i := range o.Rounds {
		for _, r := range rows {
			r.ns = append(r.ns, r.s.round(o.Packets))
			r.wall, r.cores = append(r.wall, r.s.wall), append(r.cores, r.s.cores)
			r.limits = append(r.limits, r.s.limitRound(o.Packets))
		}
		if o.Progress != nil {
			o.Progress(0.5 + 0.5*float64(i+1)/float64(o.Rounds))
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	rep = &MatrixReport{Flows: o.Flows, Rounds: o.Rounds}
	for _, r := range rows {
		if err := r.s.r.dp.Audit(); err != nil {
			return nil, fmt.Errorf("%s: frames lost or doubled: %w", r.name, err)
		}
		rep.Rows = append(rep.Rows, r.report(rows[0]))
	}
	return rep, nil
}

// matrixRows makes the data planes. With an error it returns those it made.
func matrixRows(o *MatrixOptions) (rows []*matrixRow, err error) {
	add := func(name string, svc dataplane.ServiceSpec, workers int, arrival Arrival) {
		if err != nil {
			return
		}
		one := SynthOptions{
			Spec: o.Spec, LocalPorts: o.LocalPorts, FrameSize: o.FrameSize, MaxFlows: o.MaxFlows, Seed: o.Seed,
			Flows: o.Flows, Packets: o.Packets, Rounds: o.Rounds, Size: o.Size,
			Workers: workers, Arrival: arrival, RSSKnown: arrival == ArriveSpread, Fresh: svc.TOA, Limit: true,
		}
		one.Spec.Services = []dataplane.ServiceSpec{svc}
		var s *synth
		if s, err = newSynth(one); err != nil {
			err = fmt.Errorf("%s: %w", name, err)
			return
		}
		rows = append(rows, &matrixRow{name: name, s: s})
	}
	for _, svc := range o.Spec.Services {
		add(svc.Name, svc, 1, ArriveHome)
	}
	// At home are flows whose local port is chosen by the NIC's RSS, not those that
	// chance brings home: what chance decides has to be looked at for each packet.
	if o.Workers > 1 && len(o.Spec.Services) > 0 {
		svc := o.Spec.Services[0]
		add(fmt.Sprintf("%s, %d workers, flows at home", svc.Name, o.Workers), svc, o.Workers, ArriveSpread)
		add(fmt.Sprintf("%s, %d workers, every reply handed over", svc.Name, o.Workers), svc, o.Workers, ArriveAway)
	}
	if err == nil && len(rows) == 0 {
		err = ErrNoService
	}
	return rows, err
}

func (r *matrixRow) report(first *matrixRow) MatrixRow {
	counts := r.s.r.counts()
	row := MatrixRow{Name: r.name, Spread: *newSpread(r.ns), Dropped: counts.Drops(), Workers: r.s.o.Workers, Cores: median(r.cores)}
	row.ToFirst = median(ratios(r.ns, first.ns))
	row.ToLimit = median(ratios(r.ns, r.limits))
	if r.s.o.Workers > 1 {
		row.ToFirst = median(ratios(first.wall, r.ns))
	}
	return row
}

// ratios of a to b, one by one.
func ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

// WriteJSON writes the report as one JSON object.
func (r *MatrixReport) WriteJSON(w io.Writer) error { return writeJSON(w, r) }

// WriteText writes the report as a table in Markdown.
func (r *MatrixReport) WriteText(w io.Writer) error {
	p := &printer{w: w}
	p.linef("%d flows, medians of %d rounds in turn", r.Flows, r.Rounds)
	p.linef("| packets | ns, median | best | worst | of all cores | to the first row | to the limit | dropped |")
	p.linef("|---|---|---|---|---|---|---|---|")
	for _, row := range r.Rows {
		first := fmt.Sprintf("%.2f×", row.ToFirst)
		if row.Workers > 1 {
			first += " as many"
		}
		p.linef("| %s | %.1f | %.1f | %.1f | %.1f | %s | %.2f× | %d |", row.Name, row.Median, row.Best, row.Worst, row.Cores, first, row.ToLimit, row.Dropped)
	}
	return p.err
}
