package nic

import "encoding/binary"

// Offsets in struct ethtool_rxfh.
const (
	rxfhIndirSize  = 8
	rxfhKeySize    = 12
	rxfhFunction   = 16
	rxfhInputXfrm  = 17
	rxfhConfig     = 24 // indirection table, uint32 each, then the key
	rxfhMaxEntries = 1 << 16
)

// parseRSS reads a filled struct ethtool_rxfh: its sizes, then the indirection
// table and the key behind them. What lies beyond the buffer is left out.
func parseRSS(b []byte) *RSS {
	order := binary.NativeEndian
	entries, key := int(order.Uint32(b[rxfhIndirSize:])), int(order.Uint32(b[rxfhKeySize:]))
	r := &RSS{Function: HashFunction(b[rxfhFunction]), Symmetric: b[rxfhInputXfrm] != 0}
	b = b[rxfhConfig:]
	for ; entries > 0 && len(b) >= 4; entries-- {
		r.Indirection = append(r.Indirection, order.Uint32(b))
		b = b[4:]
	}
	if entries == 0 && len(b) >= key {
		r.Key = append(r.Key, b[:key]...)
	}
	return r
}
