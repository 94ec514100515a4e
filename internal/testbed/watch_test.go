package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// TestSnifferTxQueue: the sniffers of a device's transmit queues share its
// outgoing frames between them.
func TestSnifferTxQueue(t *testing.T) {
	top := Up(t, TopologyOptions{Queues: 2, StaticNeighbours: true})
	var sniffers [3]*Sniffer
	for i := range sniffers {
		s, err := top.Client.Sniff("c0", SnifferOptions{Direction: Outgoing, TxQueue: i})
		if err != nil {
			t.Fatal(err)
		}
		sniffers[i] = s
	}
	const flows = 64
	if _, err := (Echo{To: netip.AddrPortFrom(top.VIP(V4, 0), PortEcho), Sockets: flows, Timeout: 1}).Run(t.Context(), top.Client); err != nil {
		t.Fatal(err)
	}
	var seen [3]uint64
	for i, s := range sniffers {
		r, err := s.Stop()
		if err != nil {
			t.Error(err)
		}
		seen[i] = r.UDP
	}
	if seen[0] != flows || seen[1]+seen[2] != flows || seen[1] == 0 || seen[2] == 0 {
		t.Errorf("all queues, queue 0, queue 1: %v frames of %d", seen, flows)
	}
}

// TestSnifferWatch: every frame is shown, as it is and with its direction.
func TestSnifferWatch(t *testing.T) {
	a, b := pair(t, VethOptions{})
	frame := samples(t)["udp4"]
	var mu sync.Mutex
	seen := map[bool]int{}
	s := sniff(t, b, SnifferOptions{Watch: func(data []byte, outgoing bool) {
		mu.Lock()
		defer mu.Unlock()
		if string(data) == string(frame) {
			seen[outgoing]++
		}
	}})
	if err := a.Inject(frame, frame); err != nil {
		t.Fatal(err)
	}
	if err := b.Inject(frame); err != nil {
		t.Fatal(err)
	}
	s.CatchUp()
	mu.Lock()
	defer mu.Unlock()
	if seen[false] != 2 || seen[true] != 1 {
		t.Errorf("incoming, outgoing: %v", seen)
	}
}

// TestEchoLate: an answer that nobody waits for any longer is lost and no more than that,
// unless it comes twice; and nobody waits once the context is done.
func TestEchoLate(t *testing.T) {
	ns := newNamespace(t, "late")
	l, err := ns.ListenPacket("udp4", "127.0.0.1:9001")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, twice := range []bool{false, true} {
		ctx, enough := context.WithCancel(t.Context())
		go func() {
			var first []byte
			for i := range 3 {
				b := make([]byte, 100)
				n, from, err := l.ReadFrom(b)
				if err != nil {
					return
				}
				if b = fmt.Appendf(nil, "late %s\n%s", from, b[:n]); i == 0 {
					first = b
					continue
				}
				if i == 2 {
					if !twice { // else there is an answer still to be read
						enough()
					}
					return
				}
				_, _ = l.WriteTo(first, from)
				if twice {
					_, _ = l.WriteTo(first, from)
				}
				_, _ = l.WriteTo(b, from)
			}
		}()
		answers := 0
		e := Echo{To: netip.MustParseAddrPort("127.0.0.1:9001"), Count: 3, Timeout: 2 * time.Second, OnAnswer: func() { answers++ }}
		r, err := e.Run(ctx, ns)
		enough()
		// The second of the first is taken for the second's, and that for the third's.
		want := [4]int{1, 2, 0, 1}
		if twice {
			want = [4]int{0, 1, 2, 0}
		}
		if got := [4]int{r.OK, r.Lost, r.Wrong, answers}; got != want || !twice && !errors.Is(err, context.Canceled) {
			t.Errorf("twice %t: answered, lost, wrong, told %v, want %v: %v %v", twice, got, want, err, r.Errors)
		}
	}
}

// TestHTTPOnAnswer: the client's own end is the one the server saw.
func TestHTTPOnAnswer(t *testing.T) {
	top := Up(t, TopologyOptions{StaticNeighbours: true})
	if err := top.Forwarding(true); err != nil {
		t.Fatal(err)
	}
	servers, err := top.StartServers()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := CloseServers(servers); err != nil {
			t.Error(err)
		}
	}()
	var mu sync.Mutex
	answers := 0
	for _, keep := range []bool{false, true} {
		_, err := HTTPLoad{To: netip.AddrPortFrom(top.ServerAddr(V6, 0), PortHTTP), Requests: 40, KeepAlive: keep,
			OnAnswer: func(self netip.AddrPort, r HTTPReply) {
				mu.Lock()
				defer mu.Unlock()
				if answers++; self != r.Remote {
					t.Errorf("client is %s, server saw %s", self, r.Remote)
				}
			}}.Run(t.Context(), top.Client)
		if err != nil {
			t.Fatal(err)
		}
	}
	if answers != 80 {
		t.Errorf("%d answers of 80", answers)
	}
}
