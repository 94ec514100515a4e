package conntrack

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"github.com/l4fwd/l4fwd/packet"
)

// Options size a Table.
type Options struct {
	Flows    int      // capacity; about 172 bytes of memory each
	HalfOpen int      // how many of them may be half-open; 0 is a quarter
	Secret   [32]byte // of the hash; all zero means random
	Now      uint32   // the clock at creation, ticks
	Lazy     bool     // take memory as it is first touched; for tests, since running out is then a crash
	Name     string   // shown by /proc/PID/maps, "flows" if empty
}

// Table is the flow table of one worker. It is not safe for concurrent use.
type Table struct {
	keys     keys // copy of the header's: saves a cache line a hash
	buckets  []bucket
	entries  []Entry // by Ref; entry 0 is unused
	half     []halfLink
	clocks   []clockShift // by Ref; see Clock
	hdr      *header
	probe    uint32
	halfMax  uint32
	pressure uint32 // half-open flows from which on their timeout shrinks
	mem      mapping
}

// Stats are running totals of a table. They may only be read by its owner.
type Stats struct {
	Inserted         uint64 // flows taken in
	Removed          uint64 // flows removed, for whatever reason
	EvictedHalfOpen  uint64 // half-open flows that had to make room
	RefusedFull      uint64 // inserts refused: no free entry
	RefusedBucket    uint64 // inserts refused: no place near the home bucket
	RefusedDuplicate uint64 // inserts refused: a tuple is in use
	Expired          uint64 // refs handed out by Advance
}

// New makes an empty table in fresh memory. It fails with ErrOptions, or with
// the system's error when there is not enough memory.
func New(o Options) (*Table, error) {
	if o.HalfOpen == 0 {
		o.HalfOpen = max(o.Flows/4, 1)
	}
	if o.Flows < 1 || o.Flows > maxFlows || o.HalfOpen < 0 || o.HalfOpen > o.Flows {
		return nil, fmt.Errorf("conntrack: %w: %d flows, %d half-open", ErrOptions, o.Flows, o.HalfOpen)
	}
	if o.Secret == [32]byte{} {
		if _, err := rand.Read(o.Secret[:]); err != nil {
			return nil, fmt.Errorf("conntrack: secret: %w", err)
		}
	}
	if o.Name == "" {
		o.Name = "flows"
	}
	l := newLayout(uint32(o.Flows), uint32(o.HalfOpen))
	m, err := createMemory(o.Name, l.size, o.Lazy)
	if err != nil {
		return nil, fmt.Errorf("conntrack: memory for %d flows: %w", o.Flows, err)
	}
	h := m.header()
	h.version, h.entrySize, h.size = layoutVersion, entrySize, l.size
	h.flows, h.buckets, h.halfOpenMax = l.flows, l.buckets, l.halfOpen
	h.probe = min(maxProbe, l.buckets)
	h.keys = expand(&o.Secret)
	h.fresh = 1
	h.wheelNow = o.Now
	h.magic = magic // last: a header without it is unfinished
	return newTable(m, l), nil
}

// Attach maps the table whose memory is behind fd, which it duplicates. The
// former owner must not use the table any more. It fails with ErrLayout when
// the memory is not a table this program can use.
func Attach(fd int) (*Table, error) {
	m, err := openMemory(fd)
	if err != nil {
		return nil, fmt.Errorf("conntrack: attach: %w", err)
	}
	l, err := m.header().check(m.size)
	if err != nil {
		return nil, fmt.Errorf("conntrack: attach: %w", errors.Join(err, m.close()))
	}
	return newTable(m, l), nil
}

func newTable(m mapping, l layout) *Table {
	t := &Table{mem: m, hdr: m.header()}
	t.half, t.clocks, t.buckets, t.entries = m.views(l)
	t.keys, t.probe, t.halfMax = t.hdr.keys, t.hdr.probe, t.hdr.halfOpenMax
	t.pressure = t.halfMax - t.halfMax/4
	return t
}

// Close unmaps the memory. No Entry may be used afterwards.
func (t *Table) Close() error {
	t.buckets, t.entries, t.half, t.clocks, t.hdr = nil, nil, nil, nil, nil
	if err := t.mem.close(); err != nil {
		return fmt.Errorf("conntrack: close: %w", err)
	}
	return nil
}

// FD is the memfd a successor may Attach to. It belongs to the table, and is
// nil after Close.
func (t *Table) FD() *os.File { return t.mem.file }

