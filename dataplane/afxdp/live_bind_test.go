package afxdp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// One UMEM for two interfaces of two queues each: packets come in on one
// interface and leave on the other without being copied, from any queue to any.
func TestLiveSharedUMEM(t *testing.T) {
	const share = 256
	namespace(t)
	u, peers := umem(t, 4*share), umem(t, 4*share)
	var near, far [4]*end // 2*interface + queue
	for i := range 2 {
		n, f := veth(t, fmt.Sprint("shared", i), 2)
		nearMap, farMap := steer(t, n), steer(t, f)
		for q := range 2 {
			at := 2*i + q
			near[at] = open(t, u, n, q, nearMap, SocketOptions{RX: 128, TX: 128, Fill: 128}).share(at*share, (at+1)*share)
			far[at] = open(t, peers, f, q, farMap, SocketOptions{}).share(at*share, (at+1)*share)
		}
	}
	for i := range near {
		exchange(t, far[i], near[i], 500)
		exchange(t, near[i], far[i], 500)
	}
	// Across: what near[i] receives leaves through near[3-i], the same frame.
	for i := range near {
		in, out := near[i], near[3-i]
		in.refill(0)
		far[3-i].refill(64)
		far[i].send(32, func(f []byte) int { return writePacket(f, etherAsk, 7) })
		forwarded, arrived := 0, 0
		if !eventually(func() bool {
			n := in.s.Receive(in.desc[:])
			if out.s.Transmit(in.desc[:n]) != n {
				t.Fatal("TX ring full")
			}
			forwarded += n
			if err := errors.Join(far[i].s.Kick(), out.s.Kick()); err != nil {
				t.Fatal(err)
			}
			far[3-i].receive(func(p []byte) {
				if _, serial, whole := readPacket(p); !whole || serial != 7 {
					t.Fatalf("packet is not what was sent: % x", p)
				}
				arrived++
			})
			return arrived == 32
		}) {
			t.Fatalf("%d to %d: %d forwarded, %d arrived, of 32", i, 3-i, forwarded, arrived)
		}
	}
	// Frames have wandered between the sockets; together they must still be all.
	all := &end{u: u, s: near[0].s}
	for _, e := range near {
		all.pool = append(all.pool, e.pool...)
		if e != near[0] {
			all.pool = e.s.Held(all.pool)
		}
	}
	all.account(t, 0, 4*share)
}

