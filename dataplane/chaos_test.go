package dataplane

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/packet"
)

// badPort is a port whose driver takes frames when it likes, and may be gone.
type badPort struct {
	Port
	rnd  *rand.Rand
	dead *bool
}

func (p *badPort) Transmit(d []unix.XDPDesc) int {
	return p.Port.Transmit(d[:p.rnd.IntN(len(d)+1)])
}

var errDead = errors.New("dead")

func (p *badPort) Kick() error {
	if *p.dead {
		return errDead
	}
	return p.Port.Kick()
}

// chaos is the state of TestChaos: what was sent lately, to answer and to repeat.
type chaos struct {
	*rig
	rnd  *rand.Rand
	last [][2][]byte // frame and the NIC it left by
}

// segment is a client's segment, of few clients and all services, mostly odd.
func (c *chaos) segment() (nic int, s seg) {
	vips := [][2]string{{"198.51.100.", "192.0.2.10:80"}, {"198.51.100.", "192.0.2.11:80"}, {"198.51.100.", "192.0.2.13:80"},
		{"2001:db8:c::", "[2001:db8::13]:80"}, {"2001:db8:c::", "[2001:db8::64]:80"}, {"2001:db8:c::", "[2001:db8::10]:80"},
		{"198.51.100.", "192.0.2.10:5000"}, {"2001:db8:c::", "[2001:db8::64]:5000"}, {"198.51.100.", "192.0.2.11:5000"}}
	v := vips[c.rnd.IntN(len(vips))]
	s.dst = v[1]
	s.src = hostPort(fmt.Sprintf("%s%d", v[0], 1+c.rnd.IntN(3)), uint16(4000+c.rnd.IntN(3)))
	s.udp = netip.MustParseAddrPort(v[1]).Port() == 5000
	flags := c.rnd.IntN(64)
	s.syn, s.ack, s.fin, s.rst = flags&7 == 0, flags&7 != 0, flags&56 == 8, flags&56 == 16
	s.seq = 1000 + uint32(c.rnd.IntN(4))*1000
	s.ackNum = 9001
	c.shape(&s)
	return 0, s
}

func (c *chaos) shape(s *seg) {
	s.payload = []int{0, 0, 1, 33, 700, 1400, 1460, 1500, 1600}[c.rnd.IntN(9)]
	s.ttl = []uint8{1, 2, 64, 64, 64, 64}[c.rnd.IntN(6)]
	if s.syn {
		s.payload = c.rnd.IntN(2) * c.rnd.IntN(300)
		s.opts = []layers.TCPOption{mss([]uint16{0, 1, 63, 64, 255, 256, 300, 1460, 65535}[c.rnd.IntN(9)])}
	}
}

// answer is a segment back along the way a packet that was sent came.
func (c *chaos) answer() (nic int, s seg, ok bool) {
	if len(c.last) == 0 {
		return 0, s, false
	}
	f := c.last[c.rnd.IntN(len(c.last))]
	var p packet.Packet
	if packet.Parse(f[0], &p) != packet.ErrNone || p.Kind != packet.KindTCP && p.Kind != packet.KindUDP {
		return 0, s, false
	}
	s.src = netip.AddrPortFrom(p.Dst.Netip(), p.DstPort).String()
	s.dst = netip.AddrPortFrom(p.Src.Netip(), p.SrcPort).String()
	s.udp = p.Kind == packet.KindUDP
	s.ack, s.seq, s.ackNum = true, p.Ack, p.Seq+uint32(p.End-p.Payload)
	if p.TCPFlags&packet.SYN != 0 {
		s.ackNum++
		if p.TCPFlags&packet.ACK == 0 {
			s.syn, s.seq = true, 9000
		}
	}
	switch c.rnd.IntN(8) {
	case 0:
		s.fin = !s.syn
	case 1:
		s.rst = true
	case 2:
		s.ackNum -= uint32(c.rnd.IntN(60))
	}
	c.shape(&s)
	return int(f[1][0]), s, true
}

