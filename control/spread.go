package control

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/vishvananda/netns"
	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/nic"
	"github.com/l4fwd/l4fwd/packet/rss"
)

// spread is how all NICs alike spread packets over the workers' queues, nil if
// they do not say, do not agree, or do not hash TCP and UDP by ports: then
// owners are drawn by a hash of l4fwd's own and packets handed over. With one
// worker there is nothing to spread.
func (d *Daemon) spread() *rss.Spread {
	if d.cfg.Workers == 1 {
		return nil
	}
	var first *nic.RSS
	for _, l := range d.links {
		info, err := nic.ReadInfo(netns.None(), l.name)
		if err == nil {
			err = usable(info.RSS, first)
		}
		if err != nil {
			d.log.Info("packets will be handed over between workers: the NIC's RSS cannot be followed",
				zap.String("interface", l.name), zap.Error(err))
			return nil
		}
		first = info.RSS
	}
	s, err := rss.New(first.Key, first.Indirection, d.cfg.Workers)
	if err != nil {
		d.log.Info("packets will be handed over between workers", zap.Error(err))
		return nil
	}
	d.log.Info("flows follow the NICs' RSS", zap.Int("slots", len(first.Indirection)))
	return s
}

// usable says what keeps a NIC's RSS from deciding a flow's owner; first is
// that of the NICs before.
func usable(r, first *nic.RSS) error {
	switch {
	case r == nil:
		return fmt.Errorf("it cannot be read")
	case r.Function != nic.Toeplitz || r.Symmetric:
		return fmt.Errorf("its hash function is not plain Toeplitz")
	}
	for _, f := range []struct {
		flow   string
		fields nic.HashFields
	}{{"tcp4", r.TCP4}, {"udp4", r.UDP4}, {"tcp6", r.TCP6}, {"udp6", r.UDP6}} {
		if f.fields != nic.HashFourTuple {
			return fmt.Errorf("%s is not hashed by addresses and ports (ethtool -N NIC rx-flow-hash %s sdfn)", f.flow, f.flow)
		}
	}
	if first != nil && (!bytes.Equal(r.Key, first.Key) || !slices.Equal(r.Indirection, first.Indirection)) {
		return fmt.Errorf("its key or indirection table differs from the other interfaces'")
	}
	return nil
}