func TestLiveCloseAndRebind(t *testing.T) {
	const frames = 256
	namespace(t)
	near, far := veth(t, "rebind", 1)
	nearMap, farMap := steer(t, near), steer(t, far)
	u := umem(t, frames)
	peer := open(t, umem(t, frames), far, 0, farMap, SocketOptions{}).share(0, frames)
	pool := frameAddrs(0, frames)
	begin := time.Now()
	for i := range 50 {
		s, err := u.Open(context.Background(), near, 0, SocketOptions{})
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if err := nearMap.Put(uint32(0), uint32(s.FD())); err != nil {
			t.Fatal(err)
		}
		e := &end{u: u, s: s, pool: pool}
		exchange(t, peer, e, 40)
		exchange(t, e, peer, 40)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		e.pool = s.Held(e.pool)
		e.account(t, 0, frames)
		pool = e.pool
	}
	t.Logf("50 rounds in %v", time.Since(begin).Round(time.Millisecond))
	s, err := u.Open(context.Background(), near, 0, SocketOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Close(); !errors.Is(err, ErrInUse) {
		t.Errorf("closing the UMEM under a socket: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitReleased(context.Background()); err != nil {
		t.Errorf("WaitReleased: %v", err)
	}
	peer.account(t, 0, frames)
}

// A socket opened first is not special: the others keep the UMEM alive.
func TestLiveFirstSocketCloses(t *testing.T) {
	namespace(t)
	near, far := veth(t, "first", 2)
	u, peers := umem(t, 512), umem(t, 512)
	nearMap, farMap := steer(t, near), steer(t, far)
	first := open(t, u, near, 0, nearMap, SocketOptions{})
	second := open(t, u, near, 1, nearMap, SocketOptions{}).share(0, 256)
	if err := first.s.Close(); err != nil {
		t.Fatal(err)
	}
	third := open(t, u, near, 0, nearMap, SocketOptions{}).share(256, 512)
	for q, e := range []*end{third, second} {
		peer := open(t, peers, far, q, farMap, SocketOptions{}).share(q*256, q*256+256)
		exchange(t, e, peer, 300)
		exchange(t, peer, e, 300)
	}
}

func TestLiveOpenErrors(t *testing.T) {
	namespace(t)
	near, _ := veth(t, "errors", 2)
	u, other := umem(t, 64), umem(t, 64)
	open(t, other, near, 1, nil, SocketOptions{})
	quick := SocketOptions{BindTimeout: 30 * time.Millisecond}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	short, cancelShort := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancelShort()
	zc := quick
	zc.ZeroCopy = ZeroCopyOn
	for _, shared := range []bool{false, true} {
		if shared { // the same again with a UMEM that is bound already
			open(t, u, near, 0, nil, SocketOptions{})
		}
		for _, tc := range []struct {
			name           string
			ctx            context.Context
			ifindex, queue int
			o              SocketOptions
			want           error
			errno          error
		}{
			{"queue taken", context.Background(), near, 1, quick, ErrQueueBusy, unix.EBUSY},
			{"no such queue", context.Background(), near, 2, quick, ErrNoQueue, unix.EINVAL},
			{"no such interface", context.Background(), 99999, 0, quick, ErrNoDevice, unix.ENODEV},
			{"cancelled before", cancelled, near, 0, quick, context.Canceled, context.Canceled},
			{"cancelled while busy", short, near, 1, SocketOptions{}, context.DeadlineExceeded, context.DeadlineExceeded},
		} {
			s, err := u.Open(tc.ctx, tc.ifindex, tc.queue, tc.o)
			if s != nil || !errors.Is(err, tc.want) || !errors.Is(err, tc.errno) {
				t.Errorf("%s (shared %v): %v", tc.name, shared, err)
			}
		}
		want := ErrNotSupported
		if shared {
			want = ErrModeMismatch
		}
		if _, err := u.Open(context.Background(), near, 0, zc); !errors.Is(err, want) {
			t.Errorf("zero copy on (shared %v): %v, want %v", shared, err, want)
		}
	}
}

func TestLiveZeroCopyFallback(t *testing.T) {
	namespace(t)
	near, _ := veth(t, "zc", 1)
	err := ProbeZeroCopy(context.Background(), near, 0)
	if !errors.Is(err, ErrNotSupported) || !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("ProbeZeroCopy on veth = %v, want ErrNotSupported by EOPNOTSUPP", err)
	}
	t.Log(err)
	if err := ProbeZeroCopy(context.Background(), near, 5); !errors.Is(err, ErrNoQueue) {
		t.Errorf("ProbeZeroCopy of queue 5 = %v, want ErrNoQueue", err)
	}
	u := umem(t, 64)
	if s := open(t, u, near, 0, nil, SocketOptions{}).s; s.ZeroCopy() || !errors.Is(s.Fallback(), ErrNotSupported) {
		t.Errorf("auto: zero copy %v, fallback %v", s.ZeroCopy(), s.Fallback())
	}
	again, _ := veth(t, "zd", 1)
	if s := open(t, umem(t, 64), again, 0, nil, SocketOptions{ZeroCopy: ZeroCopyOff}).s; s.ZeroCopy() || s.Fallback() != nil {
		t.Errorf("off: zero copy %v, fallback %v", s.ZeroCopy(), s.Fallback())
	}
}

func TestLiveMissingCapability(t *testing.T) {
	namespace(t) // the capability is dropped for this thread only
	near, _ := veth(t, "cap", 1)
	u := umem(t, 64)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&header, &had[0]); err != nil {
		t.Fatal(err)
	}
	without := had
	without[0].Effective &^= 1 << unix.CAP_NET_RAW
	if err := unix.Capset(&header, &without[0]); err != nil {
		t.Fatal(err)
	}
	_, err := u.Open(context.Background(), near, 0, SocketOptions{})
	if err := unix.Capset(&header, &had[0]); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, ErrPermission) || !errors.Is(err, unix.EPERM) {
		t.Errorf("without CAP_NET_RAW: %v", err)
	}
	t.Log(err)
}

// A busy-polling socket moves packets too, and its Kick always makes a call.
func TestLiveBusyPoll(t *testing.T) {
	namespace(t)
	near, far := veth(t, "poll", 1)
	e := open(t, umem(t, 256), near, 0, steer(t, near), SocketOptions{BusyPoll: BusyPoll{Microseconds: 20, Budget: 32}}).share(0, 256)
	peer := open(t, umem(t, 256), far, 0, steer(t, far), SocketOptions{}).share(0, 256)
	exchange(t, peer, e, 2000)
	exchange(t, e, peer, 2000)
	for opt, want := range map[int]int{unix.SO_PREFER_BUSY_POLL: 1, unix.SO_BUSY_POLL: 20} {
		if got, err := unix.GetsockoptInt(e.s.FD(), unix.SOL_SOCKET, opt); err != nil || got != want {
			t.Errorf("socket option %d = %d, %v; want %d", opt, got, err, want)
		}
	}
	if got := e.s.Received(); got != 2000 {
		t.Errorf("received %d, want 2000", got)
	}
	// Whether veth's NAPI is known depends on the kernel.
	id, err := e.s.NAPI()
	if err != nil || id < 0 {
		t.Errorf("NAPI %d, %v", id, err)
	}
	t.Logf("NAPI %d", id)
	before := e.s.count.wakeups.Load()
	for range 10 {
		if err := e.s.Kick(); err != nil {
			t.Fatal(err)
		}
	}
	if got := e.s.count.wakeups.Load() - before; got != 10 {
		t.Errorf("10 idle Kicks made %d recvfrom", got)
	}
}

