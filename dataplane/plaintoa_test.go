package dataplane

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
)

// TestPlainTOACounts: a segment that goes no further for want of room for TOA has not been
// sent to its backend; one that goes, with or without, has, by its length as received.
func TestPlainTOACounts(t *testing.T) {
	for _, tt := range []struct {
		name, client, vip string
		only              bool
		payload           int
		want              Verdict
	}{
		{"v4 room", "198.51.100.7:40000", "192.0.2.10:80", true, 6, Forwarded},
		{"v4 only with", "198.51.100.7:40000", "192.0.2.10:80", true, 1460, DropTooBig},
		{"v4 without", "198.51.100.7:40000", "192.0.2.10:80", false, 1460, Forwarded},
		{"v6 room", "[2001:db8:c::7]:40000", "[2001:db8::10]:80", true, 6, Forwarded},
		{"v6 only with", "[2001:db8:c::7]:40000", "[2001:db8::10]:80", true, 1440, DropTooBig},
		{"v6 without", "[2001:db8:c::7]:40000", "[2001:db8::10]:80", false, 1440, Forwarded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := testSpec()
			for i := range spec.Services {
				if s := &spec.Services[i]; hostPort(s.VIP.Addr.String(), s.VIP.Port) == tt.vip {
					s.TOA, s.TOAOnly = true, tt.only
				}
			}
			r := newRig(t, 1, spec)
			r.open(0, tt.client, tt.vip)
			w := r.dp.Workers[0]
			want := append([]BackendCount(nil), w.BackendCounts()...)
			verdicts := w.Counts().Verdicts
			frame := build(t, seg{src: tt.client, dst: tt.vip, ack: true, seq: 1001, ackNum: 9001, payload: tt.payload})
			r.deliver(0, 0, frame)
			for i := range want {
				if want[i].Active > 0 && tt.want == Forwarded {
					want[i].sent(conntrack.Forward, len(frame)-packet.EthLen)
				}
			}
			verdicts[tt.want]++
			if diff := cmp.Diff(want, w.BackendCounts()); diff != "" {
				t.Errorf("backends:\n%s", diff)
			}
			if got := w.Counts().Verdicts; got != verdicts {
				t.Errorf("verdicts %v, want %v", got, verdicts)
			}
		})
	}
}
