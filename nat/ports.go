package nat

import (
	"slices"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/packet"
	"github.com/l4fwd/l4fwd/packet/rss"
)

// PortRange is a range of local ports, both ends included. The zero value means
// DefaultPortRange.
type PortRange struct{ First, Last uint16 }

// DefaultPortRange is used where none is configured: all but the well-known
// ports, since a local address is nobody else's.
var DefaultPortRange = PortRange{First: 1024, Last: 65535}

// Residue is the set of local ports that belong to one worker: those that leave
// Remainder when divided by Modulus. A reply's owner follows from its destination
// port alone.
type Residue struct{ Modulus, Remainder uint16 }

// Holds reports whether the port is in the set.
func (r Residue) Holds(port uint16) bool { return port%r.Modulus == r.Remainder }

// PortOptions say which ports a worker may use.
type PortOptions struct {
	Worker, Workers int         // this worker, counted from 0, of how many
	Seed            uint64      // where cursors start; a replay fixes it
	Ranges          []PortRange // by local address id; what is missing or zero has DefaultPortRange
	// Spread, if not nil, chooses by what the NIC does with the reply instead of
	// by the port's residue: a port is the worker's if the reply to it arrives on
	// the worker's own queue.
	Spread *rss.Spread
}

// Limits of the search in one Pick, for a SYN flood meets them when ports run
// out. On one local address half the probes go port by port and the rest in
// steps that double: ports are given out in order, so flows that stay, opened in
// one go, make a long run of used ports, and the steps get over a run of up to half
// of all ports at once. Free ports that a step jumps over wait for the next round.
// The cursor stays where the search ended, so the next Pick goes on there.
const (
	maxPortProbes = 32 // per local address; the steps add up to all ports
	nearProbes    = maxPortProbes / 2
	maxLocals     = 4 // local addresses tried
)

// Limits of all the searches in one tick that find nothing. A probe of a port in
// use costs two cache misses, so without them two thousand SYNs a second towards
// ports that are all in use keep a worker busy. Beyond the limit a Pick probes
// one port of one local address, the next of each: what has become free is
// found, and nobody waits. A limit for each real server, so that one without
// ports does not take the search away from others, and one for all of them.
const (
	serverProbes = 256
	workerProbes = 4096
)

// The sizes of the cursor tables, powers of two.
const (
	portCursors  = 1 << 16
	localCursors = 1 << 12
)

// Ports chooses the local address and port of new Full-NAT flows for one worker;
// nobody else may use it. It holds no list of free ports: the flow table knows
// what is in use. For each pair of local address and real server there is a cursor
// that goes round all the worker's ports, so a port serves the same server again
// as late as possible, and one local address gives its whole range to each
// server. A server is its address, port and protocol, and not its backend id: where
// two services share one, the tuples are the same, so the cursor must be. Cursors
// are found by a hash of the pair: two pairs that meet share one, which shortens
// the round a little and does no harm otherwise.
//
// About 180 KiB, allocated once.
type Ports struct {
	own     Residue
	spread  *rss.Spread // nil: by residue
	worker  int
	seed    uint64
	common  span
	ranges  []PortRange // by local address id
	spans   []span      // of those
	cursors [portCursors]uint16
	turns   [localCursors]turn // by real server
	vain    vain
}

// turn is what is kept of a real server: whose turn it is among its local addresses,
// and the probes in vain.
type turn struct {
	next uint16
	vain vain
}

// vain counts the probes in a tick that found nothing.
type vain struct {
	probes uint16
	tick   uint32
}

// at is how many there were at tick now.
func (v *vain) at(now uint32) uint16 {
	if v.tick != now {
		*v = vain{tick: now}
	}
	return v.probes
}

// span is a worker's share of a range: count ports from first, Modulus apart.
type span struct{ first, count uint16 }

