package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// StartNginx runs nginx in the namespace, answering every request on the given
// addresses like a Server does, with HTTPReply. Its files go to dir, which must
// exist and outlive it.
func StartNginx(ctx context.Context, ns *Namespace, dir, name string, listen ...netip.AddrPort) (*Process, error) {
	var http, server strings.Builder
	fmt.Fprint(&http, "  access_log off;\n  keepalive_requests 1000000;\n")
	// netip wants IPv6 in brackets.
	fmt.Fprint(&http, "  map $remote_addr $peer { ~: \"[$remote_addr]:$remote_port\"; default \"$remote_addr:$remote_port\"; }\n")
	for _, l := range listen {
		fmt.Fprintf(&server, "    listen %s backlog=8192;\n", l)
	}
	fmt.Fprintf(&server, "    location / { default_type application/json; return 200 '{\"server\":%q,\"remote\":\"$peer\"}'; }\n", name)
	return startNginx(ctx, ns, dir, http.String(), server.String(), listen, nil)
}

// LoggedNginx is an nginx in a cgroup that logs who asks, and tells in its answers,
// like a Server.
type LoggedNginx struct {
	*Process
	log string
}

// NginxPorts are those of a LoggedNginx, on every address.
type NginxPorts struct {
	Each     uint16 // a socket for each family
	Both     uint16 // one socket for both
	Deferred uint16 // accepted with the first data
}

// StartLoggedNginx runs one in the namespace. Its files go to dir, which must exist and
// outlive it.
func StartLoggedNginx(ctx context.Context, ns *Namespace, group *Cgroup, dir string, p NginxPorts) (*LoggedNginx, error) {
	n := &LoggedNginx{log: filepath.Join(dir, "access.log")}
	var http, server strings.Builder
	fmt.Fprintf(&http, "  log_format who '$remote_addr $remote_port';\n  access_log %s who;\n", n.log)
	fmt.Fprint(&http, "  map $remote_addr $peer { ~: \"[$remote_addr]:$remote_port\"; default \"$remote_addr:$remote_port\"; }\n")
	fmt.Fprintf(&server, "    listen %d backlog=8192;\n    listen [::]:%d ipv6only=on backlog=8192;\n", p.Each, p.Each)
	fmt.Fprintf(&server, "    listen [::]:%d ipv6only=off backlog=8192;\n    listen %d deferred backlog=8192;\n", p.Both, p.Deferred)
	fmt.Fprintf(&server, "    location / { default_type application/json; return 200 '{\"server\":%q,\"remote\":\"$peer\"}'; }\n", ns.role)
	var err error
	n.Process, err = startNginx(ctx, ns, dir, http.String(), server.String(), []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p.Each)}, group.Prepare)
	return n, err
}

// Clients are those that the log names, in its order.
func (n *LoggedNginx) Clients() ([]netip.AddrPort, error) {
	b, err := os.ReadFile(n.log)
	if err != nil {
		return nil, fmt.Errorf("nginx's log: %w", err)
	}
	var out []netip.AddrPort
	for line := range strings.Lines(string(b)) {
		addr, port, _ := strings.Cut(strings.TrimSpace(line), " ")
		a, err := addrPort(addr, port)
		if err != nil {
			return nil, fmt.Errorf("nginx's log: %q: %w", line, err)
		}
		out = append(out, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
	}
	return out, nil
}

// ProxiedNginx is an nginx that expects a PROXY header on every connection. It
// answers any path with the path, serves the files in its directory's files/,
// and stores what is PUT to /up/.
type ProxiedNginx struct {
	*Process
	dir string
}

// StartProxiedNginx runs one in the namespace. Its files go to dir, which must
// exist and outlive it.
func StartProxiedNginx(ctx context.Context, ns *Namespace, dir string, listen ...netip.AddrPort) (*ProxiedNginx, error) {
	n := &ProxiedNginx{dir: dir}
	for _, sub := range []string{"files", "up", "body"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("nginx: %w", err)
		}
	}
	var http, server strings.Builder
	fmt.Fprint(&http, "  log_format who '$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port $connection $request_uri';\n")
	fmt.Fprintf(&http, "  access_log %s who;\n  keepalive_requests 1000000;\n", n.logFile())
	fmt.Fprintf(&http, "  client_max_body_size 0;\n  client_body_temp_path %s;\n", filepath.Join(dir, "body"))
	for _, l := range listen {
		fmt.Fprintf(&server, "    listen %s proxy_protocol backlog=8192;\n", l)
	}
	fmt.Fprintf(&server, "    root %s;\n    location / { default_type text/plain; return 200 '$request_uri'; }\n", dir)
	fmt.Fprint(&server, "    location /files/ { }\n    location /up/ { dav_methods PUT; }\n")
	var err error
	n.Process, err = startNginx(ctx, ns, dir, http.String(), server.String(), listen, nil)
	return n, err
}

