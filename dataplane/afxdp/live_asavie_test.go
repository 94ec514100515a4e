package afxdp

import (
	"encoding/binary"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/asavie/xdp"
)

// asaviePeer is the far end: rings that share no code with ours. It checks every
// packet and sends it back with another Ethernet type.
type asaviePeer struct {
	s                *xdp.Socket
	got, broken, out uint64
	expect           uint64
	backlog          []xdp.Desc
}

func newAsaviePeer(t *testing.T, ifindex int) *asaviePeer {
	t.Helper()
	p, err := xdp.NewProgram(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Attach(ifindex); err != nil {
		t.Fatal(err)
	}
	s, err := xdp.NewSocket(ifindex, 0, &xdp.SocketOptions{
		NumFrames: 1024, FrameSize: 2048,
		FillRingNumDescs: 512, CompletionRingNumDescs: 512, RxRingNumDescs: 512, TxRingNumDescs: 512,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Register(0, s.FD()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Detach before Close: attached in native mode, so it does come back.
		if err := p.Detach(ifindex); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	// Before the first packet can come, else it is lost for want of a frame.
	s.Fill(s.GetDescs(s.NumFreeFillSlots()))
	return &asaviePeer{s: s}
}

// turn receives, checks and answers what is there; false when it was nothing.
func (p *asaviePeer) turn() bool {
	if n := p.s.NumCompleted(); n > 0 {
		p.s.Complete(n)
	}
	if len(p.backlog) == 0 {
		d := p.s.Receive(min(p.s.NumReceived(), burst))
		for _, x := range d {
			f := p.s.GetFrame(x)
			typ, serial, whole := readPacket(f)
			if !whole || typ != etherAsk || serial != p.expect {
				p.broken++
			}
			p.expect = serial + 1
			p.got++
			binary.BigEndian.PutUint16(f[12:], etherReply)
		}
		p.backlog = append(p.backlog, d...)
	}
	busy := len(p.backlog) > 0
	// Also with nothing new: its sendto sends at most 32 descriptors.
	if busy || p.s.NumTransmitted() > 0 {
		n := p.s.Transmit(p.backlog)
		p.out += uint64(n)
		p.backlog = append(p.backlog[:0], p.backlog[n:]...)
	}
	// Only with nothing in our hands: GetDescs takes received frames for free.
	if free := p.s.NumFreeFillSlots(); len(p.backlog) == 0 && free >= 64 {
		p.s.Fill(p.s.GetDescs(free))
	}
	return busy
}

// run echoes until stop, then closes done.
func (p *asaviePeer) run(stop *atomic.Bool, done chan<- struct{}) {
	defer close(done)
	for !stop.Load() {
		if !p.turn() {
			runtime.Gosched()
		}
	}
}

// tally is what came of sending packets to a peer that answers each.
type tally struct {
	sent, got, broken uint64
	took              time.Duration
}

// echo keeps up to window packets on their way until target have come back, or least
// have, the limit has passed and the last is back, or nothing has come back for 10 s.
func (e *end) echo(t *testing.T, least, target, window uint64, limit time.Duration) (c tally) {
	t.Helper()
	begin, last := time.Now(), time.Now()
	more := func() bool { return c.sent < least || time.Since(begin) < limit }
	for c.got < target && (more() || c.got < c.sent) && time.Since(last) < 10*time.Second {
		e.refill(1024)
		if n := min(target-c.sent, window-(c.sent-c.got)); n > 0 && more() {
			e.send(int(n), func(f []byte) int { c.sent++; return writePacket(f, etherAsk, c.sent-1) })
		}
		if err := e.s.Kick(); err != nil {
			t.Fatal(err)
		}
		n := e.receive(func(p []byte) {
			if typ, serial, whole := readPacket(p); !whole || typ != etherReply || serial != c.got {
				c.broken++
			}
			c.got++
		})
		if n == 0 {
			runtime.Gosched()
			continue
		}
		last = time.Now()
	}
	c.took = time.Since(begin)
	return c
}

// Many packets to a peer of foreign make and back: none lost, none doubled, none
// changed, every frame accounted for. On a busy machine the time limit ends it
// before the target; the proof is the same, only shorter.
func TestLiveEchoAgainstAsavie(t *testing.T) {
	const (
		frames = 4096
		target = 2_000_000
		least  = 50_000
		window = 128 // a veth queue holds 256
		limit  = 12 * time.Second
	)
	namespace(t)
	near, far := veth(t, "asavie", 1)
	peer := newAsaviePeer(t, far)
	e := open(t, umem(t, frames), near, 0, steer(t, near), SocketOptions{}).share(0, frames)

	var stop atomic.Bool
	done := make(chan struct{})
	go peer.run(&stop, done)
	c := e.echo(t, least, target, window, limit)
	stop.Store(true)
	<-done

	st, err := e.s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d packets there and back in %v (%.0f k/s each way), %d sendto, %s", c.got, c.took.Round(time.Millisecond),
		float64(c.got)/c.took.Seconds()/1e3, st.Sends, e.u.Backing())
	if c.got != c.sent || c.got < least || c.broken != 0 || peer.broken != 0 || peer.got != c.sent {
		ps, err := peer.s.Stats()
		t.Errorf("sent %d, got back %d, %d of them broken; peer got %d, broken %d, sent %d\nours %+v\npeer's %+v (%v)",
			c.sent, c.got, c.broken, peer.got, peer.broken, peer.out, st, ps, err)
	}
	e.account(t, 0, frames)
	if st.Doubled+st.RxRefused+st.TxRefused+st.FillRefused != 0 || st.Kernel != (KernelStats{TxRingEmptyDescs: st.Kernel.TxRingEmptyDescs}) {
		t.Errorf("stats: %+v", st)
	}
	if st.Received != c.got || st.Transmitted != c.sent {
		t.Errorf("counters say received %d of %d, transmitted %d of %d", st.Received, c.got, st.Transmitted, c.sent)
	}
	// One sendto must move a burst, not a packet.
	if st.Sends*4 > c.sent {
		t.Errorf("%d sendto for %d packets", st.Sends, c.sent)
	}
	if err := e.s.Close(); err != nil {
		t.Fatal(err)
	}
	e.pool = e.s.Held(e.pool)
	e.account(t, 0, frames)
}
