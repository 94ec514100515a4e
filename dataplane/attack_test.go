package dataplane

import "testing"

// TestReopenWithProxy: a client takes the port of a connection that is over
// again. Its SYN goes out once, rewritten once, and its frame is freed once.
func TestReopenWithProxy(t *testing.T) {
	for _, vip := range []string{"192.0.2.13:80", "[2001:db8::13]:80"} {
		t.Run(vip, func(t *testing.T) {
			client := "198.51.100.7:40000"
			if vip[0] == '[' {
				client = "[2001:db8:c::7]:40000"
			}
			r := newRig(t, 1, testSpec())
			c := &conv{r: r, client: client, vip: vip}
			syn := c.fromClient(seg{syn: true, seq: 1000})
			src, dst := ipOf(syn)
			c.local, c.backend, c.isn = hostPort(src.String(), uint16(tcpOf(syn).SrcPort)), hostPort(dst.String(), 8013), tcpOf(syn).Seq
			c.fromServer(seg{rst: true, ack: true, ackNum: c.isn + 1})
			again := tcpOf(c.fromClient(seg{syn: true, seq: 70000}))
			if !again.SYN || again.ACK || again.DstPort != 8013 {
				t.Errorf("%+v", again)
			}
			if n := r.counts(); n.Reopened != 1 || n.Sent != 3 || n.Drops() != 0 {
				t.Errorf("%d reopened, %d sent, %d drops", n.Reopened, n.Sent, n.Drops())
			}
		})
	}
}
