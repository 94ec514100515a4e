package peers

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// proxy is HAProxy or nginx with its stream module: each connection of a client
// ends there, and another goes to the server.
type proxy struct {
	haproxy bool
	proc    *testbed.Process
}

// proxied are the ports that proxies listen on, and the server's.
var proxied = [][2]int{{portHTTP, portHTTPInner}, {portIperf, portIperf}}

// haproxyConfig stays below the number of files that root may open without
// CAP_SYS_RESOURCE: two for each connection.
func haproxyConfig() string {
	text := "global\n  nbthread 1\n  maxconn 9000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
	for _, p := range proxied {
		text += fmt.Sprintf("listen port%d\n  bind %s:%d backlog 8192\n  server s %s:%d\n", p[0], vipAddr, p[0], serverAddr.Addr(), p[1])
	}
	return text
}

// nginxConfig is that of the stream module, which Debian has in a package and a
// file of its own: module, empty where it is built in.
func nginxConfig(dir, module string, cpu int) string {
	text := ""
	if module != "" {
		text = "load_module " + module + ";\n"
	}
	text += nginxHead(dir, cpu) + "stream {\n"
	for _, p := range proxied {
		text += fmt.Sprintf("  server { listen %s:%d backlog=8192; proxy_pass %s:%d; }\n", vipAddr, p[0], serverAddr.Addr(), p[1])
	}
	return text + "}\n"
}

func (p *proxy) start(ctx context.Context, n *network, _ traffic) (err error) {
	if p.proc != nil {
		return nil
	}
	if err := n.l0.AddAddr(netip.PrefixFrom(vipAddr, 32)); err != nil {
		return err
	}
	name := "haproxy"
	if p.haproxy {
		file := n.file(fileConfig)
		if err := os.WriteFile(file, []byte(haproxyConfig()), 0o600); err != nil {
			return err
		}
		args := pinned(n.cpus.Forward, "haproxy", "-db", "-f", file)
		p.proc, err = n.balancer.StartProcess(ctx, testbed.ProcessOptions{Path: args[0], Args: args[1:]})
	} else {
		name = "nginx"
		module, merr := streamModule(ctx)
		if merr != nil {
			return merr
		}
		text := nginxConfig(n.file("balancer"), module, n.cpus.Forward)
		p.proc, err = n.startNginx(ctx, n.balancer, fileConfig, text, n.cpus.Forward)
	}
	if err != nil {
		return err
	}
	for _, port := range proxied {
		if err := waitTCP(ctx, n.client, vipAddr, uint16(port[0])); err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, p.proc.Output())
		}
	}
	return nil
}

// stop leaves the process to the end of its namespace, where it is killed: it
// holds nothing but sockets.
func (p *proxy) stop() error {
	if p.proc == nil || p.proc.Running() {
		return nil
	}
	return fmt.Errorf("%w\n%s", errEnded, p.proc.Output())
}

// streamModule is the path of nginx's stream module, empty if it is built in. An
// error says that there is none.
func streamModule(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "nginx", "-V").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("nginx -V: %w: %s", err, out)
	}
	dir := ""
	for _, f := range strings.Fields(string(out)) {
		if f == "--with-stream" {
			return "", nil
		}
		if d, ok := strings.CutPrefix(f, "--modules-path="); ok {
			dir = d
		}
	}
	path := filepath.Join(dir, "ngx_stream_module.so")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("nginx has no stream module: %w", err)
	}
	return path, nil
}
