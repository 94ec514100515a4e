package dataplane

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/l4fwd/l4fwd/packet"
	"github.com/l4fwd/l4fwd/packet/rss"
)

// ownership says which of the workers a flow belongs to. It is frozen at start
// and the same on every worker, so that whichever worker meets a packet, and
// on whatever queue, sends it to the same place. "Whoever saw it first" would
// not do: packets of one flow do change queue (a retransmitted SYN always
// does, see net.core.txrehash).
//
// It looks only at what both directions of a flow carry: the client's address
// and port; in Full-NAT, where the reply does not carry them, the local port,
// which the owner chose so that it names the owner.
//
// Where it is known how the NICs spread packets, Full-NAT does better: the
// owner is the worker on whose queue the client's packets arrive anyway, and
// the local port is chosen so that the reply arrives there too. Hand-off is then
// for fragments, ICMP errors and packets that changed their way.
type ownership struct {
	k0, k1  uint64
	workers uint32
	inverse uint64      // ceil(2^64 / workers), see localPort
	spread  *rss.Spread // what the NICs do, if that is known; else nil
}

func newOwnership(secret []byte, workers int, spread *rss.Spread) ownership {
	return ownership{
		spread:  spread,
		k0:      binary.LittleEndian.Uint64(secret),
		k1:      binary.LittleEndian.Uint64(secret[8:]),
		workers: uint32(workers),
		inverse: math.MaxUint64/uint64(workers) + 1,
	}
}

// client is the owner of every flow of this client address and port. Keyed, so
// that nobody outside can aim all flows at one worker.
func (o *ownership) client(a packet.Addr, port uint16) int {
	h, l := bits.Mul64(a.Hi^o.k0, a.Lo^o.k1)
	h, l = bits.Mul64(h^l^o.k0, uint64(port)^o.k1)
	w, _ := bits.Mul64(h^l, uint64(o.workers))
	return int(w)
}

// forward is the owner of the Full-NAT flow with this tuple from the client.
func (o *ownership) forward(t *packet.Tuple) int {
	if o.spread != nil {
		return o.spread.Worker(t)
	}
	return o.client(t.Src, t.SrcPort)
}

// reply is the owner of the Full-NAT flow with this tuple to a local address.
func (o *ownership) reply(t *packet.Tuple) int {
	if o.spread != nil {
		return o.spread.Worker(t)
	}
	return o.localPort(t.DstPort)
}

// localPort is the owner of the Full-NAT flow with this local port; nat.Ports
// hands out ports by the same rule: port mod workers, which is the integer part of
// workers times the fraction of port / workers, and so two multiplications instead
// of a division (exact for 16 bits: Lemire, Kaser and Kurz, 2019). With one worker
// inverse is 0, and so is the owner.
func (o *ownership) localPort(port uint16) int {
	w, _ := bits.Mul64(o.inverse*uint64(port), uint64(o.workers))
	return int(w)
}

// byPort reports whether a reply's owner follows from the local port alone.
func (o *ownership) byPort() bool { return o.spread == nil && o.workers > 1 }

// keeping is by what workers keep the flows of a VIP. Where it is not known how the NICs
// spread packets, all are the same.
type keeping uint8

// Ways of keeping. A VIP whose service has changed its mode goes on to be keptByEither for
// as long as any service has it, since flows have begun by both: they are looked for by
// their tuple first, where what has not changed its queue arrives anyway, and begin with
// their client's worker.
const (
	keptByTuple  keeping = 1 << iota // ownership.forward: Full-NAT, and what is one-way
	keptByClient                     // ownership.client: DNAT, whose replies carry no more
	keptByEither = keptByTuple | keptByClient
)
