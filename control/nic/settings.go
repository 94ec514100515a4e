package nic

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
)

// DefaultDir is where journals are kept: gone after a reboot, like what they
// describe.
const DefaultDir = "/run/l4fwd"

// Options say where to work.
type Options struct {
	Dir       string         // of the journals; "": DefaultDir
	Namespace netns.NsHandle // zero or netns.None(): the calling thread's; must stay open until Restore
	Log       *zap.Logger    // nil: silent

	// Tests: instead of a sysfs of the namespace, and of what tells a NIC from all others,
	// which no device has that can be made.
	sysfs string
	ident func(*netlink.LinkAttrs) (permMAC, bus string)
}

// Settings are what l4fwd wants of a NIC. The zero value wants nothing.
type Settings struct {
	// KeepVLANTags switches hardware VLAN stripping off: XDP must see the tags.
	KeepVLANTags bool
	// AllVLANs switches hardware VLAN filtering off: it lets in only the VLANs that the
	// kernel has interfaces for.
	AllVLANs bool
	// NoLRO switches large receive offload off: merged packets are larger than
	// any frame, and are not what was sent.
	NoLRO bool
	// BusyPoll, if not nil, lets busy polling replace interrupts.
	BusyPoll *BusyPoll
}

// BusyPoll is how long the NIC's interrupts stay off while somebody polls
// (Documentation/networking/napi.rst).
type BusyPoll struct {
	DeferHardIRQs   uint32        // polls without a packet before interrupts come back
	GROFlushTimeout time.Duration // timer that polls meanwhile, in nanoseconds in the kernel
}

// ErrInUse is wrapped by Apply if another running process has changed the NIC.
var ErrInUse = errors.New("settings are held by another running process")

// Applied is a NIC whose settings were changed.
type Applied struct {
	// Problems says what could not be set, in words for the log. The NIC can be
	// used nevertheless, but say a tag may be invisible.
	Problems []error

	opt     Options
	log     *zap.Logger
	j       *journal
	unmount func() // sysfs: nobody may be permitted to mount it any more when it is needed again
}

type wish struct {
	knob
	value string
}

func (s Settings) wishes() []wish {
	var out []wish
	if s.KeepVLANTags {
		out = append(out, wish{vlanStripping, "off"}, wish{svlanStripping, "off"})
	}
	if s.AllVLANs {
		out = append(out, wish{vlanFilter, "off"})
	}
	if s.NoLRO {
		out = append(out, wish{lro, "off"})
	}
	if b := s.BusyPoll; b != nil {
		out = append(out, wish{deferHardIRQs, strconv.FormatUint(uint64(b.DeferHardIRQs), 10)},
			wish{groFlush, strconv.FormatInt(b.GROFlushTimeout.Nanoseconds(), 10)})
	}
	return out
}

func (o Options) defaults() (Options, *zap.Logger) {
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return o, o.Log
}

