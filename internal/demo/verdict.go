package demo

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// check is one line of the verdict.
type check struct {
	name    string
	ok      bool
	detail  string
	because []string // what is wrong, if something is
}

// judge looks at everything that was seen, while l4fwd still runs.
func (d *demo) judge(ctx context.Context) []check {
	checks := []check{
		d.checkAnswered("http", "every HTTP request answered"),
		d.checkAnswered("udp", "every UDP datagram answered, and by the VIP"),
		d.checkWeights(),
	}
	for _, m := range d.modes {
		peers, clients := "servers see the client's own address", "and its own port"
		if m.name == fullNAT {
			peers, clients = "servers see only local addresses", "TOA names the client, address and port"
		}
		checks = append(checks, d.checkPeers(m, m.name+": "+peers), d.checkClients(m, m.name+": "+clients))
	}
	checks = append(checks,
		d.checkPing(d.net.vips(), d.net.names[0]+" answers for the VIPs"),
		d.checkPing(d.net.gateways(), "the kernel answers for the host's own addresses"),
	)
	settled := d.settled(ctx)
	d.scr.settled(d.tests, d.figures())
	checks = append(checks, d.checkRoad(), d.checkArrivals(), d.checkHidden(), d.checkSums())
	counts := d.checkCounts(settled)
	for again := 0; !counts.ok && settled == nil && again < 3; again++ {
		// What was sent again between the two readings is in one of them only.
		settled = d.settled(ctx)
		counts = d.checkCounts(settled)
	}
	return append(checks, counts)
}

// of are the scenarios with a mode and a protocol; nil and "" are any.
func (d *demo) of(m *mode, protocol string) (out []*scenario) {
	for _, s := range d.tests {
		if (m == nil || s.mode == m) && (protocol == "" || s.protocol == protocol) {
			out = append(out, s)
		}
	}
	return out
}

func (d *demo) checkAnswered(protocol, name string) check {
	c := check{name: name}
	ok, planned := 0, 0
	for _, s := range d.of(nil, protocol) {
		t := s.tally()
		ok += t.OK
		planned += t.Planned
		for _, e := range t.Errors {
			c.because = append(c.because, s.name()+": "+e)
		}
	}
	c.ok = ok == planned
	c.detail = fmt.Sprintf("%s of %s", thousands(ok), thousands(planned))
	return c
}

// slack is how far from its exact share a server may be: each scenario's turn
// may stand anywhere at its ends, and what failed has had its turn too.
func slack(flows int) int { return 2 + flows/20 }

// checkWeights wants the flows of every service spread by weight.
func (d *demo) checkWeights() check {
	c := check{name: "backends used by weight", ok: true}
	sum := 0
	for _, w := range weights {
		sum += w
	}
	all := make([]int, len(weights))
	for _, s := range d.tests {
		t := s.tally()
		for i, w := range weights {
			n := t.ByServer[serverNames[i]]
			all[i] += n
			want := t.Flows * w / sum
			if n < want-slack(t.Flows) || n > want+slack(t.Flows) || n == 0 && want > 0 {
				c.ok = false
				c.because = append(c.because, fmt.Sprintf("%s: %s got %d of %d flows, weight %d of %d",
					s.name(), serverNames[i], n, t.Flows, w, sum))
			}
		}
	}
	c.detail = fmt.Sprintf("rs1 %s, rs2 %s flows; weights %d : %d", thousands(all[0]), thousands(all[1]), weights[0], weights[1])
	if all[0] == 0 || all[1] == 0 {
		c.ok = false
	}
	return c
}

func (d *demo) checkPeers(m *mode, name string) check {
	c := check{name: name}
	right, ok := 0, 0
	for _, s := range d.of(m, "") {
		t := s.tally()
		right += t.PeerRight
		ok += t.OK
		if t.PeerRight != t.OK {
			c.because = append(c.because, fmt.Sprintf("%s: %d of %d; the last peer was %s", s.name(), t.PeerRight, t.OK, t.Peer))
		}
	}
	c.ok = ok > 0 && right == ok
	c.detail = fmt.Sprintf("%s of %s requests and datagrams", thousands(right), thousands(ok))
	return c
}

