package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// bar has server i treat packets as a rule of nftables says, until lift is called.
func (w *world) bar(i int, rule string) (lift func()) {
	w.t.Helper()
	nft := func(command string) {
		w.t.Helper()
		if out, err := w.Servers[i].Command(w.t.Context(), "nft", command).CombinedOutput(); err != nil {
			w.t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	nft("add table inet ill")
	nft("add chain inet ill in { type filter hook input priority 0; }")
	nft("add rule inet ill in " + rule)
	return func() { nft("delete table inet ill") }
}

// connecting has clients connect to a VIP, twenty a second, and send a datagram if it is
// of UDP, until stop is called.
func (w *world) connecting(network string, to netip.AddrPort) (stop func()) {
	over := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for tick := time.NewTicker(50 * time.Millisecond); ; {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			all.Go(func() {
				c, err := w.Client.Dialer(3*time.Second).Dial(network, to.String())
				if err != nil {
					return
				}
				if network == "udp" {
					_, _ = c.Write([]byte("hello"))
					time.Sleep(100 * time.Millisecond)
				}
				_ = c.Close()
			})
		}
	})
	return func() {
		close(over)
		all.Wait()
	}
}

// A backend whose port is filtered is found by what clients meet with, an hour before
// its next check is due.
func TestPassiveFindsWhatIsFiltered(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	service := testbed.Services(0, "full-nat", "", "wrr")[0]
	text := func(interval string) string {
		s := service
		s.Extra = fmt.Sprintf("health_check: {type: tcp, interval: %s, timeout: 200ms, fall: 3}", interval)
		return w.Config([]testbed.Service{s}, small...)
	}
	d := w.run(text("200ms"))
	d.found(service.Name, health.Up, health.Up)
	d.reload(text("1h"))
	lift := w.bar(0, fmt.Sprintf("tcp dport %d drop", testbed.PortHTTP))
	stop := w.connecting("tcp", netip.AddrPortFrom(w.VIP(testbed.V4, 0), testbed.VIPPortHTTP))
	d.await("backend is suspect")
	stop() // its checks alone take it down now: fast_interval is an hour
	d.found(service.Name, health.Down, health.Up)
	all, err := d.Health(t.Context(), service.Name)
	if err != nil {
		t.Fatal(err)
	}
	h := all[0].History
	if n := len(h); n < 3 || h[n-2].From != h[n-2].To || !strings.HasPrefix(h[n-2].Reason, "passive: ") ||
		!strings.HasSuffix(h[n-2].Reason, " unanswered") || h[n-1].Reason != "no answer within 200ms" {
		t.Errorf("%+v", h)
	}
	if all[1].Health.Suspect != nil || all[0].Health.Suspect != nil {
		t.Errorf("still suspect: %+v", all)
	}
	lift()
	d.reload(text("200ms"))
	d.found(service.Name, health.Up, health.Up)
	d.end()
	w.clean()
}

// Without checks one that refuses connections is down for a while, and comes back.
func TestPassiveTakesDown(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	services := testbed.Services(0, "dnat", "", "wrr")
	services = []testbed.Service{services[0], services[2]} // web and echo
	for i := range services {
		services[i].Extra = "health_check: {passive: {action: down, failures: 3, down_for: 3s}}"
	}
	d := w.run(w.Config(services, small...))
	rules := []string{fmt.Sprintf("tcp dport %d reject with tcp reset", testbed.PortHTTP), fmt.Sprintf("udp dport %d reject", testbed.PortEcho)}
	for i, s := range services {
		t.Run(s.Name, func(t *testing.T) {
			lift := w.bar(1, rules[i])
			stop := w.connecting(s.Protocol, netip.AddrPortFrom(w.VIP(testbed.V4, 0), s.Port))
			d.found(s.Name, health.Unknown, health.Down)
			lift()
			if s.Protocol == "tcp" {
				if !soon(func() bool { r := w.ask(w.VIP(testbed.V4, 0), 8); return r.ByServer["rs1"] == 8 }) {
					t.Error("it gets connections and is down")
				}
			}
			d.found(s.Name, health.Unknown, health.Up)
			stop()
			all, err := d.Health(t.Context(), s.Name)
			if err != nil {
				t.Fatal(err)
			}
			what := ""
			for _, c := range all[1].History {
				what += fmt.Sprintf("%v: %s; ", c.To, c.Reason)
			}
			if !strings.HasPrefix(what, "down: passive: ") || !strings.HasSuffix(what, " refused; up: nothing is known against it any more; ") {
				t.Errorf("history: %s", what)
			}
		})
	}
	d.end()
	w.clean()
}

