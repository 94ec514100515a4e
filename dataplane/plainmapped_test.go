package dataplane

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

// TestMappedIsNobodys: a packet of IPv6 between the addresses, mapped, of a flow of IPv4 is
// not the flow's, whatever its hash has found.
func TestMappedIsNobodys(t *testing.T) {
	const client = "198.51.100.7:40000"
	for _, svc := range oneWayServices() {
		if !svc.VIP.Addr.Is4() || svc.TOA {
			continue
		}
		r := newRig(t, 1, Spec{Seed: 1, Services: []ServiceSpec{svc}})
		r.dp.PublishRoutes(testRoutesOf(5, 1500).WithPeers([]route.Peer{{}, {}, {Own: [2]packet.Addr{addr("10.0.1.1"), addr("2001:db8:1::1")}}}))
		s := seg{src: client, dst: hostPort(svc.VIP.Addr.String(), svc.VIP.Port), udp: svc.VIP.Proto == packet.ProtoUDP, syn: true, seq: 1000}
		r.one(0, 0, 1, build(t, s))
		s.syn, s.ack, s.seq, s.ackNum, s.payload = false, true, 1001, 9001, 10
		frame := build(t, s)
		r.one(0, 0, 1, frame)
		if v := r.plain(frame); v != Forwarded {
			t.Fatalf("%s: verdict %d", svc.Name, v)
		}
		w := r.dp.Workers[0]
		found := w.b.look.Found[0]
		at := w.pool.take(1)[0] + memport.Headroom
		w.b.desc[0] = unix.XDPDesc{Addr: at, Len: uint32(copy(w.umem[at:], mapped(frame)))}
		if w.parse(1) != 1 || w.b.ip[0] < isV6 {
			t.Fatal("not looked up as IPv6")
		}
		w.b.look.Found[0] = found // as if the hashes were the same
		if v := w.rarely(0); v != undecided {
			t.Errorf("%s: verdict %d", svc.Name, v)
		}
		w.release(at)
	}
}

// mapped is a frame of IPv4, without options, as one of IPv6 between mapped addresses.
func mapped(f []byte) []byte {
	b := append([]byte(nil), f[:packet.EthLen]...)
	b[12], b[13] = 0x86, 0xdd
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, binary.BigEndian.Uint16(f[packet.EthLen+packet.IPv4TotalLen:])-packet.IPv4MinLen)
	b = append(b, f[packet.EthLen+packet.IPv4Proto], 64)
	for _, at := range []int{packet.IPv4Src, packet.IPv4Dst} {
		b = append(b, make([]byte, 10)...)
		b = append(b, 0xff, 0xff)
		b = append(b, f[packet.EthLen+at:packet.EthLen+at+4]...)
	}
	return append(b, f[packet.EthLen+packet.IPv4MinLen:]...)
}
