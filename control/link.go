package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/announce"
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
	stalled  bool // up, but the workers have met an error and do not use it
	dark     bool // no carrier when last heard of
	wasDown  bool // since it last worked: a stall is explained
	ifindex  int
	index    atomic.Int32 // ifindex, for other goroutines than Run's
	mac      net.HardwareAddr
	driver   string
	settings *nic.Applied
	program  *steer.NIC
	sockets  []*afxdp.Socket // by queue
	polling  pollState

	networks []network
	voice    *announce.Announcer
	mine     []announce.Place   // what voice speaks for
	quiet    context.CancelFunc // stops the announcing
	speakers sync.WaitGroup

	revived time.Time // when look last ended a stall
	retry   time.Time // not before then, if it failed
	tries   int
	trouble string // last told about it
}

// serves reports whether packets can come and go by it.
func (l *link) serves() bool { return l.up && !l.stalled && !l.dark }

var xdpModes = map[config.XDPMode]steer.Mode{
	config.XDPAuto: steer.Auto, config.XDPNative: steer.Native, config.XDPGeneric: steer.Generic,
}

// linkUp takes a NIC into service again. On error nothing is left behind.
func (d *Daemon) linkUp(ctx context.Context, l *link) error {
	err := d.take(l)
	if err == nil && d.zeroCopy == afxdp.ZeroCopyOn && l.program.Mode() == steer.Generic {
		err = fmt.Errorf("%s: the other interfaces use zero copy, which generic XDP cannot: restart l4fwd to serve it", l.name)
	}
	if err == nil {
		err = d.openSockets(ctx, l)
	}
	if err == nil {
		err = d.speak(l)
	}
	if err != nil {
		err = errors.Join(err, d.linkDown(l))
	}
	return err
}

// take checks the NIC, changes its settings and attaches the XDP program. What
// it did before an error is undone by linkDown.
func (d *Daemon) take(l *link) error {
	info, err := readLink(l.name)
	if err != nil {
		return err
	}
	if err := checkQueues(info, d.cfg.Workers, l.queues); err != nil {
		return err
	}
	if err := nic.CheckMTU(l.name, info.MTU, d.umem.MaxPacket()); err != nil {
		return err
	}
	l.ifindex, l.mac, l.driver = info.Index, info.MAC, info.Driver
	l.index.Store(int32(info.Index))
	want := nic.Settings{KeepVLANTags: true, AllVLANs: len(d.cfg.Interfaces[l.id].VLANs) > 0, NoLRO: true}
	if l.settings, err = nic.Apply(l.name, want, nic.Options{Dir: d.opt.JournalDir, Log: d.log}); err != nil {
		return err
	}
	d.tellProblems(l, 0)
	if l.program, err = d.steer.Attach(l.ifindex, l.mac, xdpModes[d.cfg.XDPMode]); err != nil {
		return err
	}
	for _, note := range l.program.Notes {
		d.log.Warn("XDP mode", zap.String("interface", l.name), zap.String("note", note))
	}
	return nil
}

