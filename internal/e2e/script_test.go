package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// A session is what two programs do with a TCP connection, each at its end. A
// script, made from a seed, holds their steps, the sockets' options, and what
// happens to the packets between them.

// verb is what a step does.
type verb int

const (
	exchange verb = iota // send n bytes and receive m, at the same time
	rest                 // do nothing for a while
	meet                 // wait until the other end is here too, without a packet
	shut                 // send FIN, go on receiving
	hear                 // receive until FIN
	hangUp               // close
	abort                // close with RST
	ignore               // wait until m bytes are there to be received, then close: a RST
	endure               // send n bytes, receive, and a byte now and then, until RST
)

var verbs = [...]string{"exchange", "rest", "meet", "shut", "hear", "hang up", "abort", "ignore", "endure"}

type step struct {
	do   verb
	n, m int
	rest time.Duration
}

func (s step) String() string {
	switch s.do {
	case exchange:
		return fmt.Sprintf("send %d receive %d", s.n, s.m)
	case rest:
		return fmt.Sprint("rest ", s.rest)
	case ignore:
		return fmt.Sprintf("ignore %d", s.m)
	}
	return verbs[s.do]
}

// opening is how a connection begins.
type opening int

const (
	plain      opening = iota
	fastOpen           // with a cookie from earlier, if the server takes it
	noCookie           // Fast Open without one: the server always takes the data
	turnedAway         // nobody listens
	abandoned          // the client gives up before the answer is there
	openings
)

var openingNames = [openings]string{"plain", "fast open", "fast open without cookie", "refused", "abandoned"}

// act is one connection of a session.
type act struct {
	steps [2][]step // client's, server's
}

// script is a session.
type script struct {
	seed    uint64
	open    opening
	acts    []act // the second from the same client's port as the first
	buffers [2]int
	server  int // which of the two; the second is old-fashioned
	// hasty: the client may be gone before the server has accepted.
	hasty        bool
	keepAlive    bool
	plans        [2]testbed.Plan // at the client's wire, at the servers'
	ending, harm int
}

func (s script) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %s, %s, %s; rs%d, buffers %v", s.seed, openingNames[s.open], endings[s.ending].name, harms[s.harm].name, s.server+1, s.buffers)
	for i, a := range s.acts {
		fmt.Fprintf(&b, "\n  connection %d\n    client: %v\n    server: %v", i+1, a.steps[0], a.steps[1])
	}
	return b.String()
}

// author makes one script.
type author struct {
	*rand.Rand
	s *script
}

// newScript makes the script of a seed. Numbers of endings and harms have no
// common divisor, so seeds in a row bring each ending together with each harm.
func newScript(seed uint64) script {
	s := script{seed: seed, ending: int(seed) % len(endings), harm: int(seed) % len(harms)}
	a := author{rand.New(rand.NewPCG(seed, 1)), &s}
	s.server = a.IntN(4) / 3
	s.keepAlive = a.IntN(4) == 0
	s.open = []opening{plain, plain, plain, fastOpen, noCookie}[a.IntN(5)]
	for i := range s.buffers {
		s.buffers[i] = []int{0, 0, 8 << 10, 16 << 10, 1 << 20}[a.IntN(5)]
	}
	for i := range s.plans {
		s.plans[i].Seed = seed<<1 | uint64(i)
	}
	harms[s.harm].plan(&s.plans[0], &s.plans[1])
	if endings[s.ending].first && a.IntN(2) == 0 {
		// The side that closes first remembers the connection. If it is the
		// server, the client may use its port again at once.
		s.open = plain
		s.acts = append(s.acts, act{})
		a.body(2)
		a.both(step{do: meet})
		serverFirst(a)
	}
	s.acts = append(s.acts, act{})
	if s.open != plain {
		a.send(0, a.size()) // what comes with the SYN
		// Until it has the SYN-ACK, the client's kernel takes a FIN for a RST.
		a.send(1, a.size())
	}
	a.body(4)
	endings[s.ending].write(a)
	return s
}

// client and server add to the steps of an end of the latest connection, both
// to those of either.
func (a author) add(end int, s ...step) {
	at := &a.s.acts[len(a.s.acts)-1].steps[end]
	*at = append(*at, s...)
}
func (a author) client(s ...step) { a.add(0, s...) }
func (a author) server(s ...step) { a.add(1, s...) }
func (a author) both(s ...step)   { a.client(s...); a.server(s...) }

// send has one end send and the other receive.
func (a author) send(end, n int) {
	a.add(end, step{do: exchange, n: n})
	a.add(1-end, step{do: exchange, m: n})
}

// size is a number of bytes, mostly small or about a segment's.
func (a author) size() int {
	switch a.IntN(4) {
	case 0:
		return 1 + a.IntN(10)
	case 1:
		return 1300 + a.IntN(400)
	case 2:
		return 1 + a.IntN(8<<10)
	}
	return 1 + a.IntN(64<<10)
}

