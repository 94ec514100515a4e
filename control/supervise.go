package control

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/follow"
	"github.com/l4fwd/l4fwd/control/nic"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/internal/sdnotify"
)

// How often the loop looks after what does not announce itself.
const (
	eventPeriod = 10 * time.Millisecond // words from workers, while there are any
	quietPeriod = 80 * time.Millisecond // and when there have been none for long
	retryPeriod = time.Second           // NICs out of service
	corePeriod  = time.Minute           // who else runs on the workers' cores
)

// supervise is the daemon's loop.
func (d *Daemon) supervise(ctx context.Context) error {
	if err := d.ready(); err != nil {
		return err
	}
	defer d.unready()
	words, second := time.NewTimer(eventPeriod), time.NewTicker(retryPeriod)
	defer words.Stop()
	defer second.Stop()
	cores := time.NewTicker(corePeriod)
	defer cores.Stop()
	watch, unwatch := watchdog()
	defer unwatch()
	d.checkCores()
	// Each wake-up has Go's runtime look around for a while, which is most of what
	// an idle l4fwd costs.
	period := eventPeriod
	for {
		select {
		case <-ctx.Done():
			d.farewell()
			return nil
		case err := <-d.failed:
			return err
		case host := <-d.hosts:
			d.rehost(host)
		case e := <-d.events:
			d.linkEvent(ctx, e)
		case <-words.C:
			period = min(2*period, quietPeriod)
			if d.listen() {
				period = eventPeriod
			}
			words.Reset(period)
		case <-cores.C:
			d.checkCores()
		case <-watch:
			d.vouch(ctx)
		case <-second.C:
			d.rehostAgain()
			for _, l := range d.links {
				d.look(ctx, l)
				d.drive(l)
			}
			d.retire(ctx, time.Now())
			d.tidyLocals(ctx, time.Now())
			d.writeStats(ctx)
		case job := <-d.jobs:
			job()
		case <-d.opt.ReloadOn:
			d.beside.Go(func() { // reading a large file takes a while
				_, _ = d.ReloadFile(ctx, admin.ReloadRequest{}) // it has logged what is wrong
			})
		case <-d.opt.DumpStats:
			d.logStats(ctx)
		}
	}
}

// listen hears what the workers have to say, and tells whether they had anything.
func (d *Daemon) listen() (heard bool) {
	for _, w := range d.dp.Workers {
		for {
			e, ok := w.Event()
			if !ok {
				break
			}
			heard = true
			switch e.Kind {
			case dataplane.EventResolve:
				d.follower.Resolve(e.Addr.Netip())
			case dataplane.EventPortDown:
				if l := d.links[e.NIC]; l.up && !l.stalled {
					l.stalled = true
					d.log.Warn("interface does not work", zap.String("interface", l.name))
				}
			}
		}
	}
	return heard
}

// linkEvent follows an interface that goes, returns or changes.
func (d *Daemon) linkEvent(ctx context.Context, e follow.LinkEvent) {
	i := slices.IndexFunc(d.links, func(l *link) bool { return l.name == e.Name })
	if i < 0 {
		return
	}
	l := d.links[i]
	if l.outdates(e) {
		return
	}
	if l.up && (e.Gone || e.Index != l.ifindex) {
		d.log.Warn("interface is gone", zap.String("interface", l.name), zap.Int("index", l.ifindex))
		d.lose(l)
	}
	if e.Gone {
		return
	}
	if !l.up {
		l.retry = time.Time{}
		l.dark = !e.Up // it can be in service before anybody is at the other end
		d.look(ctx, l)
		return
	}
	if !bytes.Equal(e.MAC[:], l.mac) {
		d.readdress(l, net.HardwareAddr(e.MAC[:]))
	} else if e.Up && l.dark {
		d.look(ctx, l)
		// Behind a cable that was plugged in there may be another switch port.
		d.announce(l, l.mine)
	}
	l.dark = !e.Up
	if l.dark {
		d.noteDown(l)
	}
	if err := nic.CheckMTU(l.name, e.MTU, d.umem.MaxPacket()); err != nil {
		d.log.Error("packets will be lost", zap.Error(err))
	}
}

