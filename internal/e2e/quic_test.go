package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// quicLayouts are, by the name of a layout, the rest of its configuration and a
// connection ID by which server i, the first being 1, would name a connection.
var quicLayouts = map[string]struct {
	extra string
	ids   bool
	id    func(i int, server netip.AddrPort) []byte
}{
	"katran": {ids: true, id: func(i int, _ netip.AddrPort) []byte {
		return []byte{0xbf, 0, 0, byte(i), 1, 2, 3, 4}
	}},
	"dpvs": {id: func(_ int, server netip.AddrPort) []byte {
		a, p := server.Addr().AsSlice(), server.Port()
		last := a[len(a)-1]
		return []byte{7, 0x10 | last>>4, last<<4 | byte(p>>12), byte(p >> 4), byte(p<<4) | 5, 6, 7, 8}
	}},
	"quic-lb": {extra: ", config_id: 5, server_id_length: 2", ids: true, id: func(i int, _ netip.AddrPort) []byte {
		return []byte{0xa7, 0, byte(i), 1, 2, 3, 4, 5}
	}},
}

// quicService is a service and where it is.
type quicService struct {
	layout, mode string
	f, backends  testbed.Family // of the VIP and of the servers' addresses
	to           netip.AddrPort
}

// String is its name.
func (s quicService) String() string { return fmt.Sprintf("%s-%s-%s", s.layout, s.mode, s.f) }

// TestQUIC: a connection keeps its server of three when its client goes on from another
// port, every time, on two workers.
func TestQUIC(t *testing.T) {
	r := network(t, testbed.TopologyOptions{Queues: 2, Servers: 3}, testbed.SnifferOptions{})
	services := testbed.Services(0, fullNAT, "", "wrr")
	var rows []quicService
	for layout, l := range quicLayouts {
		for _, mode := range []string{fullNAT, dnat} {
			for _, f := range testbed.Families {
				to := netip.AddrPortFrom(r.VIP(f, 0), uint16(9443+len(rows)))
				if mode == dnat { // or two VIPs' flows would meet in one tuple
					to = netip.AddrPortFrom(r.VIP(f, 1), to.Port())
				}
				s := quicService{layout, mode, f, f, to}
				rows = append(rows, s)
				services = append(services, testbed.Service{
					Name: s.String(), Family: f, Address: to.Addr(), Port: to.Port(), BackendPort: testbed.PortEcho,
					Protocol: "udp", Mode: mode, Scheduler: "rr", ServerIDs: l.ids,
					Extra: fmt.Sprintf("quic: {layout: %s%s}", layout, l.extra),
				})
			}
		}
	}
	d := program{args: []string{"--workers", "2"}}.start(t, r.LB, r.Config(services))
	r.quicMoves(t, d, rows)
	d.stop()
}

// TestQUICDirect is the same where servers answer past l4fwd.
func TestQUICDirect(t *testing.T) {
	for k, mode := range []string{dsrL2, tunnel} {
		t.Run(mode, func(t *testing.T) {
			// No port changes, so that each layout has a VIP, beside that of warmUp.
			r := network(t, testbed.TopologyOptions{OneArm: true, Queues: 2, Servers: 3, ServerVIPs: 1 + len(quicLayouts)}, testbed.SnifferOptions{})
			services, wr, outer := testbed.Services(0, mode, "", "wrr"), wrappings[3], testbed.Families[k]
			if mode == tunnel {
				services = r.tunnelServices(wr, outer)
				for i := range r.Topology.Servers {
					wr.byRS(t, r, i)
				}
			}
			var rows []quicService
			for layout, l := range quicLayouts {
				for _, f := range testbed.Families {
					s := quicService{layout, mode, f, f, netip.AddrPortFrom(r.VIP(f, 1+len(rows)/2), testbed.PortEcho)}
					if mode == tunnel {
						s.backends = outer
					}
					rows = append(rows, s)
					service := testbed.Service{
						Name: s.String(), Family: s.backends, Address: s.to.Addr(), Port: s.to.Port(), BackendPort: testbed.PortEcho,
						Protocol: "udp", Mode: mode, Scheduler: "rr", ServerIDs: l.ids,
						Extra: fmt.Sprintf("quic: {layout: %s%s}", layout, l.extra),
					}
					if mode == tunnel {
						service.Extra += "\n    encapsulation: " + wr.name
					}
					services = append(services, service)
				}
			}
			d := program{args: []string{"--workers", "2"}}.start(t, r.LB, r.Config(services))
			r.quicMoves(t, d, rows)
			if n := d.stats().Verdicts["replied"]; n > 0 {
				t.Errorf("%d answers seen", n)
			}
			d.stop()
		})
	}
}