// body is what is said before the end.
func (a author) body(rounds int) {
	for range a.IntN(rounds + 1) {
		end := a.IntN(2)
		switch a.IntN(5) {
		case 0, 1:
			a.send(end, a.size())
		case 2:
			n, m := a.size(), a.size()
			a.client(step{do: exchange, n: n, m: m})
			a.server(step{do: exchange, n: m, m: n})
		case 3: // more than the window holds, and nobody reads
			a.s.buffers[1-end] = 16 << 10
			a.add(1-end, step{do: rest, rest: time.Duration(300+a.IntN(500)) * time.Millisecond})
			a.send(end, 40<<10+a.IntN(30<<10))
		case 4:
			a.both(step{do: rest, rest: time.Duration(a.IntN(1300)) * time.Millisecond})
		}
	}
}

// endings are all ways a connection ends. first marks those before which there
// may be another connection.
var endings = []struct {
	name  string
	first bool
	write func(author)
}{
	{"client closes first", true, func(a author) {
		a.client(step{do: shut}, step{do: hear}, step{do: hangUp})
		a.server(step{do: hear}, step{do: hangUp})
	}},
	{"server closes first", true, serverFirst},
	{"both close at once", false, func(a author) {
		hold := testbed.Rule{Segment: testbed.FIN, Count: 1, Action: testbed.Delay, Delay: 100 * time.Millisecond}
		back := hold
		back.Way = testbed.ToClient
		p := &a.s.plans[a.IntN(2)]
		p.Rules = append(p.Rules, hold, back)
		a.both(step{do: meet}, step{do: shut}, step{do: hear}, step{do: hangUp})
	}},
	{"client half-closes", true, func(a author) {
		a.client(step{do: shut})
		a.server(step{do: hear})
		a.send(1, a.size())
		a.server(step{do: hangUp})
		a.client(step{do: hear}, step{do: hangUp})
	}},
	{"server half-closes", true, func(a author) {
		a.server(step{do: shut})
		a.client(step{do: hear})
		a.send(0, a.size())
		a.client(step{do: hangUp})
		a.server(step{do: hear}, step{do: hangUp})
	}},
	{"client aborts", false, func(a author) {
		if a.s.hasty = a.IntN(3) == 0; !a.s.hasty {
			a.both(step{do: meet})
		}
		a.client(step{do: abort})
		a.server(step{do: endure})
	}},
	{"server aborts", false, func(a author) {
		a.both(step{do: meet})
		a.server(step{do: abort})
		a.client(step{do: endure})
	}},
	{"client aborts while it sends", false, func(a author) { abortSending(a, 0) }},
	{"server aborts while it sends", false, func(a author) { abortSending(a, 1) }},
	{"client aborts while the server sends", false, func(a author) { abortHearing(a, 0) }},
	{"server aborts while the client sends", false, func(a author) { abortHearing(a, 1) }},
	{"client ignores data", false, func(a author) { ignoring(a, 0) }},
	{"server ignores data", false, func(a author) { ignoring(a, 1) }},
	{"client speaks after the server's close", false, func(a author) { lateWord(a, 0) }},
	{"server speaks after the client's close", false, func(a author) { lateWord(a, 1) }},
	{"refused", false, func(a author) {
		a.s.open, a.s.acts = turnedAway, []act{{}}
	}},
	{"abandoned", false, func(a author) {
		a.s.open, a.s.acts = abandoned, []act{{}}
		p := &a.s.plans[a.IntN(2)]
		p.Rules = append(p.Rules, testbed.Rule{Way: testbed.ToClient, Segment: testbed.SYNACK, Action: testbed.Delay, Delay: 2500 * time.Millisecond})
	}},
}

func serverFirst(a author) {
	a.server(step{do: shut}, step{do: hear}, step{do: hangUp})
	a.client(step{do: hear}, step{do: hangUp})
}

// abortSending: what was sent last may be lost with the connection.
func abortSending(a author, end int) {
	a.both(step{do: meet})
	a.add(end, step{do: exchange, n: 1 + a.IntN(200<<10)}, step{do: abort})
	a.add(1-end, step{do: endure})
}

func abortHearing(a author, end int) {
	a.both(step{do: meet})
	m := a.size()
	a.add(end, step{do: exchange, m: m}, step{do: abort})
	a.add(1-end, step{do: endure, n: m + 64<<10})
}

// ignoring closes before all that has come is read, for which TCP has no FIN.
func ignoring(a author, end int) {
	m := 1 + a.IntN(1000)
	a.add(end, step{do: ignore, m: m})
	a.add(1-end, step{do: exchange, n: m}, step{do: endure})
}

