package steer

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary attach to the interface it names and wait to
// be killed, see TestKillDetaches.
const childEnv = "L4FWD_STEER_TEST_ATTACH"

func TestMain(m *testing.M) {
	if v := os.Getenv(childEnv); v != "" {
		if err := child(v); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func child(arg string) error {
	runtime.LockOSThread()
	ifindex, err := strconv.Atoi(arg)
	if err != nil {
		return err
	}
	s, err := Load(Options{})
	if err != nil {
		return err
	}
	if _, err := s.Attach(ifindex, nicMAC, Auto); err != nil {
		return err
	}
	fmt.Println("attached")
	time.Sleep(time.Minute) // the parent kills us long before
	return errors.New("not killed")
}

// attached reports how the kernel says a program is attached to ifindex.
func attached(t *testing.T, ifindex int) Mode {
	t.Helper()
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		t.Fatal(err)
	}
	xdp := l.Attrs().Xdp
	if xdp == nil || !xdp.Attached {
		return Auto
	}
	return Mode(xdp.AttachMode) // 1 driver, 2 generic
}

func TestAttachModes(t *testing.T) {
	enterNamespace(t)
	veth, _ := newVeth(t, 1500)
	const lo = 1 // of this namespace; it has generic XDP only
	s := load(t, Options{})
	cases := map[string]struct {
		ifindex int
		ask     Mode
		want    Mode
		notes   int
		err     error
	}{
		"veth auto":    {veth.Attrs().Index, Auto, Native, 0, nil},
		"veth native":  {veth.Attrs().Index, Native, Native, 0, nil},
		"veth generic": {veth.Attrs().Index, Generic, Generic, 0, nil},
		"lo auto":      {lo, Auto, Generic, 1, nil},
		"lo native":    {lo, Native, Auto, 0, ErrUnsupported},
		"no such mode": {veth.Attrs().Index, 7, Auto, 0, ErrUnsupported},
		"no interface": {99999, Auto, Auto, 0, ErrNoInterface},
	}
	for name, c := range cases {
		n, err := s.Attach(c.ifindex, nicMAC, c.ask)
		if c.err != nil {
			if !errors.Is(err, c.err) {
				t.Errorf("%s: %v, want %v", name, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if n.Mode() != c.want || attached(t, c.ifindex) != c.want {
			t.Errorf("%s: %s, the kernel says %s, want %s", name, n.Mode(), attached(t, c.ifindex), c.want)
		}
		if len(n.Notes) != c.notes {
			t.Errorf("%s: notes %q, want %d", name, n.Notes, c.notes)
		}
		if on, err := n.Attached(); !on || err != nil {
			t.Errorf("%s: Attached %v, %v", name, on, err)
		}
		for range 2 { // twice does no harm
			if err := n.Close(); err != nil {
				t.Errorf("%s: Close: %v", name, err)
			}
		}
		if got := attached(t, c.ifindex); got != Auto {
			t.Errorf("%s: still attached after Close: %s", name, got)
		}
	}
}

// TestAutoFallsBack: a veth whose peer has a huge MTU refuses native XDP.
func TestAutoFallsBack(t *testing.T) {
	enterNamespace(t)
	veth, _ := newVeth(t, 9000)
	s := load(t, Options{})
	n, err := s.Attach(veth.Attrs().Index, nicMAC, Auto)
	if err != nil {
		t.Fatal(err)
	}
	if n.Mode() != Generic || len(n.Notes) != 1 || !strings.Contains(n.Notes[0], "MTU") {
		t.Errorf("mode %s, notes %q; want generic and a note about the MTU", n.Mode(), n.Notes)
	}
}

// TestCloseDetachesAll: Close of the maps' owner detaches every NIC.
func TestCloseDetachesAll(t *testing.T) {
	enterNamespace(t)
	a, b := newVeth(t, 1500)
	s, err := Load(Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []netlink.Link{a, b} {
		if _, err := s.Attach(l.Attrs().Index, l.Attrs().HardwareAddr, Auto); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, l := range []netlink.Link{a, b} {
		if got := attached(t, l.Attrs().Index); got != Auto {
			t.Errorf("%s still has a program: %s", l.Attrs().Name, got)
		}
	}
}

// stranger loads a program of somebody else.
func stranger(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "stranger", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// TestAttachedAlready: whatever is attached, and however, is named and left.
func TestAttachedAlready(t *testing.T) {
	for _, mode := range []Mode{Native, Generic} {
		for _, byLink := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s link=%v", mode, byLink), func(t *testing.T) {
				enterNamespace(t)
				veth, _ := newVeth(t, 1500)
				p := stranger(t)
				flags := link.XDPDriverMode
				if mode == Generic {
					flags = link.XDPGenericMode
				}
				ifindex := veth.Attrs().Index
				if byLink {
					l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: ifindex, Flags: flags})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = l.Close() })
				} else if err := netlink.LinkSetXdpFdWithFlags(veth, p.FD(), int(flags)); err != nil {
					t.Fatal(err)
				}
				info, err := p.Info()
				if err != nil {
					t.Fatal(err)
				}
				id, _ := info.ID()
				s := load(t, Options{})
				for _, ask := range []Mode{Auto, Native, Generic} {
					checkAttached(t, s, ifindex, ask, AttachedError{Interface: veth.Attrs().Name, Mode: mode, ProgramID: uint32(id), Program: "stranger"}, byLink)
				}
				// The same when it slips in between our look and our attempt.
				n := &NIC{steer: s}
				if err := n.load(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = n.objs.Close() })
				if err := n.attach(ifindex, veth.Attrs().Name, Auto); !errors.Is(err, ErrAttached) {
					t.Errorf("race: %v, want %v", err, ErrAttached)
				}
				if got := attached(t, ifindex); got != mode {
					t.Errorf("the stranger is gone: %s", got)
				}
			})
		}
	}
}

