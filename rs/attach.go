package rs

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/l4fwd/l4fwd/dataplane/steer"
)

// Errors of this package, to be told with errors.Is.
var (
	// ErrOptions is an option that makes no sense.
	ErrOptions = errors.New("bad option")
	// ErrPermission is a missing capability.
	ErrPermission = errors.New("not permitted")
	// ErrGone is a cgroup or an interface that does not exist any more.
	ErrGone = errors.New("is gone")
)

// About is what an attached program is about.
type About struct {
	Program    string         `json:"program"` // "toa", "decap" or "uoa"
	PID        int            `json:"pid"`     // of the process that holds it
	Since      time.Time      `json:"since"`
	Cgroup     string         `json:"cgroup,omitempty"`
	Kinds      []int          `json:"kinds,omitempty"` // TOA option kinds
	Getsockopt bool           `json:"getsockopt,omitempty"`
	Interfaces []string       `json:"interfaces,omitempty"`
	VIPs       []netip.Addr   `json:"vips,omitempty"`
	GUEPort    uint16         `json:"gue_port,omitempty"`
	FOUPort    uint16         `json:"fou_port,omitempty"`
	From       []netip.Prefix `json:"from"`
}

// aboutMap is the name of the map that holds an About as JSON. It is bound to the
// program, so that whoever finds the program in the kernel finds it.
const aboutMap = "l4fwd_rs_about"

// bindAbout makes that map.
func bindAbout(p *ebpf.Program, a About) (*ebpf.Map, error) {
	a.PID, a.Since = os.Getpid(), time.Now().Truncate(time.Second)
	text, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("about %s: %w", a.Program, err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: aboutMap, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(text)), MaxEntries: 1})
	if err != nil {
		return nil, permission(fmt.Errorf("about %s: %w", a.Program, err))
	}
	err = m.Put(uint32(0), text)
	if err == nil {
		err = p.BindMap(m)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("about %s: %w", a.Program, err), m.Close())
	}
	return m, nil
}

// attached is what TOA, Decap and UOA are made of.
type attached struct {
	links []link.Link
	stats *ebpf.Map
	about *ebpf.Map
	objs  interface{ Close() error }
}

// attachXDP attaches a program to interfaces of the calling thread's network namespace.
// The notes are about how, one sentence each.
func (a *attached) attachXDP(p *ebpf.Program, interfaces []string, mode steer.Mode) (notes []string, err error) {
	for _, name := range interfaces {
		dev, err := netlink.LinkByName(name)
		if err != nil {
			return notes, fmt.Errorf("%s: %w", name, err)
		}
		at, err := steer.AttachProgram(p, dev.Attrs().Index, name, mode)
		if err != nil {
			return notes, err
		}
		a.links = append(a.links, at.Link)
		notes = append(append(notes, at.Notes...), fmt.Sprintf("%s: attached, %s XDP", name, at.Mode))
	}
	return notes, nil
}

// gone reports, with ErrGone, that a link lost what it was attached to.
func (a *attached) gone() error {
	for _, l := range a.links {
		info, err := l.Info()
		if err != nil {
			return fmt.Errorf("look at a bpf_link: %w", err)
		}
		if !live(info) {
			return ErrGone
		}
	}
	return nil
}

// live reports whether a link has still got what it was attached to.
func live(info *link.Info) bool {
	if c := info.Cgroup(); c != nil {
		return c.CgroupId != 0
	}
	x := info.XDP()
	return x != nil && x.Ifindex != 0
}

// Close detaches the programs and releases their maps.
func (a *attached) Close() error {
	var errs []error
	for _, l := range a.links {
		errs = append(errs, l.Close())
	}
	if a.about != nil {
		errs = append(errs, a.about.Close())
	}
	return errors.Join(append(errs, a.objs.Close())...)
}

// permission marks an error that a missing capability caused. The verifier refuses
// with the same errno, and other users what it would let root do.
func permission(err error) error {
	if !errors.Is(err, os.ErrPermission) || os.Geteuid() == 0 && errors.As(err, new(*ebpf.VerifierError)) {
		return err
	}
	return fmt.Errorf("%w: this needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (run as root): %w", ErrPermission, err)
}

// prefixKey is struct prefix of maps.h: IPv4 is mapped into IPv6.
type prefixKey struct {
	Bits uint32
	Addr [16]byte
}

func keyOf(p netip.Prefix) prefixKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return prefixKey{Bits: uint32(bits), Addr: p.Masked().Addr().As16()}
}

// trust puts the prefixes into the map of sources, which has room for them.
func trust(m *ebpf.Map, from []netip.Prefix) error {
	for _, p := range from {
		if err := m.Put(keyOf(p), uint8(1)); err != nil {
			return fmt.Errorf("trust %s: %w", p, err)
		}
	}
	return nil
}

// checkSources refuses prefixes that are none.
func checkSources(from []netip.Prefix) error {
	for _, p := range from {
		if !p.IsValid() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			return fmt.Errorf("%w: %s is no prefix to trust", ErrOptions, p)
		}
	}
	return nil
}
