package testbed

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 looks for named namespaces.
const netnsDir = "/run/netns"

// namePrefix begins the name of every namespace made here; Sweep trusts it.
const namePrefix = "testbed-"

// errExited is what Do reports of a function that ended its goroutine.
var errExited = errors.New("testbed: function left its namespace by runtime.Goexit (t.Fatal inside Do?)")

// Namespace is a named network namespace with its loopback up. It is safe for
// concurrent use. Whoever made it closes it.
type Namespace struct {
	name string // under /run/netns
	role string // what the caller called it
	file *os.File
	nl   *netlink.Handle

	mu     sync.Mutex
	cmds   map[*Cmd]struct{}
	closed bool
}

// NewNamespace creates a namespace. Its full name, as `ip netns` shows it, is
// testbed-<pid>-<random>-<role>, so that concurrent runs never meet. It needs
// CAP_SYS_ADMIN and CAP_NET_ADMIN.
func NewNamespace(role string) (*Namespace, error) {
	var r [3]byte
	if _, err := rand.Read(r[:]); err != nil {
		return nil, fmt.Errorf("namespace %s: %w", role, err)
	}
	ns := &Namespace{
		name: fmt.Sprintf("%s%d-%s-%s", namePrefix, os.Getpid(), hex.EncodeToString(r[:]), role),
		role: role,
		cmds: make(map[*Cmd]struct{}),
	}
	if err := ns.create(); err != nil {
		return nil, fmt.Errorf("namespace %s: %w", role, err)
	}
	register(ns)
	if err := ns.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("namespace %s: %w", role, err), ns.Close())
	}
	return ns, nil
}

// create makes the namespace on a thread of its own and pins it to a file.
func (ns *Namespace) create() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	path := ns.Path()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	done := make(chan error, 1)
	goLocked(func() { // never unlocked: the thread ends
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("bind mount: %w", err)
			}
			return nil
		}()
	})
	err = <-done
	if err == nil {
		ns.file, err = os.Open(path)
	}
	if err != nil {
		return errors.Join(err, deleteNamed(ns.name))
	}
	return nil
}

// setUp gives a fresh namespace its netlink handle, loopback and sysctls.
func (ns *Namespace) setUp() error {
	err := ns.Do(func() (err error) {
		ns.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	lo, err := ns.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := ns.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	for _, s := range baseSysctls {
		if err := ns.Sysctl(s.key, s.value); err != nil {
			return err
		}
	}
	return nil
}

// baseSysctls make a namespace quiet and predictable: IPv4 settings are copied
// from the host at creation, so what matters is stated.
var baseSysctls = []struct{ key, value string }{
	{"net.ipv4.ip_forward", "0"},
	{"net.ipv6.conf.all.forwarding", "0"},
	{"net.ipv4.conf.all.rp_filter", "0"},
	{"net.ipv4.conf.default.rp_filter", "0"},
	// In one-arm a router tells both sides to talk directly.
	{"net.ipv4.conf.all.accept_redirects", "0"},
	{"net.ipv4.conf.default.accept_redirects", "0"},
	{"net.ipv6.conf.all.accept_redirects", "0"},
	{"net.ipv6.conf.default.accept_redirects", "0"},
	{"net.ipv6.conf.all.accept_dad", "0"},
	{"net.ipv6.conf.default.accept_dad", "0"},
	{"net.ipv6.conf.default.dad_transmits", "0"},
	{"net.ipv6.conf.default.accept_ra", "0"},
	{"net.ipv6.conf.default.router_solicitations", "0"},
	{"net.ipv4.ip_local_port_range", "1024 65000"},
	{"net.ipv4.tcp_tw_reuse", "1"},
	{"net.core.somaxconn", "8192"},
	{"net.core.txrehash", "1"},
}

// Name is the full name, as `ip netns exec` takes it.
func (ns *Namespace) Name() string { return ns.name }

// Role is the name given to NewNamespace.
func (ns *Namespace) Role() string { return ns.role }

// Path is the file that pins the namespace.
func (ns *Namespace) Path() string { return filepath.Join(netnsDir, ns.name) }

// String is Name.
func (ns *Namespace) String() string { return ns.name }

// Netlink is a route netlink handle that lives in the namespace. The namespace
// owns it.
func (ns *Namespace) Netlink() *netlink.Handle { return ns.nl }

// Do runs fn on a thread inside the namespace and returns its error. The thread
// then goes back to where it was; if it cannot, it ends. fn must not start
// goroutines that rely on the namespace, and must not call t.Fatal; a panic of
// fn continues in the caller.
func (ns *Namespace) Do(fn func() error) error {
	type outcome struct {
		err      error
		panicked any
	}
	done := make(chan outcome, 1)
	goLocked(func() {
		out := outcome{err: errExited}
		defer func() { done <- out }()
		restore, err := ns.enter()
		if err != nil {
			out.err = err
			runtime.UnlockOSThread()
			return
		}
		defer func() {
			if r := recover(); r != nil {
				out.panicked = r
			}
			if err := restore(); err != nil {
				out.err = errors.Join(out.err, err)
				return // still locked: the thread ends here
			}
			runtime.UnlockOSThread()
		}()
		out.err = fn()
	})
	out := <-done
	if out.panicked != nil {
		panic(out.panicked)
	}
	return out.err
}

// enter moves the calling, locked thread into the namespace.
func (ns *Namespace) enter() (restore func() error, err error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("own namespace: %w", err)
	}
	if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, errors.Join(fmt.Errorf("enter %s: %w", ns.name, err), home.Close())
	}
	return func() error {
		err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
		if err != nil {
			err = fmt.Errorf("leave %s: %w", ns.name, err)
		}
		return errors.Join(err, home.Close())
	}, nil
}

