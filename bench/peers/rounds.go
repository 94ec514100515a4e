package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// run is a run under way.
type run struct {
	o     Options
	dir   string
	lanes []*lane
	works []work
}

// lane is a forwarder with its network.
type lane struct {
	kind
	net *network
	fwd forwarder
}

func (r *run) close() error {
	var errs []error
	for _, l := range r.lanes {
		errs = append(errs, l.fwd.stop(), l.net.close())
	}
	r.lanes = nil
	return errors.Join(errs...)
}

const procStat = "/proc/stat"

// all measures everything.
func (r *run) all(ctx context.Context) (*Report, error) {
	rep := newReport(&r.o)
	before, err := os.ReadFile(procStat)
	if err != nil {
		return nil, err
	}
	rep.Lacks = r.choose()
	if len(r.works) == 0 {
		return nil, nothing(rep.Lacks, "no work is left")
	}
	if err := r.build(ctx, rep); err != nil {
		return nil, err
	}
	if len(r.lanes) == 0 {
		return nil, nothing(rep.Lacks, "none of the forwarders can do any of the works")
	}
	for i := range r.works {
		res, err := r.work(ctx, &r.works[i])
		if err != nil {
			return nil, err
		}
		rep.Works = append(rep.Works, res)
	}
	rep.judge()
	after, err := os.ReadFile(procStat)
	if err != nil {
		return nil, err
	}
	rep.Host.Stolen = stolenSince(before, after)
	return rep, nil
}

// nothing is the error of a run without anything to measure.
func nothing(lacks []Lack, why string) error {
	if how := Install(lacks); how != "" {
		why += ": " + how
	}
	return fmt.Errorf("%w: nothing to measure: %s", ErrOptions, why)
}

// choose sets the works that are asked for and can be done.
func (r *run) choose() (missing []Lack) {
	_, names := Names()
	for _, w := range works() {
		if !r.o.wants(w.name, names) {
			continue
		}
		if l := lacks(w.name, w.tools); len(l) > 0 {
			missing = append(missing, l...)
			continue
		}
		r.works = append(r.works, w)
	}
	return missing
}

// build makes a network for each forwarder that is asked for, can be run and has
// any of the works.
func (r *run) build(ctx context.Context, rep *Report) error {
	names, _ := Names()
	for _, k := range kinds() {
		if !r.o.wants(k.name, names) || !r.busy(&k) {
			continue
		}
		if l := lacks(k.name, k.tools); len(l) > 0 {
			rep.Lacks = append(rep.Lacks, l...)
			continue
		}
		n, err := newNetwork(filepath.Join(r.dir, k.name), r.o.CPUs)
		if err != nil {
			return err
		}
		r.lanes = append(r.lanes, &lane{kind: k, net: n, fwd: k.make(&r.o)})
		rep.Forwarders = append(rep.Forwarders,
			ForwarderInfo{Name: k.name, Title: k.title, Does: k.does, Version: k.version(), Setup: k.setup(r.o.CPUs)})
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) busy(k *kind) bool {
	for i := range r.works {
		if k.carries[r.works[i].traffic] {
			return true
		}
	}
	return false
}

// work measures all forwarders at one work, in turn, round after round. Only a
// done context is an error.
func (r *run) work(ctx context.Context, w *work) (WorkReport, error) {
	res := WorkReport{Name: w.name, Title: w.title, How: w.how}
	rows := map[*lane]*rowData{}
	var lanes []*lane
	for _, l := range r.lanes {
		if !l.carries[w.traffic] {
			continue
		}
		row := &rowData{arrangement: l.candidates[w.traffic][0]}
		lanes, rows[l] = append(lanes, l), row
	}
	if err := r.calibrate(ctx, w, lanes, rows); err != nil {
		return res, err
	}
	for round := range r.o.Rounds {
		for i := range lanes {
			l := lanes[(i+round)%len(lanes)]
			row := rows[l]
			if row.err != nil {
				continue
			}
			var v []float64
			v, row.err = r.measure(ctx, w, l, row.arrangement, r.o.Duration)
			if err := ctx.Err(); err != nil {
				return res, err
			}
			if row.err == nil {
				row.rounds = append(row.rounds, v)
			}
			r.o.Note(fmt.Sprintf("%s, round %d of %d, %s: %s", w.name, round+1, r.o.Rounds, l.name, said(w, v, row.err)))
		}
	}
	for m, metric := range w.metrics {
		mr := MetricReport{Metric: metric}
		for _, l := range lanes {
			row := rows[l].row(l.name, m)
			if m == w.chief {
				row.Trials = rows[l].trials
			}
			mr.Rows = append(mr.Rows, row)
		}
		mr.ratios()
		res.Metrics = append(res.Metrics, mr)
	}
	return res, nil
}

// passes is how often each arrangement is tried: the best of single trials would
// be the luckiest.
const passes = 3

// calibrate tries the arrangements of all and chooses each one's best by the
// median of the work's chief metric. Only a done context is an error.
func (r *run) calibrate(ctx context.Context, w *work, lanes []*lane, rows map[*lane]*rowData) error {
	for _, l := range lanes {
		if !rows[l].adopt(r.o.As, w.name, l.name) && r.o.Calibrate > 0 {
			rows[l].propose(l.candidates[w.traffic])
		}
	}
	for range passes {
		for _, l := range lanes {
			for i := range rows[l].trials {
				t := &rows[l].trials[i]
				if t.Failed != "" || rows[l].adopted {
					continue
				}
				v, err := r.measure(ctx, w, l, t.Arrangement, r.o.Calibrate)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				r.o.Note(fmt.Sprintf("%s, trying %s: %s (%s)", w.name, l.name, said(w, v, err), t.Arrangement))
				if err != nil {
					t.Failed, rows[l].err = firstLine(err), err
					continue
				}
				t.Rounds = append(t.Rounds, v[w.chief])
			}
		}
	}
	for _, l := range lanes {
		if !rows[l].adopted {
			rows[l].settle(&w.metrics[w.chief])
		}
	}
	return nil
}

// measure has a forwarder do the work once.
func (r *run) measure(ctx context.Context, w *work, l *lane, a Arrangement, took time.Duration) (v []float64, err error) {
	if err := l.net.arrange(ctx, a); err != nil {
		return nil, err
	}
	if w.traffic != udp {
		if err := l.net.serve(ctx); err != nil {
			return nil, err
		}
	}
	if err := l.fwd.start(ctx, l.net, w.traffic); err != nil {
		return nil, err
	}
	if !l.resident {
		defer func() { err = errors.Join(err, l.fwd.stop()) }()
	}
	if err := l.net.settle(ctx); err != nil {
		return nil, err
	}
	if w.traffic == tcp {
		if err := l.net.checkTCP(ctx, &l.kind); err != nil {
			return nil, err
		}
	}
	return w.measure(ctx, r, l.net, &l.kind, took)
}

// said is a measurement in a few words.
func said(w *work, v []float64, err error) string {
	if err != nil {
		return "failed: " + firstLine(err)
	}
	s := ""
	for i, m := range w.metrics {
		if i > 0 {
			s += ", "
		}
		s += m.Name + " " + format(v[i]) + " " + m.Unit
	}
	return s
}
