package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// unwrap gives the real servers what takes packets out of tunnels: the kernel's VXLAN,
// or `l4fwd rs decap`.
func (d *demo) unwrap(ctx context.Context) error {
	if d.modes[0].name != tunnel {
		return nil
	}
	for i, ns := range d.net.top.Servers {
		dev := d.net.top.ServerDevs[i]
		var err error
		if wrap := d.modes[0].wrap; wrap.name == vxlan {
			err = vxlanAt(dev, wrap.port)
		} else {
			err = d.decap(ctx, ns, dev)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func vxlanAt(dev *testbed.Device, port uint16) error {
	for _, f := range testbed.Families {
		err := dev.VXLAN("vx"+f.String(), f, vxlanVNI, port, vxlanMAC)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("this kernel (%s) has no VXLAN interfaces (CONFIG_VXLAN); try another encapsulation: %w", release(), err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// decap runs `l4fwd rs decap` as a real server would.
func (d *demo) decap(ctx context.Context, ns *testbed.Namespace, dev *testbed.Device) error {
	args := []string{"rs", "decap", "--dev", dev.Name}
	for _, a := range d.net.vips() {
		args = append(args, "--vip", a.String())
	}
	for _, f := range testbed.Families {
		args = append(args, "--from", d.net.top.LBServer.Addr(f).String())
	}
	if e := d.modes[0].wrap; e.port == fouPort {
		args = append(args, "--fou-port", fmt.Sprint(e.port))
	}
	done := d.scr.timed(ns.Role(), "l4fwd "+strings.Join(args, " "))
	// It must outlive ctx, as the forwarder must.
	p, err := ns.StartProcess(context.WithoutCancel(ctx), testbed.ProcessOptions{
		Path: d.o.Executable, Args: args, Ready: "ready", ReadyTimeout: startPatience,
	})
	if err != nil {
		return err
	}
	d.down.add(func() error { return p.Terminate(stopPatience) })
	done()
	return nil
}
