package testbed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
)

// tool finds an external program, or says what to install.
func tool(name, debianPackage string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is not installed (apt-get install %s): %w", name, debianPackage, err)
	}
	return path, nil
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
	SentMbps, ReceivedMbps   float64
	SentBytes, ReceivedBytes uint64
	Retransmits              int
}

// RunIperf3 sends TCP for some seconds from the namespace to an iperf3 server.
func RunIperf3(ctx context.Context, ns *Namespace, to netip.AddrPort, seconds, streams int) (Iperf3Result, error) {
	path, err := tool("iperf3", "iperf3")
	if err != nil {
		return Iperf3Result{}, err
	}
	out, runErr := ns.Command(ctx, path, "-J", "-c", to.Addr().String(), "-p", strconv.Itoa(int(to.Port())),
		"-t", strconv.Itoa(seconds), "-P", strconv.Itoa(max(streams, 1))).Output()
	return ParseIperf3(out, runErr)
}

// ParseIperf3 reads the JSON that an iperf3 client printed; runErr is how it
// ended.
func ParseIperf3(out []byte, runErr error) (Iperf3Result, error) {
	var report struct {
		Error string `json:"error"`
		End   struct {
			Sent struct {
				BPS         float64 `json:"bits_per_second"`
				Bytes       uint64  `json:"bytes"`
				Retransmits int     `json:"retransmits"`
			} `json:"sum_sent"`
			Received struct {
				BPS   float64 `json:"bits_per_second"`
				Bytes uint64  `json:"bytes"`
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
		SentMbps: report.End.Sent.BPS / 1e6, ReceivedMbps: report.End.Received.BPS / 1e6,
		SentBytes: report.End.Sent.Bytes, ReceivedBytes: report.End.Received.Bytes, Retransmits: report.End.Sent.Retransmits,
	}, nil
}
