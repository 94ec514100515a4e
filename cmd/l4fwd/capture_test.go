package main

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// capturing is a network with a forwarder in it, to be captured.
type capturing struct {
	*testbed.Topology
	t            *testing.T
	ctx          context.Context
	path, socket string
	dir          string
	daemon       *testbed.Process
}

func newCapturing(t *testing.T, more ...string) *capturing {
	t.Helper()
	topo, err := testbed.NewTopology(testbed.TopologyOptions{Servers: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, topo.Close()) })
	servers, err := topo.StartServers()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, testbed.CloseServers(servers)) })
	path, err := testbed.Build(t.Context(), "./cmd/l4fwd", false)
	if err != nil {
		t.Fatal(err)
	}
	// t's ends before the forwarder does. Some seconds, but on a busy machine.
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	dir := t.TempDir()
	c := &capturing{Topology: topo, t: t, ctx: ctx, path: path, socket: filepath.Join(dir, "a.sock"), dir: dir}
	file := filepath.Join(dir, "l4fwd.yaml")
	text := topo.Config(testbed.Services(0, "full-nat", "toa", "wrr"), append(more, "admin_socket: "+c.socket, "max_flows: 4096", "frames_per_queue: 1024", "ring_size: 256")...)
	noError(t, os.WriteFile(file, []byte(text), 0o644))
	p, err := topo.LB.StartProcess(ctx, testbed.ProcessOptions{Path: path, Ready: `"msg":"ready"`, Args: []string{"run", "-c", file, "--log-format", "json"}})
	if err != nil {
		t.Fatal(err)
	}
	c.daemon = p
	t.Cleanup(func() { noError(t, p.Terminate(30*time.Second)) })
	return c
}

// start begins a capture, once the one before is over.
func (c *capturing) start(args ...string) *testbed.Process {
	c.t.Helper()
	for {
		p, err := c.LB.StartProcess(c.ctx, testbed.ProcessOptions{
			Path: c.path, Args: append([]string{"capture", "--socket", c.socket}, args...), Ready: "capturing",
		})
		switch {
		case err == nil:
			return p
		case !strings.Contains(err.Error(), "another capture"):
			c.t.Fatal(err)
		}
	}
}

func (c *capturing) ask() {
	c.t.Helper()
	r, err := testbed.HTTPLoad{To: netip.AddrPortFrom(c.VIP(testbed.V4, 0), testbed.VIPPortHTTP), Requests: 3}.Run(c.ctx, c.Client)
	if err != nil || r.OK != 3 {
		c.t.Errorf("%v %+v", err, r)
	}
}

// acquaint has everybody know everybody's MAC address, and waits until all is quiet again.
func (c *capturing) acquaint() {
	c.t.Helper()
	for was := uint64(0); ; {
		c.ask()
		now := c.settled()["neighbour_unresolved"]
		if now == was || c.ctx.Err() != nil {
			return
		}
		was = now
	}
}

// holds waits until a capture's file has some words so many times.
func (c *capturing) holds(file, words string, times int) {
	c.t.Helper()
	for n := 0; n < times; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(file)
		if err == nil {
			err = c.ctx.Err()
		}
		if n = bytes.Count(b, []byte(words)); err != nil {
			c.t.Fatalf("%q %d times in %s: %v", words, n, file, err)
		}
	}
}

// knock sends a datagram to a port of the VIP that nobody serves.
func (c *capturing) knock() {
	c.t.Helper()
	to := netip.AddrPortFrom(c.VIP(testbed.V4, 0), 9)
	conn, err := c.Client.Dialer(time.Second).DialContext(c.ctx, "udp", to.String())
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { noError(c.t, conn.Close()) }()
	if _, err := conn.Write([]byte("knock")); err != nil {
		c.t.Error(err)
	}
}

