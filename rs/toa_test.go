package rs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/internal/testbed"
	"github.com/l4fwd/l4fwd/toa"
)

// toaOption is the option by the book: docs/toa.md.
func toaOption(kind uint8, client netip.AddrPort) []byte {
	a := client.Addr().AsSlice()
	o := append([]byte{kind, uint8(4 + len(a))}, binary.BigEndian.AppendUint16(nil, client.Port())...)
	return append(o, a...)
}

// join puts options behind each other.
func join(options ...[]byte) []byte { return slices.Concat(options...) }

var (
	client4 = netip.MustParseAddrPort("198.51.100.7:40001")
	client6 = netip.MustParseAddrPort("[2001:db8:100::7]:40001")
	other4  = netip.MustParseAddrPort("203.0.113.9:1")
	// The kernel takes kind 254 with this port for Fast Open's cookie.
	magic4 = netip.MustParseAddrPort("198.51.100.7:63881")
	nops   = []byte{1, 1}
	sackOK = []byte{4, 2}
)

// enter makes a cgroup and moves this process into it, so that its sockets are of it.
func enter(t *testing.T) *testbed.Cgroup {
	t.Helper()
	c, err := testbed.NewCgroup("toa")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, c.Close()) })
	if err := c.Enter(); err != nil {
		t.Fatal(err)
	}
	return c
}