// Apply makes the settings, each journalled before it is made. What an earlier
// process left behind by a crash is put back first, so that its settings are
// not taken for the original ones. A setting the NIC lacks or refuses is one
// of the Problems; an error means that nothing is changed.
func Apply(name string, want Settings, opt Options) (*Applied, error) {
	opt, log := opt.defaults()
	unlock, err := lock(opt.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	a := &Applied{opt: opt, log: log}
	err = within(opt.Namespace, func() error {
		if opt.sysfs == "" {
			a.opt.sysfs, a.unmount = mountSysfs()
		}
		if a.j, err = identify(name, opt); err != nil {
			return err
		}
		if err := a.takeOver(); err != nil {
			return err
		}
		dev, err := openHardware(name, a.j.Index, a.opt.sysfs)
		if err != nil {
			return err
		}
		defer dev.close()
		if err := a.apply(dev, want.wishes()); err != nil {
			return errors.Join(err, a.j.putBack(dev, opt.Dir, log))
		}
		return nil
	})
	if err != nil {
		a.letGo()
		return nil, fmt.Errorf("settings of %s: %w", name, err)
	}
	return a, nil
}

// Add makes more settings, for Restore to put back with the others. A setting that
// the NIC lacks or refuses is one of the Problems; after an error those before it
// are made.
func (a *Applied) Add(want Settings) error {
	unlock, err := lock(a.opt.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	err = within(a.opt.Namespace, func() error {
		dev, err := openHardware(a.j.Name, a.j.Index, a.opt.sysfs)
		if err != nil {
			return err
		}
		defer dev.close()
		return a.apply(dev, want.wishes())
	})
	if err != nil {
		return fmt.Errorf("settings of %s: %w", a.j.Name, err)
	}
	return nil
}

// identify makes an empty journal for the interface and this process.
func identify(name string, opt Options) (*journal, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	ns, err := namespaceHere()
	if err != nil {
		return nil, err
	}
	j := &journal{
		Version: journalVersion, Name: name, Index: l.Attrs().Index,
		Namespace: ns, Boot: bootID(), PID: os.Getpid(), Owner: self,
	}
	j.PermMAC, j.Bus = opt.identity(l.Attrs())
	return j, nil
}

// identity is what a NIC has wherever it is: its permanent MAC address, which its VLAN
// interfaces have too, and its bus address, which they have not. Both are "" for software
// devices.
func (o Options) identity(l *netlink.LinkAttrs) (permMAC, bus string) {
	if o.ident != nil {
		return o.ident(l)
	}
	if len(l.PermHWAddr) == 0 {
		return "", ""
	}
	if et, err := ethtool.NewEthtool(); err == nil {
		defer et.Close()
		bus, _ = et.BusInfo(l.Name) // or the name has to do
	}
	return l.PermHWAddr.String(), bus
}

// takeOver puts back what the last owner of the interface left. What it cannot read of
// that is no reason not to begin.
func (a *Applied) takeOver() error {
	path := a.j.path(a.opt.Dir)
	old, err := leftover(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, ErrUnreadable) && old != nil:
		a.log.Error("not all of what an earlier run left changed can be put back", zap.String("nic", a.j.Name),
			zap.String("kept", path+aside), zap.Error(err))
	case err != nil:
		return err
	}
	return old.repair(a.opt, a.log)
}

// apply makes the changes that are needed. Those before an error stay made.
func (a *Applied) apply(dev device, wishes []wish) error {
	for _, w := range wishes {
		old, err := dev.read(w.knob)
		switch {
		case errors.Is(err, errNoKnob) && w.Kind == kindFeature:
			continue // cannot be on
		case err != nil:
			a.Problems = append(a.Problems, fmt.Errorf("%s of %s: %w", w.Key, a.j.Name, err))
			continue
		case old == w.value:
			continue
		}
		a.j.Changes = append(a.j.Changes, change{w.knob, old, w.value})
		if err := a.j.save(a.opt.Dir); err != nil {
			a.j.Changes = a.j.Changes[:len(a.j.Changes)-1]
			return err
		}
		if err := dev.write(w.knob, w.value); err != nil {
			// It stays in the journal: a refusal may have come half-way.
			a.Problems = append(a.Problems, err)
			continue
		}
		a.log.Info("changed a NIC setting", zap.String("nic", a.j.Name),
			zap.String("setting", w.Key), zap.String("from", old), zap.String("to", w.value))
	}
	return nil
}

// Restore puts everything back and removes the journal. What cannot be put
// back stays in the journal for Repair, and is an error. An interface that is
// gone is none. A second call does nothing.
func (a *Applied) Restore() error {
	defer a.letGo()
	if len(a.j.Changes) == 0 {
		return nil
	}
	unlock, err := lock(a.opt.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	return within(a.opt.Namespace, func() error { return a.j.restore(a.opt, a.log) })
}

// letGo unmounts what Apply has mounted.
func (a *Applied) letGo() {
	if a.unmount != nil {
		a.unmount()
		a.unmount, a.opt.sysfs = nil, ""
	}
}

// restore works in the calling thread's namespace, which must be the
// journal's.
func (j *journal) restore(opt Options, log *zap.Logger) error {
	l, err := j.home(opt)
	if err != nil {
		return err
	}
	if l == nil {
		log.Info("interface is gone or was made again, nothing to put back", zap.String("nic", j.Name))
		j.Changes = nil
		return j.remove(opt.Dir)
	}
	return j.restoreTo(l, opt, log)
}

// home looks for the interface in the calling thread's namespace, which must be the
// journal's. There it keeps its index, but its name only as long as nobody gives it, or
// another one, a new one. It returns nil if it is not there.
func (j *journal) home(opt Options) (*netlink.LinkAttrs, error) {
	l, err := netlink.LinkByIndex(j.Index)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking for %s: %w", j.Name, err)
	}
	if mac, _ := opt.identity(l.Attrs()); mac != j.PermMAC {
		return nil, nil
	}
	if l.Attrs().Name != j.Name {
		if err := j.free(l.Attrs(), j.Namespace, opt); err != nil {
			return nil, err
		}
	}
	return l.Attrs(), nil
}

// free is an error if a process that lives uses the interface a by another name than the
// journal's.
func (j *journal) free(a *netlink.LinkAttrs, namespace uint64, opt Options) error {
	used, err := owned((&journal{Name: a.Name, Namespace: namespace}).path(opt.Dir))
	switch {
	case used:
		return fmt.Errorf("%s is %s now: %w", j.Name, a.Name, ErrInUse)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	}
	return nil
}

// away looks for the interface in the calling thread's namespace, which is not the
// journal's. A NIC that was lent to a namespace comes from there when that ends, with
// another index or name if somebody else has its own. It returns nil if it is not there.
func (j *journal) away(opt Options) (*netlink.LinkAttrs, error) {
	if j.PermMAC == "" {
		return nil, nil
	}
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("looking for %s: %w", j.Name, err)
	}
	for _, l := range all {
		a := l.Attrs()
		mac, bus := opt.identity(a)
		if mac != j.PermMAC || bus != j.Bus && j.Bus != "" || j.Bus == "" && a.Name != j.Name {
			continue
		}
		ns, err := namespaceHere()
		if err != nil {
			return nil, err
		}
		if err := j.free(a, ns, opt); err != nil {
			return nil, err
		}
		return a, nil
	}
	return nil, nil
}