func (d *demo) checkClients(m *mode, name string) check {
	c := check{name: name}
	right, ok := 0, 0
	for _, s := range d.of(m, "http") {
		t := s.tally()
		right += t.ClientRight
		ok += t.OK
		if t.ClientRight != t.OK {
			c.because = append(c.because, fmt.Sprintf("%s: %d of %d; the last was peer %s, TOA %s", s.name(), t.ClientRight, t.OK, t.Peer, t.Client))
		}
	}
	c.ok = ok > 0 && right == ok
	c.detail = fmt.Sprintf("%s of %s connections", thousands(right), thousands(ok))
	return c
}

func (d *demo) checkPing(addrs []netip.Addr, name string) check {
	c := check{name: name}
	answered, err := d.net.ping(addrs)
	if err != nil {
		c.because = strings.Split(err.Error(), "\n")
	}
	c.ok = err == nil
	c.detail = fmt.Sprintf("%d of %d pings", answered, len(addrs))
	return c
}

// unseen says of how many frames a sniffer knows nothing. A verdict may stand
// on a sample, but on most of what there was, and has to say so.
func unseen(frames, dropped uint64) (words string, tooMany bool) {
	if dropped == 0 {
		return "", false
	}
	return fmt.Sprintf(", %s missed: the sniffer was too slow", thousands(dropped)), dropped > frames/10
}

// checkHidden wants no address from behind the VIP in any packet at the
// client, those quoted in ICMP errors included.
func (d *demo) checkHidden() check {
	c := check{name: "the client never sees what is behind the VIP"}
	r := d.net.client.Report()
	for _, a := range d.net.hidden() {
		if d.net.client.Saw(a) {
			c.because = append(c.because, a.String()+" was seen at the client")
		}
	}
	missed, tooMany := unseen(r.Frames, r.Dropped)
	c.ok = r.Frames > 0 && len(c.because) == 0 && !tooMany
	c.detail = fmt.Sprintf("%s frames at the client%s", thousands(r.Frames), missed)
	return c
}

// checkSums wants every checksum at the client and at the servers right.
func (d *demo) checkSums() check {
	c := check{name: "every checksum right, recomputed by gopacket"}
	var checked, bad, dropped uint64
	for _, s := range d.net.sniffers() {
		r := s.Report()
		checked += r.Checked
		bad += r.Bad
		dropped += r.Dropped
		for _, v := range r.Violations[:min(len(r.Violations), keepErrors)] {
			c.because = append(c.because, v.String())
		}
	}
	missed, tooMany := unseen(checked, dropped)
	c.ok = checked > 0 && bad == 0 && !tooMany
	c.detail = fmt.Sprintf("%s frames at client and servers%s", thousands(checked), missed)
	return c
}

// verdict prints the checks and, if something failed, what may tell why.
func (d *demo) verdict(checks []check) error {
	failed := 0
	for _, c := range checks {
		if !c.ok {
			failed++
		}
	}
	d.scr.verdict(checks)
	took := time.Since(d.began)
	if failed == 0 {
		d.scr.line(fmt.Sprintf("all %d checks ok, %s in all", len(checks), round(took)))
		return nil
	}
	for _, f := range d.fwds {
		if complaints := f.complaints(); len(complaints) > 0 && f.proc.Running() {
			d.scr.log("what "+f.name+" complained about", strings.Join(complaints, "\n"))
		} else {
			d.scr.log(f.name+"'s log", f.proc.Output())
		}
	}
	d.scr.line(fmt.Sprintf("%d of %d checks FAILED, %s in all", failed, len(checks), round(took)))
	return ErrFailed
}

// drops are the reasons with their counts, the most frequent first.
func (s stats) drops() (out []string) {
	type drop struct {
		reason string
		n      uint64
	}
	var all []drop
	for reason, n := range s.Verdicts {
		if n > 0 && !notDrops[reason] {
			all = append(all, drop{reason, n})
		}
	}
	slices.SortFunc(all, func(a, b drop) int {
		return cmp.Or(cmp.Compare(b.n, a.n), cmp.Compare(a.reason, b.reason))
	})
	for _, d := range all {
		out = append(out, fmt.Sprintf("%s %s", d.reason, thousands(d.n)))
	}
	return out
}
