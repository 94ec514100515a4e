package dataplane

import (
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// What a worker with a Tap does beside its work: tapIn copies what has come, before
// anything is changed; tapTuples notes to what flows it may belong; tapOut has all sent
// that waits for a TX ring, which is when tapSent sees it, and tells the rest by their
// verdicts. Each row is settled once, when its outcome is known.

// tapIn takes rows, which have just come from a queue, negative for another worker's.
func (w *Worker) tapIn(rows rowSet, queue int16) {
	t := w.tap
	for ; rows != 0; rows &= rows - 1 {
		i := rows.first()
		d, r := &w.b.desc[i], &t.rows[i]
		b := w.umem[d.Addr : d.Addr+uint64(d.Len)]
		t.last++
		r.len, r.packet, r.nic, r.queue = int(d.Len), t.last, w.b.nic[i]&(MaxNICs-1), queue
		r.shown, r.copied = false, false
		if r.wanted = t.opt.Points&TapRX != 0 && t.admits(b); r.wanted || t.opt.Points == TapRX|TapTX {
			r.frame.Data = t.copy(i, b)
			r.copied = true
		} else if t.opt.Points == TapRX {
			continue // nothing can make it wanted
		}
		w.b.verdict[i] = undecided
		t.tuples[i] = packet.Tuple{}
		t.taken |= 1 << uint(i)
		t.places.put(d.Addr&^(w.frameSize-1), int(w.mesh.shift), i)
	}
}

// copy keeps the beginning of a frame for row i.
func (t *Tap) copy(i int, b []byte) []byte {
	n := t.opt.SnapLen
	to := t.copies[i*n : (i+1)*n]
	return to[:copy(to, b)]
}

// admits reports whether the filter does.
func (t *Tap) admits(b []byte) bool {
	return t.opt.Filter == nil || t.opt.Filter.Run(b, uint32(len(b))) != 0
}

// tapTuples notes the tuples of all rows, of which the first flows of b.look may not have
// been parsed yet: what is done with a packet may change them.
func (w *Worker) tapTuples(flows int) {
	t := w.tap
	for k := range flows {
		w.parsed(k)
	}
	for rows := t.taken; rows != 0; rows &= rows - 1 {
		if p := &w.b.pkt[rows.first()]; p.Err == packet.ErrNone {
			t.tuples[rows.first()] = p.Tuple
		}
	}
}

// tapFreed settles rows that were given away before they came to anything, if that was
// in vain.
func (w *Worker) tapFreed(rows rowSet) {
	t := w.tap
	for rows &= t.taken; rows != 0; rows &= rows - 1 {
		i := rows.first()
		packet.Parse(w.frame(i), &w.b.pkt[i])
		t.tuples[i] = w.b.pkt[i].Tuple
		w.settle(i, w.b.verdict[i], nil)
	}
}

// tapPiece notes that what is sent from addr is a part of row i, or tapOwnRow's.
func (w *Worker) tapPiece(addr uint64, i int) {
	w.tap.places.put(addr&^(w.frameSize-1), int(w.mesh.shift), i)
}

// tapOut ends a burst, or what there is of it.
func (w *Worker) tapOut() {
	t := w.tap
	for i := range w.queues {
		if q := &w.queues[i]; q.n > 0 && !q.down {
			w.transmit(q)
		}
	}
	for rows := t.taken; rows != 0; rows &= rows - 1 {
		// A fragment that waits for others has no verdict.
		if i := rows.first(); w.b.verdict[i] != undecided {
			w.settle(i, w.b.verdict[i], nil)
		}
	}
	t.taken = 0
	t.places.clear()
	t.publish()
}

// tapSent sees what waits for the TX ring of q, of which the ring has taken the first
// sent.
func (w *Worker) tapSent(q *queue, sent int) {
	t := w.tap
	if t.opt.Points == TapRX && t.taken == 0 {
		return
	}
	now := w.nanos
	if t.opt.Clock != nil {
		now = t.opt.Clock()
	}
	for k := range q.out[:q.n] {
		d := &q.out[k]
		b := w.umem[d.Addr : d.Addr+uint64(d.Len)]
		i := t.places.find(d.Addr&^(w.frameSize-1), int(w.mesh.shift))
		if i < 0 {
			if k < sent {
				w.tapOwn(q, b, now)
			}
			continue
		}
		if t.taken.has(i) {
			v := q.done[k]
			if k >= sent && v != own {
				v = DropTxFull
			}
			w.settle(i, v, b)
		}
		if r := &t.rows[i]; r.shown && k < sent && t.opt.Points&TapTX != 0 {
			r.frame.Nanos, r.frame.Point, r.frame.NIC, r.frame.Queue = now, TapTX, q.nic, w.queueNumber(q)
			t.record(&r.frame, b)
		}
	}
	if t.taken == 0 {
		t.publish() // outside of a burst: nobody else does
	}
}

// tapOwn captures what l4fwd sends of its own accord.
func (w *Worker) tapOwn(q *queue, b []byte, now int64) {
	t := w.tap
	if t.opt.Points&TapTX == 0 || t.opt.Verdicts != nil || t.opt.Service != "" || !t.opt.Backend.Addr.IsZero() || !t.admits(b) {
		return
	}
	t.last++
	t.record(&TapFrame{Nanos: now, Packet: t.last, Point: TapTX, NIC: q.nic, Queue: w.queueNumber(q), Own: true}, b)
}

// tapAlone captures the packet in row i, which is no part of a burst and was dropped as
// v.
func (w *Worker) tapAlone(i int, v Verdict) {
	w.tapIn(1<<uint(i), -1)
	if packet.Parse(w.frame(i), &w.b.pkt[i]) == packet.ErrNone {
		w.tap.tuples[i] = w.b.pkt[i].Tuple
	}
	w.settle(i, v, nil)
	if w.tap.taken == 0 { // no burst ends that would do it
		w.tap.places.clear()
		w.tap.publish()
	}
}

// settle decides whether row i, whose outcome is v, is captured, and shows what was
// received of it. sent is what it leaves as, nil if it does not.
func (w *Worker) settle(i int, v Verdict, sent []byte) {
	t := w.tap
	t.taken &^= 1 << uint(i)
	r := &t.rows[i]
	switch {
	case v == HandedOver, v < NumVerdicts && t.opt.Verdicts != nil && !t.opt.Verdicts[v]:
		return
	case !r.wanted && (t.opt.Points&TapTX == 0 || sent == nil || !t.admits(sent)):
		return
	}
	f := &r.frame
	f.Nanos, f.Packet, f.NIC, f.Queue, f.Len, f.Verdict = w.nanos, r.packet, r.nic, r.queue, r.len, v
	w.tapFlow(f, &t.tuples[i])
	if t.opt.Service != "" && f.Service != t.opt.Service || !t.opt.Backend.Addr.IsZero() && !t.towards(f) {
		return
	}
	r.shown = true
	if r.copied {
		f.Point = TapRX
		t.record(f, nil)
	}
}

// towards reports whether a frame's backend is the one that is asked for.
func (t *Tap) towards(f *TapFrame) bool {
	b := &t.opt.Backend
	return f.Flow && f.Backend.Addr == b.Addr && (b.Port == 0 || f.Backend.Port == b.Port)
}

// tapFlow says in f to what flow a packet with tuple tu belongs, or at least to what
// service.
func (w *Worker) tapFlow(f *TapFrame, tu *packet.Tuple) {
	f.Flow, f.Service = false, ""
	dir := &w.snap.Directory
	r, d, ok := w.table.Lookup(tu, dir)
	if !ok {
		if id := w.snap.names.find(tu.Dst, tu.DstPort, tu.Proto); tu.DstPort != 0 && id >= 0 {
			f.Service = w.snap.Services[id].Name
		}
		return
	}
	e := w.table.Entry(r)
	f.Flow, f.Dir, f.Mode = true, d, e.Mode
	f.Service = w.snap.Services[e.Service].Name
	f.Client = conntrack.Endpoint{Addr: e.Client, Port: e.ClientPort, Proto: e.Proto}
	f.VIP, f.Backend = dir.Services[e.Service], dir.Backends[e.Backend]
	f.Local = conntrack.Endpoint{}
	if e.Mode == conntrack.FullNAT {
		f.Local = conntrack.Endpoint{Addr: dir.Locals[e.Local], Port: e.LocalPort, Proto: e.Proto}
	}
}

// record puts a frame into the ring: f, whose bytes are b, or, if nil, its own.
func (t *Tap) record(f *TapFrame, b []byte) {
	s := t.slot()
	if s == nil {
		return
	}
	to := s.Data[:t.opt.SnapLen]
	*s = *f
	if b != nil {
		s.Len = len(b)
	} else {
		b = f.Data
	}
	s.Data = to[:copy(to, b)]
}

// queueNumber is which of its NIC's queues q is: a worker has every queue whose number
// leaves the worker's when it is divided by how many workers there are, in this order.
func (w *Worker) queueNumber(q *queue) int16 {
	n := w.id
	for i := range w.queues {
		if &w.queues[i] == q {
			break
		}
		if w.queues[i].nic == q.nic {
			n += int(w.owners.workers)
		}
	}
	return int16(n)
}
