package control

import (
	"slices"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/control/nic"
)

// checkCores warns of work on the workers' cores that is somebody else's: what was
// said last is not said again.
func (d *Daemon) checkCores() {
	names := make([]string, 0, len(d.links))
	for _, l := range d.links {
		names = append(names, l.name)
	}
	uses, err := nic.ReadCoreUses(d.ns, names)
	if err != nil {
		d.log.Debug("looking at the NICs' interrupts", zap.Error(err))
	}
	c := nic.Cores{Workers: d.workerCPUs(), Allowed: allowedCPUs(), BusyPoll: d.drives(), Uses: uses}
	now := c.Warnings()
	for _, w := range now {
		if slices.Contains(d.warned, w) {
			continue
		}
		fields := []zap.Field{zap.String("problem", w.Text)}
		if w.Command != "" {
			fields = append(fields, zap.String("command", w.Command))
		}
		d.log.Warn("a worker has to share its core", fields...)
	}
	d.warned = now
}

// workerCPUs are the CPUs that workers are bound to, by worker; negative for none.
func (d *Daemon) workerCPUs() []int {
	cpus := make([]int, d.cfg.Workers)
	for i := range cpus {
		if cpus[i] = -1; i < len(d.cfg.CPUs) {
			cpus[i] = d.cfg.CPUs[i]
		}
	}
	return cpus
}

// allowedCPUs are the CPUs that this process may use.
func allowedCPUs() (cpus []int) {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return nil
	}
	for c := range 64 * len(set) {
		if set.IsSet(c) {
			cpus = append(cpus, c)
		}
	}
	return cpus
}
