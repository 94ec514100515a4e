package frag

// place says whether a piece fits between those that have come: Forward,
// Duplicate, Overlap or Scattered.
func (e *entry) place(p *Piece) Result {
	s := span{p.Offset, p.Offset + p.Len}
	at := e.at(s.from)
	if at < int(e.n) && e.pieces[at] == s && p.More == (e.total != s.to) {
		return Duplicate
	}
	switch {
	case at > 0 && e.pieces[at-1].to > s.from,
		at < int(e.n) && e.pieces[at].from < s.to,
		p.More && e.total != 0 && s.to >= e.total, // reaches the end, or beyond
		!p.More && e.total != 0,                   // a second end
		!p.More && at < int(e.n):                  // an end before what has come
		return Overlap
	case int(e.n) == len(e.pieces):
		return Scattered
	}
	return Forward
}

// at is where a piece that begins at from belongs.
func (e *entry) at(from uint16) int {
	i := int(e.n) // most come in order
	for i > 0 && e.pieces[i-1].from >= from {
		i--
	}
	return i
}

// note enters a piece for which there is a place.
func (e *entry) note(p *Piece) {
	at := e.at(p.Offset)
	copy(e.pieces[at+1:int(e.n)+1], e.pieces[at:e.n])
	e.pieces[at] = span{p.Offset, p.Offset + p.Len}
	e.n++
	e.covered += uint32(p.Len)
	if !p.More {
		e.total = p.Offset + p.Len
	}
}

func (e *entry) complete() bool { return e.total != 0 && e.covered == uint32(e.total) }

func (t *Table) open(k *Key, src uint16, newID uint32, now int64) int32 {
	i := t.free
	e := &t.entries[i]
	t.free = e.chain
	head := t.head(k)
	e.key, e.chain, e.newID, e.source, e.state = *k, *head, newID, src, waiting
	e.first, e.last, e.covered, e.total, e.n = 0, 0, 0, 0, 0
	*head = i
	t.shares[src].datagrams++
	t.live++
	t.append(&t.young, i, now)
	return i
}

// remove forgets a datagram; frames that still wait become loose.
func (t *Table) remove(i int32) {
	e := &t.entries[i]
	t.drop(e, Expired)
	if e.state == waiting {
		t.unlink(&t.young, i)
	} else {
		t.unlink(&t.old, i)
	}
	at := t.head(&e.key)
	for *at != i {
		at = &t.entries[*at].chain
	}
	*at = e.chain
	t.shares[e.source].datagrams--
	t.live--
	e.chain, t.free = t.free, i
}

// condemn makes everything else of the datagram drop too, for as long as any
// of it may come.
func (t *Table) condemn(i int32, why Result, now int64) {
	e := &t.entries[i]
	t.drop(e, why)
	if e.state == waiting {
		t.unlink(&t.young, i)
	} else {
		t.unlink(&t.old, i)
	}
	e.state = condemned
	t.append(&t.old, i, now)
}

// makeRoom forgets the oldest datagram whose first fragment has come, if that
// was long enough ago: who sends many beginnings keeps nobody out for longer.
func (t *Table) makeRoom(now int64) bool {
	i := t.old.head
	if i == 0 || now-t.entries[i].since < Settle {
		return false
	}
	t.remove(i)
	return true
}

func (t *Table) limit(p *Piece) *Limit {
	if p.Server {
		return &t.o.Server
	}
	return &t.o.Anybody
}

func (t *Table) mayHold(src uint16, p *Piece) Result {
	switch {
	case t.shares[src].held >= uint32(t.limit(p).Held):
		return SourceLimit
	case t.spare == 0:
		return HoldLimit
	}
	return Held
}

func (t *Table) hold(e *entry, p *Piece) {
	h := t.spare
	t.spare = t.frames[h].next
	t.frames[h] = held{frame: p.Frame, source: e.source}
	if e.first == 0 {
		e.first = h
	} else {
		t.frames[e.last].next = h
	}
	e.last = h
	t.shares[e.source].held++
	t.holding++
}

// unhold takes a frame out of what the limits count.
func (t *Table) unhold(h int32) { t.shares[t.frames[h].source].held-- }

// drop makes a datagram's frames loose.
func (t *Table) drop(e *entry, why Result) {
	for e.first != 0 {
		h := e.first
		e.first = t.frames[h].next
		t.unhold(h)
		t.frames[h].why = why
		t.frames[h].next, t.loose = t.loose, h
	}
}

func (t *Table) append(q *queue, i int32, now int64) {
	e := &t.entries[i]
	e.since, e.prev, e.next = now, q.tail, 0
	if q.tail == 0 {
		q.head = i
	} else {
		t.entries[q.tail].next = i
	}
	q.tail = i
}

func (t *Table) unlink(q *queue, i int32) {
	e := &t.entries[i]
	if e.prev == 0 {
		q.head = e.next
	} else {
		t.entries[e.prev].next = e.next
	}
	if e.next == 0 {
		q.tail = e.prev
	} else {
		t.entries[e.next].prev = e.prev
	}
}