// quicMoves makes connections through each service and moves each of them from port to
// port: whatever server has it keeps it, by l4fwd's figures because of its ID.
func (r *rig) quicMoves(t *testing.T, d *daemon, rows []quicService) {
	t.Helper()
	r.warmUp()
	before := d.stats()
	const connections, ports = 6, 8
	for _, s := range rows {
		t.Run(s.String(), func(t *testing.T) {
			served := map[int]int{}
			for range connections {
				c := r.quicSocket(t, s.f)
				i := c.ask(t, s.to, initial)
				served[i]++
				id := quicLayouts[s.layout].id(i, netip.AddrPortFrom(r.ServerAddr(s.backends, i-1), testbed.PortEcho))
				for range ports {
					if got := c.ask(t, s.to, append([]byte{0x42}, id...)); got != i {
						t.Fatalf("server %d, was %d", got, i)
					}
					c = r.quicSocket(t, s.f) // the client moves
				}
			}
			if len(served) != 3 { // one of the workers has had three or more, by turns
				t.Errorf("connections by server: %v", served)
			}
			want := map[string]uint64{"routed": connections * (ports - 1), "none": connections, "unknown": 0, "moved": 0}
			if diff := cmp.Diff(want, d.quicOf(s.String())); diff != "" {
				t.Errorf("statistics (-want +got):\n%s", diff)
			}
		})
	}
	if diff := cmp.Diff(map[string]uint64{}, d.stats().drops(before)); diff != "" {
		t.Errorf("drops (-want +got)\n%s", diff)
	}
}

// initial is how a client's first datagram begins, with an ID of its own.
var initial = append([]byte{0xc0, 0, 0, 0, 1, 8, 0xbf, 0, 0, 2, 1, 2, 3, 4, 0}, make([]byte, 1185)...)

// quicSocket is a client's socket.
type quicSocket struct{ *net.UDPConn }

func (r *rig) quicSocket(t *testing.T, f testbed.Family) quicSocket {
	t.Helper()
	wild := "0.0.0.0:0"
	if f == testbed.V6 {
		wild = "[::]:0"
	}
	c, err := r.Client.ListenPacket("udp", wild)
	if err != nil {
		t.Fatal(err)
	}
	// Kept: another service's client with its port would be the same one to a server of
	// both, in dnat, and is refused.
	r.t.Cleanup(func() { _ = c.Close() })
	return quicSocket{c.(*net.UDPConn)}
}

// ask sends a datagram and returns which server's answer comes, by the VIP.
func (c quicSocket) ask(t *testing.T, to netip.AddrPort, datagram []byte) (server int) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort(datagram, to); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	in := make([]byte, 2000)
	n, from, err := c.ReadFromUDPAddrPort(in)
	if err != nil {
		t.Fatal(err)
	}
	head, body, _ := bytes.Cut(in[:n], []byte{'\n'})
	if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); from != to || !bytes.Equal(body, datagram) {
		t.Errorf("%v answers %q, %v was asked", from, head, to)
	}
	if _, err := fmt.Sscanf(string(head), "rs%d ", &server); err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	return server
}

// quicOf is what a service's connection IDs have said so far.
func (d *daemon) quicOf(service string) map[string]uint64 {
	for _, s := range d.stats().Services {
		if s.Name == service {
			return s.QUIC
		}
	}
	return nil
}
