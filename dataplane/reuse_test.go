package dataplane

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/nat"
)

// reuse cycles one local port towards one backend: connection after connection
// bears the same tuple there, where the last one is in TIME_WAIT.
type reuse struct {
	name, vip string
	client    func(i int) string // whose turn it is
	cycle     time.Duration      // from one SYN to the next
	bytes     uint32             // each way
	reset     bool               // the client ends by RST, else the server closes first
	outrun    bool               // more bytes than ticks of the ISN's clock
}

var reuses = []reuse{
	{"5000 a second", "192.0.2.10:80", sameClient, 200 * time.Microsecond, 100 << 10, false, true},
	{"10000 a second, reset", "192.0.2.10:80", sameClient, 100 * time.Microsecond, 100 << 10, true, true},
	{"5000 a second, small", "192.0.2.10:80", sameClient, 200 * time.Microsecond, 1000, false, false},
	{"5000 a second, PROXY", "192.0.2.13:80", sameClient, 200 * time.Microsecond, 100 << 10, false, true},
	// As soon as the shortest timeout is over; two million ticks.
	{"others", "192.0.2.10:80", anotherClient, 130 * time.Millisecond, 100 << 10, false, false},
	{"others, large", "192.0.2.10:80", anotherClient, 130 * time.Millisecond, 8_000_000, false, true},
	{"others, large, reset", "192.0.2.10:80", anotherClient, 130 * time.Millisecond, 8_000_000, true, true},
	{"others, large, PROXY", "192.0.2.13:80", anotherClient, 130 * time.Millisecond, 8_000_000, false, true},
}

func sameClient(int) string { return "198.51.100.7:40000" }

func anotherClient(i int) string { return fmt.Sprintf("198.51.100.7:%d", 1024+i%60000) }

// TestReuseGoesBeyondTheLast: whoever gets a local port next, and however much
// its last connection has outrun the clock, the backend gets a SYN beyond all
// that it has seen: a kernel in TIME_WAIT takes it for a new connection.
func TestReuseGoesBeyondTheLast(t *testing.T) {
	for _, row := range reuses {
		t.Run(row.name, func(t *testing.T) { row.run(t) })
	}
}

func (row reuse) run(t *testing.T) {
	spec := testSpec()
	spec.Locals = spec.Locals[:1]
	spec.Services = []ServiceSpec{spec.Services[0], spec.Services[7]} // TOA, PROXY
	for i := range spec.Services {
		s := &spec.Services[i]
		s.Backends = s.Backends[:1]
		s.Timeouts[conntrack.TimeWait], s.Timeouts[conntrack.Closed] = 1, 1
	}
	r := newRigWith(t, 1, spec, func(o *Options) { o.LocalPorts = []nat.PortRange{{First: 2000, Last: 2000}} })
	r.now = 64<<32 - int64(row.cycle)*20 // the clock's 32 bits run over on the way
	rounds := 3000
	if testing.Short() {
		rounds = 300
	}
	clock := func() uint32 { return uint32(uint64(r.now) >> 6) }
	var local string
	var last, base uint32
	behind := 0
	for i := range rounds {
		began := r.now
		c, header := r.shake(row.client(i), row.vip)
		if i == 0 {
			local, base = c.local, c.isn-clock()
		} else if c.local != local || int32(c.isn-last) <= 0 {
			t.Fatalf("connection %d from %s, before from %s; begins %d before what the backend has seen", i, c.local, local, last-c.isn)
		}
		if i > 0 && int32(base+clock()-last) <= 0 {
			behind++
		}
		last = c.live(header, row.bytes, row.reset)
		for next := began + int64(row.cycle); r.now < next; r.step() {
			r.now = min(r.now+nanosPerTick, next) // no faster than the timer wheel
		}
	}
	t.Logf("%d reuses, of which %d were too early for the clock", rounds-1, behind)
	if row.outrun != (behind > rounds/2) {
		t.Errorf("the clock alone would have been behind %d times", behind)
	}
}

// shake is open with windows of 8 MB. header is the length of the PROXY header,
// which the server acknowledges.
func (r *rig) shake(client, vip string) (c *conv, header uint32) {
	r.t.Helper()
	scaled := []layers.TCPOption{mss(1460), {OptionType: layers.TCPOptionKindWindowScale, OptionLength: 3, OptionData: []byte{7}}}
	c = &conv{r: r, client: client, vip: vip}
	syn := c.fromClient(seg{syn: true, seq: 1000, opts: scaled})
	src, dst := ipOf(syn)
	c.isn = tcpOf(syn).Seq
	c.local, c.backend = hostPort(src.String(), uint16(tcpOf(syn).SrcPort)), hostPort(dst.String(), uint16(tcpOf(syn).DstPort))
	c.fromServer(seg{syn: true, ack: true, seq: 9000, ackNum: c.isn + 1, opts: scaled})
	header = uint32(len(tcpOf(c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001})).Payload))
	c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 1 + header}) // opens its window
	return c, header
}

// live sends n bytes each way, of which only the last are seen, and ends. It
// returns what the server expects next then.
func (c *conv) live(header, n uint32, reset bool) (last uint32) {
	c.r.t.Helper()
	const tail = 500
	up := tcpOf(c.fromClient(seg{ack: true, seq: 1001 + n - tail, ackNum: 9001, payload: tail}))
	if last = up.Seq + tail; last != c.isn+1+header+n {
		c.r.t.Fatalf("%d bytes end at %d", n, last-c.isn)
	}
	c.fromServer(seg{ack: true, seq: 9001 + n - tail, ackNum: last, payload: tail})
	if reset {
		c.fromClient(seg{rst: true, ack: true, seq: 1001 + n, ackNum: 9001 + n})
		return last
	}
	c.fromServer(seg{fin: true, ack: true, seq: 9001 + n, ackNum: last})
	c.fromClient(seg{fin: true, ack: true, seq: 1001 + n, ackNum: 9002 + n})
	c.fromServer(seg{ack: true, seq: 9002 + n, ackNum: last + 1})
	return last + 1
}
