package dataplane

import (
	"testing"

	"github.com/l4fwd/l4fwd/conntrack"
)

// TestTCPChecks: what becomes of segments outside the window, by policy, in the
// ordinary way of a packet and in that of PROXY services.
func TestTCPChecks(t *testing.T) {
	for _, c := range []struct {
		name     string
		checks   conntrack.Checks
		rst, ack Verdict
	}{
		{"normal", conntrack.ChecksNormal, DropBadRST, Forwarded},
		{"strict", conntrack.ChecksStrict, DropBadRST, DropBadSeq},
		{"off", conntrack.ChecksOff, Forwarded, Forwarded},
	} {
		for _, vip := range []string{"192.0.2.10:80", "192.0.2.11:80", "192.0.2.13:80"} {
			t.Run(c.name+" "+vip, func(t *testing.T) {
				spec := testSpec()
				for i := range spec.Services {
					spec.Services[i].TCPChecks = c.checks
				}
				r := newRig(t, 1, spec)
				f := r.open(0, "198.51.100.7:40000", vip)
				for _, s := range []struct {
					seg  seg
					want Verdict
				}{
					{seg{rst: true, seq: 0x40000000}, c.rst},
					{seg{ack: true, seq: 0x40000000, ackNum: 9001, payload: 10}, c.ack},
					{seg{ack: true, fin: true, seq: 0x40000000, ackNum: 9001}, c.ack},
					{seg{syn: true, seq: 0x40000000}, Forwarded}, // the server's challenge must find it
					{seg{ack: true, seq: 1001, ackNum: 9001}, Forwarded},
				} {
					s.seg.src, s.seg.dst = f.client, f.vip
					before := r.counts()
					r.deliver(0, 0, build(t, s.seg))
					if after := r.counts(); after.Verdicts[s.want] != before.Verdicts[s.want]+1 && !(vip == "192.0.2.13:80" && after.Verdicts[DropProxy] == before.Verdicts[DropProxy]+1) {
						t.Errorf("%+v: no %v", s.seg, s.want)
					}
				}
				f.fromServer(seg{ack: true, seq: 9001, ackNum: f.isn + 1, payload: 100})
				if n := r.dp.Workers[0].Flows(); n != 1 {
					t.Errorf("%d flows", n)
				}
			})
		}
	}
}
