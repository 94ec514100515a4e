package rs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/internal/sdnotify"
)

// lookPeriod is how often a daemon looks whether it is still attached: nobody says
// so when a cgroup or an interface is removed.
const lookPeriod = time.Second

// RunTOA shows clients' addresses until ctx is done, or, with ErrGone, the cgroup
// is removed.
func RunTOA(ctx context.Context, o TOAOptions, log *zap.Logger) error {
	t, err := AttachTOA(o)
	if err != nil {
		return err
	}
	log.Info("ready", zap.String("cgroup", t.opts.Cgroup), zap.Stringers("from", t.opts.From), zap.Uint8s("kinds", t.opts.Kinds))
	return t.hold(ctx, "cgroup "+t.opts.Cgroup, t.Stats, log)
}

// RunDecap takes packets out of tunnels until ctx is done, or, with ErrGone, an
// interface is removed.
func RunDecap(ctx context.Context, o DecapOptions, log *zap.Logger) error {
	d, err := AttachDecap(o)
	if err != nil {
		return err
	}
	for _, n := range d.Notes {
		log.Info(n)
	}
	for _, v := range d.Missing() {
		log.Warn("the host has not got this VIP, so what is for it goes nowhere",
			zap.Stringer("vip", v), zap.String("command", fmt.Sprintf("ip address add %s/%d dev lo", v, v.BitLen())))
	}
	following := make(chan struct{})
	fctx, stop := context.WithCancel(ctx)
	go func() {
		defer close(following)
		d.Follow(fctx, func(err error) { log.Warn("the host's addresses", zap.Error(err)) })
	}()
	defer func() {
		stop()
		<-following
		d.follow.close()
	}()
	log.Info("ready", zap.Strings("interfaces", d.opts.Interfaces), zap.Stringers("vips", d.opts.VIPs))
	return d.hold(ctx, "interface "+strings.Join(d.opts.Interfaces, " or "), d.Stats, log)
}

// RunUOA shows UDP clients' addresses until ctx is done, or, with ErrGone, an interface
// or the cgroup is removed.
func RunUOA(ctx context.Context, o UOAOptions, log *zap.Logger) error {
	u, err := AttachUOA(o)
	if err != nil {
		return err
	}
	for _, n := range u.Notes {
		log.Info(n)
	}
	log.Info("ready", zap.Strings("interfaces", u.opts.Interfaces), zap.String("cgroup", u.opts.Cgroup), zap.Stringers("from", u.opts.From))
	return u.hold(ctx, "cgroup "+u.opts.Cgroup+" or interface "+strings.Join(u.opts.Interfaces, " or "), u.Stats, log)
}

// hold keeps programs attached until ctx is done, then logs what they counted and
// detaches them. where is for the error that tells what they lost.
func (a *attached) hold(ctx context.Context, where string, stats func() ([]Count, error), log *zap.Logger) error {
	if err := sdnotify.Send("READY=1"); err != nil {
		log.Warn("telling the service manager", zap.Error(err))
	}
	tick := time.NewTicker(lookPeriod)
	defer tick.Stop()
	var lost error
	for lost == nil && ctx.Err() == nil {
		select {
		case <-tick.C:
			if err := a.gone(); err != nil {
				lost = fmt.Errorf("%s: %w", where, err)
			}
		case <-ctx.Done():
		}
	}
	if err := sdnotify.Send("STOPPING=1"); err != nil {
		log.Warn("telling the service manager", zap.Error(err))
	}
	if counts, err := stats(); err == nil {
		fields := make([]zap.Field, len(counts))
		for i, c := range counts {
			fields[i] = zap.Uint64(c.Name, c.Value)
		}
		log.Info("detaching", fields...)
	}
	return errors.Join(lost, a.Close())
}
