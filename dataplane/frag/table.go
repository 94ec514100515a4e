package frag

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/bits"

	"github.com/l4fwd/l4fwd/packet"
)

// MaxPieces is how many fragments one datagram may come in: 65,535 bytes make
// 54 at IPv6's least MTU of 1280.
const MaxPieces = 64

// How long, in nanoseconds, a datagram is remembered once its first fragment
// has come, how long its other fragments wait for that, and how old the oldest
// must be to make room in a full table. Fragments travel together: a second
// between two of them is long.
const (
	Life   = int64(10e9)
	Wait   = int64(2e9)
	Settle = int64(1e9)
)

// sources is the number of counters for limits by source, a power of two.
const sources = 4096

// Options of New. All limits are at least 1.
type Options struct {
	Datagrams int      // remembered at the same time
	Held      int      // frames that wait for a first fragment at the same time
	Anybody   Limit    // what of these one source may have
	Server    Limit    // the same for one of Piece.Server
	Secret    [32]byte // keys the hashes; nobody outside knows it
}

// Limit is one source's share.
type Limit struct{ Datagrams, Held int }

// Key is what the fragments of one datagram have in common (RFC 791 section
// 3.2, RFC 8200 section 4.5; with the protocol also in IPv6).
type Key struct {
	Src, Dst packet.Addr
	ID       uint32 // 16 bits in IPv4
	Proto    uint8
}

// Piece is one fragment, as packet.Parse accepted it.
type Piece struct {
	Offset, Len      uint16 // of its data, in bytes; their sum fits 16 bits
	More             bool
	Server           bool   // from one of few known sources with much to say
	SrcPort, DstPort uint16 // in host order; of the first fragment only
	NewID            uint32 // for the datagram, should this piece be the first to come
	Frame            uint64 // whatever the caller finds the frame by again
}

// Result is what becomes of a fragment.
type Result uint8

// The results. After Held the frame is the table's; after all others it stays
// the caller's.
const (
	Forward     Result = iota // the Answer says for which ports
	Held                      // waits for its first fragment
	Duplicate                 // the very same place has come; drop it, the datagram lives on
	Overlap                   // contradicts another one; this and all of the datagram drop (RFC 5722)
	Condemned                 // of a datagram that was dropped for such a reason before
	Scattered                 // one of more than MaxPieces; the datagram drops
	TableFull                 // no room for another datagram
	SourceLimit               // the source has its share of datagrams or waiting frames
	HoldLimit                 // no room for a frame to wait
	Expired                   // waited in vain; only Loose says so
	NumResults
)

// Ref names a datagram until the next call of Add or Expire; 0 is none.
type Ref int32

// Answer is what Add says of a fragment.
type Answer struct {
	Result           Result
	SrcPort, DstPort uint16 // of the first fragment, if Forward
	NewID            uint32 // of the datagram, if Forward
	Waiting          Ref    // frames have waited for this one: Next gives them
	Opened           bool   // the datagram was new, so its NewID is Piece.NewID
}

type state uint8

const (
	waiting   state = iota // no first fragment yet
	mapped                 // ports known
	condemned              // whatever else comes drops
)

type span struct{ from, to uint16 }

// entry is a datagram. Index 0 of every array is nobody.
type entry struct {
	key              Key
	since            int64 // when it entered its queue
	chain            int32 // next in its hash chain
	prev, next       int32 // in its queue
	first, last      int32 // frames that wait
	covered          uint32
	newID            uint32
	srcPort, dstPort uint16
	source           uint16
	total            uint16 // the datagram's length, once its end has come; else 0
	n                uint8
	state            state
	pieces           [MaxPieces]span // sorted, disjoint
}

type held struct {
	frame  uint64
	next   int32
	source uint16
	why    Result // of a loose one
}

// queue holds entries in the order in which they expire.
type queue struct{ head, tail int32 }

type share struct{ datagrams, held uint32 }

// Table is one worker's datagrams in fragments; see New.
type Table struct {
	o       Options
	k       [4]uint64
	heads   []int32
	entries []entry
	free    int32 // entries by chain
	frames  []held
	spare   int32 // frames by next
	loose   int32 // frames of dead datagrams
	young   queue // waiting, for Wait
	old     queue // the others, for Life
	holding int   // frames that wait, and loose ones
	live    int
	shares  [sources]share
}

// New makes a table; its memory is all there ever is.
func New(o Options) (*Table, error) {
	if min(o.Datagrams, o.Held, o.Anybody.Datagrams, o.Anybody.Held, o.Server.Datagrams, o.Server.Held) < 1 || max(o.Datagrams, o.Held) > 1<<24 {
		return nil, errors.New("frag: every limit must be at least 1, and none above 16 million")
	}
	t := &Table{
		o: o, heads: make([]int32, 1<<bits.Len(uint(o.Datagrams))),
		entries: make([]entry, o.Datagrams+1), frames: make([]held, o.Held+1),
	}
	key := sha256.Sum256(o.Secret[:]) // full of bits, whatever the secret is
	for i := range t.k {
		t.k[i] = binary.LittleEndian.Uint64(key[8*i:]) | 1 // a zero factor would wipe out the other
	}
	for i := o.Datagrams; i > 0; i-- {
		t.entries[i].chain, t.free = t.free, int32(i)
	}
	for i := o.Held; i > 0; i-- {
		t.frames[i].next, t.spare = t.spare, int32(i)
	}
	return t, nil
}

