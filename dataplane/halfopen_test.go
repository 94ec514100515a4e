package dataplane

import (
	"fmt"
	"testing"

	"github.com/l4fwd/l4fwd/packet"
)

// TestNothingButAHandshakeProves: a flow stays in the budget of half-open ones
// until the client has acknowledged what the server said, whatever else comes.
// Who cannot hear the server can send all but that.
func TestNothingButAHandshakeProves(t *testing.T) {
	for _, k := range []struct{ name, client, vip string }{
		{"full-nat v4", "198.51.100.7:40000", "192.0.2.10:80"}, {"full-nat v6", "[2001:db8:c::7]:40000", "[2001:db8::10]:80"},
		{"dnat", "198.51.100.7:40000", "192.0.2.11:80"}, {"nat64", "[2001:db8:c::7]:40000", "[2001:db8::64]:80"},
		{"proxy", "198.51.100.7:40000", "192.0.2.13:80"},
	} {
		t.Run(k.name, func(t *testing.T) {
			r := newRig(t, 1, testSpec())
			halfOpen := func(want int, after string) {
				t.Helper()
				if got := r.dp.Workers[0].table.HalfOpenLen(); got != want || r.dp.Workers[0].Flows() != 1 {
					t.Fatalf("%s: %d half-open, %d flows, want %d", after, got, r.dp.Workers[0].Flows(), want)
				}
			}
			send := func(nic int, after string, src, dst string, s seg) {
				t.Helper()
				s.src, s.dst = src, dst
				r.deliver(0, nic, build(t, s))
				halfOpen(1, after)
			}
			c, _ := r.begin(k.client, k.vip, 1000)
			halfOpen(1, "SYN")
			for _, s := range []seg{
				{ack: true, seq: 1001},
				{ack: true, seq: 1001, ackNum: 9001},
				{ack: true, seq: 1001, ackNum: 9001, payload: 10},
				{ack: true, fin: true, seq: 1001, ackNum: 9001},
				{syn: true, ack: true, seq: 1000, ackNum: 9001},
				{syn: true, seq: 1000},
				{rst: true, seq: 5},
				{seq: 1001},
			} {
				send(0, fmt.Sprintf("client, no SYN-ACK yet: %+v", s), c.client, c.vip, s)
			}
			for _, s := range []seg{
				{ack: true, seq: 9001, ackNum: c.isn + 1},
				{ack: true, seq: 9001, ackNum: 77},
				{syn: true, ack: true, seq: 9000, ackNum: c.isn + 100},
			} {
				send(1, fmt.Sprintf("server: %+v", s), c.backend, c.local, s)
			}
			send(1, "SYN-ACK", c.backend, c.local, seg{syn: true, ack: true, seq: 9000, ackNum: c.isn + 1})
			for _, s := range []seg{
				{ack: true, seq: 1001, ackNum: 9000},
				{ack: true, seq: 1001, ackNum: 9002},
				{ack: true, seq: 1001 + 1<<20, ackNum: 9001},
				{ack: true, seq: 1001, ackNum: 1 << 31, payload: 10},
			} {
				send(0, fmt.Sprintf("client, blind: %+v", s), c.client, c.vip, s)
			}
			c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001})
			halfOpen(0, "ACK of the SYN-ACK")
		})
	}
}

// TestACKsDoNotSwellTheTable: a flood of SYNs, each with the ACK its sender
// guesses, finds no more room than one of SYNs alone.
func TestACKsDoNotSwellTheTable(t *testing.T) {
	const flows = 256
	r := newCrowd(t, 1, testSpec(), func(o *Options) { o.Flows = flows })
	r.react = func(int, *packet.Packet) {} // a dead server
	vip := endpoint("192.0.2.10:80", packet.ProtoTCP)
	for i := range 4 * flows {
		w := wire{dst: vip.Addr, dport: vip.Port, flags: packet.SYN, seq: 1000}
		w.src, w.sport = at(spoofed, i)
		r.send(0, w)
		w.flags, w.seq, w.ack = packet.ACK, 1001, 9001
		r.send(0, w)
		if i%(flows/8) == 0 {
			r.now += 1e9
		}
		r.settle()
		if n := r.flows(); n > flows/4 || n != r.dp.Workers[0].table.HalfOpenLen() {
			t.Fatalf("%d flows, %d half-open", n, r.dp.Workers[0].table.HalfOpenLen())
		}
	}
	if c := r.counts(); c.Evicted+c.Expired < flows {
		t.Errorf("%d evicted, %d expired", c.Evicted, c.Expired)
	}
}
