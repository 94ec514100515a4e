package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/access"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/web"
)

// gates are who may ask by network. They are safe for any goroutine; what the
// configuration has none of is nil.
type gates struct {
	hosts *access.Hosts
	web   *access.Guard       // of the page's buttons
	admin *access.Guard       // of commands by network
	cert  *access.Certificate // of these
}

// newGates reads nothing yet.
func newGates(c *config.Config, log *zap.Logger) gates {
	g := gates{hosts: access.NewHosts(c.WebHosts)}
	if c.WebTokenFile != "" {
		g.web = access.NewGuard(c.WebTokenFile, log.Named("web"))
	}
	if c.AdminListen.IsValid() {
		g.admin = access.NewGuard(c.AdminTokenFile, log.Named("admin"))
		g.cert = access.NewCertificate(c.AdminTLSCert, c.AdminTLSKey, log.Named("admin"))
	}
	return g
}

// secret is what stands in files, and may stand there anew.
type secret interface {
	Read() (changed bool, use func(), err error)
}

// secrets are all of them by the key that names the file.
func (g *gates) secrets() map[string]secret {
	out := make(map[string]secret)
	if g.web != nil {
		out["web_token_file"] = g.web
	}
	if g.admin != nil {
		out["admin_token_file"], out["admin_tls_cert"] = g.admin, g.cert
	}
	return out
}

// read reads all files. use puts what they hold into force, changes says in words what
// that changes; with an error nothing has changed and nothing can be used.
func (g *gates) read() (changes []string, use func(), err error) {
	var uses []func()
	all := g.secrets()
	for _, key := range slices.Sorted(maps.Keys(all)) {
		changed, use, e := all[key].Read()
		if e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", key, e))
			continue
		}
		if changed {
			changes = append(changes, key+": the file has changed")
		}
		uses = append(uses, use)
	}
	return changes, func() {
		for _, use := range uses {
			use()
		}
	}, err
}

// open reads what there is at start. A file that cannot be read keeps people out and ends
// nothing; a reload tries again.
func (g *gates) open(log *zap.Logger) {
	for key, s := range g.secrets() {
		_, use, err := s.Read()
		if err != nil {
			log.Warn("nobody is let in by it until a reload can read it", zap.String("key", key), zap.Error(err))
			continue
		}
		use()
	}
}

// webOptions are the page's: without a token's file there is nothing that could change
// anything.
func (d *Daemon) webOptions() web.Options {
	o := web.Options{Hosts: d.gates.hosts, Log: d.log.Named("web")}
	if d.gates.web != nil {
		o.Orders, o.Guard = d, d.gates.web
	}
	return o
}

// startRemote listens for commands by network. Without them l4fwd forwards all the same.
func (d *Daemon) startRemote(ctx context.Context, down *undo, s *admin.Server) {
	if at := d.cfg.AdminListen; at.IsValid() {
		d.serveAt(ctx, down, at, admin.NewRemote(s, d.gates.admin, d.gates.cert.Config()),
			"no commands will be taken by network", "no more commands are taken by network")
	}
}