func checkAttached(t *testing.T, s *Steer, ifindex int, ask Mode, want AttachedError, byLink bool) {
	t.Helper()
	_, err := s.Attach(ifindex, nicMAC, ask)
	var got *AttachedError
	if !errors.Is(err, ErrAttached) || !errors.As(err, &got) {
		t.Fatalf("asked for %s: %v, want an AttachedError", ask, err)
	}
	if (got.LinkID != 0) != byLink {
		t.Errorf("link id %d, by link: %v", got.LinkID, byLink)
	}
	remove := "ip link set dev"
	if byLink {
		remove = "bpftool link detach id"
	}
	if !strings.Contains(err.Error(), remove) || !strings.Contains(err.Error(), "stranger") {
		t.Errorf("message does not help: %v", err)
	}
	want.LinkID = got.LinkID
	if *got != want {
		t.Errorf("asked for %s: %+v, want %+v", ask, *got, want)
	}
}

// TestTwoOfUs: a second l4fwd on the same NIC is told of the first.
func TestTwoOfUs(t *testing.T) {
	enterNamespace(t)
	veth, _ := newVeth(t, 1500)
	first, second := load(t, Options{}), load(t, Options{})
	if _, err := first.Attach(veth.Attrs().Index, nicMAC, Auto); err != nil {
		t.Fatal(err)
	}
	_, err := second.Attach(veth.Attrs().Index, nicMAC, Auto)
	var got *AttachedError
	if !errors.As(err, &got) || got.Program != "l4fwd_steer" || got.LinkID == 0 {
		t.Errorf("%v, want an AttachedError that names l4fwd_steer and its link", err)
	}
}

