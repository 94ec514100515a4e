package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// handshakes is a real server's TOA module of the strictest kind: of each
// connection it reads one packet, the first behind the SYN, which completes the
// handshake, and there the first option only. It shares nothing with l4fwd or the
// testbed but the layout of the option.
type handshakes struct {
	mu      sync.Mutex
	begun   map[ends]bool // by the SYN
	clients map[ends]netip.AddrPort
}

func (h *handshakes) watch(frame []byte, outgoing bool) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	tcp, ok := p.TransportLayer().(*layers.TCP)
	if outgoing || !ok {
		return
	}
	src, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Src().Raw())
	dst, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Dst().Raw())
	key := ends{self: netip.AddrPortFrom(dst, uint16(tcp.DstPort)), peer: netip.AddrPortFrom(src, uint16(tcp.SrcPort))}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case tcp.SYN:
		h.begun[key] = true
	case h.begun[key]:
		delete(h.begun, key)
		h.clients[key] = netip.AddrPort{}
		if o := tcp.Options; len(o) > 0 && o[0].OptionType == 254 && (len(o[0].OptionData) == 6 || len(o[0].OptionData) == 18) {
			a, _ := netip.AddrFromSlice(append([]byte(nil), o[0].OptionData[2:]...))
			h.clients[key] = netip.AddrPortFrom(a, binary.BigEndian.Uint16(o[0].OptionData))
		}
	}
}

// TestTOAInHandshakeOnly: such a server knows every client.
func TestTOAInHandshakeOnly(t *testing.T) {
	r := network(t, testbed.TopologyOptions{Servers: 1}, testbed.SnifferOptions{})
	h := &handshakes{begun: make(map[ends]bool), clients: make(map[ends]netip.AddrPort)}
	sniff(t, r.Topology.Servers[0], "s0", testbed.SnifferOptions{Direction: testbed.Incoming, Watch: h.watch})
	toas := []kind{kinds[0], kinds[1], kinds[4]} // both families, NAT64
	var services []testbed.Service
	for i, k := range toas {
		for _, s := range r.services(k) {
			s.Extra = []string{"timestamps: translate", "timestamps: strip", "toa_no_room: drop"}[i]
			if s.Protocol == "tcp" {
				services = append(services, s)
			}
		}
	}
	d := program{args: []string{"--workers", "1"}}.start(t, r.LB, r.Config(services))
	r.warmUp()
	for _, k := range toas {
		t.Run(k.String(), func(t *testing.T) {
			told := map[ends]netip.AddrPort{}
			var mu sync.Mutex
			server := netip.AddrPortFrom(r.ServerAddr(k.server, 0), testbed.PortHTTP)
			l := testbed.HTTPLoad{To: netip.AddrPortFrom(r.VIP(k.client, k.vip), testbed.VIPPortHTTP), Requests: load().requests / 2,
				OnAnswer: func(self netip.AddrPort, reply testbed.HTTPReply) {
					mu.Lock()
					defer mu.Unlock()
					told[ends{self: server, peer: reply.Remote}] = self
				}}
			if res, err := l.Run(t.Context(), r.Client); err != nil || res.OK != l.Requests {
				t.Fatalf("%d of %d requests answered, %v: %v", res.OK, l.Requests, err, res.Errors)
			}
			await(t, "the last handshake to be looked at", func() error {
				h.mu.Lock()
				defer h.mu.Unlock()
				for key := range told {
					if _, ok := h.clients[key]; !ok {
						return fmt.Errorf("not that of %s", key.peer)
					}
				}
				return nil
			})
			h.mu.Lock()
			defer h.mu.Unlock()
			wrong := 0
			for key, client := range told {
				if got := h.clients[key]; got != client {
					if wrong++; wrong < 4 {
						t.Errorf("the handshake of %s told the server %s, it was %s", key.peer, got, client)
					}
				}
			}
			t.Logf("%d connections, %d of them not told in their handshake", len(told), wrong)
		})
	}
	d.stop()
}
