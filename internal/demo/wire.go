package demo

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// mac is an Ethernet address.
type mac [6]byte

// packet is what an ear knows of a TCP or UDP packet, or of a tunnel's: the outermost
// headers.
type packet struct {
	to, from mac
	src, dst netip.Addr
	ttl      byte
	wrap     string // the encapsulation of a tunnel; "" if it is none
}

// decode reads a frame; false if it is no TCP, UDP or tunnel as real hosts and l4fwd
// send them here: no VLAN tag, options, extension headers or fragments.
func decode(b []byte) (p packet, ok bool) {
	const ethernet, v4, v6, ports = 14, 20, 40, 4
	if len(b) < ethernet+v4+ports {
		return p, false
	}
	p.to, p.from = mac(b[0:6]), mac(b[6:12])
	ip, proto := b[ethernet:], byte(0)
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		if ip[0] != 4<<4|v4/4 {
			return p, false
		}
		p.ttl, proto = ip[8], ip[9]
		p.src, p.dst = netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		ip = ip[v4:]
	case unix.ETH_P_IPV6:
		if len(ip) < v6+ports {
			return p, false
		}
		proto, p.ttl = ip[6], ip[7]
		p.src, p.dst = netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		ip = ip[v6:]
	}
	switch proto {
	case unix.IPPROTO_TCP:
	case unix.IPPROTO_UDP:
		port := binary.BigEndian.Uint16(ip[2:])
		if i := slices.IndexFunc(encapsulations, func(e encapsulation) bool { return e.port == port && port != 0 }); i >= 0 {
			p.wrap = encapsulations[i].name
		}
	case unix.IPPROTO_IPIP, unix.IPPROTO_IPV6:
		p.wrap = "ipip"
	case unix.IPPROTO_GRE:
		p.wrap = "gre"
	default:
		return p, false
	}
	return p, true
}

// ear counts packets by what they are, in words. Sniffers may share one.
type ear struct {
	mu   sync.Mutex
	seen map[string]uint64
}

// watch is for testbed.SnifferOptions. Packets that name calls "" do not count.
func (e *ear) watch(name func(p packet, outgoing bool) string) func([]byte, bool) {
	return func(frame []byte, outgoing bool) {
		p, ok := decode(frame)
		if !ok {
			return
		}
		if s := name(p, outgoing); s != "" {
			e.mu.Lock()
			e.seen[s]++
			e.mu.Unlock()
		}
	}
}

func (e *ear) counts() map[string]uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.seen)
}

// Roles of addresses, as ears name them.
const (
	roleClient = "client"
	roleVIP    = "VIP"
	roleLocal  = "local address"
	roleServer = "server"
)

// atClient says to whom a request goes, or from whom an answer comes.
func (n *network) atClient(p packet, outgoing bool) string {
	switch {
	case outgoing && n.roles[p.dst] == roleVIP:
		return toWhom + n.owner(p.to)
	case !outgoing && n.roles[p.src] == roleVIP && p.to == mac(n.top.ClientDev.MAC):
		return fromWhom + n.owner(p.from)
	}
	return ""
}

// How the client's ear begins.
const (
	toWhom   = "to "
	fromWhom = "from "
)

// atServer says what leaves the switch for a server's device, and from whom if not from
// the l4fwd that has the VIPs.
func (n *network) atServer(self mac) func(packet, bool) string {
	role := func(a netip.Addr) string {
		if r := n.roles[a]; r != "" {
			return r
		}
		return a.String()
	}
	return func(p packet, outgoing bool) string {
		if !outgoing || p.to != self {
			return "" // its own, or of others, on their way through the switch
		}
		s := fmt.Sprintf("%s → %s, TTL %d", role(p.src), role(p.dst), p.ttl)
		if p.wrap != "" {
			s = p.wrap + ": " + s
		}
		if from := n.owner(p.from); from != n.names[0] {
			s += ", from " + from
		}
		return s
	}
}

func (n *network) owner(m mac) string {
	if s := n.owners[m]; s != "" {
		return s
	}
	return fmt.Sprintf("%x", m[:])
}

// checkRoad wants the client's packets to go to l4fwd and answers to come by whom the
// mode says, as the MAC addresses on the client's wire tell.
func (d *demo) checkRoad() check {
	first, last := d.net.names[0], d.net.names[len(d.net.names)-1]
	name, back := "requests and answers go through l4fwd", []string{last}
	switch d.modes[0].answers {
	case byReturn:
		name = fmt.Sprintf("requests go through %s, answers through %s", first, last)
	case byServers:
		name, back = "requests go through l4fwd, answers past it", serverNames
	case byKernel: // whose MAC address is the same; l4fwd's figures tell them apart
		name = "requests go through l4fwd, answers by its host"
	}
	want := []string{toWhom + first}
	for _, b := range back {
		want = append(want, fromWhom+b)
	}
	return compare(name, want, d.net.clientEar.counts())
}

// checkArrivals wants packets at the servers to be what the modes make of them.
func (d *demo) checkArrivals() check {
	var want []string
	for _, m := range d.modes {
		want = append(want, m.arrival)
	}
	return compare("what arrives at servers is as it must be", want, d.net.serverEar.counts())
}

// compare wants what was seen to be just what must be.
func compare(name string, want []string, seen map[string]uint64) check {
	c := check{name: name, ok: true}
	var found []string
	for _, w := range want {
		found = append(found, fmt.Sprintf("%s: %s", w, thousands(seen[w])))
		if seen[w] == 0 {
			c.because = append(c.because, "never seen: "+w)
		}
	}
	for _, s := range slices.Sorted(maps.Keys(seen)) {
		if !slices.Contains(want, s) {
			c.because = append(c.because, fmt.Sprintf("seen and not expected: %s, %s times", s, thousands(seen[s])))
		}
	}
	c.ok = len(c.because) == 0
	c.detail = strings.Join(found, "; ")
	return c
}

// checkCounts wants l4fwd's own figures to tell of the packets that the client's wire
// saw: every TCP and UDP packet from there goes to l4fwd, and what comes there comes
// from l4fwd, or it knows nothing of it. Flows cannot be compared, a UDP socket may get
// the port of an earlier one.
func (d *demo) checkCounts(settled error) check {
	c := check{name: "l4fwd counts the packets that were on the client's wire"}
	if settled != nil {
		c.because = append(c.because, settled.Error())
	}
	counts, missed := d.net.clientEar.counts(), d.net.client.Report().Dropped
	var counted, seen, dropped uint64
	for i, f := range d.fwds {
		st := f.read()
		dropped += st.Dropped
		for _, way := range []struct {
			verdict, wire string
			mine          bool
		}{
			{verdictForwarded, toWhom, i == 0},
			{verdictReplied, fromWhom, i == len(d.fwds)-1 && !d.modes[0].direct()},
		} {
			n, want := st.Verdicts[way.verdict], uint64(0)
			if way.mine {
				want = counts[way.wire+f.name]
			}
			if max(n, want)-min(n, want) > st.Dropped+missed || way.mine && n == 0 {
				c.because = append(c.because, fmt.Sprintf("%s: %s %d, seen %d: not explained by %d drops and %d frames that the sniffer missed",
					f.name, way.verdict, n, want, st.Dropped, missed))
			}
			counted += n
			seen += want
		}
	}
	c.ok = len(c.because) == 0
	c.detail = fmt.Sprintf("%s counted, %s seen, %s dropped", thousands(counted), thousands(seen), thousands(dropped))
	return c
}