// TestInterfaceGone: a deleted interface is noticed, Close still works, and a
// new one of the same name can be attached to.
func TestInterfaceGone(t *testing.T) {
	enterNamespace(t)
	s := load(t, Options{})
	for range 3 {
		veth, _ := newVeth(t, 1500)
		n, err := s.Attach(veth.Attrs().Index, nicMAC, Auto)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkDel(veth); err != nil {
			t.Fatal(err)
		}
		if on, err := n.Attached(); on || err != nil {
			t.Errorf("after deletion: Attached %v, %v", on, err)
		}
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}

// TestKillDetaches: kill -9 of the process that attached leaves a clean NIC.
func TestKillDetaches(t *testing.T) {
	enterNamespace(t)
	veth, _ := newVeth(t, 1500)
	ifindex := veth.Attrs().Index
	// The child inherits the namespace of this locked thread.
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", childEnv, ifindex))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "attached\n" {
		_ = cmd.Process.Kill()
		t.Fatalf("child: %q, %v, %s", line, err, &stderr)
	}
	if got := attached(t, ifindex); got != Native {
		t.Errorf("child attached: %s", got)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for range 2000 {
		if attached(t, ifindex) == Auto {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("still attached 20 s after the process was killed")
}

// TestPermission: without capabilities the error says what is missing.
func TestPermission(t *testing.T) {
	out, err := exec.Command("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all",
		os.Args[0], "-test.run=^TestPermissionChild$", "-test.v").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !bytes.Contains(out, []byte("child saw: "+ErrPermission.Error())) {
		t.Errorf("child said: %s", out)
	}
}

// TestPermissionChild is run by TestPermission without capabilities; with them
// it has nothing to show.
func TestPermissionChild(t *testing.T) {
	s, err := Load(Options{})
	if err == nil {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		return
	}
	if !errors.Is(err, ErrPermission) {
		t.Errorf("%v, want %v", err, ErrPermission)
	}
	t.Logf("child saw: %v", err)
}

// TestQueues: sockets go into slots that exist, and only sockets.
func TestQueues(t *testing.T) {
	b := newBench(t, Options{MaxQueues: 2})
	if err := b.nic.SetSocket(1, b.x.fd); err != nil {
		t.Errorf("slot 1: %v", err)
	}
	for _, q := range []int{-1, 2} {
		if err := b.nic.SetSocket(q, b.x.fd); !errors.Is(err, ErrQueue) {
			t.Errorf("SetSocket(%d): %v, want %v", q, err, ErrQueue)
		}
	}
	if err := b.nic.SetSocket(0, 0); err == nil {
		t.Error("file descriptor 0 accepted as AF_XDP socket")
	}
}

// TestTraffic sends real frames over a veth pair in both modes: what is ours
// arrives at the socket unchanged, the rest in the kernel.
func TestTraffic(t *testing.T) {
	for _, mode := range []Mode{Native, Generic} {
		t.Run(mode.String(), func(t *testing.T) {
			enterNamespace(t)
			a, peer := newVeth(t, 1500)
			s := load(t, Options{})
			if err := s.Update(testRules()); err != nil {
				t.Fatal(err)
			}
			n, err := s.Attach(a.Attrs().Index, nil, mode)
			if err != nil {
				t.Fatal(err)
			}
			var sockets []*xsk
			for q := range vethQueues {
				x := newXSK(t, a.Attrs().Index, q)
				if err := n.SetSocket(q, x.fd); err != nil {
					t.Fatal(err)
				}
				sockets = append(sockets, x)
			}
			out := packetSocket(t, peer.Attrs().Index)
			var ours [][]byte
			for _, f := range families {
				for _, d := range f.addressed(t) {
					if d.want == PassForeignMAC || d.frame[0] == 0xff {
						continue
					}
					copy(d.frame, a.Attrs().HardwareAddr)
					if d.want >= TakeAddress {
						ours = append(ours, d.frame)
					}
					if err := unix.Send(out, d.frame, 0); err != nil {
						t.Fatal(err)
					}
				}
			}
			got, err := await(len(ours), sockets...)
			if err != nil {
				st, _ := n.Stats()
				t.Fatalf("%v; counters %v", err, st)
			}
			slices.SortFunc(got, bytes.Compare)
			slices.SortFunc(ours, bytes.Compare)
			if diff := cmp.Diff(ours, got); diff != "" {
				t.Errorf("frames (-sent +received):\n%s", diff)
			}
			st, err := n.Stats()
			if err != nil {
				t.Fatal(err)
			}
			taken := st[TakeAddress] + st[TakeService] + st[TakeRange] + st[TakeReturn] + st[TakeICMPError] + st[TakeNeighbour]
			passed := st[PassOther] + st[PassForeignMAC] + st[PassMalformed] + st[PassFragment]
			if taken != uint64(len(ours)) || st[DropNoSocket] != 0 || passed == 0 {
				t.Errorf("redirected %d of %d, passed %d: %v", taken, len(ours), passed, st)
			}
		})
	}
}

// packetSocket returns a socket that sends raw frames.
func packetSocket(t *testing.T, ifindex int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifindex}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestCounterNames: every outcome has a name, and only one.
func TestCounterNames(t *testing.T) {
	seen := make(map[string]bool)
	for c := range Counter(NumCounters) {
		name := c.String()
		if name == "" || seen[name] {
			t.Errorf("counter %d has the name %q", c, name)
		}
		seen[name] = true
	}
}
