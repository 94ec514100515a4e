package testbed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tool finds an external program, or says what to install.
func tool(name, debianPackage string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is not installed (apt-get install %s): %w", name, debianPackage, err)
	}
	return path, nil
}

// StartNginx runs nginx in the namespace, answering every request on the given
// addresses like a Server does, with HTTPReply. Its files go to dir, which must
// exist and outlive it.
func StartNginx(ctx context.Context, ns *Namespace, dir, name string, listen ...netip.AddrPort) (*Process, error) {
	path, err := tool("nginx", "nginx-light")
	if err != nil {
		return nil, err
	}
	if len(listen) == 0 {
		return nil, errors.New("nginx: nothing to listen on")
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, []byte(nginxConfig(dir, name, listen)), 0o600); err != nil {
		return nil, fmt.Errorf("nginx: %w", err)
	}
	p, err := ns.StartProcess(ctx, ProcessOptions{Path: path, Args: []string{"-c", conf, "-p", dir, "-e", filepath.Join(dir, "error.log")}})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := ns.WaitTCP(ctx, listen[0]); err != nil {
		p.Kill()
		return nil, fmt.Errorf("nginx: %w\n%s", err, p.Output())
	}
	return p, nil
}

func nginxConfig(dir, name string, listen []netip.AddrPort) string {
	var b strings.Builder
	fmt.Fprintf(&b, "daemon off;\nworker_processes 1;\nworker_rlimit_nofile 16384;\npid %s;\n", filepath.Join(dir, "nginx.pid"))
	fmt.Fprint(&b, "events { worker_connections 8192; }\nhttp {\n  access_log off;\n  keepalive_requests 1000000;\n")
	// netip wants IPv6 in brackets.
	fmt.Fprint(&b, "  map $remote_addr $peer { ~: \"[$remote_addr]:$remote_port\"; default \"$remote_addr:$remote_port\"; }\n  server {\n")
	for _, l := range listen {
		fmt.Fprintf(&b, "    listen %s backlog=8192;\n", l)
	}
	fmt.Fprintf(&b, "    location / { default_type application/json; return 200 '{\"server\":%q,\"remote\":\"$peer\"}'; }\n  }\n}\n", name)
	return b.String()
}

// StartIperf3 runs an iperf3 server in the namespace.
func StartIperf3(ctx context.Context, ns *Namespace, listen netip.AddrPort) (*Process, error) {
	path, err := tool("iperf3", "iperf3")
	if err != nil {
		return nil, err
	}
	return ns.StartProcess(ctx, ProcessOptions{
		Path:  path,
		Args:  []string{"-s", "--forceflush", "-B", listen.Addr().String(), "-p", strconv.Itoa(int(listen.Port()))},
		Ready: "Server listening",
	})
}

// Iperf3Result is what an iperf3 client measured.
type Iperf3Result struct {
	SentMbps, ReceivedMbps float64
	Retransmits            int
}

// RunIperf3 sends TCP for some seconds from the namespace to an iperf3 server.
func RunIperf3(ctx context.Context, ns *Namespace, to netip.AddrPort, seconds, streams int) (Iperf3Result, error) {
	path, err := tool("iperf3", "iperf3")
	if err != nil {
		return Iperf3Result{}, err
	}
	out, runErr := ns.Command(ctx, path, "-J", "-c", to.Addr().String(), "-p", strconv.Itoa(int(to.Port())),
		"-t", strconv.Itoa(seconds), "-P", strconv.Itoa(max(streams, 1))).Output()
	var report struct {
		Error string `json:"error"`
		End   struct {
			Sent struct {
				BPS         float64 `json:"bits_per_second"`
				Retransmits int     `json:"retransmits"`
			} `json:"sum_sent"`
			Received struct {
				BPS float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return Iperf3Result{}, fmt.Errorf("iperf3: %w", errors.Join(runErr, err))
	}
	if report.Error != "" || runErr != nil {
		return Iperf3Result{}, fmt.Errorf("iperf3: %s: %w", report.Error, exitError(runErr))
	}
	return Iperf3Result{
		SentMbps: report.End.Sent.BPS / 1e6, ReceivedMbps: report.End.Received.BPS / 1e6, Retransmits: report.End.Sent.Retransmits,
	}, nil
}
