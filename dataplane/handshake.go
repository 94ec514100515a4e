package dataplane

import (
	"math/bits"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// Handshakes are timed as they come by: nothing is sent for it, and no packet but
// those of a handshake is looked at. The clock is that of the burst, so a time is as
// exact as a burst is short, some microseconds on a worker that polls without sleep.
// What is measured includes retransmissions, from the first SYN or SYN-ACK on: lost ones
// show as times of one second, of three, of seven.

// NumTimes is how many buckets Times has.
const NumTimes = 20

// firstTime is the exponent of the first bucket's bound, in microseconds.
const firstTime = 5

// TimeBound is the upper bound, itself included, of bucket i of Times: 32 µs for the
// first, and twice that of the one before for every other, up to 8.4 s. The last one
// has none, and is longer than any.
func TimeBound(i int) (bound time.Duration, ok bool) {
	return time.Microsecond << (firstTime + i), i < NumTimes-1
}

// Times says how often something took how long.
type Times struct {
	Buckets [NumTimes]uint64 // see TimeBound; none counts what another one does
	Micros  uint64           // all together, in microseconds
}

// add counts something that took so many microseconds.
func (t *Times) add(micros uint32) {
	n := bits.Len32(max(micros, 1) - 1) // 32 is in the bucket of those up to 32
	t.Buckets[min(max(n, firstTime)-firstTime, NumTimes-1)]++
	t.Micros += uint64(micros)
}

// Add sums o into t.
func (t *Times) Add(o *Times) {
	for i := range t.Buckets {
		t.Buckets[i] += o.Buckets[i]
	}
	t.Micros += o.Micros
}

// Count is how many there were.
func (t *Times) Count() (n uint64) {
	for _, b := range t.Buckets {
		n += b
	}
	return n
}

// Handshakes are the times of a service's TCP handshakes, as one worker has seen them.
type Handshakes struct {
	Server Times // from the SYN that goes to the server to its SYN-ACK
	Client Times // from the SYN-ACK that goes to the client to its ACK
}

// Add sums o into h.
func (h *Handshakes) Add(o *Handshakes) {
	h.Server.Add(&o.Server)
	h.Client.Add(&o.Client)
}

// Handshakes is this worker's part by service id, nil of services whose handshakes do
// not come by: those of UDP, and where servers answer past l4fwd. For the worker's own
// thread, or inside Do; to be copied before its function returns.
func (w *Worker) Handshakes() []*Handshakes { return w.here.handshakes }

// AllHandshakes are those of all services, the ones that are gone too; like Handshakes.
func (w *Worker) AllHandshakes() Handshakes { return w.shaken }

// handshakesOf makes worker w the handshakes of the services that have none yet.
func (r *Registry) handshakesOf(w int) []*Handshakes {
	all := r.handshakes[w]
	for id := range r.services.list {
		if id == len(all) {
			all = append(all, nil)
		}
		if k := &r.services.list[id]; all[id] == nil && k.vip.Proto == packet.ProtoTCP && k.oneWay == 0 && !k.answers {
			all[id] = new(Handshakes)
		}
	}
	r.handshakes[w] = all
	return all[:len(all):len(all)]
}

// micros is the burst's time as handshakes are timed with it.
func (w *Worker) micros() uint32 { return uint32(w.nanos / int64(time.Microsecond)) }

// trackClient takes p, a client's packet of flow r, through Track, and times the
// handshake that it may be part of. scale is Track's.
func (w *Worker) trackClient(r conntrack.Ref, e *conntrack.Entry, p *packet.Packet, frame []byte, scale uint8, svc *Service) conntrack.Outcome {
	half := e.Flags & conntrack.HalfOpen
	out := w.table.Track(r, conntrack.Forward, p, scale, w.tick, &svc.Policy)
	if half != 0 && e.Proto == packet.ProtoTCP {
		w.timeClient(e, p, frame)
	}
	return out
}

// timeClient times the handshake of e after p, a client's packet.
func (w *Worker) timeClient(e *conntrack.Entry, p *packet.Packet, frame []byte) {
	if e.Flags&conntrack.HalfOpen != 0 {
		if e.SYNSent(w.micros()) {
			if w.snap.Services[e.Service].Judged && !answerable(p, frame) {
				e.Heard()
			}
			return
		}
		if e.Late(w.micros()) && !e.Mode.OneWay() {
			w.here.signs[e.Backend].Unanswered++
		}
		return
	}
	if took, ok := e.HandshakeOver(w.micros()); ok {
		w.shaken.Client.add(took)
		if h := w.here.handshakes[e.Service]; h != nil {
			h.Client.add(took)
		}
	}
}

// timeServer times the handshake of e after a server's SYN-ACK.
func (w *Worker) timeServer(e *conntrack.Entry) {
	if took, ok := e.SYNACKSent(w.micros()); ok {
		w.here.signs[e.Backend].Answered++
		w.shaken.Server.add(took)
		if h := w.here.handshakes[e.Service]; h != nil {
			h.Server.add(took)
		}
	}
}
