package control

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/announce"
)

// speak announces what belongs at the NIC and listens for questions.
func (d *Daemon) speak(l *link) (err error) {
	if l.voice, err = announce.Open(l.ifindex, l.mac); err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	return d.speakFor(l)
}

// hush ends that.
func (l *link) hush() error {
	if l.quiet != nil {
		l.quiet()
		l.quiet = nil
	}
	l.speakers.Wait()
	l.mine = nil
	if l.voice == nil {
		return nil
	}
	err := l.voice.Close()
	l.voice = nil
	return err
}

// speakFor makes the NIC speak for what belongs there now. Only what is new is
// announced.
func (d *Daemon) speakFor(l *link) error {
	mine, err := d.places(l)
	if err != nil {
		return err
	}
	has := func(list []netip.Addr) func(netip.Addr) bool {
		return func(a netip.Addr) bool { return slices.Contains(list, a) }
	}
	lost := slices.DeleteFunc(slices.Clone(l.mine), has(mine))
	added := slices.DeleteFunc(slices.Clone(mine), has(l.mine))
	l.mine = mine
	if len(lost) == 0 && len(added) == 0 {
		return nil
	}
	if err := l.voice.Leave(lost); err != nil {
		d.log.Debug("solicited-node groups", zap.String("interface", l.name), zap.Error(err))
	}
	if err := l.voice.Join(added); err != nil {
		d.log.Warn("neighbour solicitations may not arrive", zap.String("interface", l.name), zap.Error(err))
	}
	d.announce(l, added)
	return nil
}

// announce tells the neighbours at the NIC that addresses are here. What was
// being announced before and still belongs here is begun anew.
func (d *Daemon) announce(l *link, addrs []netip.Addr) {
	if l.voice == nil || len(addrs) == 0 {
		return
	}
	if l.quiet != nil {
		l.quiet()
		l.speakers.Wait()
		addrs = l.mine
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.quiet = cancel
	voice := l.voice
	d.log.Info("announcing addresses", zap.String("interface", l.name), zap.Int("addresses", len(addrs)))
	l.speakers.Go(func() {
		err := guarded("announcing addresses", func() error { return voice.Announce(ctx, addrs) })
		if err != nil && ctx.Err() == nil {
			d.log.Warn("announcing addresses", zap.String("interface", l.name), zap.Error(err))
		}
	})
}

// places are the addresses of ours (not the host's) that the NIC speaks for:
// those of its subnets, and those that belong to no NIC's subnet. Such an
// address may well be on-link for others where the host has no address of that
// subnet itself, and an announcement means nothing to whom it does not concern.
func (d *Daemon) places(l *link) ([]netip.Addr, error) {
	if err := d.readSubnets(); err != nil {
		return nil, err
	}
	var mine []netip.Addr
	for _, a := range d.rules.Addrs {
		if l.reaches(a) || !slices.ContainsFunc(d.links, func(o *link) bool { return o.reaches(a) }) {
			mine = append(mine, a)
		}
	}
	return mine, nil
}

// reaches reports whether an address is on-link at the NIC.
func (l *link) reaches(a netip.Addr) bool {
	return slices.ContainsFunc(l.subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// readSubnets reads those of all NICs. One that is not there keeps what it had,
// lest its addresses be announced elsewhere.
func (d *Daemon) readSubnets() error {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of the interfaces: %w", err)
	}
	for _, l := range d.links {
		if l.program == nil {
			continue
		}
		l.subnets = l.subnets[:0]
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			if ip = ip.Unmap(); ok && a.LinkIndex == l.ifindex && !ip.IsLinkLocalUnicast() {
				l.subnets = append(l.subnets, netip.PrefixFrom(ip, bits).Masked())
			}
		}
	}
	return nil
}