// outdates reports whether e is about an interface before the one in service, which
// look has found before e came.
func (l *link) outdates(e follow.LinkEvent) bool {
	if !l.up || e.Index == l.ifindex {
		return false
	}
	info, err := nic.ReadInfo(netns.None(), l.name)
	return err == nil && info.Index == l.ifindex
}

// noteDown remembers that a NIC was off, or without carrier: that it stalled is
// no fault of its sockets then.
func (d *Daemon) noteDown(l *link) {
	if !l.wasDown {
		l.wasDown = true
		d.log.Info("interface is down", zap.String("interface", l.name))
	}
}

// look brings a NIC back that stalled or is out of service, if it is time.
func (d *Daemon) look(ctx context.Context, l *link) {
	if !l.up {
		d.regain(ctx, l)
		return
	}
	if !l.stalled {
		return
	}
	info, err := readLink(l.name)
	same := err == nil && info.Index == l.ifindex
	switch {
	case errors.Is(err, errDown):
		d.noteDown(l)
		return // its sockets stay bound, and so does the program
	case same && (l.wasDown || time.Since(l.revived) > 2*retryPeriod):
		l.wasDown, l.revived = false, time.Now()
		if err := d.revive(l); err != nil {
			d.log.Warn("taking an interface into use again", zap.String("interface", l.name), zap.Error(err))
		}
		d.announce(l, l.mine)
		d.log.Info("interface is in use again", zap.String("interface", l.name))
	default: // gone, another one, or it stalls again and again: start afresh
		message := "interface is gone"
		if same {
			message = "interface fails again and again"
		}
		d.log.Warn(message, zap.String("interface", l.name), zap.Int("index", l.ifindex))
		d.lose(l)
		d.regain(ctx, l)
	}
}

// readdress follows a change of the NIC's MAC address, which workers answer
// ARP with and the program compares.
func (d *Daemon) readdress(l *link, mac net.HardwareAddr) {
	l.mac = bytes.Clone(mac)
	d.log.Info("interface has a new MAC address", zap.String("interface", l.name), zap.Stringer("mac", l.mac))
	err := errors.Join(l.program.SetMAC(l.mac), d.revive(l), l.hush(), d.speak(l))
	if err != nil {
		d.log.Warn("following a MAC address", zap.String("interface", l.name), zap.Error(err))
		d.lose(l)
	}
}

// lose takes a NIC that failed out of service; it is tried again later.
func (d *Daemon) lose(l *link) {
	if err := d.linkDown(l); err != nil {
		d.log.Warn("taking an interface out of service", zap.String("interface", l.name), zap.Error(err))
	}
}

// regain tries to take a NIC back into service, less and less often while that
// fails: at once at first, then every second up to every thirty.
func (d *Daemon) regain(ctx context.Context, l *link) {
	if l.up || time.Now().Before(l.retry) {
		return
	}
	err := d.linkUp(ctx, l)
	if err == nil {
		return
	}
	if text := err.Error(); text != l.trouble {
		l.trouble = text
		d.log.Warn("interface is out of service", zap.String("interface", l.name), zap.Error(err))
	}
	l.tries++
	l.retry = time.Now().Add(time.Duration(min(l.tries, 30)) * retryPeriod)
}

// ready tells whoever waits that traffic is being taken.
func (d *Daemon) ready() error {
	d.confine()
	d.log.Info("ready", zap.Int("workers", len(d.dp.Workers)), zap.Int("services", len(d.cfg.Services)), zap.Int("interfaces", len(d.links)))
	if err := sdnotify.Send("READY=1"); err != nil {
		d.log.Warn("telling the service manager", zap.Error(err))
	}
	if d.opt.ReadyFile == "" {
		return nil
	}
	return d.makeReady()
}

func (d *Daemon) unready() {
	if err := sdnotify.Send("STOPPING=1"); err != nil {
		d.log.Debug("telling the service manager", zap.Error(err))
	}
	if err := d.removeReady(); err != nil {
		d.log.Debug("ready file", zap.Error(err))
	}
}
