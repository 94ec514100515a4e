package control

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

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
	if slices.Equal(mine, l.mine) {
		return nil
	}
	lost := without(addrsOf(l.mine), addrsOf(mine))
	added := without(mine, l.mine)
	l.mine = mine
	if len(lost) == 0 && len(added) == 0 {
		return nil
	}
	if err := l.voice.Leave(lost); err != nil {
		d.log.Debug("solicited-node groups", zap.String("interface", l.name), zap.Error(err))
	}
	if err := l.voice.Join(addrsOf(added)); err != nil {
		d.log.Warn("neighbour solicitations may not arrive", zap.String("interface", l.name), zap.Error(err))
	}
	d.announce(l, added)
	return nil
}

// without is what of a list is not in another.
func without[T comparable](list, other []T) []T {
	has := make(map[T]bool, len(other))
	for _, v := range other {
		has[v] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(v T) bool { return has[v] })
}

// addrsOf are the addresses of places, each once.
func addrsOf(places []announce.Place) (out []netip.Addr) {
	for _, p := range places {
		if len(out) == 0 || out[len(out)-1] != p.Addr { // the VLANs of one stand together
			out = append(out, p.Addr)
		}
	}
	return out
}

// announce tells the neighbours at the NIC that addresses are here. What was
// being announced before and still belongs here is begun anew.
func (d *Daemon) announce(l *link, places []announce.Place) {
	if l.voice == nil || len(places) == 0 {
		return
	}
	if l.quiet != nil {
		l.quiet()
		l.speakers.Wait()
		places = l.mine
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.quiet = cancel
	voice := l.voice
	d.log.Info("announcing addresses", zap.String("interface", l.name), zap.Int("addresses", len(addrsOf(places))))
	l.speakers.Go(func() {
		err := guarded("announcing addresses", func() error { return voice.Announce(ctx, places) })
		if err != nil && ctx.Err() == nil {
			d.log.Warn("announcing addresses", zap.String("interface", l.name), zap.Error(err))
		}
	})
}

// places are the addresses of ours (not the host's) that the NIC speaks for, and in
// which of its VLANs: those of its subnets, and those that belong to no NIC's subnet.
// Such an address may well be on-link for others where the host has no address of that
// subnet itself, and an announcement means nothing to whom it does not concern.
func (d *Daemon) places(l *link) ([]announce.Place, error) {
	if err := d.readNetworks(); err != nil {
		return nil, err
	}
	var mine []announce.Place
	for _, a := range d.rules.Addrs {
		everywhere := !slices.ContainsFunc(d.links, func(o *link) bool {
			return slices.ContainsFunc(o.networks, func(n network) bool { return n.reaches(a) })
		})
		for _, n := range l.networks {
			if everywhere || n.reaches(a) {
				mine = append(mine, announce.Place{Addr: a, Tag: n.tag})
			}
		}
	}
	return mine, nil
}
