package dataplane

import (
	"math/bits"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// run takes rows [0,n) of the burst through the stages, and in the rows that are
// free, or become so, what other workers have handed over: a burst has its price,
// however few packets it has.
func (w *Worker) run(n int) {
	b := &w.b
	b.handed = 0
	var flows int
	free := ^firstRows(n)
	if w.owners.byPort() {
		flows, free = w.parseSorting(n)
	} else {
		flows = w.parse(n)
	}
	if len(w.inbox) > 0 {
		if w.tap != nil {
			w.tapFreed(free)
		}
		if b.handed = w.adopt(free, flows); b.handed != 0 {
			if w.tap != nil {
				w.tapIn(b.handed, -1)
			}
			flows = w.parseHanded(flows, flows+b.handed.len())
		}
	}
	w.publishHanded() // now: the stages that follow are long
	w.serve(flows)
	if len(w.frags.waited) > 0 {
		w.resume()
	}
	w.publishHanded()
	if w.tap != nil {
		w.tapOut()
	}
}

// serve does what is left to do for the first flows of b.look.
func (w *Worker) serve(flows int) {
	if w.tap != nil {
		w.tapTuples(flows)
	}
	w.mark(StageParse)
	w.find(flows)
	w.mark(StageLookup)
	w.act(flows)
	w.mark(StageForward)
}

// rowSet is a set of rows of a burst, by number.
type rowSet uint64

// firstRows is rows [0,n).
func firstRows(n int) rowSet { return ^rowSet(0) >> (BurstSize - uint(n)) }

func (s rowSet) has(i int) bool { return s>>(uint(i)%BurstSize)&1 != 0 }

// first is the lowest of the rows, of which there is one.
func (s rowSet) first() int { return bits.TrailingZeros64(uint64(s)) % BurstSize }

// len is how many rows there are.
func (s rowSet) len() int { return bits.OnesCount64(uint64(s)) }

// prefetchStep is how many rows are parsed in Go, at most, before their buckets are asked
// for: by the time all are, the first have come. The glance in assembly does it row by row.
const prefetchStep = 8

// parse reads the headers of the first n rows and finishes those that belong to no flow by
// their kind. The others become b.look, and the processor is asked for their buckets.
func (w *Worker) parse(n int) (flows int) {
	b, buckets := &w.b, w.table.Buckets()
	for i := 0; i < n; {
		next := w.glances(buckets, i, n, flows)
		flows += next - i
		asked := flows
		for i = next; i < min(next+prefetchStep, n); i++ {
			flows += w.parseOne(i, flows, false)
		}
		w.table.PrefetchBuckets(b.look.Hash[asked:flows])
	}
	return flows
}

// parseOne is parse for row i, which becomes place k of look, and returns how many there are
// more then. handed is set for a packet from another worker: it is at its owner's and goes
// no further, save a fragment that comes to the keeper of its datagram first.
func (w *Worker) parseOne(i, k int, handed bool) (more int) {
	b := &w.b
	hash, ip := glance(w.umem, &b.desc[i%BurstSize], w.table)
	if ip == 0 {
		p := &b.pkt[i%BurstSize]
		packet.Parse(w.frame(i), p) // what it returns is p.Err
		if (p.Kind < packet.KindTCP || p.Kind > packet.KindUDP) && !w.special(i, handed) {
			return 0
		}
		hash = w.table.Hash(&p.Tuple)
	}
	k %= BurstSize
	b.look.Packet[k], b.look.Hash[k], b.ip[k] = uint8(i), hash, ip
	return 1
}

// parseSorting is parse for the first n rows, none of them handed over, where replies
// say by their local port whose they are: those of other workers are handed over,
// before anything is looked up in the table here. It returns which rows are free then
// or have been before. What it does not see, miss does.
func (w *Worker) parseSorting(n int) (flows int, free rowSet) {
	b := &w.b
	n = min(n, BurstSize)
	var away leaving
	others, asked := 0, 0
	none := w.table.Buckets()[:0] // those of packets that go are not wanted here
	for i := 0; i < n; {
		end := min(i+prefetchStep, n)
		had := flows
		flows += w.glances(none, i, end, had) - i
		for i += flows - had; i < end; i++ {
			flows += w.parseOne(i, flows, false)
		}
		flows, others = w.sort(had, flows, others, &away)
		if flows-asked >= prefetchStep {
			w.table.PrefetchBuckets(b.look.Hash[asked:flows])
			asked = flows
		}
	}
	w.table.PrefetchBuckets(b.look.Hash[asked:flows])
	free = ^firstRows(n)
	for k, i := range away.row[:others] {
		w.finish(int(i), w.handGlanced(int(i), int(away.owner[k]), away.hash[k], away.ip[k]))
		free |= 1 << i
	}
	return flows, free
}

// leaving are rows of other workers' flows: whose they are, and what b.look and b.ip say.
type leaving struct {
	row, owner [BurstSize]uint8
	hash       [BurstSize]uint32
	ip         [BurstSize]uint64
}

// sort takes out of the places [from, to) of look those that hold replies of other workers'
// flows, as far as their local port says, and returns how many look has then. They join the
// others in away, of which there are more then.
//
// Whose a reply is, no processor can foretell, so a row is entered in both lists, of
// which one goes on.
func (w *Worker) sort(from, to, others int, away *leaving) (flows, more int) {
	b, locals := &w.b, &w.snap.locals
	const mask = BurstSize - 1
	flows, more = from, others
	for k := from; k < to; k++ {
		i, hash, ip := b.look.Packet[k&mask], b.look.Hash[k&mask], b.ip[k&mask]
		var dst packet.Addr
		var port uint16
		switch p := &b.pkt[i%BurstSize]; {
		case ip != 0:
			dst, port = headersIn(w.umem, ip&^isV6).destination(ip >= isV6)
		case p.Kind == packet.KindTCP, p.Kind == packet.KindUDP:
			dst, port = p.Dst, p.DstPort
		default: // what has no ports stays
			dst = packet.Addr{Hi: 1}
		}
		owner := w.owners.localPort(port)
		stays := (uint64(owner^w.id)-1)>>63 | locals.differs(dst)
		stays = (stays | -stays) >> 63
		away.row[more&mask], away.owner[more&mask], away.hash[more&mask], away.ip[more&mask] = i, uint8(owner), hash, ip
		b.look.Packet[flows&mask], b.look.Hash[flows&mask], b.ip[flows&mask] = i, hash, ip
		flows += int(stays)
		more += int(1 - stays)
	}
	return flows, more
}

// special does for row i, which is not simply TCP or UDP, what parse does, and
// reports whether it belongs to a flow.
func (w *Worker) special(i int, handed bool) bool {
	p := &w.b.pkt[i]
	if p.Err != packet.ErrNone {
		w.finish(i, malformed(p.Err))
		return false
	}
	switch p.Kind {
	case packet.KindICMPError:
		return true
	case packet.KindFragment:
		return w.place(i, handed)
	}
	w.finish(i, w.answer(i))
	return false
}

// find looks up the flows of the first n of b.look.
func (w *Worker) find(n int) {
	b := &w.b
	w.table.Candidates(&b.look, n)
	if w.crowded() {
		w.fetchRefused(n)
	}
}

// act does with the first n of b.look what their flows ask for: with all that come from
// clients first, then with all from servers. Packets of one flow that go one way stay in
// order, and no packet of a burst can be the answer to another one, which has not left
// yet.
func (w *Worker) act(n int) {
	b := &w.b
	clients, servers := b.look.Order(n)
	actFor[client](w, clients)
	actFor[server](w, servers)
}

// actFor is act for the places rows of b.look, S being the sender.
func actFor[S sender](w *Worker, rows []uint8) {
	b := &w.b
	quick := true // until a packet is not plain, and again from the next on that is
	for at := 0; at < len(rows); {
		from, six := at, b.ip[rows[at]%BurstSize] >= isV6
		var toa bool
		if six {
			at, toa = plains[S, v6](w, rows, at, quick)
		} else {
			at, toa = plains[S, v4](w, rows, at, quick)
		}
		quick = at > from
		w.count.Verdicts[Forwarded+Verdict(len(*new(S)))] += uint64(at - from)
		if at >= len(rows) {
			return
		}
		k := int(rows[at] % BurstSize)
		if at > from && b.ip[k] >= isV6 != six {
			continue // the other family has its own plain
		}
		at++
		b.hash, b.next = b.look.Hash[k], -1
		if at < len(rows) {
			b.next = int(rows[at])
		}
		if b.ip[k] == 0 { // what has had no glance none of these knows
			w.actOn(k)
		} else if toa {
			w.finish(int(b.look.Packet[k]), w.plainTOA(k))
		} else if v := w.rarely(k); v != undecided {
			w.finish(int(b.look.Packet[k]), v)
		} else if v := w.handClient(k); v != undecided {
			w.finish(int(b.look.Packet[k]), v)
		} else {
			w.actOn(k)
		}
	}
}

// plains is plain, and if quick is set segments before it, and again every few packets as
// long as that takes any.
func plains[S sender, F family](w *Worker, rows []uint8, at int, quick bool) (next int, toa bool) {
	const few = 8
	for {
		from, end := at, len(rows)
		if quick {
			from = segments[S, F](w, rows, at)
		}
		if from > at {
			end = min(from+few, end)
		}
		if at, toa = plain[S, F](w, rows[:end], from); toa || at < end || at == len(rows) {
			return at, toa
		}
	}
}

// actOn is act for the one of row k of b.look, which is in hand and not plain.
func (w *Worker) actOn(k int) {
	b := &w.b
	i := int(b.look.Packet[k])
	p := w.parsed(k)
	if p.Err != packet.ErrNone {
		w.finish(i, malformed(p.Err))
		return
	}
	c := w.table.Find(b.look.Found[k], b.hash, &p.Tuple, &w.snap.Directory)
	b.look.Found[k] = c
	r, dir := c.Ref(), c.Dir()
	switch {
	case w.b.pkt[i].Kind > packet.KindUDP:
		w.finish(i, w.aside(i, r, dir, w.b.handed.has(i)))
	case r == 0:
		w.finish(i, w.miss(i, w.b.handed.has(i)))
	case dir == conntrack.Forward:
		w.finish(i, w.fromClient(i, r))
	default:
		w.finish(i, w.reply(i, r))
	}
}

// parsed is the packet at place k of b.look, read by packet.Parse now if a glance was
// enough so far.
func (w *Worker) parsed(k int) *packet.Packet {
	b := &w.b
	i := int(b.look.Packet[k%BurstSize] % BurstSize)
	p := &b.pkt[i]
	if b.ip[k%BurstSize] != 0 {
		packet.Parse(w.frame(i), p)
	}
	return p
}

// finish counts a row's verdict; a dropped packet's frame is free again.
func (w *Worker) finish(i int, v Verdict) {
	row := uint(i) % BurstSize
	w.count.Verdicts[v]++
	w.b.verdict[row] = v
	if v.IsDrop() && w.b.desc[row].Addr != gone {
		w.release(w.b.desc[row].Addr)
	}
}

// frame is row i's bytes, from its Ethernet header to the end of the buffer
// the NIC filled.
func (w *Worker) frame(i int) []byte {
	d := &w.b.desc[i]
	return w.umem[d.Addr : d.Addr+uint64(d.Len)]
}
