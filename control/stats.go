package control

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/steer"
	"github.com/l4fwd/l4fwd/nat"
)

// What Daemon.Stats returns, in the form that the admin API has.
type (
	// Stats is what the forwarder has done since it started.
	Stats = admin.Stats
	// ServiceStats counts by service.
	ServiceStats = admin.ServiceStats
	// QUICStats counts by what connection IDs say.
	QUICStats = admin.QUICStats
	// BackendStats counts one real server.
	BackendStats = admin.BackendStats
	// WorkerStats counts one worker.
	WorkerStats = admin.WorkerStats
	// LinkStats counts one NIC.
	LinkStats = admin.LinkStats
)

// serviceNames is a service with its and its backends' ids in the data plane.
type serviceNames struct {
	name string
	of   *config.Service
	id   int
	quic bool // it routes by connection ID
	// handshakes come by: it is of TCP, and its backends answer through l4fwd
	handshakes bool
	answers    bool // of its backends come by
	backends   []backendName
}

type backendName struct {
	addr netip.AddrPort
	id   int
}

func namesOf(c *config.Config, s *dataplane.Snapshot) []serviceNames {
	ids := make(map[string]int, len(s.Services)) // service names are unique
	for i := range s.Services {
		if s.Services[i].Set != nil { // one that is gone may have had the name
			ids[s.Services[i].Name] = i
		}
	}
	var out []serviceNames
	for i := range c.Services {
		svc := &c.Services[i]
		n := serviceNames{name: svc.Name, of: svc, id: ids[svc.Name], quic: svc.QUIC.Layout != config.QUICNone}
		at := &s.Services[n.id]
		n.answers = !at.Mode.OneWay() && !at.ReturnOnly
		n.handshakes = n.answers && svc.Protocol == config.TCP
		for i, b := range svc.Backends {
			n.backends = append(n.backends, backendName{b.Address, int(s.Services[n.id].Backends[i])})
		}
		out = append(out, n)
	}
	return out
}

// statsPatience bounds how long the workers may take to answer.
const statsPatience = 2 * time.Second

// Stats asks the running daemon for its statistics. It may be called from any
// goroutine; it fails when ctx is done or the daemon has ended.
func (d *Daemon) Stats(ctx context.Context) (s Stats, err error) {
	if e := d.onLoop(ctx, func() { s, err = d.stats(ctx) }); e != nil {
		return Stats{}, e
	}
	return s, err
}

// stats asks every worker for its counters.
func (d *Daemon) stats(ctx context.Context) (Stats, error) {
	workers, err := d.sampleWorkers(ctx)
	if err != nil {
		return Stats{}, err
	}
	var total dataplane.Counts
	var backends []dataplane.BackendCount
	var services []dataplane.ServiceCount
	out := Stats{Verdicts: map[string]uint64{}, TOA: map[string]uint64{}, UOA: map[string]uint64{}}
	for i := range workers {
		w := &workers[i]
		c := &w.Counts
		total.Add(c)
		backends, services = sum(backends, w.Backends), sum(services, w.Services)
		out.Flows += w.Room.Flows
		out.Workers = append(out.Workers, WorkerStats{
			Received: c.Received, Sent: c.Sent, HandedOver: c.Verdicts[dataplane.HandedOver],
			Adopted: c.Adopted, Flows: w.Room.Flows, FreeFrames: w.FreeFrames, Waiting: w.FragmentsWaiting,
			Rounds: c.Rounds, BusyRounds: c.BusyRounds, BusySeconds: float64(c.BusyNanos) / 1e9,
		})
	}
	out.Opened, out.Expired, out.Evicted = total.Opened, total.Expired, total.Evicted
	out.ConnectionLog = d.connLogStats(total.FlowLogLost)
	out.TemplatesEvicted = total.TemplatesEvicted
	out.Refusals, out.Split, out.Dropped = total.Refusals, total.Split, total.Drops()
	for v := range dataplane.NumVerdicts {
		if n := total.Verdicts[v]; n > 0 {
			out.Verdicts[v.String()] = n
		}
	}
	for r, n := range total.TOA {
		if n > 0 {
			out.TOA[nat.TOAResult(r).String()] = n
		}
	}
	for r, n := range total.UOA {
		if n > 0 {
			out.UOA[nat.UOAResult(r).String()] = n
		}
	}
	for _, s := range d.names {
		c := &services[s.id]
		svc := ServiceStats{Name: s.name, PortsExhausted: c.PortsExhausted}
		if s.quic {
			svc.QUIC = &QUICStats{Routed: c.QUICRouted, Unknown: c.QUICUnknown, None: c.QUICNone, Moved: c.QUICMoved}
		}
		for _, b := range s.backends {
			c := backends[b.id]
			svc.Backends = append(svc.Backends, BackendStats{
				Address: b.addr, Flows: c.Flows, Active: c.Active,
				Health:    d.healthStats(health.Key{Service: s.name, Backend: b.addr}),
				PacketsTo: c.Packets[0], PacketsFrom: c.Packets[1], BytesTo: c.Bytes[0], BytesFrom: c.Bytes[1],
			})
		}
		out.Services = append(out.Services, svc)
	}
	for _, l := range d.links {
		out.Links = append(out.Links, l.stats())
	}
	return out, nil
}

// sum adds more to all, element by element; all grows to its length.
func sum[T any, P interface {
	*T
	Add(*T)
}](all, more []T) []T {
	if n := len(more) - len(all); n > 0 {
		all = append(all, make([]T, n)...)
	}
	for i := range more {
		P(&all[i]).Add(&more[i])
	}
	return all
}

func (l *link) stats() LinkStats {
	s := LinkStats{Name: l.name, Up: l.serves(), XDP: map[string]uint64{}}
	if l.program != nil {
		if x, err := l.program.Stats(); err == nil {
			for i, n := range x {
				s.XDP[steer.Counter(i).String()] = n
			}
		}
	}
	for _, sock := range l.sockets {
		q, err := sock.Stats()
		if err == nil {
			s.Queues = append(s.Queues, q)
		}
	}
	return s
}

// writeStats renews the stats file, so that a reader never sees half of it.
func (d *Daemon) writeStats(ctx context.Context) {
	if d.opt.StatsFile == "" {
		return
	}
	s, err := d.stats(ctx)
	if err == nil {
		err = writeJSON(d.opt.StatsFile, s)
	}
	text := ""
	if err != nil {
		text = err.Error()
	}
	if err != nil && text != d.statsTrouble { // each second is said once
		d.log.Warn("stats file", zap.Error(err))
	}
	d.statsTrouble = text
}

// writeJSON replaces a file as a whole. What others may put into its directory, a link
// say, does not have us write elsewhere. What a kill leaves is replaced by the next.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) // which follows no link
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

func (d *Daemon) logStats(ctx context.Context) {
	s, err := d.stats(ctx)
	if err != nil {
		d.log.Warn("stats", zap.Error(err))
		return
	}
	d.log.Info("stats", zap.Any("stats", s))
}

// farewell writes the last figures down.
func (d *Daemon) farewell() {
	ctx := context.Background()
	d.writeStats(ctx)
	s, err := d.stats(ctx)
	if err != nil {
		return
	}
	d.log.Info("stopping", zap.Int("flows", s.Flows), zap.Any("verdicts", s.Verdicts))
}
