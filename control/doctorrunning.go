package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
)

// mostChanges of a file are listed.
const mostChanges = 3

// CompareRunning says where cfg is not what the l4fwd that c asks has in force, though it
// was read from the file which that one names: Diagnose would look for something else than
// what runs. Of flags of run only interfaces and the number of workers can be told.
func CompareRunning(ctx context.Context, c *admin.Client, cfg *config.Config) []Finding {
	x, file := &exam{}, cfg.File()
	r, err := c.Reload(ctx, admin.ReloadRequest{DryRun: true})
	switch {
	case errors.As(err, new(*admin.Error)):
		x.add("file", file, Warn, "", "it is looked at here, and the running l4fwd would not take it by a reload: %s", printable(err.Error()))
		return x.found
	case err != nil:
		x.add("file", file, Warn, "", "it is looked at here, and whether it is in force cannot be told: %v", err)
		return x.found
	case len(r.Changes) > 0:
		more := ""
		if n := len(r.Changes) - mostChanges; n > 0 {
			more = fmt.Sprintf("; %d more changes", n)
		}
		x.add("file", file, Warn, "", "it is looked at here, and is not what the running l4fwd has in force; a reload would change: %s%s",
			printable(strings.Join(r.Changes[:min(len(r.Changes), mostChanges)], "; ")), more)
	}
	// The daemon has read it with its flags, so what still differs is by them.
	status, err := c.Status(ctx)
	var stats admin.Stats
	if err == nil {
		stats, err = c.Stats(ctx)
	}
	if err != nil {
		x.add("file", file, Warn, "", "it is looked at here without flags of run, and whether there are any cannot be told: %v", err)
		return x.found
	}
	if n := withWorkers(cfg).Workers; n != status.Workers {
		x.add("file", file, Warn, "", "it is looked at here without flags of run: workers are %d in it, %d in the running l4fwd", n, status.Workers)
	}
	var here, there []string
	for _, itf := range cfg.Interfaces {
		here = append(here, itf.Name)
	}
	for _, l := range stats.Links {
		there = append(there, l.Name)
	}
	if !slices.Equal(here, there) {
		x.add("file", file, Warn, "", "it is looked at here without flags of run: its interfaces are %s, the running l4fwd's %s",
			strings.Join(here, ", "), strings.Join(there, ", "))
	}
	if len(x.found) == 0 {
		x.add("file", file, Good, "", "it is what the running l4fwd has in force, but for flags of run")
	}
	return x.found
}
