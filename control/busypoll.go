package control

import (
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/nic"
)

// busyPollMicros is SO_BUSY_POLL, as Documentation/networking/af_xdp.rst and
// the kernel's own tests have it.
const busyPollMicros = 20

// deferred keeps interrupts away while workers poll, by the same documents.
var deferred = nic.BusyPoll{DeferHardIRQs: 2, GROFlushTimeout: 200 * time.Microsecond}

// pollState is what has come of busy polling on a NIC.
type pollState uint8

const (
	pollUnknown pollState = iota
	pollWorks             // interrupts are deferred
	pollIdle              // there is nothing for the workers' calls to run
)

// drive defers a NIC's interrupts as soon as the workers are known to do their
// work. Where they cannot, every packet would wait for the timer that ends the
// deferring, twice 200 µs for a request and its answer on veth.
func (d *Daemon) drive(l *link) {
	if !d.cfg.BusyPoll || !l.up || l.polling != pollUnknown {
		return
	}
	received := uint64(0)
	for _, s := range l.sockets {
		if id, err := d.opt.napi(s); err == nil && id != 0 {
			l.polling = pollWorks
			d.deferInterrupts(l)
			return
		}
		received += s.Received()
	}
	if received == 0 {
		return // older kernels know with the first packet
	}
	l.polling = pollIdle
	d.log.Warn("busy_poll does nothing on this interface, packets come by its interrupts", zap.String("interface", l.name),
		zap.String("driver", l.driver), zap.String("problem", "the driver has not told the kernel which NAPI a queue belongs to"))
}

func (d *Daemon) deferInterrupts(l *link) {
	had := len(l.settings.Problems)
	if err := l.settings.Add(nic.Settings{BusyPoll: &deferred}); err != nil {
		d.log.Warn("NIC setting", zap.String("interface", l.name), zap.Error(err))
	}
	d.tellProblems(l, had)
}

// tellProblems logs what the NIC has refused since there were that many.
func (d *Daemon) tellProblems(l *link, had int) {
	for _, p := range l.settings.Problems[had:] {
		d.log.Warn("NIC setting", zap.String("interface", l.name), zap.Error(p))
	}
}

// drives reports whether the workers do NAPI's work, as far as is known.
func (d *Daemon) drives() bool {
	for _, l := range d.links {
		if l.polling == pollIdle {
			return false
		}
	}
	return d.cfg.BusyPoll
}
