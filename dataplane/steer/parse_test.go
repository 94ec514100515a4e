package steer

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/packet"
)

// byParse is what packet.Parse, which judges the redirected frames afterwards,
// makes of a frame under rules; ok is false where Parse is stricter than the
// program needs to be, or knows less (fragments that follow).
func byParse(r Rules, f []byte) (want Counter, ok bool) {
	mine, group := bytes.Equal(f[:6], nicMAC), f[0]&1 != 0
	if !mine && !group {
		return PassForeignMAC, true
	}
	var p packet.Packet
	if packet.Parse(f, &p) != packet.ErrNone {
		return 0, false
	}
	src, dst := p.Src.Netip(), p.Dst.Netip()
	ours := slices.Contains(r.Addrs, dst)
	switch p.Kind {
	case packet.KindARP:
		if ours && f[p.L3+7] == 1 {
			return TakeNeighbour, true
		}
		return PassOther, true
	case packet.KindNS:
		if at := outerDst(f, &p); mine && slices.Contains(r.Addrs, at) {
			return TakeAddress, true
		}
		if ours {
			return TakeNeighbour, true
		}
		return PassOther, true
	case packet.KindICMPError:
		s := scene{mac: nicMAC, dst: outerDst(f, &p), proto: p.Proto,
			// The tuple is that of the quoted packet reversed.
			quoted: &scene{src: dst, dst: src, proto: p.Proto, sport: p.DstPort, dport: p.SrcPort}}
		if !mine {
			return PassOther, true
		}
		return twin(r, &s), true
	case packet.KindFragment:
		if mine && ours {
			return TakeAddress, true
		}
		return 0, false
	case packet.KindTCP, packet.KindUDP, packet.KindEcho:
		if !mine {
			return PassOther, true
		}
		return twin(r, &scene{mac: nicMAC, src: src, dst: dst, proto: p.Proto, sport: p.SrcPort, dport: p.DstPort}), true
	}
	return 0, false
}

func outerDst(f []byte, p *packet.Packet) netip.Addr {
	if p.V6 {
		return packet.Addr16(f[p.L3+packet.IPv6Dst:]).Netip()
	}
	return packet.Addr4(f[p.L3+packet.IPv4Dst:]).Netip()
}

// checkFrame gives any bytes to the program: it must count them once, not
// touch them, and agree with Parse.
func checkFrame(t testing.TB, b *bench, r Rules, f []byte) (agreed bool) {
	t.Helper()
	got := b.outcome(t, f)
	checkDecide(t, r, f, got)
	want, ok := byParse(r, f)
	if ok && got != want {
		t.Errorf("%x: %s, by packet.Parse %s", f, got, want)
	}
	return ok
}

// checkDecide compares the program with Decide.
func checkDecide(t rapid.TB, r Rules, f []byte, got Counter) {
	t.Helper()
	d := r.Decide(f, [6]byte(nicMAC))
	followed := d.Counter == PassFragment && (got == TakeService || got == TakeRange) // its first fragment has been seen
	if d.Counter != got && !followed {
		t.Errorf("%x: %s, by Decide %s", f, got, d.Counter)
	}
	lease := d.Counter == PassOther && d.Port == DHCPClient
	if d.Taken() != d.Addr.IsValid() && d.Counter != PassFragment && !lease {
		t.Errorf("%x: %s by rule %+v", f, got, d)
	}
}

// seeds are the frames of the tables, with and without a tag, in an order that
// does not change from run to run.
func seeds(t testing.TB) [][]byte {
	var s [][]byte
	for _, ds := range allDecisions(t) {
		for _, d := range ds {
			s = append(s, d.frame, tagged(d.frame, 0x8100))
		}
	}
	slices.SortFunc(s, bytes.Compare)
	return s
}

// TestAgreesWithParse changes a few bytes of good frames at random.
func TestAgreesWithParse(t *testing.T) {
	b := newBench(t, Options{})
	r := testRules()
	if err := b.Update(r); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	agreed, all := 0, 0
	for _, s := range seeds(t) {
		for range 20 {
			f := bytes.Clone(s)
			for range rng.IntN(4) {
				f[rng.IntN(len(f))] = byte(rng.IntN(256))
			}
			all++
			if checkFrame(t, b, r, f) {
				agreed++
			}
		}
	}
	if agreed < all/3 {
		t.Errorf("Parse had an opinion on %d of %d frames only", agreed, all)
	}
}

func FuzzProgram(f *testing.F) {
	b := newBench(f, Options{})
	r := testRules()
	if err := b.Update(r); err != nil {
		f.Fatal(err)
	}
	for _, s := range seeds(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 1514 {
			return // the kernel's test run takes whole Ethernet headers only
		}
		checkFrame(t, b, r, frame)
	})
}

// TestQueueIndex: each queue has its own slot.
func TestQueueIndex(t *testing.T) {
	enterNamespace(t)
	a, _ := newVeth(t, 1500)
	s := load(t, Options{MaxQueues: 4})
	if err := s.Update(testRules()); err != nil {
		t.Fatal(err)
	}
	n, err := s.Attach(a.Attrs().Index, nicMAC, Native)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Steer: s, nic: n}
	f := families["ipv4"]
	vip := f.tcp(t, f.client, 4000, f.vip, 80)
	action := make(map[string]uint32)
	try := func(step string, queue uint32) {
		got, err := b.runOn(vip, a.Attrs().Index, queue)
		if err != nil {
			t.Fatal(err)
		}
		action[fmt.Sprintf("%s, queue %d", step, queue)] = got
	}
	try("none", 1)
	for _, q := range []int{1, 0} {
		x := newXSK(t, a.Attrs().Index, q)
		if err := n.SetSocket(q, x.fd); err != nil {
			t.Fatal(err)
		}
		try(fmt.Sprintf("set %d", q), 0)
		try(fmt.Sprintf("set %d", q), 1)
	}
	if err := n.objs.Sockets.Delete(uint32(0)); err != nil {
		t.Fatal(err)
	}
	try("clear 0", 0)
	try("clear 0", 1)
	want := map[string]uint32{"none, queue 1": xdpDrop, "set 1, queue 0": xdpDrop, "set 1, queue 1": xdpRedirect,
		"set 0, queue 0": xdpRedirect, "set 0, queue 1": xdpRedirect, "clear 0, queue 0": xdpDrop, "clear 0, queue 1": xdpRedirect}
	if diff := cmp.Diff(want, action); diff != "" {
		t.Errorf("actions (-want +got):\n%s", diff)
	}
}