// Sysctl writes a value to a key below net, "net.ipv4.ip_forward" for example.
// A key with a slash in it is taken as a path already ("net/ipv4/conf/a.b/x").
func (ns *Namespace) Sysctl(key, value string) error {
	err := ns.Do(func() error { return os.WriteFile(sysctlPath(key), []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", key, value, err)
	}
	return nil
}

// ReadSysctl reads the value of a key, see Sysctl.
func (ns *Namespace) ReadSysctl(key string) (string, error) {
	var b []byte
	err := ns.Do(func() (err error) {
		b, err = os.ReadFile(sysctlPath(key))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", key, err)
	}
	return string(bytes.TrimSpace(b)), nil
}

func sysctlPath(key string) string {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return filepath.Join("/proc/sys", key)
}

// Close kills the processes started by Command that still run, removes the
// links and deletes the namespace. Closing twice is harmless.
func (ns *Namespace) Close() error {
	ns.mu.Lock()
	if ns.closed {
		ns.mu.Unlock()
		return nil
	}
	ns.closed = true
	cmds := make([]*Cmd, 0, len(ns.cmds))
	for c := range ns.cmds {
		cmds = append(cmds, c)
	}
	ns.mu.Unlock()
	for _, c := range cmds {
		c.reap()
	}
	var errs []error
	if ns.nl != nil {
		// The kernel takes a namespace apart some time after its last user is
		// gone; a peer in another namespace would keep its link until then.
		errs = append(errs, ns.deleteLinks())
		ns.nl.Close()
	}
	errs = append(errs, ns.file.Close(), deleteNamed(ns.name))
	unregister(ns)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close namespace %s: %w", ns.name, err)
	}
	return nil
}

func (ns *Namespace) deleteLinks() error {
	links, err := ns.nl.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		switch l.Type() {
		case "veth", "bridge":
			// Gone already when its peer was deleted.
			if err := ns.nl.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("delete %s: %w", l.Attrs().Name, err)
			}
		}
	}
	return nil
}

// deleteNamed unpins a named namespace.
func deleteNamed(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// makerOf returns the pid in a namespace's name, 0 if it is none of ours.
func makerOf(name string) int {
	rest, ours := strings.CutPrefix(name, namePrefix)
	if !ours {
		return 0
	}
	digits, _, found := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(digits)
	if !found || err != nil || pid <= 0 {
		return 0
	}
	return pid
}