// Backing says what memory was really obtained, for the log.
func (t *Table) Backing() string { return t.mem.backing }

// Size is how many bytes of memory the table takes, full or empty.
func (t *Table) Size() uint64 { return t.hdr.size }

// Len is the number of flows in the table.
func (t *Table) Len() int { return int(t.hdr.used) }

// Cap is the number of flows the table can hold.
func (t *Table) Cap() int { return int(t.hdr.flows) }

// HalfOpenLen is the number of flows that count as half-open.
func (t *Table) HalfOpenLen() int { return int(t.hdr.halfLen) }

// HalfOpenCap is how many flows may be half-open at a time.
func (t *Table) HalfOpenCap() int { return int(t.halfMax) }

// Stats returns the totals so far.
func (t *Table) Stats() Stats { return t.hdr.stats }

// Entry is the flow r names. The pointer leads off the Go heap and is the
// flow's until it is removed. r must come from this table.
func (t *Table) Entry(r Ref) *Entry { return &t.entries[r] }

// Entries are all entries by Ref, for whoever reads them in assembly; see Entry.
func (t *Table) Entries() []Entry { return t.entries }

// Clock is a word that the owner keeps for flow r beside its entry, where there is
// no room: what the client's TCP timestamps are moved by. It is the owner's alone:
// nothing here sets, clears or reads it, so it means nothing before SetClock, and
// only flows that need it touch its cache line. r must come from this table.
func (t *Table) Clock(r Ref) uint32 { return t.clocks[r] }

// SetClock sets what Clock returns, until the flow is removed.
func (t *Table) SetClock(r Ref, v uint32) { t.clocks[r] = v }

// Status is what came of an Insert.
type Status uint8

// The outcomes of Insert. Only Inserted gives a flow.
const (
	Inserted         Status = iota + 1
	Full                    // no free entry
	BucketFull              // all buckets the flow may live in are full
	DuplicateForward        // a flow has the forward tuple already
	DuplicateReply          // a flow has the reply tuple already
	Mismatch                // the template does not match the tuples: a mistake of the caller
	NumStatuses
)

var statusNames = [NumStatuses]string{"invalid", "inserted", "full", "bucket_full",
	"duplicate_forward", "duplicate_reply", "mismatch"}

// String is the status's name in logs and metrics.
func (s Status) String() string {
	if s < NumStatuses {
		return statusNames[s]
	}
	return "invalid"
}

// insertTicks is how long a flow lives if no packet is tracked after Insert.
const insertTicks = 3 * TicksPerSecond

// Insert takes a new flow in. tmpl holds what the caller knows: Client,
// ClientPort, LocalPort, Service, Backend, Local, Proto, Mode, SeqDelta, sums,
// hop and V6 flags; everything else starts at zero. fwd is the tuple of the
// client's packets, rev that of the server's, nil exactly if the mode is OneWay.
// Both must agree with tmpl and dir, or the status is Mismatch.
//
// The flow counts as half-open until both sides were heard (see Track). If
// that exceeds the budget, the oldest half-open flow is removed, copied to
// *evicted for the caller's accounts, and the last result is true, whatever
// the status. An established flow never has to go: a table full of them gives
// Full.
//
// A template in the state UDPOnePacket makes a flow of one datagram. Its client
// may have more of them: the client's tuple leads to the latest, the others are
// found by their reply tuples alone. Such a flow counts as half-open for life.
//
// Track is to be called next with the packet that made the flow.
func (t *Table) Insert(tmpl *Entry, fwd, rev *packet.Tuple, dir *Directory, now uint32, evicted *Entry) (Ref, Status, bool) {
	if !tmpl.fits(fwd, rev, dir) {
		return 0, Mismatch, false
	}
	fh := t.keys.hash(fwd)
	if c := t.search(fh, fwd, dir); c != 0 && (c.Dir() == Reply || !tmpl.mayShare(&t.entries[c.Ref()])) {
		t.hdr.stats.RefusedDuplicate++
		return 0, DuplicateForward, false
	}
	var rh uint32
	if rev != nil {
		rh = t.keys.hash(rev)
		if *rev == *fwd || t.search(rh, rev, dir) != 0 {
			t.hdr.stats.RefusedDuplicate++
			return 0, DuplicateReply, false
		}
	}
	r, status, gone := t.InsertFree(tmpl, fh, rh, now, evicted)
	if status == Inserted && tmpl.State == UDPOnePacket {
		t.passOn(r, fwd, dir)
	}
	return r, status, gone
}

