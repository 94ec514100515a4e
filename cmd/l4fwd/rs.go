package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/dataplane/steer"
	"github.com/l4fwd/l4fwd/rs"
)

// rsCommand is `l4fwd rs`.
func rsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rs",
		Short: "The real server's side, without a kernel module",
		Long: `What runs on real servers: clients' addresses from TOA (toa) and, for UDP, from
UOA (uoa), and packets out of tunnels (decap). All are eBPF programs that are
there as long as the command runs; however it ends, the kernel takes them away.
docs/real-servers.md has what they need, and units for systemd.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(rsTOACommand(), rsUOACommand(), rsDecapCommand(), rsStatusCommand())
	return cmd
}

func rsTOACommand() *cobra.Command {
	var o rs.TOAOptions
	var from []string
	var kinds []uint
	cmd := &cobra.Command{
		Use:   "toa --from PREFIX",
		Short: "Show servers the client's address that TOA names",
		Long: `Let accept and getpeername of the servers in a cgroup, and below it, return the
client's address and port in place of the balancer's, as far as the balancer
names them in the TCP option TOA. Servers need no change and no restart.

Only connections from the balancer's addresses are looked at. Runs until SIGINT,
SIGTERM or SIGHUP.`,
		Example: `  l4fwd rs toa --from 10.0.1.10-10.0.1.13 --from 2001:db8:1::10
  l4fwd rs toa --from 10.0.1.0/28 --cgroup /sys/fs/cgroup/system.slice/nginx.service
  l4fwd rs toa --from 10.0.1.0/28 --kind 254 --kind 252`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&o.Cgroup, "cgroup", "", "`PATH` of the cgroup2 directory; the root if not given")
	f.StringSliceVar(&from, "from", nil, "address, range or `PREFIX` of balancers, the only ones that are believed; repeatable")
	f.UintSliceVar(&kinds, "kind", []uint{rs.DefaultTOAKind}, "`NUMBER` of the TCP option; repeatable")
	f.BoolVar(&o.Getsockopt, "getsockopt", false, "answer the Go package toa too, at a small cost for every getsockopt in the cgroup")
	must(cmd.MarkFlagRequired("from"))
	must(cmd.MarkFlagDirname("cgroup"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if o.From, err = prefixes(from); err != nil {
			return &exitError{exitUsage, err}
		}
		for _, k := range kinds {
			if k > 255 {
				return &exitError{exitUsage, fmt.Errorf("--kind %d: at most 255", k)}
			}
			o.Kinds = append(o.Kinds, uint8(k))
		}
		return hold(cmd, func(ctx context.Context, log *zap.Logger) error { return rs.RunTOA(ctx, o, log) })
	}
	return cmd
}

func rsDecapCommand() *cobra.Command {
	var o rs.DecapOptions
	var from, vips []string
	var mode string
	cmd := &cobra.Command{
		Use:   "decap --dev NAME --vip ADDRESS",
		Short: "Take packets for VIPs out of ipip, GRE, GUE and FOU tunnels",
		Long: `Take packets for the VIPs, and no others, out of the tunnels in which they come
to addresses of this host, and give them to the kernel, which must have the VIPs
on lo. IP in IP and GRE are always looked into, in any mix of IPv4 and IPv6; GUE
and FOU at their UDP ports. Everything else passes untouched.

Runs until SIGINT, SIGTERM or SIGHUP.`,
		Example: `  l4fwd rs decap --dev eth0 --vip 192.0.2.10 --vip 2001:db8::10
  l4fwd rs decap --dev eth0 --vip 192.0.2.10 --from 10.0.1.0/24 --fou-port 5555`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.Interfaces, "dev", nil, "interface `NAME` that tunnels come in by; repeatable")
	f.StringSliceVar(&vips, "vip", nil, "`ADDRESS` that the packets inside are for; repeatable")
	f.StringSliceVar(&from, "from", nil, "address, range or `PREFIX` tunnels may come from; repeatable; everywhere if not given")
	f.Uint16Var(&o.GUEPort, "gue-port", rs.DefaultGUEPort, "UDP `PORT` of GUE, 0 for none")
	f.Uint16Var(&o.FOUPort, "fou-port", 0, "UDP `PORT` of FOU, 0 for none")
	f.StringVar(&mode, "xdp-mode", steer.Auto.String(), "`MODE` auto, native or generic")
	must(cmd.MarkFlagRequired("dev"))
	must(cmd.MarkFlagRequired("vip"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if o.From, err = prefixes(from); err != nil {
			return &exitError{exitUsage, err}
		}
		for _, v := range vips {
			a, err := netip.ParseAddr(v)
			if err != nil {
				return &exitError{exitUsage, fmt.Errorf("--vip: %w", err)}
			}
			o.VIPs = append(o.VIPs, a)
		}
		if o.Mode, err = xdpMode(mode); err != nil {
			return err
		}
		return hold(cmd, func(ctx context.Context, log *zap.Logger) error { return rs.RunDecap(ctx, o, log) })
	}
	return cmd
}

func rsUOACommand() *cobra.Command {
	var o rs.UOAOptions
	var from []string
	var mode string
	cmd := &cobra.Command{
		Use:   "uoa --dev NAME --from PREFIX",
		Short: "Show servers the UDP client's address that UOA names",
		Long: `Let UDP servers in a cgroup, and below it, receive datagrams under the client's
address and port in place of the balancer's, as far as the balancer names them by
UOA, in either of its forms; what they send to the client goes to the balancer.
Servers need no change and no restart.