// NewPorts returns the ports of one worker. Workers below 1 count as 1, and
// Worker is taken modulo Workers.
func NewPorts(o PortOptions) *Ports {
	workers := min(max(o.Workers, 1), 1<<15)
	s := &Ports{seed: o.Seed}
	s.own = Residue{Modulus: uint16(workers), Remainder: uint16(uint(o.Worker) % uint(workers))}
	if o.Spread != nil {
		s.spread, s.worker, s.own = o.Spread, o.Worker, Residue{Modulus: 1}
	}
	s.common = s.own.in(DefaultPortRange)
	s.SetRanges(o.Ranges)
	for i := range s.cursors {
		s.cursors[i] = uint16(mix(o.Seed + uint64(i)))
	}
	for i := range s.turns {
		s.turns[i].next = uint16(mix(^o.Seed + uint64(i)))
	}
	return s
}

// SetRanges replaces PortOptions.Ranges. Ports in use stay in use.
func (s *Ports) SetRanges(ranges []PortRange) {
	if slices.Equal(ranges, s.ranges) {
		return
	}
	s.ranges, s.spans = slices.Clone(ranges), make([]span, len(ranges))
	for i, r := range ranges {
		s.spans[i] = s.common
		if r != (PortRange{}) {
			s.spans[i] = s.own.in(r)
		}
	}
}

// CopyTo makes to what s is. Each goes on by itself from there.
func (s *Ports) CopyTo(to *Ports) { *to = *s }

// Offer makes a port of a local address the one that the next Pick towards backend
// finds, if it is in the worker's share and no flow has it.
func (s *Ports) Offer(dir *conntrack.Directory, locals []uint16, backend uint32, local, port uint16) {
	at := slices.Index(locals, local)
	if at < 0 || int(backend) >= len(dir.Backends) {
		return
	}
	server := s.hash(&dir.Backends[backend])
	s.turns[server%localCursors].next = uint16(at)
	ports, cursor := s.round(local, server)
	*cursor = (port - ports.first) / s.own.Modulus
}

// Own returns the set of ports this worker uses; all of them, where a Spread
// decides.
func (s *Ports) Own() Residue { return s.own }

// in returns the ports of the set within the range. Port 0 is never one.
func (r Residue) in(pr PortRange) span {
	first := max(int(pr.First), 1)
	m := int(r.Modulus)
	first += (int(r.Remainder) - first%m + m) % m
	if first > int(pr.Last) {
		return span{}
	}
	return span{first: uint16(first), count: uint16((int(pr.Last)-first)/m + 1)}
}

// Pick returns a local address id out of locals and a port on it such that no
// flow in t has the tuple of a reply backend → local address, port, and that
// tuple's hash in t. The local addresses take turns, for each server on its own.
// If one has no free port within a bounded number of probes, the next is tried;
// ok is false if none had, and local and port are then the last that was found in
// use (port 0: none was). Ids that mean nothing in dir, or whose family is not the
// backend's, are passed over. now is the tick, by which searches in vain are
// limited. The caller inserts the flow before it calls Pick again.
func (s *Ports) Pick(t *conntrack.Table, dir *conntrack.Directory, locals []uint16, backend, now uint32) (local, port uint16, hash uint32, ok bool) {
	if int(backend) >= len(dir.Backends) {
		return 0, 0, 0, false
	}
	rs := &dir.Backends[backend]
	reply := packet.Tuple{Src: rs.Addr, SrcPort: rs.Port, Proto: rs.Proto}
	server := s.hash(rs)
	turn := &s.turns[server%localCursors]
	tries, probes := min(len(locals), maxLocals), maxPortProbes
	if turn.vain.at(now) >= serverProbes || s.vain.at(now) >= workerProbes {
		tries, probes = min(tries, 1), 1
	}
	var last uint16
	for range tries {
		at := int(turn.next)
		if at >= len(locals) {
			at %= len(locals) // the first time, or there have been more
		}
		turn.next = uint16(after(at, len(locals)))
		local = locals[at]
		if int(local) >= len(dir.Locals) || dir.Locals[local].Is4() != rs.Addr.Is4() {
			continue
		}
		reply.Dst = dir.Locals[local]
		last = local
		if hash, ok = s.probe(t, dir, &reply, local, server, probes); ok {
			s.ahead(t, dir, reply, locals[after(int(turn.next), len(locals))], server)
			return local, reply.DstPort, hash, true
		}
	}
	if probes > 1 {
		turn.vain.probes += uint16(tries * probes)
		s.vain.probes += uint16(tries * probes)
	}
	return last, reply.DstPort, 0, false
}

