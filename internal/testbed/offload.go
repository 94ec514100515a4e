package testbed

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Features of a device, as `ethtool -k` names them, to whether they are on.
type Features map[string]bool

// Commands and the string set of linux/ethtool.h.
const (
	ethtoolGStrings  = 0x1b
	ethtoolGSSetInfo = 0x37
	ethtoolGFeatures = 0x3a
	ethtoolSFeatures = 0x3b
	featureStrings   = 4  // ETH_SS_FEATURES
	stringLen        = 32 // ETH_GSTRING_LEN
)

// kept are changeable features that alter no frame.
var kept = []string{"highdma"}

// featureBit is one feature: its bit and what the kernel says of it.
type featureBit struct {
	name               string
	index              int
	active, changeable bool
}

// Features reads the features of a device in the namespace.
func (ns *Namespace) Features(device string) (Features, error) {
	out := make(Features)
	err := ns.ethtool(device, func(fd int) error {
		all, err := readFeatures(fd, device)
		for _, f := range all {
			out[f.name] = f.active
		}
		return err
	})
	return out, err
}

// OffloadsOff switches off everything a device can be told not to do:
// checksums, segmentation, GRO, scatter-gather, VLAN insertion and stripping.
// What then still is on is fixed in the driver.
func (ns *Namespace) OffloadsOff(device string) error {
	return ns.ethtool(device, func(fd int) error {
		// Twice: switching one off may make another changeable.
		for range 2 {
			all, err := readFeatures(fd, device)
			if err != nil {
				return err
			}
			if err := switchOff(fd, device, all); err != nil {
				return err
			}
		}
		all, err := readFeatures(fd, device)
		if err != nil {
			return err
		}
		for _, f := range all {
			if f.active && f.changeable && !slices.Contains(kept, f.name) {
				return fmt.Errorf("feature %s stays on", f.name)
			}
		}
		return nil
	})
}

func (ns *Namespace) ethtool(device string, fn func(fd int) error) error {
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return errors.Join(fn(fd), unix.Close(fd))
	})
	if err != nil {
		return fmt.Errorf("ethtool %s: %w", device, err)
	}
	return nil
}

func readFeatures(fd int, device string) ([]featureBit, error) {
	ne := binary.NativeEndian
	info := make([]byte, 20) // cmd, reserved, sset_mask u64, data[1]
	ne.PutUint32(info, ethtoolGSSetInfo)
	ne.PutUint64(info[8:], 1<<featureStrings)
	if err := ethtoolIoctl(fd, device, info); err != nil {
		return nil, fmt.Errorf("count features: %w", err)
	}
	n := int(ne.Uint32(info[16:]))
	names := make([]byte, 12+n*stringLen) // cmd, string_set, len, strings
	ne.PutUint32(names, ethtoolGStrings)
	ne.PutUint32(names[4:], featureStrings)
	ne.PutUint32(names[8:], uint32(n))
	if err := ethtoolIoctl(fd, device, names); err != nil {
		return nil, fmt.Errorf("feature names: %w", err)
	}
	words := (n + 31) / 32
	bits := make([]byte, 8+words*16) // cmd, size, {available, requested, active, never_changed}
	ne.PutUint32(bits, ethtoolGFeatures)
	ne.PutUint32(bits[4:], uint32(words))
	if err := ethtoolIoctl(fd, device, bits); err != nil {
		return nil, fmt.Errorf("feature bits: %w", err)
	}
	out := make([]featureBit, 0, n)
	for i := range n {
		name := names[12+i*stringLen:][:stringLen]
		name, _, _ = bytes.Cut(name, []byte{0})
		if len(name) == 0 {
			continue
		}
		block := bits[8+i/32*16:]
		on := func(word int) bool { return ne.Uint32(block[word*4:])>>(i%32)&1 == 1 }
		out = append(out, featureBit{name: string(name), index: i, active: on(2), changeable: on(0) && !on(3)})
	}
	return out, nil
}

func switchOff(fd int, device string, all []featureBit) error {
	ne := binary.NativeEndian
	words := 0
	for _, f := range all {
		words = max(words, f.index/32+1)
	}
	buf := make([]byte, 8+words*8) // cmd, size, {valid, requested}
	ne.PutUint32(buf, ethtoolSFeatures)
	ne.PutUint32(buf[4:], uint32(words))
	any := false
	for _, f := range all {
		if !f.active || !f.changeable || slices.Contains(kept, f.name) {
			continue
		}
		valid := buf[8+f.index/32*8:]
		ne.PutUint32(valid, ne.Uint32(valid)|1<<(f.index%32))
		any = true
	}
	if !any {
		return nil
	}
	if err := ethtoolIoctl(fd, device, buf); err != nil {
		return fmt.Errorf("change features: %w", err)
	}
	return nil
}
