package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// Bounds are what Check holds the forwarder to.
type Bounds struct {
	// Ratios of ns a packet to the limit.
	Ratios []RatioBound `json:"ratios"`
	// BytesPerFlow of a table that is full.
	BytesPerFlow float64 `json:"bytes_per_flow"`
	// Sizes of structs in bytes, by package and name; exact.
	Sizes map[string]uintptr `json:"sizes"`
}

// RatioBound is the largest ratio with so many flows.
type RatioBound struct {
	Flows int     `json:"flows"`
	Max   float64 `json:"max"`
}

// ReadBounds reads Bounds as JSON. Fields it does not know are an error.
func ReadBounds(r io.Reader) (b Bounds, err error) {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&b); err != nil {
		return b, fmt.Errorf("bounds: %w", err)
	}
	if len(b.Ratios) == 0 || b.BytesPerFlow <= 0 || len(b.Sizes) == 0 {
		return b, errors.New("bounds: want ratios, bytes_per_flow and sizes")
	}
	return b, nil
}

// CheckOptions say what Check looks at.
type CheckOptions struct {
	// Spec has the services: the ratios are of the first, allocations of all.
	Spec       dataplane.Spec
	LocalPorts []nat.PortRange
	FrameSize  int
	Bounds     Bounds
	// Attempts is how often something that fails is measured before that counts:
	// the best one does. 0 is 12. Between two of a ratio passes a second, for a slow
	// spell of the machine to pass as well.
	Attempts int
	Packets  int // a round; 0 is 300,000
	Progress func(done float64)
}

// CheckReport is the result of Check.
type CheckReport struct {
	Seconds float64    `json:"seconds"`
	Checks  []CheckRow `json:"checks"`
}

// CheckRow is one thing checked.
type CheckRow struct {
	What  string  `json:"what"`
	Got   float64 `json:"got"`
	Bound float64 `json:"bound"` // Got must not be above it
	OK    bool    `json:"ok"`
}

// OK reports whether everything is within its bounds.
func (r *CheckReport) OK() bool {
	for _, c := range r.Checks {
		if !c.OK {
			return false
		}
	}
	return len(r.Checks) > 0
}

func (r *CheckReport) add(what string, got, bound float64) {
	r.Checks = append(r.Checks, CheckRow{what, got, bound, got <= bound})
}

// checkRounds of each attempt: enough for one or two that nobody disturbs.
const checkRounds = 7

// checkPause is between two attempts at a ratio.
const checkPause = time.Second

// Check measures what Bounds is about.
func Check(ctx context.Context, o CheckOptions) (*CheckReport, error) {
	o.Attempts, o.Packets = orDefault(o.Attempts, 12), orDefault(o.Packets, 300_000)
	if len(o.Spec.Services) == 0 || o.Attempts < 1 {
		return nil, fmt.Errorf("check: %w: %d services, %d attempts", ErrOptions, len(o.Spec.Services), o.Attempts)
	}
	rep, started := &CheckReport{}, time.Now()
	rep.sizes(o.Bounds.Sizes)
	for i, b := range o.Bounds.Ratios {
		perFlow, err := rep.ratio(ctx, &o, b)
		if err != nil {
			return nil, fmt.Errorf("check: %w", err)
		}
		if i == 0 {
			rep.add("bytes a flow in the table", perFlow, o.Bounds.BytesPerFlow)
		}
		if o.Progress != nil {
			o.Progress(float64(i+1) / float64(len(o.Bounds.Ratios)+1))
		}
	}
	if err := rep.allocations(ctx, &o); err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	rep.Seconds = time.Since(started).Seconds()
	return rep, nil
}

// checkTable is the capacity that tables have at least: the default of max_flows.
const checkTable = 1 << 20

// ratio measures with so many flows until all is well, or it has tried enough. It
// returns how many bytes the table takes for each flow it can hold.
func (r *CheckReport) ratio(ctx context.Context, o *CheckOptions, b RatioBound) (perFlow float64, err error) {
	var best float64
	capacity := max(b.Flows, checkTable)
	for i := range o.Attempts {
		rep, err := Synthesize(ctx, SynthOptions{
			Spec: only(&o.Spec, 0), LocalPorts: o.LocalPorts, FrameSize: o.FrameSize, Seed: uint64(i), Limit: true,
			MaxFlows: capacity, Flows: b.Flows, Packets: o.Packets, Rounds: checkRounds,
		})
		if err != nil {
			return 0, err
		}
		if i == 0 {
			best = rep.Limit.BestRatio
		}
		// The median of a quiet run is better than the best of one that is not.
		best = min(best, rep.Limit.BestRatio, rep.Limit.Ratio)
		perFlow = float64(rep.TableBytes) / float64(capacity)
		if best <= b.Max {
			break
		}
		if i+1 < o.Attempts {
			time.Sleep(checkPause)
		}
	}
	r.add(fmt.Sprintf("ratio to the limit, %d flows", b.Flows), best, b.Max)
	return perFlow, nil
}

// structs are those whose size is a promise.
var structs = map[string]uintptr{
	"conntrack.Entry": reflect.TypeFor[conntrack.Entry]().Size(),
	"packet.Packet":   reflect.TypeFor[packet.Packet]().Size(),
	"packet.Tuple":    reflect.TypeFor[packet.Tuple]().Size(),
}

// sizes compares the structs that either side knows.
func (r *CheckReport) sizes(want map[string]uintptr) {
	for _, name := range sortedKeys(structs, want) {
		is, was := structs[name], want[name]
		r.Checks = append(r.Checks, CheckRow{"bytes of " + name, float64(is), float64(was), is == was})
	}
}

// only is the spec with one service.
func only(spec *dataplane.Spec, i int) dataplane.Spec {
	one := *spec
	one.Services = spec.Services[i : i+1]
	return one
}

// WriteJSON writes the report as one JSON object.
func (r *CheckReport) WriteJSON(w io.Writer) error { return writeJSON(w, r) }

// WriteText writes the report, a line for each check.
func (r *CheckReport) WriteText(w io.Writer) error {
	p := &printer{w: w}
	for _, c := range r.Checks {
		word := "ok  "
		if !c.OK {
			word = "FAIL"
		}
		p.linef("%s %-40s %8.4g, bound %g", word, c.What, c.Got, c.Bound)
	}
	p.linef("in %.1f s", r.Seconds)
	return p.err
}
