package dataplane

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/l4fwd/l4fwd/packet"
)

// wire is a packet to be built quickly: what the crowds send is too much for
// gopacket, which judges a sample of what comes out.
type wire struct {
	src, dst     packet.Addr
	sport, dport uint16
	udp          bool
	flags        uint8
	seq, ack     uint32
	payload      int
	ttl          uint8
	opts         []byte // TCP options, a multiple of four
}

// append builds the frame behind b.
func (s *wire) append(b []byte) []byte {
	l4, proto := 20+len(s.opts), uint8(packet.ProtoTCP)
	if s.udp {
		l4, proto = 8, packet.ProtoUDP
	}
	if s.ttl == 0 {
		s.ttl = 64
	}
	v6 := !s.src.Is4()
	b = append(b, nicMAC[0][:]...)
	b = append(b, clientMAC[:]...)
	n := l4 + s.payload
	if v6 {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, byte(n>>8), byte(n), proto, s.ttl)
		b = append(b, make([]byte, 32)...)
		s.src.Put16(b[len(b)-32:])
		s.dst.Put16(b[len(b)-16:])
	} else {
		at := len(b) + 2
		b = append(b, 8, 0, 0x45, 0, byte((n+20)>>8), byte(n+20), 0, 1, 0x40, 0, s.ttl, proto, 0, 0)
		b = append(b, make([]byte, 8)...)
		s.src.Put4(b[len(b)-8:])
		s.dst.Put4(b[len(b)-4:])
		binary.BigEndian.PutUint16(b[at+10:], packet.Checksum(b[at:], 0))
	}
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, s.sport)
	b = binary.BigEndian.AppendUint16(b, s.dport)
	sum := at + 6
	if s.udp {
		b = append(b, byte(n>>8), byte(n), 0, 0)
	} else {
		b = binary.BigEndian.AppendUint32(b, s.seq)
		b = binary.BigEndian.AppendUint32(b, s.ack)
		b = append(b, byte(l4<<2), s.flags, 0xfd, 0xe8, 0, 0, 0, 0)
		b = append(b, s.opts...)
		sum = at + 16
	}
	for i := range s.payload {
		b = append(b, byte(i*7+1))
	}
	c := packet.Checksum(b[at:], packet.PseudoSum(s.src, s.dst, proto, n))
	if c == 0 && s.udp {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(b[sum:], c)
	return b
}

// crowd is a rig with many hosts at it: what is sent may be answered at once,
// by whatever worker's queue, and goes in with the next round.
type crowd struct {
	*rig
	rnd   *rand.Rand
	in    [2][][2][][]byte // this round's frames and the next's, by worker and NIC
	mem   [2][]byte        // where they lie
	cur   int
	react func(nic int, p *packet.Packet) // to a packet sent; may call send
	spray func(nic int, s *wire) int      // on which worker's queue a frame arrives; nil: on any
	out   uint64                          // frames sent
}

func newCrowd(t testing.TB, workers int, spec Spec, change func(*Options)) *crowd {
	c := &crowd{rig: newRigWith(t, workers, spec, change), rnd: rand.New(rand.NewPCG(uint64(workers), 5))}
	for i := range c.in {
		c.in[i] = make([][2][][]byte, workers)
	}
	for _, ports := range c.port {
		for nic, p := range ports {
			p.OnSend = func(frame []byte) { c.look(nic, frame) }
		}
	}
	return c
}

// look checks a packet sent and lets whom it is for react to it.
func (c *crowd) look(nic int, frame []byte) {
	var p packet.Packet
	if err := packet.Parse(frame, &p); err != packet.ErrNone {
		c.t.Fatalf("sent what does not parse: %v: %x", err, frame)
	}
	if p.Kind != packet.KindICMPError && !packet.VerifyL4(frame, &p) || !packet.VerifyIPv4(frame, &p) {
		c.t.Fatalf("checksum: %x", frame)
	}
	if c.out++; c.out%1009 == 0 {
		verify(c.t, frame[:p.End])
	}
	c.react(nic, &p)
}

// send has a packet arrive at a NIC with the next round.
func (c *crowd) send(nic int, s wire) {
	mem := &c.mem[c.cur^1]
	if cap(*mem)-len(*mem) < 2048 {
		*mem = make([]byte, 0, 1<<22) // frames in the old one still point there
	}
	at := len(*mem)
	*mem = s.append(*mem)
	w := 0
	if n := len(c.dp.Workers); c.spray != nil {
		w = c.spray(nic, &s)
	} else if n > 1 {
		w = c.rnd.IntN(n)
	}
	q := &c.in[c.cur^1][w][nic]
	*q = append(*q, (*mem)[at:len(*mem):len(*mem)])
}

// settle lets packets go to and fro until all is quiet.
func (c *crowd) settle() {
	for more := true; more; {
		more = false
		c.cur ^= 1
		for w := range c.in[c.cur] {
			for nic := range 2 {
				q := &c.in[c.cur][w][nic]
				if len(*q) > 0 {
					more = true
				}
				c.port[w][nic].Feed(*q, 1)
			}
		}
		c.step()
		for w := range c.in[c.cur] {
			for nic := range 2 {
				c.in[c.cur][w][nic] = c.in[c.cur][w][nic][:0]
			}
		}
		c.mem[c.cur] = c.mem[c.cur][:0]
	}
}

// flows is how many there are.
func (c *crowd) flows() (n int) {
	for _, w := range c.dp.Workers {
		n += w.Flows()
	}
	return n
}

// accounts checks that flows add up: what was opened has ended or is there.
func (c *crowd) accounts() {
	c.t.Helper()
	n := c.counts()
	if n.Opened != n.Expired+n.Reopened+n.Evicted+uint64(c.flows()) {
		c.t.Fatalf("%d opened; %d expired, %d reopened, %d evicted, %d left", n.Opened, n.Expired, n.Reopened, n.Evicted, c.flows())
	}
	var active int64
	var opened uint64
	for _, w := range c.dp.Workers {
		for _, b := range w.BackendCounts() {
			if b.Active < 0 {
				c.t.Fatalf("worker %d: %d flows of a backend", w.ID(), b.Active)
			}
			active += b.Active
			opened += b.Flows
		}
		if s := w.table.Stats(); s.Inserted != w.Counts().Opened || s.Inserted-s.Removed != uint64(w.Flows()) {
			c.t.Fatalf("worker %d: %+v", w.ID(), s)
		}
	}
	if active != int64(c.flows()) || opened != n.Opened {
		c.t.Fatalf("backends have %d of %d flows, opened %d of %d", active, c.flows(), opened, n.Opened)
	}
}
