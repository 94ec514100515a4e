package nic

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

// space is a namespace that processes can find by name, with a veth pair
// "nic0"/"nic1" of 4 queues in it.
func space(t *testing.T) netns.NsHandle {
	t.Helper()
	name := fmt.Sprintf("nic-%d-%d", os.Getpid(), time.Now().UnixNano())
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	must(t, err)
	defer home.Close()
	ns, err := netns.NewNamed(name)
	must(t, netns.Set(home))
	must(t, err)
	t.Cleanup(func() {
		ns.Close()
		if err := netns.DeleteNamed(name); err != nil {
			t.Error(err)
		}
	})
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, err)
	defer h.Close()
	addPair(t, h)
	return ns
}

func addPair(t *testing.T, h *netlink.Handle) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.NumRxQueues, attrs.NumTxQueues, attrs.MTU = "nic0", 4, 4, 1400
	must(t, h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "nic1"}))
	for _, name := range []string{"nic0", "nic1"} {
		l, err := h.LinkByName(name)
		must(t, err)
		must(t, h.LinkSetUp(l))
	}
}

// values reads what the device really has.
func values(t *testing.T, ns netns.NsHandle) map[string]string {
	t.Helper()
	out := map[string]string{}
	must(t, within(ns, func() error {
		l, err := netlink.LinkByName("nic0")
		if err != nil {
			return err
		}
		h, err := openHardware("nic0", l.Attrs().Index, "")
		if err != nil {
			return err
		}
		defer h.close()
		for _, k := range allKnobs {
			v, err := h.read(k)
			if errors.Is(err, errNoKnob) {
				continue
			}
			if err != nil {
				return err
			}
			out[k.Key] = v
		}
		return nil
	}))
	return out
}

var (
	want     = Settings{KeepVLANTags: true, NoLRO: true, BusyPoll: &BusyPoll{2, 200 * time.Microsecond}}
	changed  = map[string]string{"rx-vlan-hw-parse": "off", "rx-vlan-stag-hw-parse": "off", "rx-lro": "off", "rx-vlan-filter": "off", "napi_defer_hard_irqs": "2", "gro_flush_timeout": "200000"}
	original = map[string]string{"rx-vlan-hw-parse": "on", "rx-vlan-stag-hw-parse": "on", "rx-lro": "off", "rx-vlan-filter": "off", "napi_defer_hard_irqs": "0", "gro_flush_timeout": "0"}
)

func check(t *testing.T, ns netns.NsHandle, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, values(t, ns)); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	out, err := filepath.Glob(filepath.Join(dir, "*.json"))
	must(t, err)
	return out
}

func apply(t *testing.T, ns netns.NsHandle, dir string) *Applied {
	t.Helper()
	a, err := Apply("nic0", want, Options{Dir: dir, Namespace: ns})
	must(t, err)
	if len(a.Problems) != 0 {
		t.Errorf("problems: %v", a.Problems)
	}
	return a
}

// crashed changes the settings and leaves a journal of nobody's, with a change of its own.
func crashed(t *testing.T, ns netns.NsHandle, dir string, change func(*journal)) {
	t.Helper()
	apply(t, ns, dir)
	path := files(t, dir)[0]
	j, err := load(path)
	must(t, err)
	must(t, os.Remove(path))
	j.Owner = "another"
	change(j)
	must(t, j.save(dir))
}

// crash makes the journals look like those of a process that is no more.
func crash(t *testing.T, dir string) {
	t.Helper()
	for _, path := range files(t, dir) {
		j, err := load(path)
		must(t, err)
		j.Owner = "another"
		must(t, j.save(dir))
	}
}

func TestApplyAndRestore(t *testing.T) {
	ns, dir := space(t), filepath.Join(t.TempDir(), "l4fwd")
	check(t, ns, original)
	a := apply(t, ns, dir)
	check(t, ns, changed)
	if len(files(t, dir)) != 1 {
		t.Errorf("journals: %v", files(t, dir))
	}
	if repaired, err := Repair(Options{Dir: dir}); len(repaired) != 0 || err != nil {
		t.Errorf("Repair of a living process's: %v, %v", repaired, err)
	}
	check(t, ns, changed)
	must(t, a.Restore())
	must(t, a.Restore())
	check(t, ns, original)
	if len(files(t, dir)) != 0 {
		t.Errorf("journals remain: %v", files(t, dir))
	}
}

