package testbed

import (
	"encoding/binary"
	"math/rand/v2"
	"time"
)

// Way is a direction through a Wire.
type Way int

// The ways.
const (
	ToServer Way = iota // from the client's side to the server's
	ToClient            // back
	ways
)

// Segment sorts TCP segments by what a Rule tells apart.
type Segment int

// The kinds of segments. A segment is of the first kind that fits.
const (
	RST     Segment = iota // with RST
	SYN                    // with SYN, without ACK
	SYNACK                 // with both
	FIN                    // with FIN
	Data                   // with data
	BareACK                // all others
	segments
)

// Action is what becomes of a segment.
type Action int

// The actions.
const (
	Lose      Action = iota
	Duplicate        // a copy comes that much later than the segment itself
	Delay            // by the rule's delay; what comes behind overtakes it
)

// Rule is an impairment of certain segments.
type Rule struct {
	Way     Way
	Segment Segment
	From    int // the first segment of its kind and way that is meant, counted from 0
	Count   int // how many are meant; 0 = all that follow
	Action  Action
	Delay   time.Duration
}

// Plan says what a Wire does to the TCP segments of one server port. The
// probabilities hold for each segment by itself. The zero value does nothing.
//
// All chance comes from Seed: the n-th segment of each way has the same fate each
// time. How many there are, and in what order they come, is up to the two kernels
// and their timers.
type Plan struct {
	Seed      uint64
	Lose      float64 // never more than lossesInRow one after the other in a way
	Duplicate float64 // the copy comes up to MaxDelay later
	Delay     float64 // by up to MaxDelay
	// Mark is the part of the segments of an ECN-capable transport that say
	// "congestion experienced" afterwards (RFC 3168 section 5).
	Mark     float64
	MaxDelay time.Duration
	Rules    []Rule // on top of chance
}

// lossesInRow bounds what chance may lose, so that retransmission timers, which
// double each time, stay within what a test can wait for.
const lossesInRow = 2

// fate is what becomes of one segment.
type fate struct {
	lose      bool
	mark      bool
	copied    bool
	delay     time.Duration
	copyDelay time.Duration
}

// dice are a plan at work in one way.
type dice struct {
	plan   Plan
	way    Way
	rand   *rand.Rand
	seen   [segments]int
	losses int // in a row
}

func newDice(p Plan, way Way) *dice {
	return &dice{plan: p, way: way, rand: rand.New(rand.NewPCG(p.Seed, uint64(way)))}
}

// next decides about the next segment. It takes as many random numbers for one
// as for another, so that rules and counters change nobody else's fate.
func (d *dice) next(s Segment) fate {
	p := &d.plan
	within := func() time.Duration { return time.Duration(d.rand.Float64() * float64(p.MaxDelay)) }
	f := fate{lose: d.rand.Float64() < p.Lose, copied: d.rand.Float64() < p.Duplicate, mark: d.rand.Float64() < p.Mark}
	late := d.rand.Float64() < p.Delay
	f.delay, f.copyDelay = within(), within()
	if !late {
		f.delay = 0
	}
	f.lose = f.lose && d.losses < lossesInRow
	n := d.seen[s]
	d.seen[s]++
	for _, r := range p.Rules {
		if r.Way != d.way || r.Segment != s || n < r.From || r.Count > 0 && n >= r.From+r.Count {
			continue
		}
		switch r.Action {
		case Lose:
			f.lose = true
		case Duplicate:
			f.copied, f.copyDelay = true, r.Delay
		case Delay:
			f.delay = r.Delay
		}
	}
	if d.losses++; !f.lose {
		d.losses = 0
	}
	return f
}

// segmentOf reads an Ethernet frame's TCP header: the ports, and what kind of
// segment it is. It is false for all else, for fragments and for what is cut off.
func segmentOf(frame []byte) (src, dst uint16, s Segment, ok bool) {
	const ethernet, tcp = 14, 20
	ip := frame[min(ethernet, len(frame)):]
	var header, end int
	switch {
	case len(ip) < 20+tcp:
		return 0, 0, 0, false
	case ip[0]>>4 == 4 && frame[12] == 0x08 && frame[13] == 0x00 && ip[9] == 6 && binary.BigEndian.Uint16(ip[6:])&0x3fff == 0:
		header, end = int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	case ip[0]>>4 == 6 && frame[12] == 0x86 && frame[13] == 0xdd && ip[6] == 6:
		header, end = 40, 40+int(binary.BigEndian.Uint16(ip[4:]))
	}
	if header == 0 || end > len(ip) || end < header+tcp {
		return 0, 0, 0, false
	}
	t := ip[header:end]
	const fin, syn, rst, ack = 1, 2, 4, 16
	switch flags := t[13]; {
	case flags&rst != 0:
		s = RST
	case flags&(syn|ack) == syn:
		s = SYN
	case flags&syn != 0:
		s = SYNACK
	case flags&fin != 0:
		s = FIN
	case len(t) > int(t[12]>>4)*4:
		s = Data
	default:
		s = BareACK
	}
	return binary.BigEndian.Uint16(t), binary.BigEndian.Uint16(t[2:]), s, true
}

// markCE sets "congestion experienced" in the IP packet of an Ethernet frame that
// segmentOf has read, if the sender knows ECN.
func markCE(frame []byte) (done bool) {
	ip := frame[14:]
	if ip[0]>>4 == 6 {
		if ip[1]&0x30 == 0 { // the traffic class lies across two bytes
			return false
		}
		ip[1] |= 0x30
		return true
	}
	if ip[1]&3 == 0 {
		return false
	}
	old := binary.BigEndian.Uint16(ip)
	ip[1] |= 3
	sum := uint32(^binary.BigEndian.Uint16(ip[10:])) + uint32(^old) + uint32(binary.BigEndian.Uint16(ip)) // RFC 1624
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum>>16+sum))
	return true
}
