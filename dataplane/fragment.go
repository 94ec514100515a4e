package dataplane

import (
	"encoding/binary"
	"math/bits"

	"github.com/l4fwd/l4fwd/dataplane/frag"
	"github.com/l4fwd/l4fwd/packet"
)

// Only the first fragment of a datagram has ports, and NICs spread fragments by
// their addresses alone. So each goes first to its datagram's keeper, the worker
// at hash(source, destination, id, protocol), whose table knows the ports or
// keeps the frame until the first fragment brings them; and then, with the ports
// noted in the frame's headroom, to the owner of the flow, as any packet.

// known marks a fragment whose ports are noted. In burst.nic, and so in the word
// that packDesc makes, it stands beside the NIC, of which there are few.
const known = 0x80

var _ [known - MaxNICs]byte

// fragments is what a worker keeps as the keeper of datagrams.
type fragments struct {
	table  *frag.Table
	waited []uint64 // frames whose ports came in this burst, packed; see resume
	// first is set while the row in hand is a first fragment taken for a whole
	// packet: it must keep its length, and newID is its identification.
	first bool
}

// Bounds of fragments. A datagram's frames arrive together, so that few are
// incomplete at any time, but for loss and malice.
const (
	minDatagrams = 256
	maxDatagrams = 8192
	maxWaiting   = 1024
)

// newFragments makes the table of one of so many workers, which has room for a
// number of flows and begins with a number of frames. All workers together never
// make more than a quarter of the frames of one wait.
func newFragments(secret [32]byte, workers, flows, frames int) (fragments, error) {
	n := min(max(flows/16, minDatagrams), maxDatagrams)
	held := max(1, min(frames/4/workers, maxWaiting))
	t, err := frag.New(frag.Options{
		Datagrams: n, Held: held, Secret: secret,
		Anybody: frag.Limit{Datagrams: n / 16, Held: max(1, held/4)},
		Server:  frag.Limit{Datagrams: n - n/4, Held: max(1, held-held/4)},
	})
	return fragments{
		table:  t,
		waited: make([]uint64, 0, held+BurstSize), // what waited before a burst, and in it
	}, err
}

// fragmentDrops names the drop for what a fragment table will not have.
var fragmentDrops = [frag.NumResults]Verdict{
	frag.Duplicate:   DropFragmentDuplicate,
	frag.Overlap:     DropFragmentOverlap,
	frag.Condemned:   DropFragmentCondemned,
	frag.Scattered:   DropFragmentScattered,
	frag.TableFull:   DropFragmentTableFull,
	frag.SourceLimit: DropFragmentSourceLimit,
	frag.HoldLimit:   DropFragmentHoldLimit,
	frag.Expired:     DropFragmentExpired,
}

// place finds out for row i, a fragment, what ports it belongs to, and reports
// whether they are known. If not, the row has its verdict, or waits and gets it
// later.
func (w *Worker) place(i int, handed bool) bool {
	b := &w.b
	p := &b.pkt[i]
	if b.nic[i]&known != 0 {
		w.recall(i)
		if handed {
			b.nic[i] &^= known // goes no further: see fragment
		}
		return true
	}
	if p.Proto != packet.ProtoTCP && p.Proto != packet.ProtoUDP {
		w.finish(i, w.portless(i))
		return false
	}
	f := p.Fragment(w.frame(i))
	key := frag.Key{Src: p.Src, Dst: p.Dst, ID: f.ID, Proto: p.Proto}
	if keeper := w.keeper(&key); keeper != w.id {
		w.finish(i, w.handOver(i, keeper))
		return false
	}
	return w.keep(i, &key, &f)
}

// keeper is the worker whose table a datagram is in.
func (w *Worker) keeper(k *frag.Key) int {
	n, _ := bits.Mul64(w.frags.table.Hash(k), uint64(w.owners.workers))
	return int(n)
}

// portless is the verdict on a fragment of what nobody forwards by flow.
func (w *Worker) portless(i int) Verdict {
	if w.snap.names.owns(w.b.pkt[i].Dst) {
		return DropFragment
	}
	return w.pass(i)
}

