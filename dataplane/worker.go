package dataplane

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// BurstSize is how many packets go through the stages together: enough
// lookups in flight to hide memory latency, few enough that their headers stay
// in L1.
const BurstSize = conntrack.BatchSize

// MaxNICs bounds the data-plane NICs of one process.
const MaxNICs = 16

// Worker is one core's forwarder. All fields but those in mailbox belong to
// its thread.
type Worker struct {
	id        int
	umem      []byte
	frameSize uint64
	owners    ownership
	mesh      *mesh

	queues []queue        // what it receives from
	egress [MaxNICs]int16 // NIC → index in queues of the one it sends by, -1 if none
	// What plain asks for with every packet, taken out of queues, here, snap and
	// routes.
	out    [MaxNICs]*queue // by NIC; nil also if it is down
	ways   []way
	heads  []directHead
	locals []packet.Addr
	hops   []route.Hop

	table  *conntrack.Table
	ports  *nat.Ports
	isn    *nat.ISN
	errors nat.Bucket // ICMP errors of our own
	resets nat.Bucket // and RSTs to clients
	// RSTs to servers have their own: what clients invent must not keep a server
	// from hearing that its connection is gone.
	serverResets nat.Bucket
	// Errors about size have their own: path MTU discovery must not fail because
	// somebody makes TTLs run out.
	tooBigs   nat.Bucket
	farewells nat.Bucket // RSTs of giveUp
	ipID      uint32     // the last identification given, see nextID
	snap      *Snapshot
	here      *Locality // snap.Locality[id]
	routes    *route.Table
	// How many tables routes has been: another one may tell other MAC addresses
	// and sources while its generation is the same.
	routesSeen uint32

	learned learned // ways back the kernel does not know yet
	frags   fragments

	nanos int64  // monotonic, once a burst
	tick  uint32 // the same in conntrack ticks
	busy  bool   // the last round saw packets

	pool       pool
	repaid     []*spsc       // frames others send back
	inbox      []*packetRing // packets whose flow is owned here
	turn       int           // which of inbox adopt begins with
	outbox     []*packetRing // by worker: packets for it
	repayments []*spsc       // by worker: frames sent back
	handed     workerSet     // those with packets from here that are not published
	owed       []int         // by worker: frames that have come from it, less those that have gone to it

	b       burst
	strays  [BurstSize]uint64 // scratch
	hashes  [BurstSize]uint32 // adopt's
	pollFDs []unix.PollFd
	peers   []*Worker       // all workers, for waking
	evicted conntrack.Entry // the half-open flow that had to make room
	refused refused         // SYNs that may come again
	pace    pace
	former  conntrack.Entry // the flow that a new one takes the place of
	passing conntrack.Entry // see answerFor
	count   Counts
	stages  *StageClock // nil: nobody asks
	tap     *Tap        // nil: no capture
	log     *FlowLog    // nil: no service has ever wanted one
	shaken  Handshakes  // of all services there ever were

	mailbox
}

// queue is one port of the worker with what waits to be sent by it.
type queue struct {
	Port
	nic  uint8
	mac  [6]byte
	down bool
	told bool // the control plane knows that it is down
	out  [2 * BurstSize]unix.XDPDesc
	done [2 * BurstSize]Verdict // what out's packets count as if they are sent
	n    int
}

// burst is the scratch of the stages, one row for each packet.
type burst struct {
	desc [BurstSize]unix.XDPDesc
	nic  [BurstSize]uint8
	pkt  [BurstSize]packet.Packet
	// Rows that belong to flows, in order of arrival, and what the lookup may have found.
	look    conntrack.Batch
	ip      [BurstSize]uint64  // of look's rows, where in the UMEM is the IP header of what glance knows, see isV6: pkt says nothing of it yet
	next    int                // the place in look of the packet after the one in hand, -1 if there is none
	hash    uint32             // of the tuple of the one in hand, unless it is plain
	handed  rowSet             // rows that another worker has handed over
	newID   [BurstSize]uint32  // of rows that are fragments; see nat.RenewID
	verdict [BurstSize]Verdict // of rows that have come to finish; plain's do not
}

