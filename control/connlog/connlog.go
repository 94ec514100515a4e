package connlog

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
)

// How often the rings are looked at: often enough for a worker that does nothing but end
// flows, seldom while there are none.
const (
	busyPeriod = 10 * time.Millisecond
	idlePeriod = 80 * time.Millisecond
)

// batch is how many bytes are written at a time, about.
const batch = 64 << 10

// Source is what is to be written.
type Source struct {
	Flows     []*dataplane.FlowLog // by worker
	Clock     dataplane.Clock      // the workers'
	Modes     map[conntrack.Mode]string
	Protocols map[uint8]string
}

// Log writes what FlowLogs have. Make one with New.
type Log struct {
	log  *zap.Logger
	from Source
	opt  atomic.Pointer[Options]

	written, lost atomic.Uint64

	// Those of Run.
	out    file
	encode zapcore.Encoder
	fields []zapcore.Field
	buffer []byte
	lines  uint64 // in buffer
	broken bool   // the last write failed
}

// New returns a log, of which log is told when it cannot be written.
func New(from Source, o Options, log *zap.Logger) *Log {
	l := &Log{from: from, log: log, encode: zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		TimeKey: "time", EncodeTime: zapcore.RFC3339NanoTimeEncoder, LineEnding: "\n",
	})}
	l.Set(o)
	return l
}

// Set changes where lines go. From any goroutine.
func (l *Log) Set(o Options) { l.opt.Store(&o) }

// Counts are how many flows have been written, and how many could not. From any
// goroutine.
func (l *Log) Counts() (written, lost uint64) { return l.written.Load(), l.lost.Load() }

// Run writes until ctx is done, and then what there is.
func (l *Log) Run(ctx context.Context) error {
	wait := time.NewTimer(busyPeriod)
	defer wait.Stop()
	for period := busyPeriod; ; {
		select {
		case <-ctx.Done():
			for l.drain() {
			}
			return l.out.close()
		case <-wait.C:
		}
		if period = min(2*period, idlePeriod); l.drain() {
			period = busyPeriod
		}
		wait.Reset(period)
	}
}

// atOnce bounds how long one worker keeps the others waiting, in flows.
const atOnce = 1 << 12

// drain writes what there is, and reports whether there was anything.
func (l *Log) drain() (any bool) {
	var f dataplane.LoggedFlow
	now, wall := l.from.Clock(), time.Now()
	for worker, r := range l.from.Flows {
		for range atOnce {
			if !r.Read(&f) {
				break
			}
			any = true
			l.add(worker, &f, wall.Add(time.Duration(f.Nanos-now)))
			if len(l.buffer) >= batch {
				l.flush()
			}
		}
	}
	if l.lines > 0 {
		l.flush()
	}
	return any
}

// flush writes the lines there are, or counts them as lost.
func (l *Log) flush() {
	err := l.out.write(time.Now(), *l.opt.Load(), l.buffer)
	if err == nil {
		l.written.Add(l.lines)
	} else {
		l.lost.Add(l.lines)
	}
	switch {
	case err != nil && !l.broken:
		l.log.Error("connections are not logged", zap.Error(err))
	case err == nil && l.broken:
		l.log.Info("connections are logged again", zap.Uint64("lost", l.lost.Load()))
	}
	l.buffer, l.lines, l.broken = l.buffer[:0], 0, err != nil
}

// add puts the line of f, which ended then, into the buffer.
func (l *Log) add(worker int, f *dataplane.LoggedFlow, ended time.Time) {
	l.fields = append(l.fields[:0],
		zap.String("service", f.Service), zap.String("protocol", l.from.Protocols[f.Client.Proto]), zap.String("mode", l.from.Modes[f.Mode]),
		end("client", &f.Client), end("vip", &f.VIP),
	)
	if f.Mode == conntrack.FullNAT {
		l.fields = append(l.fields, end("local", &f.Local))
	}
	l.fields = append(l.fields,
		end("backend", &f.Backend), zap.Int("worker", worker),
		zap.Stringer("end", f.End), zap.Stringer("state", f.State),
		zap.Float64("duration", (f.Age-f.Idle).Seconds()), zap.Float64("idle", f.Idle.Seconds()),
		zap.Uint32("packets_to", f.Packets[conntrack.Forward]), zap.Uint32("packets_from", f.Packets[conntrack.Reply]),
		zap.Uint64("bytes_to", f.Bytes[conntrack.Forward]), zap.Uint64("bytes_from", f.Bytes[conntrack.Reply]),
	)
	b, err := l.encode.EncodeEntry(zapcore.Entry{Time: ended.UTC()}, l.fields)
	if err != nil { // it fails of no plain value
		l.lost.Add(1)
		return
	}
	l.buffer = append(l.buffer, b.Bytes()...)
	l.lines++
	b.Free()
}

func end(key string, e *conntrack.Endpoint) zapcore.Field {
	return zap.String(key, netip.AddrPortFrom(e.Addr.Netip(), e.Port).String())
}
