package nic

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
)

// ReadCoreUses reads where the kernel works for the NICs of a namespace; zero or
// netns.None() is that of the calling thread. What cannot be read, a container hides
// the kernel's threads, is left out: this is advice, not a condition.
func ReadCoreUses(ns netns.NsHandle, nics []string) (uses []CoreUse, err error) {
	err = within(ns, func() error {
		root, unmount := mountSysfs()
		defer unmount()
		uses = readCoreUses(os.DirFS(root), os.DirFS("/proc"), nics)
		return nil
	})
	return uses, err
}

// readCoreUses reads from a sysfs and a procfs.
func readCoreUses(sys, proc fs.FS, nics []string) (uses []CoreUse) {
	interrupts := readInterrupts(proc)
	for _, name := range nics {
		uses = append(uses, readIRQs(sys, proc, name, interrupts)...)
	}
	uses = append(uses, readNAPIThreads(sys, proc, nics)...)
	for _, name := range nics {
		uses = append(uses, readRPS(sys, name)...)
	}
	return uses
}

// readInterrupts is /proc/interrupts: what each number's handler is called.
func readInterrupts(proc fs.FS) map[int]string {
	b, err := fs.ReadFile(proc, "interrupts")
	if err != nil {
		return nil
	}
	names := make(map[int]string)
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 1<<20) // a column for each CPU
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSuffix(fields[0], ":")); err == nil {
			names[n] = fields[len(fields)-1]
		}
	}
	return names
}

// readIRQs finds a NIC's interrupts: those of its PCI device, and else those whose
// handler bears the name of the interface or, as virtio's do, of the device.
func readIRQs(sys, proc fs.FS, name string, interrupts map[int]string) (uses []CoreUse) {
	dir := path.Join("class/net", name, "device")
	var numbers []int
	if entries, err := fs.ReadDir(sys, path.Join(dir, "msi_irqs")); err == nil {
		for _, e := range entries {
			if n, err := strconv.Atoi(e.Name()); err == nil {
				numbers = append(numbers, n)
			}
		}
	} else {
		device, _ := fs.ReadLink(sys, dir) // none: a virtual interface
		for n, action := range interrupts {
			owner, _, _ := strings.Cut(action, "-")
			if owner == name || device != "" && owner == path.Base(device) {
				numbers = append(numbers, n)
			}
		}
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		action, alive := interrupts[n]
		if !alive || strings.HasSuffix(action, "-config") { // of the device, not of packets
			continue
		}
		cpus := readList(proc, fmt.Sprintf("irq/%d/effective_affinity_list", n))
		if len(cpus) == 0 {
			cpus = readList(proc, fmt.Sprintf("irq/%d/smp_affinity_list", n))
		}
		if len(cpus) > 0 {
			uses = append(uses, CoreUse{Kind: UseIRQ, NIC: name, ID: n, Name: action, CPUs: cpus, Last: -1})
		}
	}
	return uses
}

// commLen is how much of a thread's name the kernel keeps, TASK_COMM_LEN without its
// zero (linux/sched.h). Of its own threads Linux 5.17 and later show the whole name.
const commLen = 15

// napiThread reports whether the kernel may call a thread of the NIC's NAPI so,
// napi/NAME-ID, as far as a name that may be cut tells.
func napiThread(comm, nic string) bool {
	prefix := "napi/" + nic + "-"
	if len(comm) == commLen && len(prefix) >= commLen {
		return comm == prefix[:commLen]
	}
	id, ok := strings.CutPrefix(comm, prefix)
	_, err := strconv.ParseUint(id, 10, 32)
	return ok && err == nil
}

// threadedNICs are those whose NAPI is threaded.
func threadedNICs(sys fs.FS) (names []string) {
	entries, err := fs.ReadDir(sys, "class/net")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		b, err := fs.ReadFile(sys, path.Join("class/net", e.Name(), "threaded"))
		if err == nil && strings.TrimSpace(string(b)) != "0" {
			names = append(names, e.Name())
		}
	}
	return names
}

// ownersOf are the NICs that a thread of this name may belong to, in a sentence; empty
// if none of nics is among them. Where the kernel cuts names, those of two ports of a
// card may be the same, and which of the two it is cannot be told.
func ownersOf(comm string, threaded, nics []string) string {
	var owners []string
	asked := false
	for _, name := range threaded {
		if napiThread(comm, name) {
			owners = append(owners, name)
			asked = asked || slices.Contains(nics, name)
		}
	}
	if !asked {
		return ""
	}
	return strings.Join(owners, " or ")
}