// mailbox is how other threads reach a worker.
type mailbox struct {
	nextSnap   atomic.Pointer[Snapshot]
	nextRoutes atomic.Pointer[route.Table]
	job        atomic.Pointer[job]
	asleep     atomic.Bool
	wakeFD     int
	events     *spscEvents
	_          [64]byte
}

type job struct {
	run  func(*Worker)
	done chan struct{}
	ok   bool // run has returned; to be read when done is closed
}

// Clock gives a worker its time: nanoseconds that never go back. Called once a
// burst.
type Clock func() int64

// Monotonic returns a clock that starts at zero now. It reads the vDSO, not
// the kernel.
func Monotonic() Clock {
	start := time.Now()
	return func() int64 { return int64(time.Since(start)) }
}

// nanosPerTick is conntrack's unit.
const nanosPerTick = int64(time.Second) / conntrack.TicksPerSecond

// Poll runs one round: jobs, every queue once, packets from other workers,
// expiry, kicks. It returns how many packets it saw. Run calls it in a loop;
// replay and tests call it themselves.
func (w *Worker) Poll(now int64) int {
	if w.job.Load() != nil {
		// Taken in one go: between a load and a store its Do may give up, and
		// somebody else's job come in.
		if j := w.job.Swap(nil); j != nil {
			j.do(w)
		}
	}
	if w.stages != nil {
		w.stages.begin()
	}
	if w.busy {
		w.count.BusyNanos += uint64(now - w.nanos)
	}
	w.nanos, w.tick = now, uint32(now/nanosPerTick)
	w.refresh()
	if len(w.repaid) > 0 {
		w.collect()
	}
	for _, r := range w.inbox {
		w.prefetchHanded(r)
	}
	if w.frags.table.Len() > 0 {
		w.expireFragments()
	}
	adopted, seen := w.count.Adopted, 0
	for i := range w.queues {
		seen += w.receive(&w.queues[i])
	}
	w.receiveHanded(seen > 0)
	seen += int(w.count.Adopted - adopted)
	w.expire()
	w.flush()
	if len(w.repaid) > 0 {
		w.repay()
	}
	if w.log != nil {
		w.log.publish()
	}
	if w.stages != nil {
		w.stages.end(seen)
	}
	w.count.Rounds++
	if w.busy = seen > 0; w.busy {
		w.count.BusyRounds++
	}
	return seen
}

// refresh takes over what the control plane has published.
func (w *Worker) refresh() {
	if s := w.nextSnap.Load(); s != w.snap {
		l, was, old := &s.Locality[w.id], w.snap, w.here
		if old != nil {
			l.adopt(s, old, was)
		}
		w.snap, w.here = s, l
		w.ways, w.heads, w.locals = l.ways, l.heads, s.Locals
		if old != nil {
			w.retell(was.leases, old.held)
		}
		if len(w.locals) == 0 {
			w.locals = noLocals[:]
		}
		if s.localPorts != nil {
			w.ports.SetRanges(s.localPorts)
		}
	}
	if r := w.nextRoutes.Load(); r != w.routes {
		w.routes, w.hops = r, r.Hops
		w.routesSeen++
	}
}

// noLocals is for services of DNAT, whose flows name local address 0 without having
// one.
var noLocals [1]packet.Addr

// receive takes a burst from a queue through the stages and gives the queue
// fresh frames.
func (w *Worker) receive(q *queue) int {
	if q.down {
		w.complain(q)
		return 0
	}
	n := q.Receive(w.b.desc[:])
	w.mark(StageReceive)
	if n > 0 {
		for i := range n {
			w.b.nic[i] = q.nic
		}
		w.count.Received += uint64(n)
		if w.tap != nil {
			w.tapIn(firstRows(n), w.queueNumber(q))
		}
		w.run(n)
		w.count.Bursts++
		w.count.FullBursts += uint64(n / BurstSize)
	}
	w.refill(q)
	return n
}

