package conntrack

import "fmt"

// TicksPerSecond is the resolution of all times here.
const TicksPerSecond = 16

// State is the state of a flow as a box in the middle sees it. The TCP states
// follow RFC 9293 section 3.3.2 from the client's end.
type State uint8

// The states.
const (
	None         State = iota // inserted, no packet tracked yet
	SynSent                   // SYN from the client
	SynRecv                   // SYN-ACK from the server that fits the SYN
	Established               // the client acknowledged the SYN-ACK
	FinWait                   // the client sent FIN, the server has not
	CloseWait                 // the server sent FIN, the client has not
	LastAck                   // both sent FIN, not both are acknowledged
	TimeWait                  // both FINs are acknowledged
	Closed                    // a believable RST was seen
	UDPOneWay                 // datagrams from the client only
	UDPTwoWay                 // datagrams both ways
	UDPOnePacket              // one datagram of a client, which may have more such flows
	NumStates
)

var stateNames = [NumStates]string{"none", "syn_sent", "syn_recv", "established", "fin_wait",
	"close_wait", "last_ack", "time_wait", "close", "udp_one_way", "udp_two_way", "udp_one_packet"}

// String is the state's name in logs and metrics.
func (s State) String() string {
	if s < NumStates {
		return stateNames[s]
	}
	return "invalid"
}

// Outcome is what Track thinks should happen to the packet. The zero value is
// none of them, so that a forgotten assignment never forwards.
type Outcome uint8

// The outcomes. Names beginning with Drop are reasons to drop.
const (
	Pass         Outcome = iota + 1 // forward the packet
	Reopen                          // a new connection on the tuple of a finished one: Remove, Insert, Track again
	DropBadRST                      // RST outside the sender's window (RFC 5961 section 3)
	DropBadSeq                      // any other segment outside it, where ChecksStrict
	DropBadSYN                      // SYN from the server, or SYN-ACK from the client
	DropBadFlags                    // SYN with FIN, or none of SYN, ACK, RST
	DropNoFlow                      // the Ref is no flow any more: a mistake of the caller
	NumOutcomes
)

var outcomeNames = [NumOutcomes]string{"invalid", "pass", "reopen", "bad_rst", "bad_sequence", "bad_syn", "bad_flags", "no_flow"}

// String is the outcome's name in logs and metrics.
func (o Outcome) String() string {
	if o < NumOutcomes {
		return outcomeNames[o]
	}
	return "invalid"
}

// Timeouts holds, for each state, how many ticks without a packet end a flow.
// Each must be between 1 and MaxTimeout, see Check.
type Timeouts [NumStates]uint32

// Checks is how much is dropped for its TCP sequence number. At every level a
// SYN or RST from somebody who cannot see the connection neither ends nor moves
// it, and what the ends need to find each other again passes: SYNs, SYN-ACKs,
// and the challenge ACKs that answer them (RFC 5961).
type Checks uint8

// The levels.
const (
	// ChecksNormal drops RSTs outside the window. All else goes on: the end
	// point judges it anyway, and knows better.
	ChecksNormal Checks = iota
	// ChecksStrict also drops other segments outside the window of a connection
	// whose handshake was seen. With direct return there is no window to see,
	// and it is ChecksNormal.
	ChecksStrict
	// ChecksOff drops nothing: for paths where part of the packets pass by.
	ChecksOff
)

// Policy is what a service asks of its flows.
type Policy struct {
	Timeouts Timeouts
	Checks   Checks
}

// MaxTimeout is the longest timeout, about two years. It keeps every deadline
// within half the tick counter even while the timer wheel lags.
const MaxTimeout = 1 << 30

// Check reports a timeout that the timer wheel cannot hold.
func (to *Timeouts) Check() error {
	for s, v := range to {
		if v < 1 || v > MaxTimeout {
			return fmt.Errorf("conntrack: timeout of state %v: %d ticks not within 1..%d", State(s), v, MaxTimeout)
		}
	}
	return nil
}

// DefaultTimeouts suits the open Internet.
//
//   - syn_sent 10 s: clients retransmit a SYN after 1, 3 and 7 s, each time
//     starting it anew. Under pressure a quarter of it (see Insert).
//   - syn_recv 30 s: outlasts four SYN-ACK retransmissions (1, 3, 7, 15 s).
//   - established 2 h 4 min: RFC 5382 REQ-5, just above the keep-alive
//     interval of RFC 9293 section 3.8.4.
//   - fin_wait, close_wait 4 min: RFC 5382 REQ-5, half-closed is a legal way
//     to talk (a request, FIN, then a long answer refreshes it).
//   - last_ack 30 s, time_wait 10 s, close 10 s: retransmissions of the last
//     FIN and answers to a RST, no more. Shorter than REQ-5 on purpose: a
//     fresh SYN reopens these states anyway, and they would fill the table.
//   - udp_one_way 2 min, udp_two_way 5 min: RFC 4787 REQ-5, its minimum and
//     its recommendation.
//   - udp_one_packet 10 s: no client of DNS or RADIUS waits longer for an answer
//     to one query, and each takes a place in the table and perhaps a port.
func DefaultTimeouts() Timeouts {
	const s = TicksPerSecond
	return Timeouts{
		None:         3 * s,
		SynSent:      10 * s,
		SynRecv:      30 * s,
		Established:  (2*60 + 4) * 60 * s,
		FinWait:      4 * 60 * s,
		CloseWait:    4 * 60 * s,
		LastAck:      30 * s,
		TimeWait:     10 * s,
		Closed:       10 * s,
		UDPOneWay:    2 * 60 * s,
		UDPTwoWay:    5 * 60 * s,
		UDPOnePacket: 10 * s,
	}
}

// before reports whether a comes before b; ticks and TCP sequence numbers
// alike wrap around.
func before(a, b uint32) bool { return int32(a-b) < 0 }

// later returns whichever of a and b comes later.
func later(a, b uint32) uint32 {
	if before(a, b) {
		return b
	}
	return a
}
