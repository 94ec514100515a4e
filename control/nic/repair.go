package nic

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
)

// Repair puts back what processes that are no more left changed, in whatever
// network namespace that is, and removes journals that became void: of an
// earlier boot, of a namespace or an interface that is gone. A NIC that has left a
// namespace, as it does when that ends, is not. Journals of
// running processes, this one included, are left alone. One that cannot be read as a
// whole is renamed, after what is understood of it is put back, and an error, this once.
// One of a namespace that cannot be entered, or of which cannot be told whether it is
// gone, stays and is an error.
// Repair returns the names of the interfaces whose journals it dealt with; one that
// fails does not keep the others. Only Dir and Log of the options count.
func Repair(opt Options) (repaired []string, err error) {
	opt, log := opt.defaults()
	unlock, err := lock(opt.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	paths, err := filepath.Glob(filepath.Join(opt.Dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("listing journals: %w", err)
	}
	var errs []error
	for _, path := range paths {
		j, err := leftover(path)
		if errors.Is(err, ErrInUse) || j != nil && j.Owner == self {
			continue
		}
		if j == nil {
			errs = append(errs, err)
			continue
		}
		some := err == nil || len(j.Changes) > 0
		failed := j.repair(opt, log)
		if err != nil && j.unreadable == "" {
			err = fmt.Errorf("%w; it is %s now", err, path+aside)
		}
		errs = append(errs, err, failed)
		if some && failed == nil {
			repaired = append(repaired, j.Name)
		}
	}
	return repaired, errors.Join(errs...)
}

func (j *journal) repair(opt Options, log *zap.Logger) error {
	if j.Boot != bootID() || len(j.Changes) == 0 {
		return j.remove(opt.Dir)
	}
	here, err := namespaceHere()
	if err != nil {
		return err
	}
	if here == j.Namespace {
		return j.restore(opt, log)
	}
	if found, err := j.restoreIn(netns.None(), j.away, opt, log); found || err != nil {
		return err
	}
	found, err := j.restoreThere(opt, log)
	switch {
	case errors.Is(err, errHidden) || errors.Is(err, os.ErrPermission):
		return fmt.Errorf("the settings of %s stay changed: %w: run `l4fwd cleanup` as root with all capabilities "+
			"and in no container, or in network namespace %d", j.Name, err, j.Namespace)
	case found || err != nil:
		return err
	}
	log.Info("network namespace or interface is gone, nothing to put back", zap.String("nic", j.Name))
	return j.remove(opt.Dir)
}

// restoreThere is for interfaces that are in other namespaces than the calling thread's.
func (j *journal) restoreThere(opt Options, log *zap.Logger) (found bool, err error) {
	ns, hidden := findNamespace(j.Namespace)
	if ns.IsOpen() {
		defer ns.Close()
		if found, err := j.restoreIn(ns, j.home, opt, log); found || err != nil {
			return found, err
		}
	}
	if hidden != nil || j.PermMAC == "" {
		return false, hidden
	}
	// The kernel puts NICs whose namespace ends into the machine's first.
	first, err := netns.GetFromPath(kernelsOwn)
	if err != nil {
		return false, fmt.Errorf("opening the first network namespace: %w", err)
	}
	defer first.Close()
	return j.restoreIn(first, j.away, opt, log)
}

// restoreIn puts back what an interface has that is found in a namespace.
func (j *journal) restoreIn(ns netns.NsHandle, find func(Options) (*netlink.LinkAttrs, error), opt Options, log *zap.Logger) (found bool, err error) {
	err = within(ns, func() error {
		l, err := find(opt)
		if l == nil {
			return err
		}
		found = true
		return j.restoreTo(l, opt, log)
	})
	return found, err
}