// refill offers the kernel fresh frames, a burst at a time so that the store
// which publishes them is worth its price. It returns how many it gave.
func (w *Worker) refill(q *queue) int {
	if q.FillFree() < BurstSize {
		return 0
	}
	f := w.pool.take(BurstSize)
	n := q.Fill(f)
	w.pool.free = append(w.pool.free, f[n:]...)
	return n
}

// expire removes flows whose time has come, a bounded number a round.
func (w *Worker) expire() {
	var due [32]conntrack.Ref
	flows := due[:w.table.Advance(w.tick, due[:])]
	w.table.PrefetchRemoval(flows)
	for _, r := range flows {
		w.unanswered(r)
		w.giveUp(r)
		w.close(r, EndTimeout)
		w.count.Expired++
	}
}

// close forgets a flow, which ends in that way.
func (w *Worker) close(r conntrack.Ref, end End) {
	e := w.table.Entry(r)
	if w.log != nil {
		w.logEnd(e, end)
	}
	w.ended(e.Backend)
	if e.Mode == conntrack.FullNAT && e.Proto == packet.ProtoTCP {
		dir := &w.snap.Directory
		rs := &dir.Backends[e.Backend]
		// A PROXY header on its way counts in no window.
		last := e.Win[conntrack.Forward].End + e.SeqDelta + nat.MaxProxyLen
		w.isn.Closed(dir.Locals[e.Local], e.LocalPort, rs.Addr, rs.Port, last, w.nanos)
	}
	w.table.Remove(r)
}

// flush hands what waits to the TX rings, kicks, and takes back what has been
// sent. One kick serves all that was queued in the round.
func (w *Worker) flush() {
	for i := range w.queues {
		q := &w.queues[i]
		if q.down {
			continue
		}
		if q.n > 0 {
			w.transmit(q)
		}
		if err := q.Kick(); err != nil {
			w.portDown(q)
			continue
		}
		w.reclaim(q)
	}
}

// transmit empties q.out into the TX ring; what does not fit after one more
// kick is dropped and counted, never waited for.
func (w *Worker) transmit(q *queue) {
	sent := q.Transmit(q.out[:q.n])
	if sent < q.n {
		if err := q.Kick(); err == nil {
			w.reclaim(q)
			sent += q.Transmit(q.out[sent:q.n])
		}
	}
	w.count.Sent += uint64(sent)
	if w.tap != nil {
		w.tapSent(q, sent)
	}
	w.dropQueued(q, sent, DropTxFull)
}

// dropQueued empties q.out from place i on. Nobody saw the verdicts these
// packets had, since counters are read between two rounds only, so they are
// taken back: a packet has one.
func (w *Worker) dropQueued(q *queue, i int, why Verdict) {
	for ; i < q.n; i++ {
		if q.done[i] != own {
			w.count.Verdicts[q.done[i]]--
			w.count.Verdicts[why]++
		}
		w.release(q.out[i].Addr)
	}
	q.n = 0
}

func (w *Worker) reclaim(q *queue) {
	for {
		n := q.Reclaim(w.strays[:])
		w.releaseAll(w.strays[:n])
		if n < len(w.strays) {
			return
		}
	}
}

// portDown stops using a queue whose NIC has gone; the control plane is told,
// takes the port away by Detach and brings a new one by Attach.
func (w *Worker) portDown(q *queue) {
	q.down = true
	w.linkPorts()
	w.dropQueued(q, 0, DropPortDown)
	w.complain(q)
}

// complain tells the control plane that a port is down, once, and again only
// while there is no room for the word.
func (w *Worker) complain(q *queue) {
	if !q.told && w.events.ring.room() > 0 {
		q.told = w.events.push(Event{Kind: EventPortDown, NIC: q.nic})
	}
}
