package steer

import (
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
)

func TestRulesRefused(t *testing.T) {
	a := netip.MustParseAddr
	cases := map[string]struct {
		rules Rules
		want  string
	}{
		"no address":            {Rules{Addrs: []netip.Addr{{}}}, "invalid address"},
		"unspecified":           {Rules{Addrs: []netip.Addr{a("0.0.0.0")}}, "0.0.0.0 is not a unicast address"},
		"multicast":             {Rules{Addrs: []netip.Addr{a("ff02::1")}}, "ff02::1 is not a unicast address"},
		"mapped multicast":      {Rules{Addrs: []netip.Addr{a("::ffff:224.0.0.1")}}, "is not a unicast address"},
		"broadcast":             {Rules{Addrs: []netip.Addr{a("255.255.255.255")}}, "is not a unicast address"},
		"zone":                  {Rules{Addrs: []netip.Addr{a("fe80::1%eth0")}}, "fe80::1%eth0 has a zone"},
		"protocol":              {Rules{Services: []ServiceRule{{a("10.0.0.1"), 1, 80}}}, "protocol 1 of 10.0.0.1 is neither TCP nor UDP"},
		"port":                  {Rules{Backends: []ServiceRule{{a("10.0.0.1"), 6, 0}}}, "port 0 of 10.0.0.1"},
		"service address":       {Rules{Services: []ServiceRule{{a("::"), 6, 80}}}, ":: is not a unicast address"},
		"range from 0":          {Rules{LocalRanges: []RangeRule{{a("10.0.0.1"), 0, 9}}}, "ports 0-9 of 10.0.0.1"},
		"range backwards":       {Rules{LocalRanges: []RangeRule{{a("10.0.0.1"), 9, 8}}}, "ports 9-8 of 10.0.0.1"},
		"range without address": {Rules{LocalRanges: []RangeRule{{Lo: 1, Hi: 2}}}, "invalid address"},
		"two ranges":            {Rules{LocalRanges: []RangeRule{{a("10.0.0.1"), 1, 9}, {a("10.0.0.1"), 10, 19}}}, "10.0.0.1 has two port ranges, 1-9 and 10-19"},
		"host address":          {Rules{HostAddrs: []netip.Addr{{}}}, "invalid host address"},
	}
	for name, c := range cases {
		_, err := c.rules.compile()
		if !errors.Is(err, ErrRule) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want ErrRule with %q", name, err, c.want)
		}
	}
	all := Rules{Addrs: []netip.Addr{{}, a("::")}, Services: []ServiceRule{{a("10.0.0.1"), 1, 80}}}
	if _, err := all.compile(); strings.Count(err.Error(), ErrRule.Error()) != 3 {
		t.Errorf("not every fault is reported: %v", err)
	}
}

func TestRulesCompiled(t *testing.T) {
	a := netip.MustParseAddr
	r := Rules{
		Addrs:       []netip.Addr{a("192.0.2.1"), a("::ffff:192.0.2.1"), a("2001:db8::1")},
		Services:    []ServiceRule{{a("10.0.0.1"), 6, 80}, {a("10.0.0.1"), 17, 0x1234}},
		LocalRanges: []RangeRule{{a("10.0.0.1"), 5, 9}, {a("10.0.0.1"), 5, 9}},
		Backends:    []ServiceRule{{a("10.0.0.1"), 6, 80}, {a("10.0.0.2"), 17, 53}},
		HostAddrs:   []netip.Addr{a("10.0.0.1"), a("fe80::1%lo"), a("0.0.0.0")},
	}
	got, err := r.compile()
	if err != nil {
		t.Fatal(err)
	}
	key := func(s string, port uint16, proto uint8) endpointKey {
		k := endpointKey{Addr: a(s).As16(), Port: [2]byte{byte(port >> 8), byte(port)}, Proto: proto, Family: 6}
		if a(s).Is4() {
			k.Family = 4
		}
		return k
	}
	want := table{
		key("192.0.2.1", 0, 0):      {Flags: addrOurs},
		key("2001:db8::1", 0, 0):    {Flags: addrOurs},
		key("10.0.0.1", 0, 0):       {Flags: addrHost | addrServices | addrRange | addrTCP, Lo: 5, Hi: 9},
		key("10.0.0.2", 0, 0):       {Flags: addrUDP},
		key("fe80::1", 0, 0):        {Flags: addrHost},
		key("0.0.0.0", 0, 0):        {Flags: addrHost},
		key("10.0.0.1", 80, 6):      {Flags: endService | endBackend},
		key("10.0.0.1", 0x1234, 17): {Flags: endService},
		key("10.0.0.2", 53, 17):     {Flags: endBackend},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rules (-want +got):\n%s", diff)
	}
}

// checkRules compares what the kernel holds with what want comes to.
func checkRules(t testing.TB, s *Steer, want Rules) {
	t.Helper()
	compiled, err := want.compile()
	if err != nil {
		t.Fatal(err)
	}
	var set *ebpf.Map
	if err := s.slot.Lookup(uint32(0), &set); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = set.Close() })
	got := make(table)
	var k endpointKey
	var v ruleValue
	it := set.Iterate()
	for it.Next(&k, &v) {
		got[k] = v
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(compiled, got); diff != "" {
		t.Fatalf("rules (-want +kernel):\n%s", diff)
	}
}