Only datagrams from the balancer's addresses are looked at. Runs until SIGINT,
SIGTERM or SIGHUP.`,
		Example: `  l4fwd rs uoa --dev eth0 --from 10.0.1.10-10.0.1.13 --from 2001:db8:1::10
  l4fwd rs uoa --dev eth0 --from 10.0.1.0/28 --keep /sys/fs/bpf
  l4fwd rs uoa --dev eth0 --from 10.0.1.0/28 --cgroup /sys/fs/cgroup/system.slice/named.service`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.Interfaces, "dev", nil, "interface `NAME` that the balancers' datagrams come in by; repeatable")
	f.StringVar(&o.Cgroup, "cgroup", "", "`PATH` of the cgroup2 directory; the root if not given")
	f.StringSliceVar(&from, "from", nil, "address, range or `PREFIX` of balancers, the only ones that are believed; repeatable")
	f.IntVar(&o.Clients, "clients", rs.DefaultUOAClients, "the most clients that are known at a time, each in about 500 bytes")
	f.DurationVar(&o.Timeout, "timeout", rs.DefaultUOATimeout, "for so long a client that is not heard of stays known")
	f.StringVar(&o.Keep, "keep", "", "`DIRECTORY` of a BPF file system in which clients are kept for the next rs uoa; else they are forgotten")
	f.BoolVar(&o.Getsockopt, "getsockopt", false, "answer the Go package uoa too, at a small cost for every getsockopt and setsockopt in the cgroup")
	f.StringVar(&mode, "xdp-mode", steer.Auto.String(), "`MODE` auto, native or generic")
	must(cmd.MarkFlagRequired("dev"))
	must(cmd.MarkFlagRequired("from"))
	must(cmd.MarkFlagDirname("cgroup"))
	must(cmd.MarkFlagDirname("keep"))
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if o.From, err = prefixes(from); err != nil {
			return &exitError{exitUsage, err}
		}
		if o.Mode, err = xdpMode(mode); err != nil {
			return err
		}
		return hold(cmd, func(ctx context.Context, log *zap.Logger) error { return rs.RunUOA(ctx, o, log) })
	}
	return cmd
}

// xdpMode is what --xdp-mode names.
func xdpMode(word string) (steer.Mode, error) {
	for _, m := range []steer.Mode{steer.Auto, steer.Native, steer.Generic} {
		if word == m.String() {
			return m, nil
		}
	}
	return 0, &exitError{exitUsage, fmt.Errorf("--xdp-mode %q: auto, native or generic", word)}
}

// hold runs one of them until a signal.
func hold(cmd *cobra.Command, run func(context.Context, *zap.Logger) error) error {
	outliveReader()
	log, _, err := newLogger(&config.Config{LogLevel: config.LogInfo}, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }() // a terminal cannot be synced
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	err = run(ctx, log)
	if errors.Is(err, rs.ErrOptions) {
		return &exitError{exitUsage, err}
	}
	return err
}

// maxRange is how many addresses a range of --from may have.
const maxRange = 1024

// prefixes are what --from names: prefixes, addresses, or ranges of addresses as in
// local_addresses.
func prefixes(words []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, w := range words {
		if strings.Contains(w, "/") {
			p, err := netip.ParsePrefix(w)
			if err != nil {
				return nil, fmt.Errorf("--from: %w", err)
			}
			out = append(out, p)
			continue
		}
		low, high, isRange := strings.Cut(w, "-")
		first, err := netip.ParseAddr(low)
		last := first
		if isRange && err == nil {
			last, err = netip.ParseAddr(high)
		}
		if err != nil {
			return nil, fmt.Errorf("--from: %w", err)
		}
		end := len(out) + maxRange
		for a := first; a.IsValid() && a.Compare(last) <= 0 && len(out) < end; a = a.Next() {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
		if first.BitLen() != last.BitLen() || last.Less(first) || out[len(out)-1].Addr() != last {
			return nil, fmt.Errorf("--from: %s is no range of at most %d addresses", w, maxRange)
		}
	}
	return out, nil
}

func rsStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what the other `rs` commands have attached and counted",
		Long: `Show what the kernel has of "l4fwd rs toa", "rs uoa" and "rs decap", of all their
processes, and what they counted. docs/real-servers.md explains the counters.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := rs.List()
			if err != nil {
				return err
			}
			if asJSON {
				if all == nil {
					all = []rs.Status{}
				}
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(all)
			}
			return showStatus(cmd, all)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func showStatus(cmd *cobra.Command, all []rs.Status) error {
	var b strings.Builder
	if len(all) == 0 {
		b.WriteString("nothing is attached\n")
	}
	for i, s := range all {
		if i > 0 {
			b.WriteByte('\n')
		}
		where := fmt.Sprintf("cgroup %s, kinds %v", s.Cgroup, s.Kinds)
		switch s.Program {
		case "uoa":
			where = fmt.Sprintf("interfaces %v, cgroup %s", s.Interfaces, s.Cgroup)
		case "decap":
			where = fmt.Sprintf("interfaces %v, VIPs %v, GUE port %d, FOU port %d", s.Interfaces, s.VIPs, s.GUEPort, s.FOUPort)
		}
		fmt.Fprintf(&b, "%s, process %d, since %s\n%s\nfrom %v\n", s.Program, s.PID, s.Since.Format("2006-01-02 15:04:05"), where, s.From)
		if s.Gone > 0 {
			fmt.Fprintf(&b, "NOT ATTACHED any more: %d of %d\n", s.Gone, s.Links)
		}
		for _, c := range s.Counts() {
			fmt.Fprintf(&b, "  %-12s%d\n", c.Name, c.Value)
		}
	}
	_, err := io.WriteString(cmd.OutOrStdout(), b.String())
	return err
}
