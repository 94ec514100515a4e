package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// attached are the devices that have an XDP program.
func attached(t *testing.T, ns *testbed.Namespace, devices []string) (on []string) {
	t.Helper()
	for _, name := range devices {
		link, err := ns.Netlink().LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if x := link.Attrs().Xdp; x != nil && x.Attached {
			on = append(on, name)
		}
	}
	return on
}

// condition is what l4fwd may change on NICs and must put back: by device and
// setting.
type condition map[string]string

// sysfs are the settings below /sys/class/net.
var sysfs = []string{"mtu", "flags", "tx_queue_len", "gro_flush_timeout", "napi_defer_hard_irqs", "threaded", "address", "ifalias"}

// conditionOf reads the state of devices.
func conditionOf(t *testing.T, ns *testbed.Namespace, devices []string) condition {
	t.Helper()
	c := make(condition)
	for _, name := range devices {
		link, err := ns.Netlink().LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		a := link.Attrs()
		c[name+" queues"] = fmt.Sprint(a.NumRxQueues, a.NumTxQueues)
		c[name+" up, promiscuous, allmulti"] = fmt.Sprint(a.Flags, a.Promisc, a.Allmulti)
		c[name+" xdp"] = fmt.Sprint(a.Xdp != nil && a.Xdp.Attached)
		features, err := ns.Features(name)
		if err != nil {
			t.Fatal(err)
		}
		for feature, on := range features {
			c[name+" "+feature] = fmt.Sprint(on)
		}
		// /sys shows the devices of the namespace it was mounted in.
		var out bytes.Buffer
		show := ns.Command(t.Context(), "sh", "-c", "cd /sys/class/net/"+name+" && ls queues && grep -sH . "+strings.Join(sysfs, " ")+"; exit 0")
		show.PrivateSysfs, show.Stdout = true, &out
		if err := show.Run(); err != nil {
			t.Fatal(err)
		}
		c[name+" sysfs"] = out.String()
	}
	c["journals"] = strings.Join(journals(t, ns), " ")
	c["multicast"] = groups(t, ns)
	return c
}

// journals are the notes of changed settings in this namespace.
func journals(t *testing.T, ns *testbed.Namespace) []string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(ns.Path(), &st); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(fmt.Sprintf("/run/l4fwd/*@%d.json", st.Ino))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// groups are the link-layer multicast groups that are joined, without those of the kernel's
// own IPv6 addresses: it joins them in its own time.
func groups(t *testing.T, ns *testbed.Namespace) (text string) {
	t.Helper()
	err := ns.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev_mcast")
		text = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	own, err := ns.Netlink().AddrList(nil, unix.AF_INET6)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(text, "\n")
	for _, a := range own {
		group := fmt.Sprintf("3333ff%x\n", []byte(a.IP.To16()[13:]))
		lines = slices.DeleteFunc(lines, func(line string) bool { return strings.HasSuffix(line, group) })
	}
	return strings.Join(lines, "")
}

// untouched fails the test if the devices are not as they were.
func untouched(t *testing.T, ns *testbed.Namespace, devices []string, before condition) {
	t.Helper()
	if diff := cmp.Diff(before, conditionOf(t, ns, devices)); diff != "" {
		t.Errorf("l4fwd has left the NICs changed (-before +after)\n%s", diff)
	}
}
