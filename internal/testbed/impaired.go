package testbed

import "net/netip"

// impairClient makes the arm of ConnectLBClient with a wire in its middle:
// l0 ── w0 ~ w1 ── c0.
func (t *Topology) impairClient(o VethOptions) error {
	a, b := o, o
	a.StaticNeighbours, a.AddrsB = false, nil
	b.StaticNeighbours, b.AddrsA = false, nil
	var near, far *Device
	var err error
	if t.LBClient, near, err = Veth(t.LB, "l0", t.Wires, "w0", a); err != nil {
		return err
	}
	if far, t.ClientDev, err = Veth(t.Wires, "w1", t.Client, "c0", b); err != nil {
		return err
	}
	if o.StaticNeighbours {
		if err := t.LBClient.knows(t.ClientDev); err != nil {
			return err
		}
		if err := t.ClientDev.knows(t.LBClient); err != nil {
			return err
		}
	}
	t.Facing[0] = near
	t.ClientWire, err = NewWire(far, near)
	return err
}

// impairServer makes the arm of ConnectLBServer with a wire in its middle, and
// returns l4fwd's device: l1 ── w2 ~ w3 ── switch.
func (t *Topology) impairServer(addrs []netip.Prefix) (*Device, error) {
	d, near, err := Veth(t.LB, "l1", t.Wires, "w2", VethOptions{Queues: t.Options.Queues, MTU: t.Options.MTU, AddrsA: addrs})
	if err != nil {
		return nil, err
	}
	far, err := t.link(t.Wires, "w3", "lb", 1, nil)
	if err != nil {
		return nil, err
	}
	t.Facing[1] = near
	t.ServerWire, err = NewWire(near, far)
	return d, err
}