// Settings that are added go back with the others, also after a crash.
func TestAdd(t *testing.T) {
	ns, dir := space(t), t.TempDir()
	begin := func(s Settings) *Applied {
		a, err := Apply("nic0", s, Options{Dir: dir, Namespace: ns})
		must(t, err)
		return a
	}
	for name, s := range map[string]Settings{"to some": {KeepVLANTags: true, NoLRO: true}, "to none": {NoLRO: true}} {
		t.Run(name, func(t *testing.T) {
			a := begin(s)
			must(t, a.Add(want))
			if len(a.Problems) != 0 {
				t.Errorf("problems: %v", a.Problems)
			}
			check(t, ns, changed)
			must(t, a.Restore())
			check(t, ns, original)
			if len(files(t, dir)) != 0 {
				t.Errorf("journals remain: %v", files(t, dir))
			}
		})
	}
	must(t, begin(Settings{}).Add(want))
	crash(t, dir)
	if repaired, err := Repair(Options{Dir: dir}); err != nil || !cmp.Equal(repaired, []string{"nic0"}) {
		t.Errorf("repaired %v, %v", repaired, err)
	}
	check(t, ns, original)
}

func TestRepairAfterCrash(t *testing.T) {
	ns, dir := space(t), t.TempDir()
	apply(t, ns, dir)
	crash(t, dir)
	repaired, err := Repair(Options{Dir: dir})
	if err != nil || !cmp.Equal(repaired, []string{"nic0"}) || len(files(t, dir)) != 0 {
		t.Errorf("repaired %v, %v; journals %v", repaired, err, files(t, dir))
	}
	check(t, ns, original)
}

func TestStartAfterCrash(t *testing.T) {
	ns, dir := space(t), t.TempDir()
	apply(t, ns, dir)
	crash(t, dir)
	a := apply(t, ns, dir)
	check(t, ns, changed)
	must(t, a.Restore())
	check(t, ns, original)
}

// TestInUse: a process in a container, where its ID is one that here is another's or
// nobody's, keeps what it has changed until it ends, however that is.
func TestInUse(t *testing.T) {
	ns, dir := space(t), t.TempDir()
	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", os.Args[0], "-test.run", "^TestInContainer$")
	cmd.Env = append(os.Environ(), "NIC_TEST_DIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, within(ns, cmd.Start))
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "applied by 1\n" {
		t.Errorf("the other process: %q, %v", line, err)
	}
	if _, err := Apply("nic0", want, Options{Dir: dir, Namespace: ns}); !errors.Is(err, ErrInUse) {
		t.Errorf("Apply: %v", err)
	}
	if repaired, err := Repair(Options{Dir: dir}); len(repaired) != 0 || err != nil {
		t.Errorf("Repair of a living process's: %v, %v", repaired, err)
	}
	check(t, ns, changed)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()                                                                // killed
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // it ends after who started it
		repaired, err := Repair(Options{Dir: dir})
		must(t, err)
		if cmp.Equal(repaired, []string{"nic0"}) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing is put back")
		}
	}
	check(t, ns, original)
}

// TestInContainer is the other process of TestInUse.
func TestInContainer(t *testing.T) {
	dir := os.Getenv("NIC_TEST_DIR")
	if dir == "" {
		return
	}
	_, err := Apply("nic0", want, Options{Dir: dir})
	must(t, err)
	fmt.Println("applied by", os.Getpid())
	select {}
}

func TestInterfaceMadeAgain(t *testing.T) {
	ns, dir := space(t), t.TempDir()
	a := apply(t, ns, dir)
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	must(t, err)
	defer h.Close()
	l, err := h.LinkByName("nic0")
	must(t, err)
	must(t, h.LinkDel(l))
	if err := a.Restore(); err != nil || len(files(t, dir)) != 0 {
		t.Errorf("Restore without the interface: %v, journals %v", err, files(t, dir))
	}
	addPair(t, h)
	a = apply(t, ns, dir)
	l, err = h.LinkByName("nic0")
	must(t, err)
	must(t, h.LinkDel(l))
	addPair(t, h)
	if err := a.Restore(); err != nil || len(files(t, dir)) != 0 {
		t.Errorf("Restore with another interface: %v, journals %v", err, files(t, dir))
	}
	check(t, ns, original)
}

