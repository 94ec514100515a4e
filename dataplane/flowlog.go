package dataplane

import (
	"math"
	"math/bits"
	"sync/atomic"

	"github.com/l4fwd/l4fwd/conntrack"
)

// End is how a flow ended.
type End uint8

// The ways.
const (
	EndTimeout     End = iota // idle for as long as its state may be
	EndFIN                    // its ends closed it; one-way the client did
	EndResetClient            // by a RST of the client
	EndResetServer            // by one of the server
	EndReopened               // the client began another connection with its address and port
	EndEvicted                // half-open, it made room for another
	EndKilled                 // by EndFlows
	EndBackendGone            // it took place no more, see BackendDown
	EndMoved                  // a datagram names another backend by its connection ID
	EndAnother                // one of one packet, whose client sent the next, and no answer comes by
	NumEnds
)

var endNames = [NumEnds]string{"timeout", "fin", "reset_client", "reset_server", "reopened", "evicted", "killed",
	"backend_gone", "moved", "another"}

// String is the way in logs.
func (e End) String() string {
	if e < NumEnds {
		return endNames[e]
	}
	return "invalid"
}

// LoggedFlow is a flow that has ended. Its Idle is what it was idle for before that, and
// Left means nothing.
type LoggedFlow struct {
	Flow
	End   End
	Nanos int64 // when, by the worker's clock
}

// flowRecord is what a worker notes; what it means, the reader finds out.
type flowRecord struct {
	entry conntrack.Entry
	snap  *Snapshot // which its ids are of
	nanos int64
	tick  uint32
	end   End
	// expired is whether it is the timer that has ended it, whatever came before.
	expired bool
}

// FlowLog takes flows of one worker that have ended, those of services that want it: a
// ring that the worker fills, and never waits for, and that one goroutine empties.
type FlowLog struct {
	records []flowRecord
	_       [ringPad]byte
	next    uint64 // the worker's: slot
	limit   uint64 // and what the reader was known to have left free, as in spsc
	_       [ringPad]byte
	tail    atomic.Uint64
	_       [ringPad]byte
	head    atomic.Uint64
	_       [ringPad]byte
}

// NewFlowLog makes one for one worker, which holds so many flows that nobody has read yet,
// a power of two: all the memory it will ever need, 152 bytes each.
func NewFlowLog(slots int) *FlowLog {
	return &FlowLog{records: make([]flowRecord, slots), limit: uint64(slots)}
}

// LogFlows makes the worker use l from now on, which no other worker may have. Before Run,
// or inside Do.
func (w *Worker) LogFlows(l *FlowLog) { w.log = l }

// Read makes f the oldest flow that has not been read; false if there is none. One
// goroutine at a time.
func (l *FlowLog) Read(f *LoggedFlow) bool {
	h := l.head.Load()
	if h == l.tail.Load() {
		return false
	}
	r := &l.records[h&uint64(len(l.records)-1)]
	*f = LoggedFlow{Flow: r.snap.flow(&r.entry, r.tick), End: r.end, Nanos: r.nanos}
	switch {
	case f.End == EndBackendGone:
		f.Idle = 0 // it has had to expire early
	case r.expired: // its deadline is another by now
		f.Idle = min(ticks(r.snap.Services[r.entry.Service].Policy.Timeouts[f.State]), f.Age)
	}
	r.snap = nil // which may be long out of date
	l.head.Store(h + 1)
	return true
}

// publish lets the reader see what has been noted.
func (l *FlowLog) publish() {
	if l.tail.Load() != l.next {
		l.tail.Store(l.next)
	}
}

// logEnd notes that flow e ends, if its service wants that of it.
func (w *Worker) logEnd(e *conntrack.Entry, end End) {
	svc := &w.snap.Services[e.Service]
	if svc.LogOneIn == 0 || svc.LogOneIn > 1 && !chosen(e, &w.snap.Directory.Services[e.Service], svc.LogOneIn) {
		return
	}
	l := w.log
	if l.next == l.limit {
		if l.limit = l.head.Load() + uint64(len(l.records)); l.next == l.limit {
			w.count.FlowLogLost++
			return
		}
	}
	r := &l.records[l.next&uint64(len(l.records)-1)]
	r.entry, r.snap, r.nanos, r.tick = *e, w.snap, w.nanos, w.tick
	r.end, r.expired = w.howEnded(e, svc, end), end == EndTimeout
	l.next++
}

// howEnded is end, or what had ended e before that: the rest was waiting.
func (w *Worker) howEnded(e *conntrack.Entry, svc *Service, end End) End {
	switch {
	case end != EndTimeout && end != EndReopened:
	case e.State == conntrack.TimeWait, e.State == conntrack.FinWait && e.Mode.OneWay():
		return EndFIN
	case e.State == conntrack.Closed && e.ResetBy() == conntrack.Reply:
		return EndResetServer
	case e.State == conntrack.Closed:
		return EndResetClient
	case end == EndTimeout && w.ways[e.Backend].marks&left != 0 && svc.OnBackendDown == BackendDownReset:
		return EndBackendGone
	}
	return end
}

// chosen reports whether e, of a service at vip, is one of those, one in n, that go into
// the log. Its hash has no key: every machine is to choose alike.
func chosen(e *conntrack.Entry, vip *conntrack.Endpoint, n uint32) bool {
	h := uint64(e.ClientPort)<<32 | uint64(vip.Port)<<16 | uint64(e.Proto)
	for _, v := range [...]uint64{e.Client.Hi, e.Client.Lo, vip.Addr.Hi, vip.Addr.Lo} {
		hi, lo := bits.Mul64(h^0x9e3779b97f4a7c15, v^0xd1b54a32d192ed03)
		h = hi ^ lo
	}
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	h ^= h >> 32
	return h <= math.MaxUint64/uint64(n)
}
