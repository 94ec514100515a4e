package steer

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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
	wantAddresses := map[endpointKey]addressValue{
		key("192.0.2.1", 0, 0):   {Flags: addrOurs},
		key("2001:db8::1", 0, 0): {Flags: addrOurs},
		key("10.0.0.1", 0, 0):    {Flags: addrHost | addrServices | addrRange | addrTCP, Lo: 5, Hi: 9},
		key("10.0.0.2", 0, 0):    {Flags: addrUDP},
		key("fe80::1", 0, 0):     {Flags: addrHost},
		key("0.0.0.0", 0, 0):     {Flags: addrHost},
	}
	wantEndpoints := map[endpointKey]uint32{
		key("10.0.0.1", 80, 6):      endService | endBackend,
		key("10.0.0.1", 0x1234, 17): endService,
		key("10.0.0.2", 53, 17):     endBackend,
	}
	if diff := cmp.Diff(wantAddresses, got.addresses); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantEndpoints, got.endpoints); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
}

// kernelTables reads back what the maps hold.
func kernelTables(t testing.TB, s *Steer) tables {
	t.Helper()
	got := newTables()
	var k endpointKey
	var a addressValue
	it := s.addresses.kernel.Iterate()
	for it.Next(&k, &a) {
		got.addresses[k] = a
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	var e uint32
	it = s.endpoints.kernel.Iterate()
	for it.Next(&k, &e) {
		got.endpoints[k] = e
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return got
}

func checkTables(t testing.TB, s *Steer, want Rules) {
	t.Helper()
	compiled, err := want.compile()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(compiled, kernelTables(t, s), cmp.AllowUnexported(tables{})); diff != "" {
		t.Fatalf("maps (-want +kernel):\n%s", diff)
	}
}

func TestUpdateRefused(t *testing.T) {
	s := load(t, Options{MaxAddresses: 8, MaxEndpoints: 8})
	a := netip.MustParseAddr
	good := Rules{Addrs: []netip.Addr{a("192.0.2.1")}, HostAddrs: []netip.Addr{a("192.0.2.2")},
		Services: []ServiceRule{{a("192.0.2.2"), 6, 80}}}
	if err := s.Update(good); err != nil {
		t.Fatal(err)
	}
	full := func(n int) (r Rules) {
		for i := range n {
			r.Backends = append(r.Backends, ServiceRule{a(fmt.Sprintf("10.0.0.%d", i+1)), 6, 80})
		}
		return r
	}
	cases := map[string]struct {
		rules Rules
		want  error
	}{
		"bad rule":         {Rules{Addrs: []netip.Addr{a("192.0.2.9"), {}}}, ErrRule},
		"host's address":   {Rules{Addrs: []netip.Addr{a("192.0.2.2")}, HostAddrs: good.HostAddrs}, ErrHostAddress},
		"too many":         {full(9), ErrTooMany},
		"too many for one": {Rules{Services: []ServiceRule{{a("10.0.0.1"), 6, 1}, {a("10.0.0.1"), 6, 2}, {a("10.0.0.1"), 6, 3}, {a("10.0.0.1"), 6, 4}, {a("10.0.0.1"), 6, 5}, {a("10.0.0.1"), 6, 6}, {a("10.0.0.1"), 6, 7}, {a("10.0.0.1"), 6, 8}, {a("10.0.0.1"), 6, 9}}}, ErrTooMany},
	}
	for name, c := range cases {
		if err := s.Update(c.rules); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		checkTables(t, s, good)
	}
	// A full set can be replaced by a full set of others.
	if err := s.Update(full(8)); err != nil {
		t.Errorf("full: %v", err)
	}
	other := Rules{}
	for i := range 8 {
		other.Services = append(other.Services, ServiceRule{a(fmt.Sprintf("10.0.1.%d", i+1)), 17, 53})
	}
	if err := s.Update(other); err != nil {
		t.Errorf("full again: %v", err)
	}
	checkTables(t, s, other)
}

// TestUpdateFails: when the kernel refuses half-way, the rules before are put
// back. A map that is full stands for any refusal.
func TestUpdateFails(t *testing.T) {
	s := load(t, Options{MaxAddresses: 4, MaxEndpoints: 4})
	a := netip.MustParseAddr
	good := Rules{Services: []ServiceRule{{a("10.0.0.1"), 6, 80}}, HostAddrs: []netip.Addr{a("10.0.0.1")}}
	if err := s.Update(good); err != nil {
		t.Fatal(err)
	}
	var foreign []endpointKey
	for i := range 7 { // 8 fit, one is taken
		k := keyOf(netip.AddrFrom4([4]byte{10, 9, 9, byte(i)}))
		if err := s.endpoints.kernel.Put(k, endBackend); err != nil {
			t.Fatal(err)
		}
		foreign = append(foreign, k)
	}
	next := Rules{Services: []ServiceRule{{a("10.0.0.2"), 6, 80}, {a("10.0.0.3"), 6, 80}}, HostAddrs: []netip.Addr{a("10.0.0.2")}}
	if err := s.Update(next); err == nil {
		t.Error("update into a full map succeeded")
	}
	for _, k := range foreign {
		if err := s.endpoints.kernel.Delete(k); err != nil {
			t.Fatal(err)
		}
	}
	checkTables(t, s, good)
	if err := s.Update(next); err != nil {
		t.Errorf("second try: %v", err)
	}
	checkTables(t, s, next)
}

func TestSetHostAddrs(t *testing.T) {
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
	if err := b.SetHostAddrs(r.HostAddrs); err != nil {
		t.Fatal(err)
	}
	checkTables(t, b.Steer, r)
	if got := b.outcome(t, answer); got != PassOther {
		t.Errorf("the stranger is the host's now: %s", got)
	}
	r.HostAddrs = r.HostAddrs[:len(r.HostAddrs)-1]
	if err := b.SetHostAddrs(r.HostAddrs); err != nil {
		t.Fatal(err)
	}
	if got := b.outcome(t, answer); got != TakeReturn {
		t.Errorf("and no more: %s", got)
	}
	// Somebody gives the host a VIP: reported, and traffic goes on.
	r.HostAddrs = append(r.HostAddrs, f.vip)
	if err := b.SetHostAddrs(r.HostAddrs); !errors.Is(err, ErrHostAddress) {
		t.Errorf("VIP as host address: %v, want %v", err, ErrHostAddress)
	}
	checkTables(t, b.Steer, r)
	if got := b.outcome(t, f.tcp(t, f.client, 4000, f.vip, 80)); got != TakeAddress {
		t.Errorf("VIP that the host has: %s", got)
	}
	if err := b.SetHostAddrs([]netip.Addr{{}}); !errors.Is(err, ErrRule) {
		t.Errorf("invalid address: %v", err)
	}
	checkTables(t, b.Steer, r)
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
