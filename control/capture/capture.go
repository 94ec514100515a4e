package capture

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/l4fwd/l4fwd/control/capture/pcapng"
	"github.com/l4fwd/l4fwd/dataplane"
)

// interval is how long the rings are left alone when they are empty.
const interval = 2 * time.Millisecond

// Session is one capture while it is read.
type Session struct {
	Taps    []*dataplane.Tap // by worker
	NICs    []string         // names, by the data plane's number
	SnapLen int
	Filter  string // for the file's head
	Comment string // likewise: what else was asked for
	Count   uint64 // frames after which it ends; 0: never
	// Epoch is when the workers' clock was zero, in nanoseconds since 1970.
	Epoch int64

	out    *pcapng.Writer
	frames []uint64 // by interface of the file
	total  uint64
	told   uint64 // missed, as of the last statistics
}

// Run writes to w, calling flush whenever it has written for now, until ctx is done,
// which is no error, or Count frames are written. The workers should let go of the taps
// only afterwards or before; what is left in them then is not written.
func (s *Session) Run(ctx context.Context, w io.Writer, flush func() error) error {
	var err error
	if s.out, err = pcapng.NewWriter(w, "l4fwd", s.Comment, s.interfaces()); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	s.frames = make([]uint64, 2*len(s.NICs))
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var after error
	for before := ^uint64(0); err == nil; {
		if before != s.total {
			before = s.total
			err = flush()
		}
		select {
		case <-ctx.Done():
			after = ctx.Err()
		case <-tick.C:
		}
		if err == nil {
			err = s.drain()
		}
		if err == nil && s.missed() != s.told {
			err = s.statistics(0)
		}
		if after != nil || s.full() {
			break
		}
	}
	for i := 0; i < len(s.frames) && err == nil; i++ {
		err = s.statistics(i)
	}
	if err == nil {
		err = flush()
	}
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	return nil
}

// full reports whether all that was asked for has been written.
func (s *Session) full() bool { return s.Count > 0 && s.total >= s.Count }

// interfaces are two for each NIC, one for each direction.
func (s *Session) interfaces() []pcapng.Interface {
	var out []pcapng.Interface
	for _, name := range s.NICs {
		out = append(out,
			pcapng.Interface{Name: name + "-rx", Description: "received by l4fwd from " + name, Filter: s.Filter, SnapLen: s.SnapLen},
			pcapng.Interface{Name: name + "-tx", Description: "sent by l4fwd to " + name, Filter: s.Filter, SnapLen: s.SnapLen})
	}
	return out
}

// missed is how many frames found no room, so far.
func (s *Session) missed() (n uint64) {
	for _, t := range s.Taps {
		n += t.Missed()
	}
	return n
}

// statistics writes those of one interface of the file. In which one a frame would have
// been that found no room nobody knows: all of them count as the first one's.
func (s *Session) statistics(i int) error {
	st := pcapng.Statistics{Interface: i, Nanos: time.Now().UnixNano(), Captured: s.frames[i]}
	if i == 0 {
		s.told = s.missed()
		st.Dropped, st.Comment = s.told, "dropped: frames of all interfaces that found no room in the capture's ring"
	}
	return s.out.Statistics(&st)
}

// most bounds what is written between two looks at the clock and at the context.
const most = 1 << 14

// drain writes what there is, of all workers in order of time.
func (s *Session) drain() error {
	for range most {
		worker, first := -1, (*dataplane.TapFrame)(nil)
		for i, t := range s.Taps {
			if f := t.Peek(); f != nil && (first == nil || f.Nanos < first.Nanos) {
				worker, first = i, f
			}
		}
		if first == nil || s.full() {
			return nil
		}
		err := s.write(worker, first)
		s.Taps[worker].Next()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) write(worker int, f *dataplane.TapFrame) error {
	if int(f.NIC) >= len(s.NICs) {
		return nil // there is none
	}
	p := pcapng.Packet{
		Interface: 2 * int(f.NIC), Flags: pcapng.Inbound, Nanos: s.Epoch + f.Nanos, Len: f.Len, Data: f.Data,
		ID: uint64(worker)<<48 | f.Packet, Queue: int(f.Queue), Comment: Describe(f, worker, s.NICs[f.NIC]),
	}
	if f.Point == dataplane.TapTX {
		p.Interface++
		p.Flags = pcapng.Outbound
	}
	s.frames[p.Interface]++
	s.total++
	return s.out.Packet(&p)
}