// lateWord: one end has closed for good, and the other learns of it when it has
// something to say.
func lateWord(a author, end int) {
	a.both(step{do: meet})
	a.add(1-end, step{do: hangUp})
	a.add(end, step{do: hear}, step{do: endure})
}

// harms are all that happens to packets on their way: c is the client's wire, s
// the servers'.
var harms = []struct {
	name string
	plan func(c, s *testbed.Plan)
}{
	{"no harm", func(_, _ *testbed.Plan) {}},
	{"loss at the client", func(c, _ *testbed.Plan) { c.Lose = 0.04 }},
	{"loss at the server", func(_, s *testbed.Plan) { s.Lose = 0.04 }},
	{"loss at both", func(c, s *testbed.Plan) { c.Lose, s.Lose = 0.02, 0.02 }},
	{"duplication", func(c, s *testbed.Plan) { c.Duplicate, s.Duplicate = 0.1, 0.1; soon(c, s) }},
	{"reordering", func(c, s *testbed.Plan) { c.Delay, s.Delay = 0.1, 0.1; soon(c, s) }},
	{"loss, duplication, reordering, congestion marks", func(c, s *testbed.Plan) {
		for _, p := range []*testbed.Plan{c, s} {
			p.Lose, p.Duplicate, p.Delay, p.Mark = 0.01, 0.03, 0.05, 0.1
		}
		soon(c, s)
	}},
	{"SYN lost before l4fwd", rule(0, testbed.ToServer, testbed.SYN, testbed.Lose)},
	{"SYN lost behind l4fwd", rule(1, testbed.ToServer, testbed.SYN, testbed.Lose)},
	{"SYN-ACK lost before l4fwd", rule(1, testbed.ToClient, testbed.SYNACK, testbed.Lose)},
	{"SYN-ACK lost behind l4fwd", rule(0, testbed.ToClient, testbed.SYNACK, testbed.Lose)},
	{"ACK of the handshake lost before l4fwd", rule(0, testbed.ToServer, testbed.BareACK, testbed.Lose)},
	{"ACK of the handshake lost behind l4fwd", rule(1, testbed.ToServer, testbed.BareACK, testbed.Lose)},
	{"all that begins and ends twice", func(c, s *testbed.Plan) {
		for _, k := range []testbed.Segment{testbed.SYN, testbed.SYNACK, testbed.FIN, testbed.RST} {
			for _, w := range []testbed.Way{testbed.ToServer, testbed.ToClient} {
				r := testbed.Rule{Way: w, Segment: k, Action: testbed.Duplicate}
				c.Rules = append(c.Rules, r)
				r.Delay = 30 * time.Millisecond
				s.Rules = append(s.Rules, r)
			}
		}
	}},
	{"FINs lost before l4fwd", func(c, s *testbed.Plan) {
		rule(0, testbed.ToServer, testbed.FIN, testbed.Lose)(c, s)
		rule(1, testbed.ToClient, testbed.FIN, testbed.Lose)(c, s)
	}},
	{"FINs lost behind l4fwd", func(c, s *testbed.Plan) {
		rule(1, testbed.ToServer, testbed.FIN, testbed.Lose)(c, s)
		rule(0, testbed.ToClient, testbed.FIN, testbed.Lose)(c, s)
	}},
	{"SYN-ACK so late that the SYN comes again", func(c, s *testbed.Plan) {
		late := testbed.Rule{Way: testbed.ToClient, Segment: testbed.SYNACK, Count: 1, Action: testbed.Delay, Delay: 1200 * time.Millisecond}
		s.Rules = append(s.Rules, late)
	}},
	{"RSTs lost before l4fwd", func(c, s *testbed.Plan) {
		rule(0, testbed.ToServer, testbed.RST, testbed.Lose)(c, s)
		rule(1, testbed.ToClient, testbed.RST, testbed.Lose)(c, s)
	}},
	{"RSTs lost behind l4fwd", func(c, s *testbed.Plan) {
		rule(1, testbed.ToServer, testbed.RST, testbed.Lose)(c, s)
		rule(0, testbed.ToClient, testbed.RST, testbed.Lose)(c, s)
	}},
}

// soon bounds delays.
func soon(all ...*testbed.Plan) {
	for _, p := range all {
		p.MaxDelay = 8 * time.Millisecond
	}
}

// rule is for the first segment of its kind, at the client's wire (0) or the
// servers' (1).
func rule(wire int, w testbed.Way, k testbed.Segment, what testbed.Action) func(c, s *testbed.Plan) {
	return func(c, s *testbed.Plan) {
		p := []*testbed.Plan{c, s}[wire]
		p.Rules = append(p.Rules, testbed.Rule{Way: w, Segment: k, Count: 1, Action: what})
	}
}
