package nic

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestWarnings(t *testing.T) {
	four := []int{0, 1, 2, 3}
	irq := CoreUse{Kind: UseIRQ, NIC: "eth1", ID: 34, Name: "eth1-rx-0", CPUs: []int{2}, Last: -1}
	thread := CoreUse{Kind: UseNAPIThread, NIC: "eth1", ID: 77, Name: "napi/eth1-9", CPUs: []int{2}, Last: 2}
	roaming := func(last int) CoreUse {
		u := thread
		u.CPUs, u.Last = four, last
		return u
	}
	rps := CoreUse{Kind: UseRPS, NIC: "eth1", Queue: "rx-1", CPUs: four, Last: -1}
	for _, c := range []struct {
		name  string
		cores Cores
		want  []CoreWarning
	}{
		{"all apart", Cores{Workers: []int{0, 1}, Allowed: four, Uses: []CoreUse{irq, thread}}, nil},
		{"workers go where the kernel puts them", Cores{Workers: []int{-1, -1}, Allowed: four, Uses: []CoreUse{irq, thread, rps}}, nil},
		{"an interrupt", Cores{Workers: []int{2}, Allowed: four, Uses: []CoreUse{irq}}, []CoreWarning{
			{"eth1: interrupt 34 (eth1-rx-0) shares CPU 2 with worker 0", "echo 0 > /proc/irq/34/smp_affinity_list"}}},
		{"an interrupt that may go elsewhere, too", Cores{Workers: []int{2}, Allowed: four, Uses: []CoreUse{{Kind: UseIRQ, NIC: "eth1", ID: 34, Name: "x", CPUs: []int{2, 5}}}}, []CoreWarning{
			{"eth1: interrupt 34 (x) shares CPU 2 with worker 0", "echo 5 > /proc/irq/34/smp_affinity_list"}}},
		{"a thread bound to a worker's CPU", Cores{Workers: []int{0, 2}, Allowed: four, Uses: []CoreUse{thread}}, []CoreWarning{
			{"eth1: NAPI thread 77 (napi/eth1-9) shares CPU 2 with worker 1", "taskset -cp 1,3 77"}}},
		{"a thread that happens to be there", Cores{Workers: []int{2}, Allowed: four, Uses: []CoreUse{roaming(2)}}, []CoreWarning{
			{"eth1: NAPI thread 77 (napi/eth1-9) shares CPU 2 with worker 0", "taskset -cp 0,1,3 77"}}},
		{"a thread that is elsewhere", Cores{Workers: []int{2}, Allowed: four, Uses: []CoreUse{roaming(3)}}, nil},
		{"steering", Cores{Workers: []int{2, 3}, Allowed: four, Uses: []CoreUse{rps}}, []CoreWarning{
			{"eth1: receive packet steering of rx-1 shares CPU 2 with worker 0", "echo 3 > /sys/class/net/eth1/queues/rx-1/rps_cpus"}}},
		{"busy polling has NAPI on the worker's core", Cores{Workers: []int{2}, Allowed: four, BusyPoll: true, Uses: []CoreUse{irq, thread, rps}}, []CoreWarning{
			{"eth1: receive packet steering of rx-1 shares CPU 2 with worker 0", "echo b > /sys/class/net/eth1/queues/rx-1/rps_cpus"}}},
		{"two on one CPU", Cores{Workers: []int{1, 1}, Allowed: four}, []CoreWarning{{"workers 0 and 1 are both on CPU 1", ""}}},
		{"none left", Cores{Workers: []int{0, 1}, Allowed: []int{0, 1}, Uses: []CoreUse{{Kind: UseIRQ, NIC: "eth1", ID: 5, Name: "y", CPUs: []int{1}}}}, []CoreWarning{
			{"2 workers and 2 CPUs for this process: none is left for the control plane and the kernel's part of the work", ""},
			{"eth1: interrupt 5 (y) shares CPU 1 with worker 1", ""}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, c.cores.Warnings()); d != "" {
				t.Error(d)
			}
		})
	}
}

