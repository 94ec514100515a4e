package afxdp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The live tests need root: they run in network namespaces of their own, which
// have no name and so vanish with the process whatever happens.

// namespace moves the test, on a locked thread, into a fresh network namespace
// where the kernel itself sends nothing.
func namespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("creating a network namespace (these tests need root): %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(netns.Set(before), before.Close(), ns.Close()); err != nil {
			t.Error(err)
			return // the thread stays locked, and dies with the test
		}
		runtime.UnlockOSThread()
	})
	// No duplicate address detection or router solicitation among the packets.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// veth creates a pair, both ends up in the same namespace (nothing here has an
// address), with that many queues each way, and returns the interface indices.
func veth(t *testing.T, name string, queues int) (near, far int) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.NumTxQueues, attrs.NumRxQueues = name+"0", queues, queues
	pair := netlink.NewVeth(attrs)
	pair.PeerName = name + "1"
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatalf("creating a veth pair: %v", err)
	}
	var index [2]int
	for i := range index {
		l, err := netlink.LinkByName(fmt.Sprint(name, i))
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			t.Fatal(err)
		}
		index[i] = l.Attrs().Index
	}
	t.Cleanup(func() {
		if l, err := netlink.LinkByIndex(index[0]); err == nil {
			if err := netlink.LinkDel(l); err != nil {
				t.Error(err)
			}
		}
	})
	return index[0], index[1]
}

// steer attaches a program that redirects everything that arrives on queue q to
// the socket in slot q, and passes it to the kernel where there is none.
func steer(t *testing.T, ifindex int) *ebpf.Map {
	t.Helper()
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{Name: "afxdp_test", Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: 8})
	if err != nil {
		t.Fatal(err)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "afxdp_test", Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 16, asm.Word), // xdp_md.rx_queue_index
			asm.LoadMapPtr(asm.R1, sockets.FD()),
			asm.Mov.Imm(asm.R3, 2), // XDP_PASS
			asm.FnRedirectMap.Call(),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), prog.Close(), sockets.Close()); err != nil {
			t.Error(err)
		}
	})
	return sockets
}

func umem(t *testing.T, frames int) *UMEM {
	t.Helper()
	u, err := NewUMEM(UMEMOptions{Frames: frames, Check: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeUMEM(t, u) })
	return u
}

// end is a worker with one socket and its share of the frames.
type end struct {
	u    *UMEM
	s    *Socket
	pool []uint64
	desc [burst]unix.XDPDesc
	addr [burst]uint64
}

// open opens a socket and puts it into the map, and closes it after the test.
func open(t *testing.T, u *UMEM, ifindex, queue int, sockets *ebpf.Map, o SocketOptions) *end {
	t.Helper()
	s, err := u.Open(context.Background(), ifindex, queue, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if sockets != nil {
		if err := sockets.Put(uint32(queue), uint32(s.FD())); err != nil {
			t.Fatalf("XSKMAP: %v", err)
		}
	}
	return &end{u: u, s: s}
}

// share gives the end the frames from up to, not including, to.
func (e *end) share(from, to int) *end {
	e.pool = append(e.pool, frameAddrs(from, to)...)
	return e
}

// refill keeps keep frames in the pool for sending.
func (e *end) refill(keep int) {
	e.pool = append(e.pool, e.addr[:e.s.Reclaim(e.addr[:])]...)
	if n := min(len(e.pool)-keep, e.s.FillFree(), burst); n > 0 {
		give := e.pool[len(e.pool)-n:]
		e.pool = e.pool[:len(e.pool)-e.s.Fill(give)]
	}
}

// send transmits up to n packets that write makes, and returns how many.
func (e *end) send(n int, write func(frame []byte) int) int {
	d := e.desc[:min(n, len(e.pool), burst)]
	for i := range d {
		a := e.pool[len(e.pool)-1-i] + rxOffset
		d[i] = unix.XDPDesc{Addr: a, Len: uint32(write(e.u.Bytes()[a : a+1600 : a+1600]))}
	}
	sent := e.s.Transmit(d)
	e.pool = e.pool[:len(e.pool)-sent]
	if sent < len(d) {
		panic("test sends more than its TX ring holds")
	}
	return sent
}

// receive hands up to a burst of packets to read and takes their frames.
func (e *end) receive(read func(packet []byte)) int {
	d := e.desc[:e.s.Receive(e.desc[:])]
	for _, x := range d {
		read(e.u.Bytes()[x.Addr : x.Addr+uint64(x.Len)])
		e.pool = append(e.pool, x.Addr&^2047)
	}
	return len(d)
}

// account fails unless every frame of [from, to) is in the pool or with the
// kernel, once.
func (e *end) account(t *testing.T, from, to int) {
	t.Helper()
	got := e.s.Held(slices.Clone(e.pool))
	slices.Sort(got)
	if !slices.Equal(got, frameAddrs(from, to)) {
		t.Errorf("%d frames are left of %d, %d in the pool (%d after removing doubles)",
			len(got), to-from, len(e.pool), len(slices.Compact(got)))
	}
}

// Test packets: Ethernet with a local experimental type, a serial number, and
// bytes that follow from it.
const (
	etherAsk   = 0x88b5
	etherReply = 0x88b6
	payload    = 22
)

func packetLen(serial uint64) int {
	if serial%64 == 0 {
		return 1514
	}
	return 60 + int(serial*7919%200)
}

func writePacket(f []byte, etherType uint16, serial uint64) int {
	n := packetLen(serial)
	copy(f, "\x02l4fwd\x02l4fwd")
	binary.BigEndian.PutUint16(f[12:], etherType)
	binary.BigEndian.PutUint64(f[14:], serial)
	for i := payload; i < n; i++ {
		f[i] = byte(serial) + byte(i)
	}
	return n
}

// readPacket returns the serial number, and whether the packet is whole.
func readPacket(p []byte) (etherType uint16, serial uint64, whole bool) {
	if len(p) < payload {
		return 0, 0, false
	}
	serial = binary.BigEndian.Uint64(p[14:])
	if len(p) != packetLen(serial) {
		return 0, serial, false
	}
	for i := payload; i < len(p); i++ {
		if p[i] != byte(serial)+byte(i) {
			return 0, serial, false
		}
	}
	return binary.BigEndian.Uint16(p[12:]), serial, true
}

// patience bounds a wait on a busy machine.
const patience = 20 * time.Second

// eventually polls ok for as long as patience lasts.
func eventually(ok func() bool) bool {
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		if ok() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// exchange sends count packets from one end to the other and fails unless all of
// them arrive, whole and in order.
func exchange(t *testing.T, from, to *end, count int) {
	t.Helper()
	var sent, got, ack uint64
	if !eventually(func() bool {
		to.refill(64)
		from.refill(64)
		if n := min(count-int(sent), 64-int(sent-got)); n > 0 {
			from.send(n, func(f []byte) int { sent++; return writePacket(f, etherAsk, sent-1) })
		}
		if err := errors.Join(from.s.Kick(), to.s.Kick()); err != nil {
			t.Fatal(err)
		}
		to.receive(func(p []byte) {
			if _, serial, whole := readPacket(p); !whole || serial != got {
				t.Fatalf("packet %d arrived as %d, whole %v", got, serial, whole)
			}
			got++
		})
		ack = got
		return int(ack) == count
	}) {
		t.Fatalf("%d of %d packets arrived", got, count)
	}
}
