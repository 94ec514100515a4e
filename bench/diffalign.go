package bench

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"

	"github.com/l4fwd/l4fwd/packet"
)

// side is one of two captures being compared, sorted by flows.
type side struct {
	c      *Capture
	traits []traits
	flows  []diffFlow // in order of appearance
}

// diffFlow is one direction of a flow. Packets are places in the capture.
type diffFlow struct {
	key     flowKey
	packets []int
}

// flowKey tells flows apart. Frames that are not understood are of one flow, by
// why they are not; so is everything of a kind between two addresses.
type flowKey struct {
	packet.Tuple
	kind packet.Kind
	err  packet.Err
}

// traits are what two packets are told to be alike by, addresses left out.
type traits struct {
	key      flowKey
	seq, ack uint32
	flags    uint8
	payload  uint64 // hash
	header   uint64 // hash of the rest of the transport header, without checksum
	whole    uint64 // hash of the frame
}

var diffSeed = maphash.MakeSeed()

func newSide(c *Capture) *side {
	s := &side{c: c, traits: make([]traits, len(c.Frames))}
	index := map[flowKey]int{}
	for i, f := range c.Frames {
		t := &s.traits[i]
		*t = traitsOf(f)
		k, ok := index[t.key]
		if !ok {
			k = len(s.flows)
			index[t.key] = k
			s.flows = append(s.flows, diffFlow{key: t.key})
		}
		s.flows[k].packets = append(s.flows[k].packets, i)
	}
	return s
}

func traitsOf(f []byte) traits {
	t := traits{whole: maphash.Bytes(diffSeed, f)}
	var p packet.Packet
	if err := packet.Parse(f, &p); err != packet.ErrNone {
		t.key.err, t.payload = err, t.whole
		return t
	}
	t.key.Tuple, t.key.kind = p.Tuple, p.Kind
	if p.Kind != packet.KindTCP && p.Kind != packet.KindUDP {
		t.payload = maphash.Bytes(diffSeed, f[p.L3:])
		return t
	}
	t.seq, t.ack, t.flags = p.Seq, p.Ack, p.TCPFlags
	t.payload = maphash.Bytes(diffSeed, f[p.Payload:p.End])
	if p.Kind == packet.KindTCP {
		t.header = maphash.Bytes(diffSeed, f[int(p.L4)+packet.TCPMinLen:p.Payload])
	}
	return t
}

// name is a packet's flow in words.
func (s *side) name(i int) string {
	k := &s.traits[i].key
	switch {
	case k.err != packet.ErrNone:
		return fmt.Sprintf("refused frames (%v)", k.err)
	case k.kind == packet.KindTCP || k.kind == packet.KindUDP:
		return fmt.Sprintf("%s %s > %s", protocolName(k.Proto),
			netip.AddrPortFrom(k.Src.Netip(), k.SrcPort), netip.AddrPortFrom(k.Dst.Netip(), k.DstPort))
	case k.kind == packet.KindARP:
		return fmt.Sprintf("arp %s > %s", k.Src.Netip(), k.Dst.Netip())
	}
	return fmt.Sprintf("%s, protocol %d, %s > %s", kindNames[k.kind], k.Proto, k.Src.Netip(), k.Dst.Netip())
}

var kindNames = map[packet.Kind]string{
	packet.KindOther: "ip", packet.KindEcho: "echo request", packet.KindICMPError: "icmp error",
	packet.KindFragment: "fragments", packet.KindNS: "neighbour solicitation",
}

// flowMatch is two flows to compare, by place; -1 for none.
type flowMatch struct{ a, b int }

// looser are keys to find a flow's counterpart by when it has none of the same
// tuple: without one port, without one end, without both ports.
var looser = []func(flowKey) flowKey{
	func(k flowKey) flowKey { return k },
	func(k flowKey) flowKey { k.SrcPort = 0; return k },
	func(k flowKey) flowKey { k.DstPort = 0; return k },
	func(k flowKey) flowKey { k.SrcPort, k.Src = 0, packet.Addr{}; return k },
	func(k flowKey) flowKey { k.DstPort, k.Dst = 0, packet.Addr{}; return k },
	func(k flowKey) flowKey { k.SrcPort, k.DstPort = 0, 0; return k },
}