// readNAPIThreads finds the threads of NICs whose NAPI is threaded.
func readNAPIThreads(sys, proc fs.FS, nics []string) (uses []CoreUse) {
	threaded := threadedNICs(sys)
	if !slices.ContainsFunc(nics, func(n string) bool { return slices.Contains(threaded, n) }) {
		return nil
	}
	entries, err := fs.ReadDir(proc, ".")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		comm, last, ok := readStat(proc, pid)
		if !ok || !strings.HasPrefix(comm, "napi/") {
			continue
		}
		if owner := ownersOf(comm, threaded, nics); owner != "" {
			uses = append(uses, CoreUse{Kind: UseNAPIThread, NIC: owner, ID: pid, Name: comm, CPUs: readAllowed(proc, pid), Last: last})
		}
	}
	slices.SortFunc(uses, func(a, b CoreUse) int { return a.ID - b.ID })
	return uses
}

// statCPU is where in /proc/PID/stat, counted from behind the name, the CPU is on
// which the thread ran last: field 39 (proc(5)).
const statCPU = 39 - 3

// readStat reads a thread's name and the CPU it ran on last.
func readStat(proc fs.FS, pid int) (comm string, cpu int, ok bool) {
	b, err := fs.ReadFile(proc, path.Join(strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", 0, false
	}
	from, to := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if from < 0 || to < from {
		return "", 0, false
	}
	fields := strings.Fields(string(b[to+1:]))
	if len(fields) <= statCPU {
		return "", 0, false
	}
	cpu, err = strconv.Atoi(fields[statCPU])
	return string(b[from+1 : to]), cpu, err == nil
}

// readAllowed reads on which CPUs a thread may run.
func readAllowed(proc fs.FS, pid int) []int {
	b, err := fs.ReadFile(proc, path.Join(strconv.Itoa(pid), "status"))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		if list, ok := strings.CutPrefix(line, "Cpus_allowed_list:"); ok {
			return parseList(list)
		}
	}
	return nil
}

// readRPS reads to which CPUs a NIC's queues steer packets.
func readRPS(sys fs.FS, name string) (uses []CoreUse) {
	dir := path.Join("class/net", name, "queues")
	entries, err := fs.ReadDir(sys, dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "rx-") {
			continue
		}
		b, err := fs.ReadFile(sys, path.Join(dir, e.Name(), "rps_cpus"))
		if err != nil {
			continue
		}
		if cpus := parseMask(string(b)); len(cpus) > 0 {
			uses = append(uses, CoreUse{Kind: UseRPS, NIC: name, Queue: e.Name(), CPUs: cpus, Last: -1})
		}
	}
	return uses
}

func readList(proc fs.FS, file string) []int {
	b, err := fs.ReadFile(proc, file)
	if err != nil {
		return nil
	}
	return parseList(string(b))
}

// maxCPU is more than any kernel has; what names a higher one is no list of CPUs.
const maxCPU = 1 << 16

// parseList reads a list such as "0-3,8"; nil if it is none.
func parseList(s string) (cpus []int) {
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		first, last, isRange := strings.Cut(part, "-")
		from, err := strconv.Atoi(first)
		to := from
		if err == nil && isRange {
			to, err = strconv.Atoi(last)
		}
		if err != nil || from < 0 || to < from || to >= maxCPU {
			return nil
		}
		for c := from; c <= to; c++ {
			cpus = append(cpus, c)
		}
	}
	slices.Sort(cpus)
	return slices.Compact(cpus)
}

// parseMask reads a mask such as "1,00000003"; nil if it is none.
func parseMask(s string) (cpus []int) {
	words := strings.Split(strings.TrimSpace(s), ",")
	if len(words) > maxCPU/maskBits {
		return nil
	}
	slices.Reverse(words)
	for i, word := range words {
		v, err := strconv.ParseUint(word, 16, maskBits)
		if err != nil {
			return nil
		}
		for ; v != 0; v &= v - 1 {
			cpus = append(cpus, i*maskBits+bits.TrailingZeros64(v))
		}
	}
	return cpus
}
