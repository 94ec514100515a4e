package nic

import (
	"errors"
	"fmt"
	"path/filepath"

	"go.uber.org/zap"
)

// Repair puts back what processes that are no more left changed, in whatever
// network namespace that is, and removes journals that became void: of an
// earlier boot, of a namespace or an interface that is gone. Journals of
// running processes, this one included, are left alone. One that cannot be read as a
// whole is renamed, after what is understood of it is put back, and an error, this once.
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
	ns := findNamespace(j.Namespace)
	if !ns.IsOpen() {
		log.Info("network namespace is gone, nothing to put back", zap.String("nic", j.Name))
		return j.remove(opt.Dir)
	}
	defer ns.Close()
	return within(ns, func() error { return j.restore(opt, log) })
}