func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// Hash is keyed by the secret, so that nobody outside can aim; tables of equal
// secret agree.
func (t *Table) Hash(k *Key) uint64 {
	x := fold(k.Src.Hi^t.k[0], k.Src.Lo^t.k[1])
	y := fold(k.Dst.Hi^t.k[2], k.Dst.Lo^t.k[3])
	x = fold(x^t.k[3]^uint64(k.ID)<<8^uint64(k.Proto), y^t.k[0])
	return fold(x^t.k[1], t.k[2])
}

// source is which counter a source's limits use. In IPv6 a source is a /64:
// whoever has one address of it has all. Sources that meet share their limits.
func (t *Table) source(a packet.Addr) uint16 {
	if !a.Is4() {
		a.Lo = 0
	}
	return uint16(fold(fold(a.Hi^t.k[1], a.Lo^t.k[2]), t.k[3]) & (sources - 1))
}

func (t *Table) head(k *Key) *int32 { return &t.heads[t.Hash(k)&uint64(len(t.heads)-1)] }

func (t *Table) find(k *Key) int32 {
	i := *t.head(k)
	for i != 0 && t.entries[i].key != *k {
		i = t.entries[i].chain
	}
	return i
}

// Add takes note of a fragment. now is in nanoseconds and never goes back.
// Expire what is due before. When Waiting is set, the caller takes the frames
// that have waited by Next before it calls anything else.
func (t *Table) Add(k *Key, p *Piece, now int64) Answer {
	i, opened := t.find(k), false
	if i == 0 {
		src := t.source(k.Src)
		if t.shares[src].datagrams >= uint32(t.limit(p).Datagrams) {
			return Answer{Result: SourceLimit}
		}
		if r := t.mayHold(src, p); p.Offset != 0 && r != Held {
			return Answer{Result: r}
		}
		if t.free == 0 && !t.makeRoom(now) {
			return Answer{Result: TableFull}
		}
		i, opened = t.open(k, src, p.NewID, now), true
	}
	e := &t.entries[i]
	if e.state == condemned {
		return Answer{Result: Condemned}
	}
	if r := e.place(p); r != Forward {
		if r != Duplicate {
			t.condemn(i, r, now)
		}
		return Answer{Result: r}
	}
	if p.Offset != 0 && e.state == waiting {
		r := t.mayHold(e.source, p)
		if r == Held {
			e.note(p)
			t.hold(e, p)
		}
		return Answer{Result: r, Opened: opened}
	}
	e.note(p)
	if p.Offset == 0 {
		e.srcPort, e.dstPort, e.state = p.SrcPort, p.DstPort, mapped
		t.unlink(&t.young, i)
		t.append(&t.old, i, now)
	}
	a := Answer{Result: Forward, SrcPort: e.srcPort, DstPort: e.dstPort, NewID: e.newID, Opened: opened}
	if e.first != 0 {
		a.Waiting = Ref(i)
	} else if e.complete() {
		t.remove(i)
	}
	return a
}

// Next is the next frame that has waited for the first fragment which Add
// answered with r, in order of arrival; it is the caller's now.
func (t *Table) Next(r Ref) (frame uint64, ok bool) {
	e := &t.entries[r]
	if e.first == 0 {
		return 0, false
	}
	h := e.first
	frame, e.first = t.frames[h].frame, t.frames[h].next
	t.unhold(h)
	t.frames[h].next, t.spare = t.spare, h
	t.holding--
	if e.first == 0 && e.complete() {
		t.remove(int32(r))
	}
	return frame, true
}

// Expire forgets up to n datagrams whose time has come. Their frames become
// loose.
func (t *Table) Expire(now int64, n int) {
	for ; n > 0; n-- {
		switch {
		case t.young.head != 0 && now-t.entries[t.young.head].since >= Wait:
			t.remove(t.young.head)
		case t.old.head != 0 && now-t.entries[t.old.head].since >= Life:
			t.remove(t.old.head)
		default:
			return
		}
	}
}

// Loose gives back a frame of a datagram that was condemned, and for what, or
// has Expired.
func (t *Table) Loose() (frame uint64, why Result, ok bool) {
	h := t.loose
	if h == 0 {
		return 0, 0, false
	}
	t.loose = t.frames[h].next
	t.frames[h].next, t.spare = t.spare, h
	t.holding--
	return t.frames[h].frame, t.frames[h].why, true
}

// Frames appends all frames the table owns to dst, for an audit.
func (t *Table) Frames(dst []uint64) []uint64 {
	for h := t.loose; h != 0; h = t.frames[h].next {
		dst = append(dst, t.frames[h].frame)
	}
	for i := t.young.head; i != 0; i = t.entries[i].next {
		for h := t.entries[i].first; h != 0; h = t.frames[h].next {
			dst = append(dst, t.frames[h].frame)
		}
	}
	return dst
}

// Len is how many datagrams are remembered, Holding how many frames the table
// owns, loose ones included.
func (t *Table) Len() int { return t.live }

// Holding is documented at Len.
func (t *Table) Holding() int { return t.holding }