// TestRenamed: an interface has its settings back under whatever name it has by then, and
// another that has its name by then keeps its own.
func TestRenamed(t *testing.T) {
	for how, end := range map[string]func(dir string, a *Applied) error{
		"at the end": func(_ string, a *Applied) error { return a.Restore() },
		"after a crash": func(dir string, _ *Applied) error {
			crash(t, dir)
			_, err := Repair(Options{Dir: dir})
			return err
		},
	} {
		t.Run(how, func(t *testing.T) {
			ns, dir := space(t), t.TempDir()
			h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
			must(t, err)
			defer h.Close()
			rename := func(from, to string) {
				l, err := h.LinkByName(from)
				must(t, err)
				must(t, h.LinkSetDown(l)) // kernels before 6.2 want that
				must(t, h.LinkSetName(l, to))
				must(t, h.LinkSetUp(l))
			}
			a := apply(t, ns, dir)
			rename("nic0", "lan0")
			rename("nic1", "nic0")
			must(t, within(ns, func() error { // as if it were ours
				l, err := netlink.LinkByName("nic0")
				must(t, err)
				dev, err := openHardware("nic0", l.Attrs().Index, "")
				must(t, err)
				defer dev.close()
				return dev.write(vlanStripping, "off")
			}))
			must(t, end(dir, a))
			if values(t, ns)[vlanStripping.Key] != "off" {
				t.Error("another interface of that name was changed")
			}
			rename("nic0", "nic1")
			rename("lan0", "nic0")
			check(t, ns, original)
			if len(files(t, dir)) != 0 {
				t.Errorf("journals remain: %v", files(t, dir))
			}
		})
	}
}

// TestLentAndReturned: a NIC that was lent to a namespace comes back when that ends, with
// what a crash has left changed, and perhaps another name and index.
func TestLentAndReturned(t *testing.T) {
	const mac = "02:00:00:00:00:09"
	for _, row := range []struct {
		name, bus string // that the journal has
		here      map[string]string
		restored  bool
	}{
		{"nic0", "0000:01:00.0", map[string]string{"nic0": "0000:01:00.0"}, true},
		{"lan7", "0000:01:00.0", map[string]string{"nic0": "0000:01:00.0", "nic1": "0000:02:00.0"}, true},
		{"nic0", "0000:01:00.0", map[string]string{"nic0": "0000:02:00.0"}, false},
		{"nic0", "", map[string]string{"nic0": "0000:01:00.0", "nic1": ""}, true}, // of an older version
		{"lan7", "", map[string]string{"nic0": ""}, false},
	} {
		t.Run(row.name+" "+row.bus, func(t *testing.T) {
			ns, dir := space(t), t.TempDir()
			opt := Options{Dir: dir, ident: func(l *netlink.LinkAttrs) (string, string) {
				if bus, ok := row.here[l.Name]; ok {
					return mac, bus
				}
				return "", ""
			}}
			crashed(t, ns, dir, func(j *journal) {
				j.Name, j.Index, j.PermMAC, j.Bus, j.Namespace = row.name, 4711, mac, row.bus, 1 // no namespace has this inode
			})
			must(t, within(ns, func() error {
				repaired, err := Repair(opt)
				if !cmp.Equal(repaired, []string{row.name}) {
					t.Errorf("repaired %v", repaired)
				}
				return err
			}))
			want := original
			if !row.restored {
				want = changed
			}
			check(t, ns, want)
			if len(files(t, dir)) != 0 {
				t.Errorf("journals remain: %v", files(t, dir))
			}
		})
	}
}

// TestReturnedInUse: what somebody has in use by now is left to him.
func TestReturnedInUse(t *testing.T) {
	ns, dir := space(t), t.TempDir()
	opt := Options{Dir: dir, Namespace: ns, ident: func(l *netlink.LinkAttrs) (string, string) { return l.Name, l.Name }}
	crashed(t, ns, dir, func(j *journal) { j.PermMAC, j.Bus, j.Namespace = "nic0", "nic0", 1 })
	a, err := Apply("nic0", Settings{BusyPoll: &BusyPoll{3, time.Millisecond}}, opt)
	must(t, err)
	must(t, within(ns, func() error {
		if repaired, err := Repair(opt); len(repaired) != 0 || !errors.Is(err, ErrInUse) || len(files(t, dir)) != 2 {
			t.Errorf("repaired %v, %v; journals %v", repaired, err, files(t, dir))
		}
		if err := a.Restore(); err != nil {
			return err
		}
		_, err := Repair(opt)
		return err
	}))
	check(t, ns, original)
}

