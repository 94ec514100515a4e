package testbed

import (
	"encoding/binary"
	"errors"
	"sync"
	"testing"
)

// TestTrunkTags: what crosses the trunk has the tag of its VLAN, in both directions,
// and nothing beside it has any.
func TestTrunkTags(t *testing.T) {
	top := Up(t, TopologyOptions{OneArm: true, Trunk: true})
	if err := top.Forwarding(true); err != nil {
		t.Fatal(err)
	}
	type seen struct {
		vlan     uint16 // 0 without a tag
		outgoing bool
	}
	var mu sync.Mutex
	count := map[seen]int{}
	trunk, err := top.Switch.Sniff("lb", SnifferOptions{Watch: func(f []byte, outgoing bool) {
		s := seen{outgoing: outgoing}
		if binary.BigEndian.Uint16(f[12:]) == 0x8100 {
			s.vlan = binary.BigEndian.Uint16(f[14:])
		}
		mu.Lock()
		defer mu.Unlock()
		count[s]++
	}})
	if err != nil {
		t.Fatal(err)
	}
	access, err := top.Client.Sniff("c0", SnifferOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const pings = 3
	for range pings {
		for _, f := range Families {
			if _, err := top.Client.Ping(top.ServerAddr(f, 0), 56, patience); err != nil {
				t.Fatal(err)
			}
		}
	}
	r, err := trunk.Stop()
	if a, also := access.Stop(); err != nil || also != nil || r.Bad+a.Bad > 0 || a.Tagged > 0 || a.ICMP < 2*2*pings {
		t.Errorf("%v: trunk %+v, client %+v", errors.Join(err, also), r, a)
	}
	for _, vlan := range []uint16{VLANClient, VLANServer} {
		for _, outgoing := range []bool{false, true} {
			if n := count[seen{vlan, outgoing}]; n < 2*pings {
				t.Errorf("VLAN %d, outgoing %v: %d frames", vlan, outgoing, n)
			}
		}
	}
	if len(count) != 4 {
		t.Errorf("%v", count)
	}
}