// InsertFree is Insert for who knows the hashes of both tuples, fh the client's and rh the
// server's, which means nothing where the mode is OneWay; that the tuples differ; and that
// no flow has either, from lookups since the last Insert. That the template agrees with
// them is not looked at. A flow of one datagram, whose client may have others, is for
// Insert.
func (t *Table) InsertFree(tmpl *Entry, fh, rh, now uint32, evicted *Entry) (Ref, Status, bool) {
	half := halfOpenAtFirst(tmpl)
	gone := false
	if half && t.hdr.halfLen >= t.halfMax {
		t.evict(evicted)
		gone = true
	}
	r := t.alloc()
	if r == 0 {
		t.hdr.stats.RefusedFull++
		return 0, Full, gone
	}
	if !t.link(fh, cand(r, Forward)) {
		t.release(r)
		t.hdr.stats.RefusedBucket++
		return 0, BucketFull, gone
	}
	if !tmpl.Mode.OneWay() && !t.link(rh, cand(r, Reply)) {
		t.unlink(fh, cand(r, Forward))
		t.release(r)
		t.hdr.stats.RefusedBucket++
		return 0, BucketFull, gone
	}
	t.fill(r, tmpl, fh, rh, now)
	if half {
		t.pushHalfOpen(r)
	}
	t.hdr.stats.Inserted++
	return r, Inserted, gone
}

// fits reports whether e as a template has exactly these tuples.
func (e *Entry) fits(fwd, rev *packet.Tuple, dir *Directory) bool {
	if !e.isForward(fwd, dir) {
		return false
	}
	if rev == nil {
		return e.Mode.OneWay()
	}
	return e.isReply(rev, dir)
}

// fill writes the new entry and starts its timer.
func (t *Table) fill(r Ref, tmpl *Entry, fh, rh, now uint32) {
	e := &t.entries[r]
	*e = *tmpl
	if e.State != UDPOnePacket {
		e.State = None
	}
	e.Flags &= V6Client | V6Server
	e.ServerNext = 0
	e.Win = [2]Window{}
	e.WScale = [2]uint8{packet.NoScale, packet.NoScale}
	e.Packets = [2]uint32{}
	e.Bytes = [2]uint64{}
	e.Created = now
	e.fwdHash, e.revHash = fh, rh
	e.Expires = now + insertTicks
	if t.hdr.used == 1 {
		t.hdr.wheelNow = now // nothing else is in the wheel: no need to turn it here
	}
	t.linkWheel(r, e, e.Expires)
}

// Remove ends flow r, whatever its state. Its Ref may be reused at once. A
// Ref that is no flow is ignored.
func (t *Table) Remove(r Ref) {
	e := &t.entries[r]
	if e.Proto == 0 {
		return
	}
	if e.linkedForward() {
		t.unlink(e.fwdHash, cand(r, Forward))
	}
	if !e.Mode.OneWay() {
		t.unlink(e.revHash, cand(r, Reply))
	}
	t.unlinkWheel(r, e)
	if e.Flags&HalfOpen != 0 {
		t.dropHalfOpen(r)
	}
	*e = Entry{}
	t.release(r)
	t.hdr.stats.Removed++
}

// PrefetchRemoval asks the processor for what Remove will touch of these flows
// beside their entries: the home buckets of both tuples. For those Advance has just
// handed out; one by one each Remove would wait for memory twice.
func (t *Table) PrefetchRemoval(flows []Ref) {
	var h [2 * 32]uint32
	for len(flows) > 0 {
		n := min(len(flows), len(h)/2)
		for i, r := range flows[:n] {
			e := &t.entries[r]
			h[2*i], h[2*i+1] = e.fwdHash, e.revHash
		}
		t.PrefetchBuckets(h[:2*n])
		flows = flows[n:]
	}
}

// alloc takes a free entry, the one freed last first: its lines may still be
// in the cache. 0 if there is none.
func (t *Table) alloc() Ref {
	h := t.hdr
	r := h.free
	switch {
	case r != 0:
		h.free = t.entries[r].wheelNext
		t.prefetchFlow(h.free) // for the next
	case h.fresh <= h.flows:
		r = h.fresh
		h.fresh++
	default:
		return 0
	}
	h.used++
	return Ref(r)
}

// release gives an entry back that is in no list.
func (t *Table) release(r Ref) {
	t.entries[r].wheelNext = t.hdr.free
	t.hdr.free = uint32(r)
	t.hdr.used--
}
