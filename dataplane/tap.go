package dataplane

import (
	"sync/atomic"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/cbpf"
	"github.com/l4fwd/l4fwd/packet"
)

// A capture copies frames for people to look at. It is of the worker's own making:
// nobody else could say what a frame was when it came, since it is rewritten in place,
// nor what became of it. While there is none, a worker's burst pays for a few branches
// that are never taken; what follows costs only those who look.

// TapPoint is where a captured frame was seen.
type TapPoint uint8

// The points, which can be added up.
const (
	TapRX TapPoint = 1 << iota // as received, before anything was changed
	TapTX                      // as the TX ring took it
)

// TapOptions say what is captured. What has no verdict yet, a fragment that waits, is
// captured when it has one; a packet that another worker is given, by that worker.
type TapOptions struct {
	Points TapPoint
	// Filter is asked for a packet as received if Points has TapRX, and as sent if it
	// has TapTX; if either is wanted the packet is captured at all Points. nil: all are.
	Filter *cbpf.Program
	// Verdicts, if not nil, are the outcomes that are captured.
	Verdicts *[NumVerdicts]bool
	// Service, if not empty, is the name of the only service whose packets are
	// captured, and Backend, if it has an address, the only backend, of any port if it
	// has port 0.
	Service string
	Backend conntrack.Endpoint

	SnapLen int   // bytes of each frame that are kept, at least 1
	Frames  int   // room for so many frames of each worker, a power of two
	Clock   Clock // that of Run; nil: frames are sent at the time they were received
}

// TapFrame is one captured frame.
type TapFrame struct {
	Nanos  int64  // when, by the worker's clock: of the burst
	Packet uint64 // a number; what was received and what it was sent as have the same
	Point  TapPoint
	NIC    uint8
	Queue  int16 // of the NIC; negative if another worker received it
	// Verdict is the packet's outcome, that of what was received also where it was
	// sent. Where Own is set there is none: l4fwd sends it of its own accord.
	Verdict Verdict
	Own     bool
	Len     int    // of the whole frame
	Data    []byte // the beginning of it

	Service string // empty: of none
	// Flow is whether the packet belongs to a flow, of which the rest is. Local is zero
	// but in Full-NAT.
	Flow                        bool
	Dir                         conntrack.Dir
	Mode                        conntrack.Mode
	Client, VIP, Local, Backend conntrack.Endpoint
}

// Tap is a capture of one worker: a ring that the worker fills, and never waits for,
// and that one goroutine empties.
type Tap struct {
	opt TapOptions
	_   [ringPad]byte
	// The worker's.
	rows   [BurstSize]tapRow
	tuples [BurstSize]packet.Tuple
	copies []byte // SnapLen for each row
	places tapPlaces
	taken  rowSet // rows of the burst without a record yet
	last   uint64 // Packet of the one before
	next   uint64 // slot
	limit  uint64 // what the reader was known to have left free, as in spsc
	lost   uint64
	_      [ringPad]byte

	frames []TapFrame
	_      [ringPad]byte
	tail   atomic.Uint64
	missed atomic.Uint64
	_      [ringPad]byte
	head   atomic.Uint64
	_      [ringPad]byte
}

// tapRow is what is known of a row of the burst.
type tapRow struct {
	len    int
	packet uint64
	nic    uint8
	queue  int16
	copied bool // its bytes are among copies
	wanted bool // the filter says so, of what was received
	shown  bool // it has been captured; frame is what was said of it
	frame  TapFrame
}

// NewTap makes a capture for one worker: all the memory it will ever need.
func NewTap(o TapOptions) *Tap {
	t := &Tap{
		opt: o, copies: make([]byte, BurstSize*o.SnapLen),
		frames: make([]TapFrame, o.Frames), limit: uint64(o.Frames),
	}
	room := make([]byte, o.Frames*o.SnapLen)
	for i := range t.frames {
		t.frames[i].Data = room[i*o.SnapLen : i*o.SnapLen : (i+1)*o.SnapLen]
	}
	return t
}

// Tap makes the worker capture into t, or, if nil, not any more. Before Run, after it,
// or inside Do. No other worker may have t.
func (w *Worker) Tap(t *Tap) { w.tap = t }

// Peek is the oldest frame that has not been passed over, nil if there is none. It is
// the reader's until Next.
func (t *Tap) Peek() *TapFrame {
	h := t.head.Load()
	if h == t.tail.Load() {
		return nil
	}
	return &t.frames[h&uint64(len(t.frames)-1)]
}

// Next passes over the frame that Peek has returned.
func (t *Tap) Next() { t.head.Store(t.head.Load() + 1) }

// Missed is how many frames were wanted and found no room. Any goroutine may ask.
func (t *Tap) Missed() uint64 { return t.missed.Load() }

// slot is the next free frame of the ring, nil if there is none.
func (t *Tap) slot() *TapFrame {
	if t.next == t.limit {
		if t.limit = t.head.Load() + uint64(len(t.frames)); t.next == t.limit {
			t.lost++
			return nil
		}
	}
	f := &t.frames[t.next&uint64(len(t.frames)-1)]
	t.next++
	return f
}

// publish lets the reader see what has been captured.
func (t *Tap) publish() {
	t.tail.Store(t.next)
	t.missed.Store(t.lost)
}

// tapPlaces finds the row of a frame that is about to be sent, by its chunk: a hash
// table, emptied with every burst. A burst has at most 64 rows, and of one that leaves
// in pieces each piece has a place; when there is no room for more, the rest is not
// found.
type tapPlaces struct {
	chunk [tapPlaceCount]uint64
	row   [tapPlaceCount]uint8 // and 1
	n     int
}

const tapPlaceCount = 512

// tapOwnRow is the row of what belongs to none: l4fwd sends it of its own accord. Its
// chunk may have been that of a row which has been dropped.
const tapOwnRow = BurstSize

// put notes that what is sent from chunk is row i, whatever was noted of it before.
func (p *tapPlaces) put(chunk uint64, shift, i int) {
	for at := chunk >> (uint(shift) & 63); ; at++ {
		k := at % tapPlaceCount
		switch {
		case p.row[k] != 0 && p.chunk[k] != chunk:
			continue
		case p.row[k] == 0 && p.n == tapPlaceCount-1:
			return
		case p.row[k] == 0:
			p.n++
		}
		p.chunk[k], p.row[k] = chunk, uint8(i+1)
		return
	}
}

// find is the row that chunk belongs to, negative if to none.
func (p *tapPlaces) find(chunk uint64, shift int) int {
	for at := chunk >> (uint(shift) & 63); ; at++ {
		k := at % tapPlaceCount
		if p.row[k] == 0 {
			return -1
		}
		if p.chunk[k] != chunk {
			continue
		}
		if i := int(p.row[k]) - 1; i != tapOwnRow {
			return i
		}
		return -1
	}
}

func (p *tapPlaces) clear() {
	if p.n > 0 {
		p.row, p.n = [tapPlaceCount]uint8{}, 0
	}
}
