package nic

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// CoreUse is what of the kernel's work for a NIC runs where.
type CoreUse struct {
	Kind  CoreUseKind
	NIC   string // or "a or b", where it cannot be told which
	Queue string // UseRPS: directory of the queue, "rx-0"
	ID    int    // UseIRQ: number; UseNAPIThread: process ID
	Name  string // what the kernel calls the interrupt or the thread
	CPUs  []int  // where it may run, ascending
	Last  int    // UseNAPIThread: where it ran last; else -1
}

// CoreUseKind is a kind of work.
type CoreUseKind uint8

// The kinds of work.
const (
	UseIRQ        CoreUseKind = iota // an interrupt, and the softirq that follows it
	UseNAPIThread                    // a thread of threaded NAPI
	UseRPS                           // receive packet steering
)

// Cores is who wants which CPU.
type Cores struct {
	Workers  []int // CPU of each worker; negative: where the kernel puts it
	Allowed  []int // CPUs that this process may use, ascending
	BusyPoll bool  // workers drive the NICs, whose interrupts keep still meanwhile
	Uses     []CoreUse
}

// CoreWarning is a bad arrangement and the command that ends it.
type CoreWarning struct {
	Text    string
	Command string // for a shell, as root; empty if none will do
}

// Warnings says what would take a worker's core from it. It is a function of c
// alone. Measured on veth, a worker that spins beside the NAPI thread that feeds it
// forwards a fourth or less of what it does on a core of its own.
func (c *Cores) Warnings() []CoreWarning {
	out := c.tooFew()
	at := make(map[int]int) // worker by CPU
	for w, cpu := range c.Workers {
		if cpu < 0 {
			continue
		}
		if first, taken := at[cpu]; taken {
			out = append(out, CoreWarning{Text: fmt.Sprintf("workers %d and %d are both on CPU %d", first, w, cpu)})
			continue
		}
		at[cpu] = w
	}
	for i := range c.Uses {
		u := &c.Uses[i]
		if u.Kind != UseRPS && c.BusyPoll {
			continue // the worker does that work itself, so it belongs on its core
		}
		cpu, ok := u.meets(at)
		if !ok {
			continue
		}
		out = append(out, CoreWarning{
			Text:    fmt.Sprintf("%s: %s shares CPU %d with worker %d", u.NIC, u, cpu, at[cpu]),
			Command: u.command(c.free(u, at)),
		})
	}
	return out
}

// tooFew warns where nothing is left for the rest of the process.
func (c *Cores) tooFew() []CoreWarning {
	if len(c.Allowed) > len(c.Workers) {
		return nil
	}
	return []CoreWarning{{
		Text: fmt.Sprintf("%d workers and %d CPUs for this process: none is left for the control plane and the kernel's part of the work", len(c.Workers), len(c.Allowed)),
	}}
}

// meets is the first CPU on which the work meets a worker of those at. An interrupt
// or a mask stays on all the CPUs it names; a thread is moved about by the
// scheduler, so only where it may not leave or where it is now counts.
func (u *CoreUse) meets(at map[int]int) (cpu int, ok bool) {
	cpus := u.CPUs
	if u.Kind == UseNAPIThread && len(cpus) > 1 {
		cpus = []int{u.Last}
	}
	for _, cpu := range cpus {
		if _, ok := at[cpu]; ok {
			return cpu, true
		}
	}
	return 0, false
}

// free are the CPUs of no worker: those of u if there are any, else one that this
// process may use; none if the workers have them all.
func (c *Cores) free(u *CoreUse, at map[int]int) (cpus []int) {
	for _, from := range [][]int{u.CPUs, c.Allowed} {
		for _, cpu := range from {
			if _, taken := at[cpu]; !taken {
				cpus = append(cpus, cpu)
			}
		}
		if len(cpus) > 0 {
			break
		}
	}
	if u.Kind == UseRPS || u.Kind == UseNAPIThread {
		return cpus
	}
	return cpus[:min(len(cpus), 1)] // an interrupt goes to one CPU anyway
}

// String names the work in a sentence.
func (u *CoreUse) String() string {
	switch u.Kind {
	case UseIRQ:
		return fmt.Sprintf("interrupt %d (%s)", u.ID, u.Name)
	case UseNAPIThread:
		return fmt.Sprintf("NAPI thread %d (%s)", u.ID, u.Name)
	}
	return "receive packet steering of " + u.Queue
}

// command moves the work to other CPUs.
func (u *CoreUse) command(cpus []int) string {
	if len(cpus) == 0 {
		return ""
	}
	list := joinCPUs(cpus)
	switch u.Kind {
	case UseIRQ:
		return fmt.Sprintf("echo %s > /proc/irq/%d/smp_affinity_list", list, u.ID)
	case UseNAPIThread:
		return fmt.Sprintf("taskset -cp %s %d", list, u.ID)
	}
	return fmt.Sprintf("echo %s > /sys/class/net/%s/queues/%s/rps_cpus", formatMask(cpus), u.NIC, u.Queue)
}

func joinCPUs(cpus []int) string {
	s := make([]string, len(cpus))
	for i, c := range cpus {
		s[i] = strconv.Itoa(c)
	}
	return strings.Join(s, ",")
}

// maskBits is how many CPUs a word of a mask in sysfs has; words are separated by
// commas, the highest first.
const maskBits = 32

// formatMask writes CPUs as the kernel writes masks.
func formatMask(cpus []int) string {
	words := make([]uint32, slices.Max(cpus)/maskBits+1)
	for _, c := range cpus {
		words[c/maskBits] |= 1 << (c % maskBits)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%x", words[len(words)-1])
	for i := len(words) - 2; i >= 0; i-- {
		fmt.Fprintf(&b, ",%08x", words[i])
	}
	return b.String()
}
