package control

import (
	"context"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/control/admin"
)

var _ admin.Daemon = (*Daemon)(nil)

// startAdmin listens for commands. Without them l4fwd forwards all the same, so that
// failure is no end; the socket may be that of another l4fwd, in another namespace.
func (d *Daemon) startAdmin(ctx context.Context, down *undo) error {
	s := admin.New(d, d.log.Named("admin"))
	admin.HandleOutput(s, "POST "+admin.CapturePath, admin.CaptureFormat, d.capture)
	admin.HandleOutput(s, "POST "+admin.FlowsPath, admin.FlowsFormat, d.flows)
	admin.HandleOutput(s, "POST "+admin.KillFlowsPath, "application/json", d.killFlows)
	admin.HandleOutput(s, "POST "+admin.WhyPath, "application/json", d.why)
	admin.HandleOutput(s, "POST "+admin.DebugPath, admin.DebugFormat, d.debug)
	d.gates.open(d.log)
	d.startRemote(ctx, down, s)
	if d.cfg.AdminSocket == "" {
		return nil
	}
	l, err := admin.Listen(d.cfg.AdminSocket)
	if err != nil {
		d.log.Warn("no commands will be taken", zap.Error(err))
		return nil
	}
	d.serve(down, l, s, "no more commands are taken")
	return nil
}

// fromRoot is a path that means the same to who works in another directory.
func fromRoot(path string) string {
	if path == "" {
		return ""
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// Status says who the daemon is and what it does. From any goroutine.
func (d *Daemon) Status(ctx context.Context) (s admin.Status, err error) {
	err = d.onLoop(ctx, func() {
		s = admin.Status{
			PID: os.Getpid(), Started: d.started, Config: fromRoot(d.cfg.File()), Loaded: d.loaded, Reloads: d.reloads,
			Workers: len(d.dp.Workers), Services: len(d.cfg.Services),
		}
		for i := range d.cfg.Services {
			s.Backends += len(d.cfg.Services[i].Backends)
		}
		s.Discovery = d.discoveryStatus()
	})
	return s, err
}
