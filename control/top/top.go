package top

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/dataplane"
)

// Sample is what was true at a time.
type Sample struct {
	At       time.Time
	Status   admin.Status
	Stats    admin.Stats
	Backends []admin.BackendInfo
}

// Order is what backends are sorted by.
type Order int

// The orders: all but ByName largest first.
const (
	ByTraffic Order = iota
	ByNew
	ByActive
	ByName
	numOrders
)

// Next is the order after o, in a circle.
func (o Order) Next() Order { return (o + 1) % numOrders }

func (o Order) String() string {
	return [...]string{"traffic", "new flows", "active flows", "name"}[o]
}

// Frame draws the time from before to now, in at most so many lines of at most so many
// characters; at least 1 by 1.
func Frame(before, now *Sample, width, height int, by Order) []string {
	f := frame{before: before, now: now, seconds: now.At.Sub(before.At).Seconds()}
	f.head()
	f.workers()
	f.links()
	f.drops()
	f.backends(by, height)
	lines := f.lines[:min(len(f.lines), height)]
	for i, l := range lines {
		lines[i] = cut(l, width)
	}
	return lines
}

type frame struct {
	before, now *Sample
	seconds     float64
	lines       []string
}

func (f *frame) line(format string, args ...any) {
	f.lines = append(f.lines, strings.TrimRight(fmt.Sprintf(format, args...), " "))
}

// rate is by how much a counter grew a second.
func (f *frame) rate(before, now uint64) float64 {
	if now < before || f.seconds <= 0 {
		return 0
	}
	return float64(now-before) / f.seconds
}

func (f *frame) head() {
	s, was := &f.now.Stats, &f.before.Stats
	var in, out, inWas, outWas uint64
	for i, w := range s.Workers {
		in, out = in+w.Received, out+w.Sent
		if i < len(was.Workers) {
			inWas, outWas = inWas+was.Workers[i].Received, outWas+was.Workers[i].Sent
		}
	}
	up := f.now.At.Sub(f.now.Status.Started).Truncate(time.Second)
	f.line("l4fwd %s  up %s  pid %d  services %d  backends %d  reloads %d", f.now.At.Format(time.TimeOnly), up,
		f.now.Status.PID, f.now.Status.Services, f.now.Status.Backends, f.now.Status.Reloads)
	f.line("flows %d  opened %s/s  expired %s/s   packets in %s/s  out %s/s  dropped %s/s", s.Flows,
		scale(f.rate(was.Opened, s.Opened)), scale(f.rate(was.Expired, s.Expired)),
		scale(f.rate(inWas, in)), scale(f.rate(outWas, out)), scale(f.rate(was.Dropped, s.Dropped)))
	f.line("")
}

// workers shows how much of its time a worker had packets: one that polls always takes
// its core, so that the kernel's figure says nothing.
func (f *frame) workers() {
	const bar = 20
	f.line("%-8s %-*s %6s %9s %9s %9s %9s", "WORKER", bar+2, "BUSY", "", "IN/S", "OUT/S", "HANDED/S", "FLOWS")
	for i, w := range f.now.Stats.Workers {
		var was admin.WorkerStats
		if i < len(f.before.Stats.Workers) {
			was = f.before.Stats.Workers[i]
		}
		busy := 0.0
		if f.seconds > 0 {
			busy = min(max((w.BusySeconds-was.BusySeconds)/f.seconds, 0), 1)
		}
		n := int(busy*bar + 0.5)
		f.line("%-8d [%s%s] %5.1f%% %9s %9s %9s %9d", i, strings.Repeat("|", n), strings.Repeat(" ", bar-n), busy*100,
			scale(f.rate(was.Received, w.Received)), scale(f.rate(was.Sent, w.Sent)), scale(f.rate(was.HandedOver, w.HandedOver)), w.Flows)
	}
	f.line("")
}

func (f *frame) links() {
	f.line("%-16s %-5s %9s %9s %9s", "INTERFACE", "STATE", "IN/S", "OUT/S", "LOST/S")
	for i, l := range f.now.Stats.Links {
		var was admin.LinkStats
		if i < len(f.before.Stats.Links) && f.before.Stats.Links[i].Name == l.Name {
			was = f.before.Stats.Links[i]
		}
		var in, out, lost uint64
		add := func(s *admin.LinkStats, sign uint64) {
			for _, q := range s.Queues {
				in += sign * q.Received
				out += sign * q.Transmitted
				lost += sign * (q.Kernel.RxDropped + q.Kernel.RxRingFull)
			}
		}
		add(&l, 1)
		if len(was.Queues) == len(l.Queues) {
			add(&was, ^uint64(0)) // minus one
		}
		state := "down"
		if l.Up {
			state = "up"
		}
		f.line("%-16s %-5s %9s %9s %9s", l.Name, state, scale(f.grown(in)), scale(f.grown(out)), scale(f.grown(lost)))
	}
	f.line("")
}