// TestChaos drives all kinds of services with wild traffic through ports that
// take what they like, die and come back, hops that are lost, and time that
// jumps. newRig's audit finds a frame lost or doubled and a packet without one
// verdict; what is sent must be whole.
func TestChaos(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			spec := testSpec()
			for i := range spec.Services {
				spec.Services[i].ResetStray = seed%2 == 0
			}
			c := &chaos{rig: newRig(t, 1+int(seed%3), spec), rnd: rand.New(rand.NewPCG(seed, 7))}
			dead := false
			for _, w := range c.dp.Workers {
				for i := range w.queues {
					w.queues[i].Port = &badPort{Port: w.queues[i].Port, rnd: c.rnd, dead: &dead}
				}
			}
			for round := range 400 {
				c.turn(round, &dead)
			}
			if n := c.counts(); n.Reopened == 0 || n.Expired == 0 || n.Refusals == 0 || n.Verdicts[DropTxFull] == 0 || n.Verdicts[DropFragmentExpired] == 0 || n.Verdicts[DropInternal] != 0 {
				t.Errorf("%+v", n)
			}
		})
	}
}

// turn is one round: a burst for every worker and NIC.
func (c *chaos) turn(round int, dead *bool) {
	if c.rnd.IntN(40) == 0 {
		c.now += int64(c.rnd.IntN(3 * 3600 * 1e9))
	}
	if c.rnd.IntN(20) == 0 {
		c.dp.PublishRoutes(c.routes(uint32(round + 2)))
	}
	*dead = c.rnd.IntN(60) == 0
	for _, ports := range c.port {
		var in [2][][]byte
		for range 40 {
			nic, s := c.segment()
			if c.rnd.IntN(3) > 0 {
				if n, a, ok := c.answer(); ok {
					nic, s = n, a
				}
			}
			in[nic] = append(in[nic], c.pieces(build(c.t, s))...)
		}
		for nic := range in {
			ports[nic].Feed(in[nic], 1)
		}
	}
	c.sent = nil
	c.step()
	if *dead {
		for _, w := range c.dp.Workers {
			for i := range w.queues {
				w.queues[i].down = false
			}
		}
	}
	c.now += 1e7
	c.look()
}

// pieces are a frame, or its fragments, out of order and not always all.
func (c *chaos) pieces(frame []byte) [][]byte {
	if c.rnd.IntN(4) > 0 || len(frame) < 200 {
		return [][]byte{frame}
	}
	all := cut(frame, uint32(c.rnd.IntN(4)), 64*(1+c.rnd.IntN(10)))
	c.rnd.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	return all[c.rnd.IntN(20)/19:]
}

// routes are testRoutes, of which some hop may be unresolved.
func (c *chaos) routes(gen uint32) *route.Table {
	hops := []route.Hop{{},
		route.NewHop(0, clientMAC, nicMAC[0], uint32(c.rnd.IntN(2)*0x81000005), 1500),
		route.NewHop(1, serverMAC, nicMAC[1], 0, 1280+c.rnd.IntN(2)*220)}
	if i := c.rnd.IntN(4); i < len(hops) {
		hops[i].State = route.Unresolved
	}
	p := func(s string, id route.HopID) route.Prefix {
		return route.Prefix{Prefix: netip.MustParsePrefix(s), Hop: id}
	}
	return route.New(gen, hops, []route.Prefix{p("198.51.100.0/24", 1), p("2001:db8:c::/64", 1), p("10.0.1.0/24", 2), p("2001:db8:1::/64", 2)})
}

// look checks what was sent and keeps some of it to be answered.
func (c *chaos) look() {
	for _, f := range c.sent {
		var p packet.Packet
		if err := packet.Parse(f.bytes, &p); err != packet.ErrNone {
			c.t.Fatalf("sent what does not parse: %v: %x", err, f.bytes)
		}
		if p.Kind != packet.KindICMPError && !packet.VerifyL4(f.bytes, &p) || !packet.VerifyIPv4(f.bytes, &p) {
			c.t.Fatalf("checksum: %x", f.bytes)
		}
		if p.IPLen() > 1500 {
			c.t.Fatalf("%d bytes: %x", p.IPLen(), f.bytes)
		}
		c.last = append(c.last, [2][]byte{f.bytes, {byte(f.nic)}})
	}
	c.last = c.last[max(0, len(c.last)-200):]
}