// NEED_WAKEUP: nothing pending, no call; a burst, few calls. And Kick, as every
// method of the datapath, allocates nothing.
func TestLiveKickCalls(t *testing.T) {
	namespace(t)
	near, far := veth(t, "kick", 1)
	e := open(t, umem(t, 512), near, 0, steer(t, near), SocketOptions{}).share(0, 512)
	peer := open(t, umem(t, 512), far, 0, steer(t, far), SocketOptions{}).share(0, 512)
	for range 500 {
		if err := e.s.Kick(); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := e.s.Stats(); err != nil || st.Sends+st.Wakeups != 0 {
		t.Errorf("idle Kicks made %d sendto and %d recvfrom (%v)", st.Sends, st.Wakeups, err)
	}
	const bursts = 200
	turn := func() {
		peer.refill(0)
		e.refill(128)
		e.send(burst, func([]byte) int { return 60 })
		if err := e.s.Kick(); err != nil {
			t.Error(err)
		}
		n := 0
		if !eventually(func() bool { n += peer.receive(func([]byte) {}); return n == burst }) {
			t.Fatalf("%d of %d packets of a burst arrived", n, burst)
		}
	}
	if got := testing.AllocsPerRun(bursts, turn); got != 0 {
		t.Errorf("%v allocations a burst", got)
	}
	st, err := e.s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d packets, %d sendto", st.Transmitted, st.Sends)
	if want := uint64((bursts + 1) * burst); st.Transmitted != want || st.Sends > 3*(bursts+1) {
		t.Errorf("transmitted %d with %d sendto; want %d and at most 3 a burst", st.Transmitted, st.Sends, want)
	}
}

// In copy mode one sendto takes a limited number of descriptors; one Kick must
// send all the same.
func TestLiveKickDrains(t *testing.T) {
	namespace(t)
	near, far := veth(t, "drain", 1)
	e := open(t, umem(t, 512), near, 0, nil, SocketOptions{}).share(0, 512)
	peer := open(t, umem(t, 512), far, 0, steer(t, far), SocketOptions{}).share(0, 512)
	for range 4 {
		peer.refill(0)
	}
	// As on a kernel that cannot be asked for more than 32, if this is not one.
	err := unix.SetsockoptInt(e.s.FD(), unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, 32)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		t.Fatal(err)
	}
	for range 3 {
		e.send(burst, func([]byte) int { return 60 })
	}
	if err := e.s.Kick(); err != nil {
		t.Fatal(err)
	}
	if left := e.s.tx.pending(); left != 0 {
		t.Errorf("%d of %d descriptors are left", left, 3*burst)
	}
	got := 0
	if !eventually(func() bool { got += peer.receive(func([]byte) {}); return got == 3*burst }) {
		t.Errorf("%d of %d arrived", got, 3*burst)
	}
	if st, err := e.s.Stats(); err != nil || st.Sends != 3*burst/32 || st.Again != 3*burst/32-1 {
		t.Errorf("%d sendto, %d EAGAIN (%v); want %d and %d", st.Sends, st.Again, err, 3*burst/32, 3*burst/32-1)
	}
}

func TestLiveStats(t *testing.T) {
	namespace(t)
	near, far := veth(t, "stats", 1)
	e := open(t, umem(t, 128), near, 0, steer(t, near), SocketOptions{RX: 32, Fill: 64}).share(0, 128)
	peer := open(t, umem(t, 256), far, 0, steer(t, far), SocketOptions{}).share(0, 256)
	e.refill(64) // 64 frames to receive into, and a ring of 32 that nobody empties
	if n := peer.send(50, func([]byte) int { return 60 }); n != 50 {
		t.Fatalf("sent %d of 50", n)
	}
	if err := peer.s.Kick(); err != nil {
		t.Fatal(err)
	}
	var got Stats
	if !eventually(func() bool {
		var err error
		if got, err = e.s.Stats(); err != nil {
			t.Fatal(err)
		}
		return got.Kernel.RxRingFull == 18
	}) {
		t.Errorf("50 packets into a ring of 32: %+v", got)
	}
	// Read by many while the owner works.
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for range 200 {
				if _, err := e.s.Stats(); err != nil {
					t.Error(err)
				}
				if err := e.s.Probe(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 1000 {
		e.receive(func([]byte) {})
		if err := e.s.Kick(); err != nil {
			t.Error(err)
		}
	}
	readers.Wait()
	// Those that overflow are counted before the ring shows what it holds.
	eventually(func() bool {
		e.receive(func([]byte) {})
		return e.s.Received() >= 32
	})
	if got, err := e.s.Stats(); err != nil || got.Received != 32 || got.Filled != 64 {
		t.Errorf("received %d of 32, filled %d of 64 (%v)", got.Received, got.Filled, err)
	}
	if l, err := netlink.LinkByIndex(near); err != nil || netlink.LinkSetDown(l) != nil {
		t.Fatal("cannot take the interface down")
	}
	err := e.s.Probe()
	if !errors.Is(err, ErrDown) || errors.Is(err, ErrGone) {
		t.Errorf("Probe with the interface down = %v, want ErrDown but not ErrGone", err)
	}
}