// openSockets gives every queue a socket and every socket to its worker, and
// puts the NIC in service.
func (d *Daemon) openSockets(ctx context.Context, l *link) error {
	info, err := readLink(l.name)
	if err != nil {
		return err
	}
	o := afxdp.SocketOptions{
		RX: d.cfg.RingSize, TX: d.cfg.RingSize, Fill: d.cfg.RingSize, Completion: d.cfg.RingSize, ZeroCopy: d.zeroCopy,
	}
	if d.cfg.BusyPoll {
		o.BusyPoll = afxdp.BusyPoll{Microseconds: busyPollMicros, Budget: dataplane.BurstSize}
	}
	for q := range min(l.queues, info.RXQueues) {
		s, err := d.umem.Open(ctx, l.ifindex, q, o)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		l.sockets = append(l.sockets, s)
		if why := s.Fallback(); why != nil && q == 0 {
			d.log.Info("no zero copy", zap.String("interface", l.name), zap.Error(why))
		}
		var attach error
		err = d.onWorker(ctx, q%len(d.dp.Workers), func(w *dataplane.Worker) { attach = w.Attach(l.id, [6]byte(l.mac), s) })
		if err = errors.Join(err, attach); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		if err := l.program.SetSocket(q, s.FD()); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	l.up, l.stalled, l.wasDown, l.tries, l.trouble = true, false, false, 0, ""
	d.drive(l)
	d.log.Info("interface in service", zap.String("interface", l.name), zap.Int("index", l.ifindex),
		zap.String("driver", l.driver), zap.Stringer("xdp", l.program.Mode()), zap.Int("queues", len(l.sockets)),
		zap.Bool("zero_copy", l.sockets[0].ZeroCopy()), zap.Bool("busy_poll", d.cfg.BusyPoll))
	return nil
}

// detach takes the XDP program off: from then on the kernel has every packet.
func (l *link) detach() error {
	if l.program == nil {
		return nil
	}
	err := l.program.Close()
	l.program = nil
	return err
}

// linkDown takes a NIC out of service, in whatever state it is, and puts it
// back as it was.
func (d *Daemon) linkDown(l *link) error {
	l.up, l.stalled, l.polling = false, false, pollUnknown
	return errors.Join(l.detach(), l.hush(), d.closeSockets(l), l.restore())
}

// restore puts the NIC's settings back.
func (l *link) restore() error {
	if l.settings == nil {
		return nil
	}
	err := l.settings.Restore()
	l.settings = nil
	return err
}

// letGo bounds the wait for the kernel to give a NIC's frames back.
const letGo = 5 * time.Second

// closeSockets takes the sockets from the workers and gives the workers the
// frames back.
func (d *Daemon) closeSockets(l *link) error {
	if len(l.sockets) == 0 {
		return nil
	}
	// Without a time limit: a socket must not be closed while its worker is in
	// it, and a worker that has ended lets go as well.
	errs := []error{d.onWorkers(context.Background(), func(w *dataplane.Worker) { w.Detach(l.id) })}
	if !d.leaving {
		d.listen() // what they said of the old sockets must not be held against the next
	}
	for _, s := range l.sockets {
		errs = append(errs, s.Close())
	}
	ctx, cancel := context.WithTimeout(context.Background(), letGo)
	defer cancel()
	for q, s := range l.sockets {
		if d.leaving {
			break
		}
		if err := s.WaitReleased(ctx); err != nil {
			// The kernel may still write to these frames: better to do without
			// them than to send what is being overwritten.
			d.log.Warn("frames are lost", zap.String("interface", l.name), zap.Int("queue", q), zap.Error(err))
			continue
		}
		frames := s.Held(nil)
		errs = append(errs, d.onWorker(ctx, q%len(d.dp.Workers), func(w *dataplane.Worker) { w.Adopt(frames) }))
	}
	l.sockets = nil
	return errors.Join(errs...)
}

// revive lets the workers use a NIC again whose sockets were bound all the
// time: a NIC that was only switched off, or has another MAC address.
func (d *Daemon) revive(l *link) error {
	ports := make(map[*dataplane.Worker][]dataplane.Port)
	errs := []error{d.onWorkers(context.Background(), func(w *dataplane.Worker) { ports[w] = w.Detach(l.id) })}
	d.listen() // what was said until now has been heard, what comes is new
	l.stalled = false
	err := d.onWorkers(context.Background(), func(w *dataplane.Worker) {
		for _, p := range ports[w] {
			errs = append(errs, w.Attach(l.id, [6]byte(l.mac), p))
		}
	})
	return errors.Join(append(errs, err)...)
}

// errDown is an interface that is switched off; nothing can be bound or sent.
var errDown = errors.New("interface is down")

// readLink reads about an interface that is up and has no other name.
func readLink(name string) (*nic.Info, error) {
	info, err := nic.ReadInfo(netns.None(), name)
	if err != nil {
		return nil, err
	}
	dev, err := netlink.LinkByIndex(info.Index)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	a := dev.Attrs()
	switch {
	case a.Name != name:
		return nil, fmt.Errorf("interface %s is an alternative name of %s: use that one", name, a.Name)
	case len(info.MAC) != 6:
		return nil, fmt.Errorf("interface %s is no Ethernet device (%s)", name, dev.Type())
	case a.Flags&net.FlagUp == 0:
		return nil, fmt.Errorf("%s: %w: switch it on with: ip link set dev %s up", name, errDown, name)
	}
	return info, nil
}