// after is the place that follows at, around the end.
func after(at, n int) int {
	if at++; at >= n {
		return 0
	}
	return at
}

// hash is that of a real server, by which its cursors are found.
func (s *Ports) hash(rs *conntrack.Endpoint) uint64 {
	h := mix(s.seed ^ rs.Addr.Hi)
	h = mix(h ^ rs.Addr.Lo)
	return mix(h ^ uint64(rs.Port)<<8 ^ uint64(rs.Proto))
}

// probe looks for a free port on one local address and leaves it in reply, whose hash in
// t it returns.
func (s *Ports) probe(t *conntrack.Table, dir *conntrack.Directory, reply *packet.Tuple, local uint16, server uint64, most int) (hash uint32, ok bool) {
	ports, cursor := s.round(local, server)
	at, step := uint32(*cursor), uint32(1)
	for i := range min(int(ports.count), most) {
		if at >= uint32(ports.count) {
			at %= uint32(ports.count)
		}
		if s.spread != nil {
			if at, ok = s.home(reply, ports, at); !ok {
				return 0, false
			}
		}
		*cursor = uint16(at + 1)
		reply.DstPort = ports.first + uint16(at)*s.own.Modulus
		if hash = t.Hash(reply); !t.Has(hash, reply, dir) {
			return hash, true
		}
		if i >= nearProbes && int(ports.count) > maxPortProbes {
			step *= 2
		}
		at += step
	}
	return 0, false
}

// round is the worker's share of a local address, and the cursor that goes round it
// for a real server.
func (s *Ports) round(local uint16, server uint64) (span, *uint16) {
	ports := s.common
	if int(local) < len(s.spans) {
		ports = s.spans[local]
	}
	return ports, &s.cursors[mix(server^uint64(local))%portCursors]
}

// ahead has the processor read what tells whether the next port of a local address is
// in use: the address whose turn it is after the next flow's. Its own next turn may
// be so far away that all is forgotten by then; the next flow comes too soon. reply
// is of the same server.
func (s *Ports) ahead(t *conntrack.Table, dir *conntrack.Directory, reply packet.Tuple, local uint16, server uint64) {
	ports, cursor := s.round(local, server)
	if int(local) >= len(dir.Locals) || dir.Locals[local].Is4() != reply.Src.Is4() || ports.count == 0 {
		return
	}
	reply.Dst = dir.Locals[local]
	at := uint32(*cursor) % uint32(ports.count)
	if s.spread != nil {
		var ok bool
		if at, ok = s.home(&reply, ports, at); !ok {
			return
		}
		*cursor = uint16(at) // not to be looked for again
	}
	reply.DstPort = ports.first + uint16(at)*s.own.Modulus
	t.Prefetch(&reply)
}

// homeSteps bounds the search for a port whose reply comes home. One in workers
// does, as a rule in any row: a row of nearSteps misses with a chance of e^-8 even
// for 64 workers. But the hash is linear, and with some keys a row of ports reaches
// a part of the NIC's table only, which belongs to others. So the rest of the search
// goes by leaps of unequal length once through all ports, to such as differ in all
// their bits.
const (
	homeSteps = 1024
	nearSteps = homeSteps / 2
)

// home is the first place from at on whose port brings the reply to this
// worker's queue.
func (s *Ports) home(reply *packet.Tuple, ports span, at uint32) (uint32, bool) {
	count := uint32(ports.count)
	for i := range min(count, homeSteps) {
		reply.DstPort = ports.first + uint16(at)
		if s.spread.Worker(reply) == s.worker {
			return at, true
		}
		at++
		if i >= nearSteps && count > homeSteps {
			at += 100 + i%97
		}
		if at >= count {
			at -= count
		}
	}
	return 0, false
}

// mix is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every bit of
// x moves about half of the result's.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
