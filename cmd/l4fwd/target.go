package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/l4fwd/l4fwd/control/access"
	"github.com/l4fwd/l4fwd/control/admin"
)

// target is which daemon a command asks, and how.
type target struct {
	cmd                           *cobra.Command
	socket, server, tokenFile, ca string
}

// targetFlags adds the flags that say so.
func targetFlags(cmd *cobra.Command) *target {
	t := localFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&t.server, "server", "", "`URL` of a daemon elsewhere, its admin_listen: https://HOST:PORT (or L4FWD_SERVER)")
	f.StringVar(&t.tokenFile, "token-file", "", "`FILE` with the token of that daemon (or L4FWD_TOKEN_FILE)")
	f.StringVar(&t.ca, "ca", "", "`FILE` of PEM, of who vouches for its certificate (or L4FWD_CA); without, the system's")
	cmd.MarkFlagsMutuallyExclusive("socket", "server")
	must(cmd.MarkFlagFilename("ca", "pem", "crt"))
	return t
}

// localFlags adds those of a command that is about this host.
func localFlags(cmd *cobra.Command) *target {
	t := &target{cmd: cmd}
	cmd.Flags().StringVar(&t.socket, "socket", admin.DefaultSocket, "the daemon's `PATH`, its admin_socket")
	must(cmd.MarkFlagFilename("socket", "sock"))
	return t
}

// client is one of that daemon. The environment speaks where no flag does.
func (t *target) client() (*admin.Client, error) {
	remote := t.cmd.Flags().Lookup("server") != nil
	if remote && t.server == "" && !t.cmd.Flags().Changed("socket") {
		t.server = os.Getenv("L4FWD_SERVER")
	}
	if t.server == "" {
		if t.tokenFile != "" || t.ca != "" {
			return nil, &exitError{exitUsage, errors.New("--token-file and --ca need --server")}
		}
		return admin.NewClient(t.socket), nil
	}
	o := admin.RemoteOptions{Server: t.server, CA: t.ca}
	if o.CA == "" {
		o.CA = os.Getenv("L4FWD_CA")
	}
	file := t.tokenFile
	if file == "" {
		file = os.Getenv("L4FWD_TOKEN_FILE")
	}
	if file == "" {
		return nil, &exitError{exitUsage, errors.New("--server needs --token-file, or L4FWD_TOKEN_FILE")}
	}
	token, open, err := access.ReadToken(file)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	if open {
		t.cmd.PrintErrln("l4fwd: others can read the token: chmod o= " + file)
	}
	o.Token = token
	c, err := admin.NewRemoteClient(o)
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("--server: %w", err)}
	}
	return c, nil
}
