package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/announce"
	"github.com/l4fwd/l4fwd/control/follow"
	"github.com/l4fwd/l4fwd/control/nic"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
	"github.com/l4fwd/l4fwd/dataplane/steer"
)

// link is a data-plane NIC, by name: the interface behind the name may come
// and go.
type link struct {
	name   string
	id     uint8 // index in the configuration, and the data plane's name for it
	queues int   // as it had at start; sizes the memory

	up       bool // program attached, sockets open
	ifindex  int
	mac      net.HardwareAddr
	settings *nic.Applied
	program  *steer.NIC
	sockets  []*afxdp.Socket // by queue
	voice    *announce.Announcer
	quiet    context.CancelFunc // stops the announcing
	retry    time.Time          // not before then, if it failed
	tries    int
}

// busyPollMicros is SO_BUSY_POLL, as Documentation/networking/af_xdp.rst and
// the kernel's own tests have it.
const busyPollMicros = 20

// linkUp takes a NIC into service: settings, XDP, sockets, workers, and then
// tells the neighbours. On error nothing is left behind.
func (d *Daemon) linkUp(ctx context.Context, l *link) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, d.linkDown(l))
		}
	}()
	info, err := nic.ReadInfo(netns.None(), l.name)
	if err != nil {
		return err
	}
	if err := checkQueues(l, info, d.cfg.Workers); err != nil {
		return err
	}
	if err := nic.CheckMTU(l.name, info.MTU, d.umem.MaxPacket()); err != nil {
		return err
	}
	l.ifindex, l.mac = info.Index, info.MAC
	want := nic.Settings{KeepVLANTags: true, NoLRO: true}
	if d.cfg.BusyPoll {
		want.BusyPoll = &nic.BusyPoll{DeferHardIRQs: 2, GROFlushTimeout: 200 * time.Microsecond}
	}
	if l.settings, err = nic.Apply(l.name, want, nic.Options{Dir: d.opt.JournalDir, Log: d.log}); err != nil {
		return err
	}
	for _, p := range l.settings.Problems {
		d.log.Debug("NIC setting", zap.String("interface", l.name), zap.Error(p))
	}
	if l.program, err = d.steer.Attach(l.ifindex, l.mac, xdpModes[d.cfg.XDPMode]); err != nil {
		return err
	}
	for _, note := range l.program.Notes {
		d.log.Warn("XDP mode", zap.String("interface", l.name), zap.String("note", note))
	}
	if err := d.openSockets(ctx, l); err != nil {
		return err
	}
	l.up, l.tries = true, 0
	d.log.Info("interface in service", zap.String("interface", l.name), zap.Int("index", l.ifindex),
		zap.String("driver", info.Driver), zap.Stringer("xdp", l.program.Mode()), zap.Int("queues", len(l.sockets)),
		zap.Bool("zero_copy", l.sockets[0].ZeroCopy()), zap.Bool("busy_poll", d.cfg.BusyPoll))
	return d.speak(l)
}

var xdpModes = map[config.XDPMode]steer.Mode{
	config.XDPAuto: steer.Auto, config.XDPNative: steer.Native, config.XDPGeneric: steer.Generic,
}

// openSockets gives every queue a socket and every socket to its worker.
func (d *Daemon) openSockets(ctx context.Context, l *link) error {
	o := afxdp.SocketOptions{
		RX: d.cfg.RingSize, TX: d.cfg.RingSize, Fill: d.cfg.RingSize, Completion: d.cfg.RingSize, ZeroCopy: d.zeroCopy,
	}
	if d.cfg.BusyPoll {
		o.BusyPoll = afxdp.BusyPoll{Microseconds: busyPollMicros, Budget: dataplane.BurstSize}
	}
	for q := range l.queues {
		s, err := d.umem.Open(ctx, l.ifindex, q, o)
		if err != nil {
			return fmt.Errorf("queue %d: %w", q, err)
		}
		if why := s.Fallback(); why != nil && q == 0 {
			d.log.Info("no zero copy", zap.String("interface", l.name), zap.Error(why))
		}
		l.sockets = append(l.sockets, s)
		w := d.dp.Workers[q%len(d.dp.Workers)]
		var attach error
		err = w.Do(ctx, func(w *dataplane.Worker) { attach = w.Attach(l.id, [6]byte(l.mac), s) })
		if err = errors.Join(err, attach); err != nil {
			return err
		}
		if err := l.program.SetSocket(q, s.FD()); err != nil {
			return fmt.Errorf("queue %d: %w", q, err)
		}
	}
	return nil
}

// letGo bounds the wait for a worker to give a NIC up and for the kernel to
// give its frames back.
const letGo = 5 * time.Second