// SYNs from addresses that never answer, some of which lead nowhere, say nothing about
// the servers, which answer them.
func TestPassiveFlood(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	service := testbed.Services(0, "full-nat", "", "wrr")[0]
	service.Extra = "health_check: {passive: {action: down, failures: 3, share: 10, window: 1h}}"
	text := w.Config([]testbed.Service{service}, append(small, "timeouts: {tcp_syn_sent: 2s, tcp_syn_recv: 2s}")...)
	for try := 1; ; try++ {
		d := w.run(text)
		w.ask(w.VIP(testbed.V4, 0), 4)
		before, frames := d.counted(), w.strangers(300)
		half := uint64(len(frames) / 2)
		// Each SYN comes twice, at once and again when clients send one again.
		begun := time.Now()
		d.flood(w, frames)
		answered := soon(func() bool { // each of the two
			c := d.counted()
			return c.signs.Answered >= before.signs.Answered+half && c.Verdicts["no_route"] >= before.Verdicts["no_route"]+2*half
		})
		const apart = 1100 * time.Millisecond
		time.Sleep(apart)
		d.flood(w, frames)
		// If a worker has stood still for as long as answers are waited for it may have taken the
		// second of two for one that was sent again, or given up flows before it read the answer.
		late := time.Since(begun) > apart+800*time.Millisecond
		eventually(t, "flows given up", func() bool { s, err := d.Stats(t.Context()); return err == nil && s.Flows <= before.Flows })
		time.Sleep(2 * signsPeriod) // counters are looked at
		c := d.counted()
		suspects := d.logs.FilterMessage("backend is suspect").Len() + d.logs.FilterMessage("backend is down").Len()
		log := d.said()
		w.ask(w.VIP(testbed.V4, 0), 4)
		d.end()
		w.clean()
		good := answered && c.signs.Unanswered+c.signs.Refused+c.signs.Reset == 0 && suspects == 0
		if !good && late && try < 5 {
			t.Logf("the machine stood still: %+v", c.signs)
			continue
		}
		if !good {
			t.Errorf("answered %v: %+v, %d backends are suspect\n%s", answered, c.signs, suspects, log)
		}
		return
	}
}

// strangers are SYNs from addresses that never answer, to every other of which there is no
// route.
func (w *world) strangers(n int) (frames [][]byte) {
	w.t.Helper()
	vip := w.VIP(testbed.V4, 0).As4()
	for i := range n {
		eth := &layers.Ethernet{SrcMAC: w.ClientDev.MAC, DstMAC: w.LBClient.MAC, EthernetType: layers.EthernetTypeIPv4}
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, DstIP: vip[:], SrcIP: []byte{203, 0, 113, byte(i)}}
		if i%2 == 0 {
			a := w.ClientAddr(testbed.V4, 0).As4() // who is asked for its MAC address, and has none
			a[3] = byte(200 + i%50)
			ip.SrcIP = a[:]
		}
		tcp := &layers.TCP{SrcPort: layers.TCPPort(20000 + i), DstPort: testbed.VIPPortHTTP, SYN: true, Seq: 1, Window: 1000}
		check(w.t, tcp.SetNetworkLayerForChecksum(ip))
		b := gopacket.NewSerializeBuffer()
		check(w.t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, tcp))
		frames = append(frames, b.Bytes())
	}
	return frames
}

// counts are what a daemon has counted: packets and flows, and what connections have met
// with.
type counts struct {
	admin.Stats
	signs health.Tally
}

// counted asks for the counts, again if a worker was too busy to tell.
func (d *daemon) counted() (c counts) {
	d.t.Helper()
	eventually(d.t, "counters", func() bool {
		var err error
		if c.Stats, err = d.Stats(d.t.Context()); err != nil {
			return false
		}
		all, err := d.observe(d.t.Context())
		c.signs = health.Tally{}
		for _, o := range all {
			c.signs.Add(&o.Tally)
		}
		return err == nil
	})
	return c
}

// flood sends SYNs, each twice, no more at a time than there is room for.
func (d *daemon) flood(w *world, frames [][]byte) {
	d.t.Helper()
	forwarded := d.counted().Verdicts["forwarded"]
	for some := range slices.Chunk(frames, 50) {
		check(d.t, w.ClientDev.Inject(slices.Concat(some, some)...))
		forwarded += 2 * uint64(len(some))
		eventually(d.t, "SYNs forwarded", func() bool { return d.counted().Verdicts["forwarded"] >= forwarded })
	}
}
