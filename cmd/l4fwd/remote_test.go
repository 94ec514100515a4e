package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// TestRemote: commands reach a daemon from another machine, over TLS, with its token, and
// answers come as they do from the socket, those that come bit by bit too.
func TestRemote(t *testing.T) {
	const at = "10.0.1.1:9443"
	dir := t.TempDir()
	var c *capturing
	keys := func() (cert, key string) {
		cert, key, err := testbed.Certificate(dir, netip.MustParseAddrPort(at).Addr())
		noError(t, err)
		return cert, key
	}
	cert, key := keys()
	token := filepath.Join(dir, "token")
	noError(t, os.WriteFile(token, []byte("correct-horse-battery\n"), 0o600))
	c = newCapturing(t, "admin_listen: "+at, "admin_tls_cert: "+cert, "admin_tls_key: "+key, "admin_token_file: "+token)
	elsewhere := c.Servers[0]
	run := func(want string, env []string, args ...string) {
		t.Helper()
		cmd := elsewhere.Command(c.ctx, c.path, args...)
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); !strings.Contains(string(out), want) {
			t.Errorf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	env := []string{"L4FWD_SERVER=https://" + at, "L4FWD_TOKEN_FILE=" + token, "L4FWD_CA=" + cert}
	run("workers", nil, "status", "--server", "https://"+at, "--token-file", token, "--ca", cert)
	c.ask()
	backend := netip.AddrPortFrom(c.ServerAddr(testbed.V4, 0), testbed.PortHTTP).String()
	for _, tt := range [][2]string{
		{"status -o json", `"pid"`}, {"stats", "forwarded"}, {"flows --count", "\n"}, {"services", "web-full-nat-"}, {"top --once --interval 10ms", "backends by traffic"},
		{"drops --interval 10ms -o json", "["}, {"health", "LAST CHECK"}, {"flows kill --protocol udp", "0 flows ended"}, {"reload --dry-run", "nothing changes"},
		{"drain " + backend, "by command since"}, {"enable " + backend, "up"}, {"backends", "up"}, {"capture --point middle", "want rx, tx or both"},
	} {
		run(tt[1], env, strings.Fields(tt[0])...)
	}
	other := filepath.Join(t.TempDir(), "token")
	noError(t, os.WriteFile(other, []byte("another-of-the-kind"), 0o604))
	run("wrong token", env, "status", "--token-file", other)
	run("others can read the token: chmod o= "+other, env, "status", "--token-file", other)
	strange, _, err := testbed.Certificate(filepath.Dir(other), netip.MustParseAddrPort(at).Addr())
	noError(t, err)
	run("signed by unknown authority", env, "status", "--ca", strange)
	run("expected https://HOST:PORT", env, "status", "--server", "http://"+at)
	run("--server needs --token-file", env[:1], "status")
	run("--token-file and --ca need --server", nil, "status", "--ca", cert)
	run("none of the others can be", nil, "status", "--server", "https://"+at, "--socket", c.socket)
	run("nobody listens at /nowhere", env, "status", "--socket", "/nowhere")

	// A capture shows packets while it goes on.
	p, err := elsewhere.StartProcess(c.ctx, testbed.ProcessOptions{Path: c.path, Env: env, Ready: "capturing; Ctrl-C", Args: []string{"capture", "--point", "rx", "--count", "2"}})
	if err != nil {
		t.Fatal(err)
	}
	c.ask()
	noError(t, p.WaitOutput(c.ctx, "2 frames captured"))
	run(backend, env, "flows", "--service", "web-full-nat-v4-0")

	// Another certificate is in force after a reload.
	keys()
	run("signed by unknown authority", env, "status")
	noError(t, c.LB.Command(c.ctx, c.path, "reload", "--socket", c.socket).Run())
	run("workers", env, "status")
}
