package nic

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/safchain/ethtool"
)

// A knob is one setting, by where it is and what it is called there.
type knob struct {
	Kind string `json:"kind"` // kindFeature or kindSysfs
	Key  string `json:"key"`
}

const (
	kindFeature = "feature" // ethtool -k; values "on" and "off"
	kindSysfs   = "sysfs"   // a file of /sys/class/net/NAME
)

// knobs are all that this package ever touches: a journal that names anything
// else is not ours, whoever wrote it.
var (
	vlanStripping  = knob{kindFeature, "rx-vlan-hw-parse"}
	svlanStripping = knob{kindFeature, "rx-vlan-stag-hw-parse"}
	vlanFilter     = knob{kindFeature, "rx-vlan-filter"}
	lro            = knob{kindFeature, "rx-lro"}
	deferHardIRQs  = knob{kindSysfs, "napi_defer_hard_irqs"}
	groFlush       = knob{kindSysfs, "gro_flush_timeout"}

	allKnobs = []knob{vlanStripping, svlanStripping, vlanFilter, lro, deferHardIRQs, groFlush}
)

func known(k knob) bool { return slices.Contains(allKnobs, k) }

// errNoKnob: the device has no such setting.
var errNoKnob = errors.New("no such setting")

// device is one NIC's knobs. Tests have one in memory.
type device interface {
	read(k knob) (string, error) // errNoKnob where there is none
	write(k knob, value string) error
}

// hardware is a device of the calling thread's namespace.
type hardware struct {
	name  string
	index int
	sysfs string // root
	et    *ethtool.Ethtool
	close func()
}

// openHardware opens a device; sysfs is where one of its namespace is mounted, "" if
// nowhere yet.
func openHardware(name string, index int, sysfs string) (*hardware, error) {
	et, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("opening a socket for ethtool: %w", err)
	}
	h := &hardware{name: name, index: index, sysfs: sysfs, et: et, close: et.Close}
	if sysfs == "" {
		root, unmount := mountSysfs()
		h.sysfs, h.close = root, func() { et.Close(); unmount() }
	}
	return h, nil
}

func (h *hardware) read(k knob) (string, error) {
	if k.Kind == kindSysfs {
		path, err := h.path(k)
		if err != nil {
			return "", err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return "", errNoKnob
		}
		if err != nil {
			return "", fmt.Errorf("reading %s of %s: %w", k.Key, h.name, err)
		}
		return strings.TrimSpace(string(b)), nil
	}
	features, err := h.et.FeaturesWithState(h.name)
	if err != nil {
		return "", fmt.Errorf("reading the features of %s: %w", h.name, err)
	}
	f, ok := features[k.Key]
	switch {
	case !ok:
		return "", errNoKnob
	case f.Active:
		return "on", nil
	}
	return "off", nil
}

func (h *hardware) write(k knob, value string) error {
	if k.Kind == kindSysfs {
		path, err := h.path(k)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("writing %s of %s: %w", k.Key, h.name, err)
		}
		return nil
	}
	if err := h.et.Change(h.name, map[string]bool{k.Key: value == "on"}); err != nil {
		return fmt.Errorf("switching %s of %s %s: %w", k.Key, h.name, value, err)
	}
	// The kernel reports success where a driver cannot do it.
	if now, err := h.read(k); err != nil || now != value {
		return errors.Join(fmt.Errorf("%s of %s cannot be switched %s", k.Key, h.name, value), err)
	}
	return nil
}

// path is the knob's file, after making sure that it is of our device.
func (h *hardware) path(k knob) (string, error) {
	dir := filepath.Join(h.sysfs, "class/net", h.name)
	b, err := os.ReadFile(filepath.Join(dir, "ifindex"))
	if err != nil {
		return "", fmt.Errorf("%s in sysfs: %w", h.name, err)
	}
	if i, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || i != h.index {
		return "", fmt.Errorf("%s in sysfs has index %q, not %d: it shows another network namespace",
			h.name, strings.TrimSpace(string(b)), h.index)
	}
	return filepath.Join(dir, k.Key), nil
}
