package dataplane

import (
	"math/bits"

	"github.com/l4fwd/l4fwd/packet"
)

// nameKey is a VIP's (address, port, protocol), or an address alone with port
// and protocol 0.
type nameKey struct {
	addr  packet.Addr
	port  uint16
	proto uint8
}

// Values of an address alone.
const (
	notOwned    int32 = -1
	ownedVIP    int32 = -2
	ownedLocal  int32 = -3
	formerLocal int32 = -4 // out of the configuration, but flows may be left on it
	onceLocal   int32 = -5 // a VIP; flows may be left on it as on formerLocal
)

// serverKey in place of a protocol makes an address the name of a real server's.
// IANA keeps the number free.
const serverKey = 255

// nameTable is an immutable open-addressing hash table, at most half full. The
// keys are configuration, not traffic, so the hash needs no secret; a miss is
// bounded by the longest run, which the builder's half load keeps short.
type nameTable struct {
	slots []nameSlot
	shift uint8
}

type nameSlot struct {
	key  nameKey
	used bool
	val  int32
}

func (k *nameKey) hash() uint64 {
	hi, lo := bits.Mul64(k.addr.Lo^0x9e3779b97f4a7c15, k.addr.Hi^uint64(k.port)<<8^uint64(k.proto)^0xd1b54a32d192ed03)
	return (hi ^ lo) * 0x9e3779b97f4a7c15
}

func newNameTable(keys map[nameKey]int32) nameTable {
	log := max(1, bits.Len(uint(2*len(keys))))
	t := nameTable{slots: make([]nameSlot, 1<<log), shift: uint8(64 - log)}
	for k, v := range keys {
		i := k.hash() >> t.shift
		for t.slots[i].used {
			i = (i + 1) & uint64(len(t.slots)-1)
		}
		t.slots[i] = nameSlot{k, true, v}
	}
	return t
}

// find returns the value under (a, port, proto), notOwned if there is none.
func (t *nameTable) find(a packet.Addr, port uint16, proto uint8) int32 {
	k := nameKey{a, port, proto}
	for i := k.hash() >> t.shift; ; i = (i + 1) & uint64(len(t.slots)-1) {
		s := &t.slots[i]
		if !s.used {
			return notOwned
		}
		if s.key == k {
			return s.val
		}
	}
}

// owner says what an address is to us: one of the values above.
func (t *nameTable) owner(a packet.Addr) int32 { return t.find(a, 0, 0) }

// isServer reports whether a real server has the address.
func (t *nameTable) isServer(a packet.Addr) bool { return t.find(a, 0, serverKey) != notOwned }

// owns reports whether an address is configured as ours.
func (t *nameTable) owns(a packet.Addr) bool {
	v := t.owner(a)
	return v == ownedVIP || v == ownedLocal || v == onceLocal
}