// restoreTo puts back what the interface has, whatever its name is by now.
func (j *journal) restoreTo(l *netlink.LinkAttrs, opt Options, log *zap.Logger) error {
	if l.Name != j.Name {
		log.Info("interface has another name now", zap.String("nic", j.Name), zap.String("name", l.Name))
	}
	dev, err := openHardware(l.Name, l.Index, opt.sysfs)
	if err != nil {
		return fmt.Errorf("putting back the settings of %s: %w", j.Name, err)
	}
	defer dev.close()
	return j.putBack(dev, opt.Dir, log)
}

// putBack undoes the changes in reverse; those that fail stay in the journal.
func (j *journal) putBack(dev device, dir string, log *zap.Logger) error {
	var failed []change
	var errs []error
	for i := len(j.Changes) - 1; i >= 0; i-- {
		c := j.Changes[i]
		now, err := dev.read(c.knob)
		switch {
		case errors.Is(err, errNoKnob) || err == nil && now == c.Old:
			continue
		case err == nil && now != c.New:
			log.Warn("a NIC setting was changed by somebody else, leaving it", zap.String("nic", j.Name),
				zap.String("setting", c.Key), zap.String("value", now))
			continue
		case err == nil:
			err = dev.write(c.knob, c.Old)
		}
		if err != nil {
			failed = append([]change{c}, failed...)
			errs = append(errs, err)
			continue
		}
		log.Info("put back a NIC setting", zap.String("nic", j.Name),
			zap.String("setting", c.Key), zap.String("to", c.Old))
	}
	j.Changes = failed
	if len(failed) == 0 {
		return j.remove(dir)
	}
	return errors.Join(fmt.Errorf("putting back the settings of %s: %w", j.Name, errors.Join(errs...)), j.save(dir))
}