// keep is place at the datagram's keeper.
func (w *Worker) keep(i int, k *frag.Key, f *packet.Fragment) bool {
	b := &w.b
	p := &b.pkt[i]
	piece := frag.Piece{
		Offset: f.Offset, Len: p.End - p.L4, More: f.More,
		Server: w.snap.names.isServer(p.Src), Frame: packDesc(&b.desc[i], b.nic[i]),
	}
	if f.Offset == 0 {
		first := *p
		if err := first.FirstFragment(w.frame(i)); err != packet.ErrNone {
			w.finish(i, malformed(err))
			return false
		}
		piece.SrcPort, piece.DstPort = first.SrcPort, first.DstPort
	}
	piece.NewID = w.idAfter(w.ipID)
	a := w.frags.table.Add(k, &piece, w.nanos)
	if a.Opened {
		w.ipID = piece.NewID
	}
	switch a.Result {
	case frag.Held:
		return false
	case frag.Forward:
	default:
		w.finish(i, fragmentDrops[a.Result])
		return false
	}
	w.note(b.desc[i].Addr, &a)
	b.nic[i] |= known
	w.recall(i)
	for v, ok := w.frags.table.Next(a.Waiting); ok; v, ok = w.frags.table.Next(a.Waiting) {
		d, _ := unpackDesc(v)
		w.note(d.Addr, &a)
		w.frags.waited = append(w.frags.waited, v|known<<56)
	}
	return true
}

// noteLen is how much of a frame's headroom, just before its first byte, a note
// takes. Received frames have 256 bytes (XDP_PACKET_HEADROOM in linux/bpf.h).
const noteLen = 8

// note writes before the frame at addr what is known of its datagram.
func (w *Worker) note(addr uint64, a *frag.Answer) {
	b := w.umem[addr-noteLen : addr : addr]
	binary.NativeEndian.PutUint16(b, a.SrcPort)
	binary.NativeEndian.PutUint16(b[2:], a.DstPort)
	binary.NativeEndian.PutUint32(b[4:], a.NewID)
}

// recall reads row i's note.
func (w *Worker) recall(i int) {
	at := w.b.desc[i].Addr
	b := w.umem[at-noteLen : at : at]
	w.b.pkt[i].SrcPort = binary.NativeEndian.Uint16(b)
	w.b.pkt[i].DstPort = binary.NativeEndian.Uint16(b[2:])
	w.b.newID[i] = binary.NativeEndian.Uint32(b[4:])
}

// resume takes the frames that waited through the stages.
func (w *Worker) resume() {
	all := w.frags.waited
	w.frags.waited = all[:0] // nothing joins it: of these all is known
	if w.tap != nil {
		w.tapOut() // the rows are taken for others
	}
	for len(all) > 0 {
		n := min(len(all), BurstSize)
		for i, v := range all[:n] {
			w.b.desc[i], w.b.nic[i] = unpackDesc(v)
		}
		w.b.handed = 0
		if w.tap != nil {
			w.tapIn(firstRows(n), -1)
		}
		flows := w.parse(n)
		w.serve(flows)
		if w.tap != nil {
			w.tapOut()
		}
		all = all[n:]
	}
}

// expireFragments drops what has waited in vain, or for a datagram that turned
// out to be bad.
func (w *Worker) expireFragments() {
	t := w.frags.table
	t.Expire(w.nanos, BurstSize)
	for v, why, ok := t.Loose(); ok; v, why, ok = t.Loose() {
		d, nic := unpackDesc(v)
		w.count.Verdicts[fragmentDrops[why]]++
		if w.tap != nil {
			w.b.desc[0], w.b.nic[0] = d, nic
			w.tapAlone(0, fragmentDrops[why])
		}
		w.release(d.Addr)
	}
}

// FragmentsWaiting is how many frames wait for the first fragment of their
// datagram: received, and without an outcome yet. Like Counts.
func (w *Worker) FragmentsWaiting() int { return w.frags.table.Holding() }

// nextID is an identification that no other worker uses, also not its low 16 bits,
// for which IPv4 has room: the workers share the local addresses.
func (w *Worker) nextID() uint32 {
	w.ipID = w.idAfter(w.ipID)
	return w.ipID
}

// idAfter is the identification to be given after id. A worker's are those whose
// low 16 bits divided by the number of workers leave its own number; the rest
// counts how often these were used up.
func (w *Worker) idAfter(id uint32) uint32 {
	if next := id&0xffff + w.owners.workers; next <= 0xffff {
		return id&^0xffff | next
	}
	return id&^0xffff + 1<<16 | uint32(w.id)
}