func (n *ProxiedNginx) logFile() string { return filepath.Join(n.dir, "access.log") }

// File is where the file lies that nginx serves as, or that was PUT to, path.
func (n *ProxiedNginx) File(path string) string {
	return filepath.Join(n.dir, filepath.FromSlash(path))
}

// ProxiedRequest is a line of such an nginx's log.
type ProxiedRequest struct {
	Client, Server netip.AddrPort // as the PROXY header said
	Connection     uint64         // nginx's number for it
	Path           string
}

// Requests are those that nginx has finished.
func (n *ProxiedNginx) Requests() ([]ProxiedRequest, error) {
	b, err := os.ReadFile(n.logFile())
	if err != nil {
		return nil, fmt.Errorf("nginx's log: %w", err)
	}
	var out []ProxiedRequest
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 6 {
			return nil, fmt.Errorf("nginx's log: %q", line)
		}
		var r ProxiedRequest
		var errs [3]error
		r.Client, errs[0] = addrPort(f[0], f[1])
		r.Server, errs[1] = addrPort(f[2], f[3])
		r.Connection, errs[2] = strconv.ParseUint(f[4], 10, 64)
		if err := errors.Join(errs[:]...); err != nil {
			return nil, fmt.Errorf("nginx's log: %q: %w", line, err)
		}
		r.Path = f[5]
		out = append(out, r)
	}
	return out, nil
}

// addrPort is an address and a port from two words.
func addrPort(addr, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a, uint16(n)), err
}

// startNginx runs nginx with one server and waits until it listens. http and
// server are the lines of these two blocks; prepare is as in ProcessOptions.
func startNginx(ctx context.Context, ns *Namespace, dir, http, server string, listen []netip.AddrPort, prepare func(*Cmd)) (*Process, error) {
	if len(listen) == 0 {
		return nil, errors.New("nginx: nothing to listen on")
	}
	return runNginx(ctx, ns, dir, fmt.Sprintf("http {\n%s  server {\n%s  }\n}\n", http, server), listen[0], prepare)
}

// StartUDPNginx runs an nginx in the namespace and the cgroup that answers a datagram to
// one of the ports, on any address, by who has sent it, "ADDRESS PORT" without brackets.
// Its files go to dir, which must exist and outlive it.
func StartUDPNginx(ctx context.Context, ns *Namespace, group *Cgroup, dir string, ports ...uint16) (*Process, error) {
	if len(ports) == 0 {
		return nil, errors.New("nginx: nothing to listen on")
	}
	var b strings.Builder
	fmt.Fprint(&b, "stream {\n")
	for _, p := range ports {
		// By TCP, too, to see when it is there.
		fmt.Fprintf(&b, "  server { listen %d; listen %d udp; listen [::]:%d udp ipv6only=on; return \"$remote_addr $remote_port\"; }\n", p, p, p)
	}
	fmt.Fprint(&b, "}\n")
	text := b.String()
	const module = "/usr/lib/nginx/modules/ngx_stream_module.so" // Debian has it there, unless it is built in
	if _, err := os.Stat(module); err == nil {
		text = "load_module " + module + ";\n" + text
	}
	return runNginx(ctx, ns, dir, text, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), ports[0]), group.Prepare)
}

// runNginx runs it with a configuration, and waits until it listens.
func runNginx(ctx context.Context, ns *Namespace, dir, text string, listen netip.AddrPort, prepare func(*Cmd)) (*Process, error) {
	path, err := tool("nginx", "nginx-light")
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	// dir may be root's alone, so root is who works in it.
	fmt.Fprintf(&b, "daemon off;\nuser root root;\nworker_processes 1;\nworker_rlimit_nofile 16384;\npid %s;\n", filepath.Join(dir, "nginx.pid"))
	fmt.Fprintf(&b, "%s\nevents { worker_connections 8192; }\n", text)
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, []byte(b.String()), 0o600); err != nil {
		return nil, fmt.Errorf("nginx: %w", err)
	}
	p, err := ns.StartProcess(ctx, ProcessOptions{Path: path, Args: []string{"-c", conf, "-p", dir, "-e", filepath.Join(dir, "error.log")}, Prepare: prepare})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := ns.WaitTCP(ctx, listen); err != nil {
		p.Kill()
		return nil, fmt.Errorf("nginx: %w\n%s", err, p.Output())
	}
	return p, nil
}