// listen listens in the server's namespace without MPTCP, unless asked for.
func (n *network) listen(network, address string, mptcp bool) net.Listener {
	n.t.Helper()
	var l net.Listener
	err := n.server.Do(func() (err error) {
		var c net.ListenConfig
		c.SetMultipathTCP(mptcp)
		l, err = c.Listen(context.Background(), network, address)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { noError(n.t, l.Close()) })
	return l
}

// toaCase is a connection and what the server must see.
type toaCase struct {
	name         string
	from         map[testbed.Family]netip.Addr // nil = balancer
	syn, ack     []byte                        // options
	bare         []byte                        // options of an ACK behind that, nil = none
	first, later []byte                        // options of the first and of the second data, nil = none
	speaks       bool                          // the server speaks first, and is acknowledged before the first data
	accept, peer netip.AddrPort                // invalid = the sender
	counts       map[string]uint64             // beside given
}

var toaCases = []toaCase{
	{name: "v4", ack: toaOption(254, client4), accept: client4, counts: map[string]uint64{"handshake": 1}},
	{name: "v6", ack: toaOption(254, client6), accept: client6, counts: map[string]uint64{"handshake": 1}},
	{name: "another kind", ack: toaOption(252, client4), accept: client4, counts: map[string]uint64{"handshake": 1}},
	{name: "last of many", ack: join(nops, sackOK, nops, toaOption(254, client6)), accept: client6, counts: map[string]uint64{"handshake": 1}},
	{name: "behind 32 NOPs", ack: join(make1s(32), toaOption(254, client4)), accept: client4, counts: map[string]uint64{"handshake": 1}},
	{name: "first of two", ack: join(toaOption(254, client4), toaOption(254, other4)), accept: client4, counts: map[string]uint64{"handshake": 1}},
	{name: "the magic port", ack: toaOption(254, magic4), accept: magic4, counts: map[string]uint64{"handshake": 1}},
	{name: "none", counts: map[string]uint64{"without": 1}},
	{name: "a kind that is not asked for", ack: toaOption(253, client4), counts: map[string]uint64{"without": 1}},
	{name: "behind the end", ack: join([]byte{0, 2}, toaOption(254, client4)), counts: map[string]uint64{"without": 1}},
	{name: "on the SYN alone", syn: toaOption(254, client4), counts: map[string]uint64{"without": 1}},
	{name: "of another length", ack: []byte{254, 6, 1, 2, 3, 4}, counts: map[string]uint64{"malformed": 1}},
	// With more behind it the kernel may drop such a segment itself.
	{name: "of no length", ack: []byte{1, 1, 254, 0}, counts: map[string]uint64{"without": 1}},
	{name: "cut short", ack: []byte{1, 1, 254, 20}, counts: map[string]uint64{"malformed": 1}},
	{name: "from a stranger", from: stranger, ack: toaOption(254, client4), first: toaOption(254, client4), counts: map[string]uint64{"refused": 1}},
	{name: "with the first data", first: toaOption(254, client4), peer: client4, counts: map[string]uint64{"without": 1, "late": 1}},
	{name: "with an ACK, another with the data", bare: toaOption(254, client4), first: toaOption(254, other4), peer: client4,
		counts: map[string]uint64{"without": 1, "late": 1}},
	{name: "with the second data", first: nops, later: toaOption(254, client4), counts: map[string]uint64{"without": 1}},
	{name: "again with the data", ack: toaOption(254, client4), first: toaOption(254, other4), later: toaOption(254, other4), accept: client4,
		counts: map[string]uint64{"handshake": 1}},
	{name: "behind the server's word", speaks: true, first: toaOption(254, client4), counts: map[string]uint64{"without": 1}},
}

func make1s(n int) []byte { return slices.Repeat([]byte{1}, n) }

// TestTOA makes connections by hand to listeners that were there before: what accept,
// getpeername and package toa say of each, and what is counted.
func TestTOA(t *testing.T) {
	group := enter(t)
	n := newNetwork(t)
	ways := []struct {
		name, network string
		family        testbed.Family
		four          bool // socket without a place for IPv6 addresses
		mptcp         bool
		l             net.Listener
	}{
		{name: "v4", network: "tcp4", family: testbed.V4, four: true},
		{name: "v6", network: "tcp6", family: testbed.V6},
		{name: "dual4", network: "tcp", family: testbed.V4},
		{name: "dual6", network: "tcp", family: testbed.V6},
		{name: "mptcp", network: "tcp", family: testbed.V4, mptcp: true},
	}
	for i := range ways {
		ways[i].l = n.listen(ways[i].network, fmt.Sprintf(":%d", 8000+i), ways[i].mptcp)
	}
	a, err := AttachTOA(TOAOptions{Cgroup: group.Path, From: balancers, Kinds: []uint8{252, 254}, Getsockopt: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { noError(t, a.Close()) }()
	for i, w := range ways {
		to := netip.AddrPortFrom(serverNet[w.family].Addr(), uint16(8000+i))
		for _, c := range toaCases {
			t.Run(w.name+"/"+c.name, func(t *testing.T) { c.run(t, n, a, w.l, w.family, to, w.four) })
		}
	}
	t.Run("cookies", func(t *testing.T) {
		noError(t, n.server.Sysctl("net.ipv4.tcp_syncookies", "2"))
		toaCases[0].run(t, n, a, ways[0].l, testbed.V4, netip.AddrPortFrom(serverNet[testbed.V4].Addr(), 8000), true)
		toaCases[1].run(t, n, a, ways[3].l, testbed.V6, netip.AddrPortFrom(serverNet[testbed.V6].Addr(), 8003), false)
	})
}

// TestTOAOnFastOpen: the SYN of TCP Fast Open makes a connection by itself, but what
// it bears is no balancer's: DPVS lets a client's own options pass there, and none puts
// a TOA on it.
func TestTOAOnFastOpen(t *testing.T) {
	group := enter(t)
	n := newNetwork(t)
	noError(t, n.server.Sysctl("net.ipv4.tcp_fastopen", "1538")) // 2: servers; 0x200: without a cookie; 0x400: all of them
	l := n.listen("tcp", ":8000", false)
	a, err := AttachTOA(TOAOptions{Cgroup: group.Path, From: balancers, Getsockopt: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { noError(t, a.Close()) }()
	to := netip.AddrPortFrom(serverNet[testbed.V4].Addr(), 8000)
	h := n.beginWith(balancer[testbed.V4], to, toaOption(254, client4), []byte("early"))
	conn, err := l.Accept() // before anything has proved that the sender is there
	if err != nil {
		t.Fatal(err)
	}
	defer func() { noError(t, conn.Close()); h.send("R", nil, nil) }()
	if got := remote(conn); got != h.src {
		t.Errorf("accept said %s", got)
	}
	if got := counts(t, a); got["handshake"] != 0 || got["without"] != 1 {
		t.Errorf("%v", got)
	}
}

// run makes the connection of a case.
func (c toaCase) run(t *testing.T, n *network, a *TOA, l net.Listener, f testbed.Family, to netip.AddrPort, four bool) {
	before := counts(t, a)
	from := balancer[f]
	if c.from != nil {
		from = c.from[f]
	}
	h := n.begin(from, to, c.syn)
	h.send("A", c.ack, nil)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { noError(t, conn.Close()); h.send("R", nil, nil) }()
	want := map[string]uint64{}
	for k, v := range c.counts {
		want[k] = v
	}
	// shown is what the kernel's answers must be if the client is this.
	shown := func(client netip.AddrPort) netip.AddrPort {
		switch {
		case !client.IsValid():
			return h.src
		case four && client.Addr().Is6():
			want["unshowable"]++
			return h.src
		}
		want["given"]++
		return client
	}
	if got := remote(conn); got != shown(c.accept) {
		t.Errorf("accept said %s", got)
	}
	c.talk(t, h, conn)
	client := c.accept
	if c.peer.IsValid() {
		client = c.peer
	}
	if got := peerOf(t, conn); got != shown(client) {
		t.Errorf("getpeername said %s", got)
	}
	got, err := toa.Client(conn.(*net.TCPConn))
	if got != client || client.IsValid() != (err == nil) || err != nil && !errors.Is(err, toa.ErrUnknown) {
		t.Errorf("package toa said %s, %v", got, err)
	}
	after := counts(t, a)
	for k, v := range before {
		if after[k] -= v; after[k] == 0 {
			delete(after, k)
		}
	}
	if diff := cmp.Diff(want, after); diff != "" {
		t.Errorf("counters (-want +got)\n%s", diff)
	}
}

// talk sends what the case has behind the handshake, and waits until it has arrived.
func (c toaCase) talk(t *testing.T, h *hand, conn net.Conn) {
	t.Helper()
	if c.speaks {
		if _, err := io.WriteString(conn, "220 ready"); err != nil {
			t.Fatal(err)
		}
		h.ack += uint32(len("220 ready"))
		h.send("A", nil, nil)
	}
	if c.bare != nil {
		h.send("A", c.bare, nil)
	}
	for i, o := range [][]byte{c.first, c.later} {
		if o != nil {
			h.send("A", o, []byte{byte(i)})
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestListener: what RemoteAddr of package toa's connections says where the kernel has
// no place for it, or has said something else before.
func TestListener(t *testing.T) {
	group := enter(t)
	n := newNetwork(t)
	l := toa.NewListener(n.listen("tcp4", ":8000", false))
	a, err := AttachTOA(TOAOptions{Cgroup: group.Path, From: balancers, Getsockopt: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { noError(t, a.Close()) }()
	to := netip.AddrPortFrom(serverNet[testbed.V4].Addr(), 8000)
	for _, c := range []struct {
		name          string
		ack, first    []byte
		before, after netip.AddrPort
	}{
		{"known", toaOption(254, client4), nops, client4, client4},
		{"NAT64", toaOption(254, client6), nops, client6, client6},
		{"late", nil, toaOption(254, client6), netip.AddrPort{}, client6},
		{"never", nil, nops, netip.AddrPort{}, netip.AddrPort{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := n.begin(balancer[testbed.V4], to, nil)
			h.send("A", c.ack, nil)
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { noError(t, conn.Close()); h.send("R", nil, nil) }()
			check := func(when string, want netip.AddrPort) {
				if !want.IsValid() {
					want = h.src
				}
				if got := conn.RemoteAddr().String(); got != want.String() {
					t.Errorf("%s: %s, want %s", when, got, want)
				}
			}
			check("accepted", c.before)
			h.send("A", c.first, []byte("x"))
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			check("with data", c.after)
			check("again", c.after)
		})
	}
}

func counts(t *testing.T, a *TOA) map[string]uint64 {
	t.Helper()
	s, err := a.Stats()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]uint64)
	for _, c := range s {
		out[c.Name] = c.Value
	}
	return out
}

// firstTOA is find_toa of toa.c again, by slices, for lists that are well formed.
func firstTOA(options []byte, kind uint8) netip.AddrPort {
	for len(options) > 0 && options[0] != 0 {
		if options[0] == 1 {
			options = options[1:]
			continue
		}
		if n := options[1]; options[0] == kind {
			if n != 8 && n != 20 {
				break
			}
			a, _ := netip.AddrFromSlice(options[4:n])
			return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(options[2:]))
		}
		options = options[options[1]:]
	}
	return netip.AddrPort{}
}

// TestTOAOptions compares the program with its twin over options of every form. Lists
// that do not end with the header are the table's: the kernel may drop them.
func TestTOAOptions(t *testing.T) {
	group := enter(t)
	n := newNetwork(t)
	l := n.listen("tcp", ":8000", false)
	a, err := AttachTOA(TOAOptions{Cgroup: group.Path, From: balancers, Getsockopt: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { noError(t, a.Close()) }()
	to := netip.AddrPortFrom(serverNet[testbed.V4].Addr(), 8000)
	// Without those that make the kernel refuse a segment: timestamps, MD5, AO, MPTCP.
	kind := rapid.OneOf(rapid.Just(uint8(1)), rapid.Just(uint8(254)), rapid.SampledFrom([]uint8{0, 2, 3, 5, 34, 69, 253, 255}))
	option := rapid.Custom(func(rt *rapid.T) []byte {
		k := kind.Draw(rt, "kind")
		if k <= 1 {
			return []byte{k}
		}
		n := rapid.OneOf(rapid.SampledFrom([]int{8, 20}), rapid.IntRange(2, 36)).Draw(rt, "length")
		return append([]byte{k, byte(n)}, rapid.SliceOfN(rapid.Byte(), n-2, n-2).Draw(rt, "body")...)
	})
	rapid.Check(t, func(rt *rapid.T) {
		var options []byte
		for _, o := range rapid.SliceOfN(option, 0, 8).Draw(rt, "options") {
			if len(options)+len(o) <= 40 {
				options = append(options, o...)
			}
		}
		h := n.begin(balancer[testbed.V4], to, nil)
		h.send("A", options, nil)
		noError(t, l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)))
		conn, err := l.Accept()
		if err != nil {
			rt.Fatalf("% x: %v", options, err)
		}
		defer func() { noError(t, conn.Close()); h.send("R", nil, nil) }()
		want := firstTOA(options, 254)
		got, err := toa.Client(conn.(*net.TCPConn))
		if got != want || want.IsValid() == errors.Is(err, toa.ErrUnknown) {
			rt.Fatalf("% x: %s, %v, want %s", options, got, err, want)
		}
	})
}

// TestTOAOptionsRefused lists what cannot be asked for.
func TestTOAOptionsRefused(t *testing.T) {
	ok := balancers
	for name, o := range map[string]TOAOptions{
		"nobody to believe":     {},
		"a prefix that is none": {From: []netip.Prefix{{}}},
		"a mapped prefix":       {From: []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")}},
		"NOP as a kind":         {From: ok, Kinds: []uint8{1}},
		"timestamps as a kind":  {From: ok, Kinds: []uint8{254, 8}},
		"a cgroup that is none": {From: ok, Cgroup: os.TempDir()},
		"no such cgroup":        {From: ok, Cgroup: "/no/such"},
	} {
		if a, err := AttachTOA(o); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: %v %v", name, a, err)
		}
	}
}

// TestTOAEnds: without the program the kernel's own answers are back, and a cgroup
// that goes away is noticed.
func TestTOAEnds(t *testing.T) {
	group, err := testbed.NewCgroup("gone")
	if err != nil {
		t.Fatal(err)
	}
	a, err := AttachTOA(TOAOptions{Cgroup: group.Path, From: balancers})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { noError(t, a.Close()) }()
	noError(t, a.gone())
	listed := func() (n, gone int) {
		all, err := List()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if s.Cgroup == group.Path {
				want := About{Program: "toa", PID: os.Getpid(), Since: s.Since, Cgroup: group.Path, Kinds: []int{254}, From: balancers}
				if diff := cmp.Diff(want, s.About, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
					t.Error(diff)
				}
				n, gone = n+s.Links, gone+s.Gone
			}
		}
		return n, gone
	}
	if n, gone := listed(); n != 1 || gone != 0 {
		t.Errorf("%d links are listed, %d of them gone", n, gone)
	}
	noError(t, group.Close())
	until(t, "the loss to be noticed", func() bool { return errors.Is(a.gone(), ErrGone) })
	if n, gone := listed(); n != 1 || gone != 1 {
		t.Errorf("%d links are listed, %d of them gone", n, gone)
	}
	noError(t, a.Close())
	if n, _ := listed(); n != 0 {
		t.Errorf("%d links are listed after the end", n)
	}
}

func TestCgroup2In(t *testing.T) {
	for name, c := range map[string]struct{ info, want string }{
		"alone":   {"30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"},
		"beside":  {"1 2 0:3 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n2 1 0:4 / /sys/fs/cgroup/my\\040own rw - cgroup2 none rw\n", "/sys/fs/cgroup/my own"},
		"none":    {"1 2 0:3 / /sys/fs/cgroup ro - cgroup cgroup ro\n", ""},
		"nothing": {"", ""},
	} {
		if got := cgroup2In(c.info); got != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
