package afxdp

import (
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// load sends and receives on one end until its interface is gone, then says how
// it noticed.
func (e *end) load(serial *atomic.Uint64, noticed chan<- error) {
	for {
		e.refill(128)
		e.send(32, func(f []byte) int { return writePacket(f, etherAsk, serial.Add(1)) })
		e.receive(func([]byte) {})
		err := e.s.Kick()
		if errors.Is(err, ErrGone) {
			noticed <- err
			return
		}
		// On its way out an interface is first down, which is no reason to go.
		if err != nil && !errors.Is(err, ErrDown) {
			noticed <- err
			return
		}
		runtime.Gosched()
	}
}

// An interface is deleted under load and created again. Both ends must notice,
// get all their frames back, and work again over the same UMEM: once with another
// socket alive to share through, once with none.
func TestLiveInterfaceDeletedAndRecreated(t *testing.T) {
	for _, tc := range []struct {
		name    string
		another bool
	}{{"last socket", false}, {"another socket lives", true}} {
		t.Run(tc.name, func(t *testing.T) {
			const frames = 1024
			namespace(t)
			u, v := umem(t, frames), umem(t, frames)
			if tc.another {
				lives, _ := veth(t, "lives", 1)
				open(t, u, lives, 0, nil, SocketOptions{})
			}
			pools := [2][]uint64{frameAddrs(0, frames), frameAddrs(0, frames)}
			for range 4 {
				pools = deleteUnderLoad(t, u, v, pools)
			}
		})
	}
}

func deleteUnderLoad(t *testing.T, u, v *UMEM, pools [2][]uint64) [2][]uint64 {
	t.Helper()
	near, far := veth(t, "deleted", 1)
	a := open(t, u, near, 0, steer(t, near), SocketOptions{})
	b := open(t, v, far, 0, steer(t, far), SocketOptions{})
	a.pool, b.pool = pools[0], pools[1]
	exchange(t, a, b, 200)
	exchange(t, b, a, 200)

	var serial atomic.Uint64
	noticed := make(chan error, 2)
	go a.load(&serial, noticed)
	go b.load(&serial, noticed)
	if !eventually(func() bool { return serial.Load() > 5000 }) {
		t.Fatal("no load")
	}
	l, err := netlink.LinkByIndex(near)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case err := <-noticed:
			if !errors.Is(err, ErrGone) || !errors.Is(err, ErrDown) {
				t.Fatalf("Kick = %v, want ErrGone", err)
			}
		case <-time.After(patience):
			t.Fatal("a worker did not notice that its interface is gone")
		}
	}
	for _, e := range []*end{a, b} {
		st, err := e.s.Stats()
		if err != nil || st.Doubled != 0 || st.RxRefused+st.TxRefused+st.FillRefused != 0 {
			t.Errorf("stats of a dead socket: %+v, %v", st, err)
		}
		if err := e.s.Close(); err != nil {
			t.Fatal(err)
		}
		e.pool = e.s.Held(e.pool)
		e.account(t, 0, e.u.Frames())
	}
	return [2][]uint64{a.pool, b.pool}
}

// A worker with nothing to do must notice as well.
func TestLiveIdleSocketNoticesDeletion(t *testing.T) {
	namespace(t)
	near, _ := veth(t, "idle", 1)
	e := open(t, umem(t, 64), near, 0, nil, SocketOptions{}).share(0, 64)
	e.refill(0)
	if err := e.s.Probe(); err != nil {
		t.Fatalf("Probe on a living interface: %v", err)
	}
	l, err := netlink.LinkByIndex(near)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := e.s.Probe(); !errors.Is(err, ErrGone) {
		t.Errorf("Probe = %v, want ErrGone", err)
	}
	for i := range probeEvery + 1 {
		if err = e.s.Kick(); err != nil {
			t.Logf("idle Kick %d: %v", i, err)
			break
		}
	}
	if !errors.Is(err, ErrGone) {
		t.Errorf("%d idle Kicks did not notice", probeEvery+1)
	}
}

// A socket that has not been closed yet although its interface is gone must not
// stand in the way: sharing through it gives EBADF, so another is asked, or the
// memory registered afresh.
func TestLiveOpenBesideDeadSocket(t *testing.T) {
	namespace(t)
	near, far := veth(t, "alive", 1)
	nearMap, farMap := steer(t, near), steer(t, far)
	u, v := umem(t, 1024), umem(t, 256)
	peer := open(t, v, far, 0, farMap, SocketOptions{}).share(0, 256)
	var kept *end
	for round := range 2 { // without, then with, a living socket to share through
		dead, _ := veth(t, "dead", 1)
		corpse := open(t, u, dead, 0, nil, SocketOptions{})
		l, err := netlink.LinkByIndex(dead)
		if err == nil {
			err = netlink.LinkDel(l)
		}
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			kept = open(t, u, near, 0, nearMap, SocketOptions{}).share(0, 256)
		} else {
			more, moreFar := veth(t, "more", 1)
			e := open(t, u, more, 0, steer(t, more), SocketOptions{}).share(256, 512)
			p := open(t, umem(t, 256), moreFar, 0, steer(t, moreFar), SocketOptions{}).share(0, 256)
			exchange(t, e, p, 200)
			exchange(t, p, e, 200)
		}
		if !corpse.s.stale {
			t.Errorf("round %d: nobody tried to share through the dead socket", round)
		}
		exchange(t, kept, peer, 200)
		exchange(t, peer, kept, 200)
		if err := corpse.s.WaitReleased(t.Context()); err != nil {
			t.Errorf("WaitReleased with the interface gone: %v", err)
		}
	}
}