// A tree as a PCI NIC, a virtio NIC and a veth with threaded NAPI show it.
func TestReadCoreUses(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s + "\n")} }
	sys := fstest.MapFS{
		"class/net/eth1/device/msi_irqs/40":       file("msix"),
		"class/net/eth1/device/msi_irqs/41":       file("msix"),
		"class/net/eth1/device/msi_irqs/42":       file("msix"), // without a handler
		"class/net/eth1/threaded":                 file("0"),
		"class/net/eth1/queues/rx-0/rps_cpus":     file("00000000,00000000"),
		"class/net/eth1/queues/rx-1/rps_cpus":     file("1,00000006"),
		"class/net/eth1/queues/tx-0/xps_cpus":     file("ff"),
		"class/net/eth2/device":                   {Data: []byte("../../../virtio2"), Mode: fs.ModeSymlink},
		"class/net/eth2/queues/rx-0/rps_cpus":     file("0"),
		"class/net/a-long-name-00/threaded":       file("1"),
		"class/net/a-long-name-00/queues/rx-0/x":  file(""),
		"class/net/another/threaded":              file("1"),
		"class/net/another/queues/rx-0/rps_cpus":  file("nonsense"),
		"class/net/unasked/queues/rx-0/rps_cpus":  file("ff"),
		"class/net/unasked/device/msi_irqs/43":    file("msix"),
		"class/net/eth1/device/msi_irqs/nonsense": file("msix"),
	}
	stat := func(comm, cpu string) *fstest.MapFile {
		return file("7 (" + comm + ") S 2 " + strings.Repeat("0 ", 34) + cpu + " 0 0")
	}
	proc := fstest.MapFS{
		"interrupts": file("           CPU0       CPU1\n 40:  1 2  PCI-MSI 1-edge      eth1-rx-0\n 41:  1 2  PCI-MSI 1-edge      eth1-tx-0\n" +
			" 43:  0 0  PCI-MSI  2-edge  unasked-0\n 50:  0 0 PCI-MSIX-0000:00:03.0 0-edge virtio2-config\n 51: 0 0 PCI-MSIX-0000:00:03.0 1-edge virtio2-input.0\nNMI: 0 0 Non-maskable interrupts"),
		"irq/40/effective_affinity_list": file("3"),
		"irq/40/smp_affinity_list":       file("0-3"),
		"irq/41/smp_affinity_list":       file("0-1,3"),
		"irq/51/effective_affinity_list": file("1"),
		"7/stat":                         stat("napi/a-long-nam", "1"),
		"7/status":                       file("Name:\tnapi\nCpus_allowed:\t3\nCpus_allowed_list:\t0-1"),
		"8/stat":                         stat("napi/another-12", "0"),
		"9/stat":                         stat("napi/eth1-12", "0"),
		"10/stat":                        stat("a ) napi/another-1", "0"),
		"11/stat":                        file("11 (napi/another-3) S"),
		"cmdline":                        file("quiet"),
	}
	want := []CoreUse{
		{Kind: UseIRQ, NIC: "eth1", ID: 40, Name: "eth1-rx-0", CPUs: []int{3}, Last: -1},
		{Kind: UseIRQ, NIC: "eth1", ID: 41, Name: "eth1-tx-0", CPUs: []int{0, 1, 3}, Last: -1},
		{Kind: UseIRQ, NIC: "eth2", ID: 51, Name: "virtio2-input.0", CPUs: []int{1}, Last: -1},
		{Kind: UseNAPIThread, NIC: "a-long-name-00", ID: 7, Name: "napi/a-long-nam", CPUs: []int{0, 1}, Last: 1},
		{Kind: UseNAPIThread, NIC: "another", ID: 8, Name: "napi/another-12"},
		{Kind: UseRPS, NIC: "eth1", Queue: "rx-1", CPUs: []int{1, 2, 32}, Last: -1},
	}
	got := readCoreUses(sys, proc, []string{"eth1", "eth2", "a-long-name-00", "another", "missing"})
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := readCoreUses(fstest.MapFS{}, fstest.MapFS{}, []string{"eth1"}); got != nil {
		t.Errorf("from nothing: %v", got)
	}
}

