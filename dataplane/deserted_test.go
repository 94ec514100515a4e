package dataplane

import (
	"fmt"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// TestSYNToADrainedBackend: a backend gets weight 0. Its flows go on, forged SYNs or
// not; a SYN that it has not answered, and one on a flow that has long been silent, go
// to another.
func TestSYNToADrainedBackend(t *testing.T) {
	changes := map[string]func(*ServiceSpec, int){
		"weight 0": func(s *ServiceSpec, i int) { s.Backends[i].Weight = 0 },
		"none left": func(s *ServiceSpec, _ int) {
			for i := range s.Backends {
				s.Backends[i].Weight = 0
			}
		},
	}
	for name, change := range changes {
		for _, svc := range []string{"fnat4", "dnat4", "proxied"} {
			t.Run(name+"/"+svc, func(t *testing.T) {
				spec := func() Spec {
					s := testSpec()
					s.Services = append(s.Services, proxied("proxied", "192.0.2.14:80", 1, "10.0.1.20:8013", "10.0.1.21:8013"))
					return s
				}
				r := newRig(t, 1, spec())
				_, publish := r.publisher(1)
				publish(spec())
				vip := map[string]string{"fnat4": "192.0.2.10:80", "dnat4": "192.0.2.11:80", "proxied": "192.0.2.14:80"}[svc]
				old := r.open(0, "198.51.100.7:40000", vip)
				var asking string // a client that the same backend has not answered
				for i := 1; asking == ""; i++ {
					c := fmt.Sprintf("198.51.100.7:%d", 41000+i)
					if serverOf(r, c, vip) == old.backend {
						asking = c
					}
				}
				after := spec()
				for i := range after.Services {
					s := &after.Services[i]
					for j := range s.Backends {
						if s.Name == svc && s.Backends[j].Endpoint == endpoint(old.backend, packet.ProtoTCP) {
							change(s, j)
							break
						}
					}
				}
				publish(after)
				moved := name != "none left"
				if got := serverOf(r, asking, vip); (got != old.backend) != moved {
					t.Errorf("a SYN sent again goes to %s; before it went to %s", got, old.backend)
				}
				for range 3 { // a forged SYN in a flow that drains
					r.now += int64(desertion/conntrack.TicksPerSecond-1) * int64(time.Second)
					if got := serverOf(r, old.client, vip); got != old.backend {
						t.Fatalf("a SYN in a living flow goes to %s", got)
					}
					old.fromServer(seg{ack: true, seq: 9001, ackNum: old.isn + 1})
				}
				r.now += int64(desertion/conntrack.TicksPerSecond+1) * int64(time.Second)
				if got := serverOf(r, old.client, vip); (got != old.backend) != moved {
					t.Errorf("a SYN after a long silence goes to %s; before it went to %s", got, old.backend)
				}
				for _, w := range r.dp.Workers {
					if w.Flows() != 2 && moved && int(w.count.Reopened) != 2 {
						t.Errorf("%d flows, %d reopened", w.Flows(), w.count.Reopened)
					}
				}
			})
		}
	}
}

// TestSYNAfterTheEnd: a client that has sent its FIN uses its port again. Where its backend
// takes no new flows it gets another one, once nothing has come by for a second; but not
// while the server may still have something to say, and for nothing but a SYN.
func TestSYNAfterTheEnd(t *testing.T) {
	for _, svc := range []string{"fnat4", "dnat4"} {
		for _, over := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/over=%v", svc, over), func(t *testing.T) {
				r := newRig(t, 1, testSpec())
				_, publish := r.publisher(1)
				publish(testSpec())
				vip := map[string]string{"fnat4": "192.0.2.10:80", "dnat4": "192.0.2.11:80"}[svc]
				old := r.open(0, "198.51.100.7:40000", vip)
				if over {
					old.fromServer(seg{ack: true, fin: true, seq: 9001, ackNum: old.isn + 1})
				}
				r.one(0, 0, 1, build(t, seg{src: old.client, dst: vip, ack: true, fin: true, seq: 1001, ackNum: 9001}))
				after := testSpec()
				for i := range after.Services {
					for j, b := range after.Services[i].Backends {
						if b.Endpoint == endpoint(old.backend, packet.ProtoTCP) {
							after.Services[i].Backends[j].Weight = 0
						}
					}
				}
				publish(after)
				r.now += int64(time.Second) / 2
				if got := serverOf(r, old.client, vip); got != old.backend {
					t.Errorf("a SYN behind the FIN goes to %s", got)
				}
				r.now += int64(time.Second)
				for _, s := range []seg{{syn: true, ack: true}, {syn: true, rst: true}, {syn: true, fin: true}} {
					s.src, s.dst, s.seq = old.client, vip, 1000
					r.deliver(0, 0, build(t, s))
				}
				if n := r.counts().Reopened; n != 0 {
					t.Errorf("reopened %d times, by no SYN", n)
				}
				if got := serverOf(r, old.client, vip); (got != old.backend) != over {
					t.Errorf("a SYN after a second goes to %s; before it went to %s", got, old.backend)
				}
			})
		}
	}
}

// serverOf is where a client's SYN goes.
func serverOf(r *rig, client, vip string) string {
	r.t.Helper()
	f := r.one(0, 0, 1, build(r.t, seg{src: client, dst: vip, syn: true, seq: 1000}))
	p := verify(r.t, f)
	_, dst := ipOf(p)
	return hostPort(dst.String(), uint16(tcpOf(p).DstPort))
}