// linkDown takes a NIC out of service, in whatever state it is, and puts it
// back as it was. XDP goes first: from then on the kernel has every packet.
func (d *Daemon) linkDown(l *link) error {
	var errs []error
	if l.quiet != nil {
		l.quiet()
		l.quiet = nil
	}
	if l.program != nil {
		errs = append(errs, l.program.Close())
		l.program = nil
	}
	if len(l.sockets) > 0 {
		errs = append(errs, d.closeSockets(l))
	}
	if l.voice != nil {
		errs = append(errs, l.voice.Close())
		l.voice = nil
	}
	if l.settings != nil {
		errs = append(errs, l.settings.Restore())
		l.settings = nil
	}
	l.up = false
	return errors.Join(errs...)
}

// closeSockets takes the sockets from the workers and gives the workers the
// frames back.
func (d *Daemon) closeSockets(l *link) error {
	ctx, cancel := context.WithTimeout(context.Background(), letGo)
	defer cancel()
	var errs []error
	for _, w := range d.dp.Workers {
		errs = append(errs, w.Do(ctx, func(w *dataplane.Worker) { w.Detach(l.id) }))
	}
	for _, s := range l.sockets {
		errs = append(errs, s.Close())
	}
	for q, s := range l.sockets {
		if err := s.WaitReleased(ctx); err != nil {
			// The kernel may still write to these frames: better to do without
			// them than to send what is being overwritten.
			d.log.Warn("frames are lost", zap.String("interface", l.name), zap.Int("queue", q), zap.Error(err))
			continue
		}
		frames := s.Held(nil)
		w := d.dp.Workers[q%len(d.dp.Workers)]
		errs = append(errs, w.Do(ctx, func(w *dataplane.Worker) { w.Adopt(frames) }))
	}
	l.sockets = nil
	return errors.Join(errs...)
}

// speak announces what is on-link at the NIC and listens for questions.
func (d *Daemon) speak(l *link) (err error) {
	if l.voice, err = announce.Open(l.ifindex, l.mac); err != nil {
		return err
	}
	mine, err := d.onLink(l)
	if err != nil {
		return err
	}
	if err := l.voice.Join(mine); err != nil {
		d.log.Warn("neighbour solicitations may not arrive", zap.String("interface", l.name), zap.Error(err))
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.quiet = cancel
	voice := l.voice
	d.running.Add(1)
	go func() {
		defer d.running.Done()
		if err := voice.Announce(ctx, mine); err != nil && ctx.Err() == nil {
			d.log.Warn("announcing addresses", zap.String("interface", l.name), zap.Error(err))
		}
	}()
	return nil
}

// onLink are the addresses of ours (not the host's) that belong to a subnet of
// the NIC; all of them where the NIC has no address of its own to tell by.
func (d *Daemon) onLink(l *link) ([]netip.Addr, error) {
	nl, err := netlink.LinkByIndex(l.ifindex)
	if err != nil {
		return nil, err
	}
	addrs, err := netlink.AddrList(nl, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", l.name, err)
	}
	var subnets []netip.Prefix
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if ip = ip.Unmap(); ok && !ip.IsLinkLocalUnicast() {
			subnets = append(subnets, netip.PrefixFrom(ip, bits).Masked())
		}
	}
	if len(subnets) == 0 {
		return d.rules.Addrs, nil
	}
	var mine []netip.Addr
	for _, a := range d.rules.Addrs {
		for _, p := range subnets {
			if p.Contains(a) {
				mine = append(mine, a)
				break
			}
		}
	}
	return mine, nil
}

// linkEvent follows an interface that goes, returns or changes.
func (d *Daemon) linkEvent(ctx context.Context, e follow.LinkEvent) {
	for _, l := range d.links {
		if l.name != e.Name {
			continue
		}
		switch {
		case l.up && (e.Gone || e.Index != l.ifindex):
			d.log.Warn("interface is gone", zap.String("interface", l.name), zap.Int("index", l.ifindex))
			d.lose(l)
			if !e.Gone {
				d.regain(ctx, l)
			}
		case l.up && string(e.MAC[:]) != string(l.mac):
			d.log.Info("interface has a new MAC address", zap.String("interface", l.name), zap.String("mac", net.HardwareAddr(e.MAC[:]).String()))
			d.lose(l) // the workers answer ARP with it, the program compares it
			d.regain(ctx, l)
		case !l.up && !e.Gone:
			d.regain(ctx, l)
		}
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
	if l.tries == 0 {
		d.log.Warn("interface is out of service", zap.String("interface", l.name), zap.Error(err))
	}
	l.tries++
	l.retry = time.Now().Add(time.Duration(min(l.tries, 30)) * time.Second)
}