// TestRenamedInUse: so is what he uses by another name than the journal has.
func TestRenamedInUse(t *testing.T) {
	ns, dir := space(t), t.TempDir()
	opt := Options{Dir: dir, Namespace: ns}
	crashed(t, ns, dir, func(j *journal) { j.Name = "old0" })
	a, err := Apply("nic0", Settings{BusyPoll: &BusyPoll{3, time.Millisecond}}, opt)
	must(t, err)
	must(t, within(ns, func() error {
		if repaired, err := Repair(opt); len(repaired) != 0 || !errors.Is(err, ErrInUse) || len(files(t, dir)) != 2 {
			t.Errorf("repaired %v, %v; journals %v", repaired, err, files(t, dir))
		}
		if err := a.Restore(); err != nil {
			return err
		}
		_, err := Repair(opt)
		return err
	}))
	check(t, ns, original)
}

// confined runs f on a thread of its own in the namespace, but with the machine's /sys, as
// after nsenter --net, and without some capabilities.
func confined(t *testing.T, ns netns.NsHandle, f func() error, caps ...uint) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := netns.Set(ns)
		if err == nil {
			err = unix.Capget(&head, &data[0])
		}
		for _, c := range caps {
			data[c/32].Effective &^= 1 << (c % 32)
			data[c/32].Permitted &^= 1 << (c % 32)
		}
		if err == nil {
			err = unix.Capset(&head, &data[0])
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	must(t, <-done)
}

// TestRestoreConfined: who gives up CAP_SYS_ADMIN, as run does when it is ready, puts
// everything back nevertheless.
func TestRestoreConfined(t *testing.T) {
	ns, dir := space(t), t.TempDir()
	var a *Applied
	must(t, within(ns, func() (err error) {
		a, err = Apply("nic0", Settings{KeepVLANTags: true}, Options{Dir: dir})
		return err
	}))
	confined(t, ns, func() error { return a.Add(want) }, unix.CAP_SYS_ADMIN)
	check(t, ns, changed)
	confined(t, ns, func() error { return a.Restore() }, unix.CAP_SYS_ADMIN)
	check(t, ns, original)
	must(t, a.Restore())
}

// TestHiddenNamespace: what cannot be put back for want of capabilities is not taken for
// gone, and is put back by who has them.
func TestHiddenNamespace(t *testing.T) {
	home, err := netns.Get()
	must(t, err)
	defer home.Close()
	for _, row := range []struct {
		name, err string
		lacks     []uint
	}{
		{"not to be entered", "entering a network namespace: operation not permitted", []uint{unix.CAP_SYS_ADMIN}},
		{"not to be found", "its network namespace may still be there: ", []uint{unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE}},
	} {
		t.Run(row.name, func(t *testing.T) {
			ns, dir := space(t), t.TempDir()
			crashed(t, ns, dir, func(j *journal) {
				if slices.Contains(row.lacks, unix.CAP_SYS_PTRACE) {
					j.Namespace = 1 // no namespace has this inode
				}
			})
			confined(t, home, func() error {
				repaired, err := Repair(Options{Dir: dir})
				if err == nil || !strings.Contains(err.Error(), "the settings of nic0 stay changed: "+row.err) || !strings.Contains(err.Error(), "run `l4fwd cleanup` as root with all capabilities") {
					t.Errorf("%v", err)
				}
				if len(repaired) != 0 || len(files(t, dir)) != 1 {
					t.Errorf("repaired %v, journals %v", repaired, files(t, dir))
				}
				return nil
			}, row.lacks...)
			check(t, ns, changed)
			repaired, err := Repair(Options{Dir: dir})
			if err != nil || !cmp.Equal(repaired, []string{"nic0"}) || len(files(t, dir)) != 0 {
				t.Errorf("repaired %v, %v; journals %v", repaired, err, files(t, dir))
			}
		})
	}
}

