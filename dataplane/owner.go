package dataplane

import (
	"encoding/binary"
	"math/bits"

	"github.com/l4fwd/l4fwd/packet"
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
type ownership struct {
	k0, k1  uint64
	workers uint32
}

func newOwnership(secret []byte, workers int) ownership {
	return ownership{
		k0:      binary.LittleEndian.Uint64(secret),
		k1:      binary.LittleEndian.Uint64(secret[8:]),
		workers: uint32(workers),
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

// localPort is the owner of the Full-NAT flow with this local port; nat.Ports
// hands out ports by the same rule.
func (o *ownership) localPort(port uint16) int { return int(uint32(port) % o.workers) }