// grown is the rate of a difference, which is negative if a counter began anew.
func (f *frame) grown(diff uint64) float64 {
	if int64(diff) < 0 || f.seconds <= 0 {
		return 0
	}
	return float64(diff) / f.seconds
}

// drops shows the worst reasons of now.
func (f *frame) drops() {
	type reason struct {
		name string
		rate float64
	}
	var all []reason
	for v := range dataplane.NumVerdicts {
		name := v.String()
		if r := f.rate(f.before.Stats.Verdicts[name], f.now.Stats.Verdicts[name]); r > 0 && v.IsDrop() {
			all = append(all, reason{name, r})
		}
	}
	if len(all) == 0 {
		return
	}
	slices.SortFunc(all, func(a, b reason) int { return cmp.Or(cmp.Compare(b.rate, a.rate), cmp.Compare(a.name, b.name)) })
	words := make([]string, 0, 4)
	for _, r := range all[:min(len(all), 4)] {
		words = append(words, fmt.Sprintf("%s %s/s", r.name, scale(r.rate)))
	}
	f.line("drops: %s   (l4fwd drops)", strings.Join(words, ", "))
	f.line("")
}

// backendKey tells backends apart.
type backendKey struct {
	service string
	addr    netip.AddrPort
}

// backendRow is a backend with what it did since the sample before.
type backendRow struct {
	*admin.BackendInfo
	opened, to, from float64
}

func (f *frame) backends(by Order, height int) {
	was := make(map[backendKey]*admin.BackendInfo, len(f.before.Backends))
	for i := range f.before.Backends {
		b := &f.before.Backends[i]
		was[backendKey{b.Service, b.Address}] = b
	}
	rows := make([]backendRow, 0, len(f.now.Backends))
	wide, long := len("SERVICE"), len("BACKEND")
	for i := range f.now.Backends {
		b := &f.now.Backends[i]
		r := backendRow{BackendInfo: b}
		if old := was[backendKey{b.Service, b.Address}]; old != nil {
			r.opened, r.to, r.from = f.rate(old.Flows, b.Flows), f.rate(old.BytesTo, b.BytesTo)*8, f.rate(old.BytesFrom, b.BytesFrom)*8
		}
		rows = append(rows, r)
		wide, long = max(wide, min(len(b.Service), 24)), max(long, len(b.Address.String()))
	}
	slices.SortStableFunc(rows, func(a, b backendRow) int {
		names := cmp.Or(cmp.Compare(a.Service, b.Service), a.Address.Compare(b.Address))
		switch by {
		case ByTraffic:
			return cmp.Or(cmp.Compare(b.to+b.from, a.to+a.from), names)
		case ByNew:
			return cmp.Or(cmp.Compare(b.opened, a.opened), names)
		case ByActive:
			return cmp.Or(cmp.Compare(b.Active, a.Active), names)
		}
		return names
	})
	suspects := 0
	f.line("%-*s %-*s %-9s %6s %9s %8s %9s %9s", wide, "SERVICE", long, "BACKEND", "STATE", "WEIGHT", "ACTIVE", "NEW/S", "TO BIT/S", "FROM")
	room := max(height-len(f.lines)-1, 0) // the last line counts them all
	for i, r := range rows {
		state := string(r.State)
		if r.Suspect() {
			suspects++
			state = "suspect"
		}
		if i < room {
			f.line("%-*s %-*s %-9s %6d %9d %8s %9s %9s", wide, cut(r.Service, 24), long, r.Address, state, r.Weight, r.Active,
				scale(r.opened), scale(r.to), scale(r.from))
		}
	}
	why := ""
	if suspects > 0 {
		why = fmt.Sprintf(", %d suspect   (l4fwd health)", suspects)
	}
	f.line("%d backends by %s%s", len(rows), by, why)
}

// scale writes a number with three digits and a unit.
func scale(v float64) string {
	for _, u := range []string{"", "k", "M", "G"} {
		switch {
		case v < 9.995 && (u != "" || v != float64(int(v))):
			return fmt.Sprintf("%.2f%s", v, u)
		case v < 99.95 && u != "":
			return fmt.Sprintf("%.1f%s", v, u)
		case v < 999.5:
			return fmt.Sprintf("%.0f%s", v, u)
		}
		v /= 1000
	}
	return fmt.Sprintf("%.0fT", v)
}

// cut shortens a line to so many characters.
func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width])
}