// TestUpdateRefused: after a refusal the rules before are in force.
func TestUpdateRefused(t *testing.T) {
	s := load(t, Options{})
	a := netip.MustParseAddr
	good := Rules{Addrs: []netip.Addr{a("192.0.2.1")}, HostAddrs: []netip.Addr{a("192.0.2.2")},
		Services: []ServiceRule{{a("192.0.2.2"), 6, 80}}}
	if err := s.Update(good); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		rules Rules
		want  error
	}{
		"bad rule":       {Rules{Addrs: []netip.Addr{a("192.0.2.9"), {}}}, ErrRule},
		"host's address": {Rules{Addrs: []netip.Addr{a("192.0.2.2")}, HostAddrs: good.HostAddrs}, ErrHostAddress},
	}
	for name, c := range cases {
		if err := s.Update(c.rules); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		checkRules(t, s, good)
	}
}

// TestUpdateLarge: 60,000 backends, then none.
func TestUpdateLarge(t *testing.T) {
	s := load(t, Options{})
	var many Rules
	for i := range 60000 {
		many.Backends = append(many.Backends, ServiceRule{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 6, 80})
	}
	for _, r := range []Rules{many, {}, {}, many} {
		start := time.Now()
		if err := s.Update(r); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d backends: %v", len(r.Backends), time.Since(start).Round(time.Millisecond))
		checkRules(t, s, r)
	}
}

// TestHostAddrsChange: whether a server's answer is taken depends on whose address it
// is for.
func TestHostAddrsChange(t *testing.T) {
	b := newBench(t, Options{})
	r := testRules()
	if err := b.Update(r); err != nil {
		t.Fatal(err)
	}
	f := families["ipv4"]
	answer := f.tcp(t, f.backend, 8080, f.stranger, 40000)
	if got := b.outcome(t, answer); got != TakeReturn {
		t.Errorf("before: %s", got)
	}
	r.HostAddrs = append(r.HostAddrs, f.stranger)
	if err := b.Update(r); err != nil {
		t.Fatal(err)
	}
	checkRules(t, b.Steer, r)
	if got := b.outcome(t, answer); got != PassOther {
		t.Errorf("the stranger is the host's now: %s", got)
	}
	r.HostAddrs = r.HostAddrs[:len(r.HostAddrs)-1]
	if err := b.Update(r); err != nil {
		t.Fatal(err)
	}
	if got := b.outcome(t, answer); got != TakeReturn {
		t.Errorf("and no more: %s", got)
	}
	checkRules(t, b.Steer, r)
}

// TestUpdateHasNoGap hammers frames that both of two rule sets decide alike
// while the rules go to and fro.
func TestUpdateHasNoGap(t *testing.T) {
	b := newBench(t, Options{})
	f, g := families["ipv4"], families["ipv6"]
	one := testRules()
	// In the other set the host loses its address, which becomes a VIP taken
	// whole; everything else is in another order, with different company.
	two := Rules{Addrs: []netip.Addr{g.vip, f.host, f.vip, g.local}, HostAddrs: []netip.Addr{f.stranger, g.host}}
	two.Services = []ServiceRule{{g.host, 6, 443}, {g.host, 6, 80}}
	two.LocalRanges = []RangeRule{{g.host, rangeLo - 100, rangeHi}}
	two.Backends = []ServiceRule{{g.backend, 6, 8080}, {f.stranger, 6, 8080}}
	for i := range 200 {
		two.Backends = append(two.Backends, ServiceRule{netip.AddrFrom4([4]byte{10, 7, 0, byte(i)}), 6, 80})
		one.Backends = append(one.Backends, ServiceRule{netip.AddrFrom4([4]byte{10, 8, 0, byte(i)}), 6, 80})
	}
	if err := b.Update(one); err != nil {
		t.Fatal(err)
	}
	frames := map[string]struct {
		frame []byte
		want  uint32
	}{
		"VIP":                     {f.tcp(t, f.client, 1, f.vip, 80), xdpRedirect},
		"host address, then VIP":  {f.tcp(t, f.client, 1, f.host, 80), xdpRedirect},
		"service of the host":     {g.tcp(t, g.client, 1, g.host, 80), xdpRedirect},
		"range":                   {g.udp(t, g.client, 1, g.host, rangeLo), xdpRedirect},
		"DNAT return":             {g.tcp(t, g.backend, 8080, g.client, 1), xdpRedirect},
		"health check's answer":   {g.tcp(t, g.backend, 8080, g.host, 40000), xdpPass},
		"ssh":                     {g.tcp(t, g.client, 1, g.host, 22), xdpPass},
		"backend and host in one": {f.tcp(t, f.stranger, 8080, f.stranger, 1), xdpPass},
	}
	var stop atomic.Bool
	done := make(chan int)
	go func() {
		n := 0
		for !stop.Load() {
			for name, c := range frames {
				if got, err := b.run(c.frame); err != nil || got != c.want {
					t.Errorf("%s: action %d, want %d (%v)", name, got, c.want, err)
					stop.Store(true)
				}
				n++
			}
		}
		done <- n
	}()
	updates := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end) && !stop.Load(); updates++ {
		r := one
		if updates%2 == 0 {
			r = two
		}
		if err := b.Update(r); err != nil {
			t.Errorf("update %d: %v", updates, err)
			break
		}
	}
	stop.Store(true)
	t.Logf("%d frames during %d updates", <-done, updates)
}