// Threads of NICs whose names begin alike are told apart where the kernel shows whole
// names, and where it cuts them no NIC takes another's.
func TestNAPIThreadOwners(t *testing.T) {
	ports := []string{"enp1s0f0np0", "enp1s0f0np1"}
	for _, c := range []struct {
		name, comm     string
		threaded, nics []string
		want           string
	}{
		{"whole name", "napi/enp1s0f0np1-8193", ports, ports, "enp1s0f0np1"},
		{"whole name of another", "napi/enp1s0f0np1-8193", ports, ports[:1], ""},
		{"cut", "napi/enp1s0f0np", ports, ports, "enp1s0f0np0 or enp1s0f0np1"},
		{"cut, one is not ours", "napi/enp1s0f0np", ports, ports[:1], "enp1s0f0np0 or enp1s0f0np1"},
		{"cut, only one is threaded", "napi/enp1s0f0np", ports[1:], ports, "enp1s0f0np1"},
		{"cut, not ours", "napi/enp1s0f0np", ports[1:], ports[:1], ""},
		{"fifteen bytes and whole", "napi/eth1-12345", []string{"eth1", "eth12"}, []string{"eth1", "eth12"}, "eth1"},
		{"a NIC with a hyphen", "napi/eth1-2-77", []string{"eth1", "eth1-2"}, []string{"eth1", "eth1-2"}, "eth1-2"},
		{"no number", "napi/eth1-x", []string{"eth1"}, []string{"eth1"}, ""},
		{"the prefix just fits", "napi/abcdefghi-", []string{"abcdefghi", "abcdefghij"}, []string{"abcdefghi"}, "abcdefghi"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := ownersOf(c.comm, c.threaded, c.nics); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// What is written is what is read.
func TestMasks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cpus := rapid.SliceOfNDistinct(rapid.IntRange(0, 300), 1, 20, rapid.ID).Draw(t, "cpus")
		slices.Sort(cpus)
		if d := cmp.Diff(cpus, parseMask(formatMask(cpus))); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff(cpus, parseList(joinCPUs(cpus))); d != "" {
			t.Error(d)
		}
	})
	for _, s := range []string{"", "x", "-1", "3-1", "1-", "1,", "0-99999999", "4294967296-4294967297"} {
		if got := parseList(s); got != nil {
			t.Errorf("%q: %v", s, got)
		}
	}
	for _, s := range []string{"", "x", "1,,1", "-1", "1ffffffff"} {
		if got := parseMask(s); got != nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

// The threads of a real veth are found, with the CPUs they are bound to.
func TestReadCoreUsesOfVeth(t *testing.T) {
	ns := space(t)
	must(t, within(ns, func() error {
		root, unmount := mountSysfs()
		defer unmount()
		et, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer et.Close()
		// Without GRO or an XDP program a veth has no NAPI.
		if err := et.Change("nic0", map[string]bool{"rx-gro": true}); err != nil {
			return err
		}
		if err := os.WriteFile(root+"/class/net/nic0/threaded", []byte("1"), 0); err != nil {
			return err
		}
		return os.WriteFile(root+"/class/net/nic0/queues/rx-2/rps_cpus", []byte("1"), 0)
	}))
	uses, err := ReadCoreUses(ns, []string{"nic0", "nic1"})
	must(t, err)
	var threads, steered []CoreUse
	for _, u := range uses {
		switch {
		case u.NIC != "nic0":
			t.Errorf("%+v", u)
		case u.Kind == UseNAPIThread:
			threads = append(threads, u)
		default:
			steered = append(steered, u)
		}
	}
	if d := cmp.Diff([]CoreUse{{Kind: UseRPS, NIC: "nic0", Queue: "rx-2", CPUs: []int{0}, Last: -1}}, steered); d != "" {
		t.Error(d)
	}
	if len(threads) == 0 {
		t.Fatal("no NAPI thread")
	}
	var one unix.CPUSet
	one.Set(0)
	must(t, unix.SchedSetaffinity(threads[0].ID, &one))
	if uses, err = ReadCoreUses(ns, []string{"nic0"}); err != nil || len(uses) == 0 {
		t.Fatalf("%v: %v", uses, err)
	}
	if d := cmp.Diff([]int{0}, uses[0].CPUs); uses[0].ID != threads[0].ID || d != "" {
		t.Errorf("%+v after %+v was bound to CPU 0", uses[0], threads[0])
	}
	for _, u := range threads {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", u.ID))
		if err != nil || strings.TrimSpace(string(comm)) != u.Name || !strings.HasPrefix(u.Name, "napi/nic0-") || len(u.CPUs) == 0 || u.Last < 0 {
			t.Errorf("%+v: %s, %v", u, strconv.Quote(string(comm)), err)
		}
	}
}
