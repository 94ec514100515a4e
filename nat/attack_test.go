package nat

import (
	"encoding/binary"
	"testing"

	"github.com/l4fwd/l4fwd/packet"
)

// TestLowerMTUNeverRaises: an error with any MTU leaves with no greater one,
// whatever is taken off.
func TestLowerMTUNeverRaises(t *testing.T) {
	for mtu := range 1 << 16 {
		for _, by := range []uint16{0, 8, 20, 28, MaxProxyLen} {
			v4 := []byte{packet.ICMPUnreachable, packet.ICMPFragNeeded, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}
			lowerMTU(v4, false, by)
			if got, want := int(binary.BigEndian.Uint16(v4[packet.ICMPMTU:])), min(mtu, max(mtu-int(by), minMTU4)); got != want {
				t.Fatalf("MTU %d less %d: %d, want %d", mtu, by, got, want)
			}
			v6 := binary.BigEndian.AppendUint32([]byte{packet.ICMPv6PacketTooBig, 0, 0, 0}, uint32(mtu))
			lowerMTU(v6, true, by)
			if got, want := int(binary.BigEndian.Uint32(v6[packet.ICMPv6MTU:])), min(mtu, max(mtu-int(by), minMTU6)); got != want {
				t.Fatalf("IPv6 MTU %d less %d: %d, want %d", mtu, by, got, want)
			}
		}
	}
}