// TestAnotherPIDNamespace: from within a container not all namespaces are seen.
func TestAnotherPIDNamespace(t *testing.T) {
	if dir := os.Getenv("NIC_TEST_VOID"); dir != "" {
		_, err := Repair(Options{Dir: dir})
		if !errors.Is(err, errHidden) || !strings.Contains(err.Error(), "processes outside this container are not seen") || len(files(t, dir)) != 1 {
			t.Errorf("%v; journals %v", err, files(t, dir))
		}
		return
	}
	dir, j := t.TempDir(), freshJournal()
	j.Namespace, j.Owner, j.Changes = 1, "another", []change{{lro, "on", "off"}}
	must(t, j.save(dir))
	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", os.Args[0], "-test.run", "^TestAnotherPIDNamespace$")
	cmd.Env = append(os.Environ(), "NIC_TEST_VOID="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestVoidJournals(t *testing.T) {
	dir := t.TempDir()
	gone, old := freshJournal(), freshJournal()
	gone.Owner = "another"
	gone.Namespace = 1 // no namespace has this inode
	old.Name, old.Boot, old.Owner = "eth8", "another boot", "another"
	for _, j := range []*journal{gone, old} {
		j.Changes = []change{{lro, "on", "off"}}
		must(t, j.save(dir))
	}
	bad := filepath.Join(dir, "bad@1.json")
	must(t, os.WriteFile(bad, []byte("{"), 0o600))
	repaired, err := Repair(Options{Dir: dir})
	if !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), "it is "+bad+aside+" now") || len(repaired) != 2 || len(files(t, dir)) != 0 {
		t.Errorf("repaired %v, %v; journals %v", repaired, err, files(t, dir))
	}
	if _, err := os.Stat(bad + aside); err != nil {
		t.Error(err)
	}
	if repaired, err := Repair(Options{Dir: dir}); err != nil || len(repaired) != 0 {
		t.Errorf("again: repaired %v, %v", repaired, err)
	}
}

// later adds to a journal what only a later version knows.
func later(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	b = bytes.Replace(b, []byte(`"changes": [`), []byte(`"changes": [{"kind": "feature", "key": "rx-hashing", "old": "on", "new": "off"},`), 1)
	must(t, os.WriteFile(path, b, 0o600)) // in place: who has it locked keeps it
}

// TestUnreadableJournal: what cannot be read neither keeps anybody from starting nor from
// cleaning up, and what can be read of it is put back.
func TestUnreadableJournal(t *testing.T) {
	ns, dir := space(t), t.TempDir()
	core, logs := observer.New(zap.ErrorLevel)
	begin := func() *Applied {
		a, err := Apply("nic0", Settings{NoLRO: true}, Options{Dir: dir, Namespace: ns, Log: zap.New(core)})
		must(t, err)
		return a
	}
	apply(t, ns, dir)
	path := files(t, dir)[0]
	crash(t, dir)
	later(t, path)
	a := begin()
	check(t, ns, original)
	must(t, a.Restore())
	if said := logs.TakeAll(); len(said) != 1 || said[0].ContextMap()["kept"] != path+aside || !strings.Contains(fmt.Sprint(said[0].ContextMap()["error"]), "rx-hashing") {
		t.Errorf("log: %v", said)
	}

	apply(t, ns, dir)
	crash(t, dir)
	later(t, path)
	repaired, err := Repair(Options{Dir: dir})
	if !errors.Is(err, ErrUnreadable) || !cmp.Equal(repaired, []string{"nic0"}) || len(files(t, dir)) != 0 {
		t.Errorf("repaired %v, %v; journals %v", repaired, err, files(t, dir))
	}
	check(t, ns, original)

	must(t, os.WriteFile(path, []byte("{"), 0o600))
	must(t, begin().Restore())
	if said := logs.TakeAll(); len(said) != 1 || len(files(t, dir)) != 0 {
		t.Errorf("log: %v; journals %v", said, files(t, dir))
	}

	must(t, os.WriteFile(path, []byte("{"), 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, flock(f, unix.LOCK_EX))
	if _, err := Apply("nic0", want, Options{Dir: dir, Namespace: ns}); !errors.Is(err, ErrInUse) {
		t.Errorf("Apply beside who has the journal: %v", err)
	}
	if repaired, err := Repair(Options{Dir: dir}); len(repaired) != 0 || err != nil || len(files(t, dir)) != 1 {
		t.Errorf("Repair of a living process's: %v, %v; journals %v", repaired, err, files(t, dir))
	}
}

func TestReadInfo(t *testing.T) {
	ns := space(t)
	info, err := ReadInfo(ns, "nic0")
	must(t, err)
	got := *info
	got.Index, got.MAC = 0, nil
	if diff := cmp.Diff(Info{Name: "nic0", Driver: "veth", MTU: 1400, RXQueues: 4, TXQueues: 4, MaxRX: 4, MaxTX: 4}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if info.Index == 0 || len(info.MAC) != 6 {
		t.Errorf("%+v", info)
	}
	var missing netlink.LinkNotFoundError
	if _, err := ReadInfo(ns, "absent0"); !errors.As(err, &missing) {
		t.Errorf("an interface that is not there: %v", err)
	}
	if _, err := Apply("absent0", want, Options{Dir: t.TempDir(), Namespace: ns}); !errors.As(err, &missing) {
		t.Errorf("settings of an interface that is not there: %v", err)
	}
}
