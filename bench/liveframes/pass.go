package liveframes

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// AttachPass attaches an XDP program that passes everything to the kernel, so
// that the interface, a veth, takes live frames. Closing detaches it.
func AttachPass(ns *testbed.Namespace, name string) (io.Closer, error) {
	l, err := attachXDP(ns, name, asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()})
	if err != nil {
		return nil, fmt.Errorf("XDP program on %s: %w", name, err)
	}
	return l, nil
}

// attachXDP attaches a program natively.
func attachXDP(ns *testbed.Namespace, name string, code asm.Instructions) (io.Closer, error) {
	dev, err := ns.Netlink().LinkByName(name)
	if err != nil {
		return nil, err
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "live_pass", Type: ebpf.XDP, Instructions: code, License: "Dual BSD/GPL"})
	if err != nil {
		return nil, err
	}
	var l link.Link
	err = ns.Do(func() error {
		l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: dev.Attrs().Index, Flags: link.XDPDriverMode})
		return err
	})
	if e := p.Close(); e != nil && err == nil { // the link keeps it
		return nil, errors.Join(e, l.Close())
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}