// tshark reads fields of a file's frames.
func (c *capturing) tshark(file string, fields ...string) (rows [][]string) {
	c.t.Helper()
	args := []string{"-r", file, "-T", "fields", "-E", "separator=|"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	out, err := exec.CommandContext(c.ctx, "tshark", args...).Output()
	if err != nil {
		c.t.Fatalf("tshark: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "|"))
	}
	return rows
}

// A connection is seen on both sides: what came from the client goes to the server, and
// the answer the other way, and tshark finds nothing wrong with the file.
func TestCaptureConnection(t *testing.T) {
	c := newCapturing(t)
	c.acquaint()
	file := filepath.Join(c.dir, "both.pcapng")
	p := c.start("-w", file, "host", c.ClientAddr(testbed.V4, 0).String(), "and", "tcp")
	c.ask()
	c.holds(file, "HTTP/1.1 200 OK", 2*3) // a capture that is told to end does not wait for a busy daemon for long
	noError(t, p.Signal(syscall.SIGINT))
	noError(t, p.WaitOutput(c.ctx, "frames captured, 0 missed"))
	data, streams := map[string]string{}, map[string]bool{}
	for _, row := range c.tshark(file, "frame.interface_name", "tcp.stream", "tcp.payload", "frame.comment", "_ws.malformed", "tcp.analysis.lost_segment") {
		name, comment := row[0], row[3]
		streams[row[1]] = true
		data[name] += row[2]
		want := "forwarded; service "
		if name == "l1-rx" || name == "l0-tx" {
			want = "replied; service "
		}
		who := "client " + c.ClientAddr(testbed.V4, 0).String() + ":"
		if !strings.HasPrefix(comment, want) || !strings.Contains(comment, who) || !strings.Contains(comment, ", backend "+c.ServerAddr(testbed.V4, 0).String()+":") {
			t.Errorf("%s: %s", name, comment)
		}
		if row[4] != "" || row[5] != "" {
			t.Errorf("tshark finds %q %q: %s", row[4], row[5], comment)
		}
	}
	if len(data["l0-rx"]) < 100 || data["l0-rx"] != data["l1-tx"] {
		t.Errorf("from the client:\n%s\nto the server:\n%s", data["l0-rx"], data["l1-tx"])
	}
	if len(data["l1-rx"]) < 100 || data["l1-rx"] != data["l0-tx"] {
		t.Errorf("from the server:\n%s\nto the client:\n%s", data["l1-rx"], data["l0-tx"])
	}
	if len(streams) != 6 {
		t.Errorf("%d streams of 3 connections: %v", len(streams), streams)
	}
}

// What is dropped is shown with its reason; captures end in every way there is, and the
// next can begin.
func TestCaptureDrops(t *testing.T) {
	c := newCapturing(t)
	c.acquaint() // nothing is dropped for want of a MAC address any more
	p := c.start("--drops", "--count", "1")
	second, err := c.LB.Command(c.ctx, c.path, "capture", "--socket", c.socket).CombinedOutput()
	if err == nil || !strings.Contains(string(second), "l4fwd: another capture is running") {
		t.Errorf("a second capture: %v: %s", err, second)
	}
	c.ask()
	c.knock()
	noError(t, p.WaitOutput(c.ctx, "1 frames captured, 0 missed"))
	if out := p.Output(); !strings.Contains(out, "l0-rx") || !strings.Contains(out, "dropped: no_service; received by l0 queue 0, worker 0") {
		t.Error(out)
	}

	// No service, no forwarder, a full disk, a client that is killed.
	for args, want := range map[string]string{
		"--service nobody": `there is no service "nobody"`, "--reason no_reason": `reason "no_reason" is none`,
		"tcp port": "filter: character 9: the expression ends too soon", "--point tx --drops": "what is dropped is not sent",
		"--backend web": `backend "web": want an address`, "--point up": `point "up": want rx, tx or both`,
		"-w /dev/full": "no space left on device",
	} {
		for {
			out, err := c.LB.Command(c.ctx, c.path, append([]string{"capture", "--socket", c.socket}, strings.Fields(args)...)...).CombinedOutput()
			if strings.Contains(string(out), "another capture") {
				continue // that of before is just being told that nobody reads it
			}
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("%s: %v: %s", args, err, out)
			}
			break
		}
	}
	c.start("--drops").Kill()
	for try := 1; ; try++ {
		p = c.start("--reason", "no_service", "--duration", "2s", "--snaplen", "20", "udp")
		c.knock()
		<-p.Done()
		if try < 5 && strings.Contains(p.Output(), "\n0 frames captured, 0 missed") {
			c.settled() // the knock came late, on a busy machine
			continue
		}
		break
	}
	noError(t, p.WaitOutput(c.ctx, "1 frames captured, 0 missed"))

	// The forwarder's end is that of the capture, whose file is whole.
	file := filepath.Join(c.dir, "end.pcapng")
	p = c.start("--reason", "no_service", "-w", file)
	c.knock()
	c.ask() // by then it has been seen
	begun := time.Now()
	noError(t, c.daemon.Terminate(30*time.Second))
	if d := time.Since(begun); d > 20*time.Second {
		t.Errorf("a capture keeps the forwarder from ending for %v", d)
	}
	noError(t, p.WaitOutput(c.ctx, "1 frames captured, 0 missed"))
	if rows := c.tshark(file, "frame.comment"); len(rows) != 1 || !strings.HasPrefix(rows[0][0], "dropped: no_service") {
		t.Errorf("%q", rows)
	}
}