// matchFlows finds every flow's counterpart, each pass a looser key.
func matchFlows(a, b []diffFlow) (out []flowMatch) {
	doneA, doneB := make([]bool, len(a)), make([]bool, len(b))
	for _, key := range looser {
		open := map[flowKey][]int{}
		for i := range b {
			if k := key(b[i].key); !doneB[i] {
				open[k] = append(open[k], i)
			}
		}
		for i := range a {
			k := key(a[i].key)
			if doneA[i] || len(open[k]) == 0 {
				continue
			}
			j := open[k][0]
			open[k] = open[k][1:]
			doneA[i], doneB[j] = true, true
			out = append(out, flowMatch{i, j})
		}
	}
	for i := range a {
		if !doneA[i] {
			out = append(out, flowMatch{i, -1})
		}
	}
	for i := range b {
		if !doneB[i] {
			out = append(out, flowMatch{-1, i})
		}
	}
	return out
}

// Costs of an alignment: a packet without counterpart costs as much as three
// fields that differ, so that shifted numbers alone do not part packets.
const (
	gapCost = 3
	// alignLimit bounds the table of an alignment: flows of 2000 packets that
	// have nothing in common at either end.
	alignLimit = 4 << 20
)

func (t *traits) cost(u *traits) (n int32) {
	if t.whole == u.whole {
		return 0
	}
	for _, differ := range [...]bool{t.seq != u.seq, t.ack != u.ack, t.flags != u.flags, t.header != u.header} {
		if differ {
			n++
		}
	}
	if t.payload != u.payload {
		n += 2
	}
	return n
}

// step of an alignment: places in the two lists, -1 for none.
type alignStep struct{ a, b int }

// align pairs the packets of two flows, given by place, so that the sum of costs
// is least. What is alike at both ends is paired first.
func align(ta []traits, as []int, tb []traits, bs []int) (out []alignStep) {
	first, endA, endB := 0, len(as), len(bs)
	for first < min(endA, endB) && ta[as[first]].whole == tb[bs[first]].whole {
		out = append(out, alignStep{first, first})
		first++
	}
	for min(endA, endB) > first && ta[as[endA-1]].whole == tb[bs[endB-1]].whole {
		endA--
		endB--
	}
	out = append(out, alignMiddle(ta, as[first:endA], tb, bs[first:endB], first)...)
	for endA < len(as) {
		out = append(out, alignStep{endA, endB})
		endA++
		endB++
	}
	return out
}

// alignMiddle is align for what is not alike at either end. offset is added to
// the places it returns.
func alignMiddle(ta []traits, as []int, tb []traits, bs []int, offset int) (out []alignStep) {
	n, m := len(as), len(bs)
	if n*m > alignLimit {
		for i := range max(n, m) {
			s := alignStep{-1, -1}
			if i < n {
				s.a = offset + i
			}
			if i < m {
				s.b = offset + i
			}
			out = append(out, s)
		}
		return out
	}
	// best[i*(m+1)+j] is what the first i and j packets cost.
	best := make([]int32, (n+1)*(m+1))
	at := func(i, j int) *int32 { return &best[i*(m+1)+j] }
	for i := range n + 1 {
		for j := range m + 1 {
			switch {
			case i == 0 || j == 0:
				*at(i, j) = int32(i+j) * gapCost
			default:
				*at(i, j) = min(*at(i-1, j-1)+ta[as[i-1]].cost(&tb[bs[j-1]]), *at(i-1, j)+gapCost, *at(i, j-1)+gapCost)
			}
		}
	}
	for i, j := n, m; i+j > 0; {
		switch {
		case i > 0 && j > 0 && *at(i, j) == *at(i-1, j-1)+ta[as[i-1]].cost(&tb[bs[j-1]]):
			i--
			j--
			out = append(out, alignStep{offset + i, offset + j})
		case i > 0 && *at(i, j) == *at(i-1, j)+gapCost:
			i--
			out = append(out, alignStep{offset + i, -1})
		default:
			j--
			out = append(out, alignStep{-1, offset + j})
		}
	}
	slices.Reverse(out)
	return out
}
