package peers

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Names of files that WriteDir writes, or links to if they are there.
const (
	PageFile    = "README.md"
	ReportFile  = "peers.json"
	profileFile = "where-the-time-goes.md"
)

// chartFile is the name of a figure's chart.
func chartFile(work, metric string) string {
	return work + "-" + strings.ReplaceAll(metric, " ", "-") + ".svg"
}

// pageTitle is the first line of every page.
const pageTitle = "# l4fwd beside its peers"

// CheckDir reports whether WriteDir may write to a directory, which need not be
// there yet. A page that is not WriteDir's own is not written over: that is
// ErrOptions.
func CheckDir(dir string) error {
	name := filepath.Join(dir, PageFile)
	page, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	if first, _, _ := strings.Cut(string(page), "\n"); first != pageTitle {
		return fmt.Errorf("%w: %s is not a page of bench peers, and would be written over", ErrOptions, name)
	}
	return nil
}

// removeCharts removes all that have the name of a chart of ours, and no others.
func removeCharts(dir string) error {
	for _, w := range works() {
		for _, m := range w.metrics {
			err := os.Remove(filepath.Join(dir, chartFile(w.name, m.Name)))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// WriteDir writes the charts, the report as JSON, and a page that shows and
// explains them to a directory that CheckDir finds good. Charts of a former run
// that this one has not drawn are removed.
func (r *Report) WriteDir(dir string) error {
	if err := CheckDir(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := removeCharts(dir); err != nil {
		return err
	}
	for i := range r.Works {
		w := &r.Works[i]
		for j := range w.Metrics {
			m := &w.Metrics[j]
			if !m.Charted {
				continue
			}
			draw := func(out io.Writer) error { return r.WriteChart(out, w, m) }
			if err := writeTo(filepath.Join(dir, chartFile(w.Name, m.Name)), draw); err != nil {
				return err
			}
		}
	}
	if err := writeTo(filepath.Join(dir, ReportFile), r.WriteJSON); err != nil {
		return err
	}
	_, err := os.Stat(filepath.Join(dir, profileFile))
	return writeTo(filepath.Join(dir, PageFile), func(out io.Writer) error { return r.writePage(out, err == nil) })
}

func writeTo(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

// writePage writes the page; profiled is whether there is one about profiles.
func (r *Report) writePage(w io.Writer, profiled bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, pageTitle+"\n\nWritten by `%s` on %s; the figures are in [%s](%s) too.\n",
		r.Command, r.Date.Format("2006-01-02 15:04 MST"), ReportFile, ReportFile)
	r.writeHost(&b)
	b.WriteString("\n## Figures\n\n")
	r.writeFigures(&b)
	for _, work := range r.Works {
		for _, m := range work.Metrics {
			if m.Charted {
				fmt.Fprintf(&b, "\n![%s: %s](%s)\n", work.Title, m.Name, chartFile(work.Name, m.Name))
			}
		}
	}
	b.WriteString("\n## Targets\n")
	r.writeTargets(&b)
	if profiled {
		fmt.Fprintf(&b, "\nWhat a packet's time is spent on: [%s](%s).\n", profileFile, profileFile)
	}
	b.WriteString("\n## How it is measured\n\n" + pageHow)
	for _, work := range r.Works {
		fmt.Fprintf(&b, "- `%s`, %s: %s\n", work.Name, work.Title, work.How)
	}
	r.writeArrangements(&b)
	r.writeTrials(&b)
	r.writeLacks(&b)
	r.writeSetups(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// pageHow is what does not differ between runs.
const pageHow = `Three network namespaces for each forwarder, in a row: client, balancer, server, joined
by two veth pairs of one queue each, MTU 1500. Every offload of both ends is off, for
everybody; neighbours are permanent; nothing else uses the network. One CPU is the
forwarder's, another is the generator's, the clients' and the servers'. veth has AF_XDP in
copy mode only. ip_local_port_range is 1024 to 65000, tcp_tw_reuse 1, somaxconn 8192.

The rounds go from forwarder to forwarder. Where the kernel does its part of the work
decides much on veth, so several arrangements are tried before the rounds and the best is
kept, of those in which the forwarder's work is done on the forwarder's CPU (the driver's
receiving half excepted, which veth does where the sender is). "nftables inline" is the one
without a CPU of its own: the client's and the server's CPU does its work within their
system calls, so that no packet ever changes CPU, as it must on a wire.

A figure counts only if no client had an error, no more arrived than was sent, and the
server saw a local address (the client's own, where there is no NAT).

`

func (r *Report) writeHost(b *strings.Builder) {
	machine := "a machine"
	if r.Host.Virtual {
		machine = "a virtual machine"
	}
	fmt.Fprintf(b, "\n| | |\n|---|---|\n| on | %s, %s, %d CPUs |\n| kernel | Linux %s, %s |\n", machine, r.Host.CPU, r.Host.Cores, r.Host.Kernel, r.Host.Distro)
	for _, f := range r.Forwarders {
		version := ""
		if f.Version != "" { // a build may lack it
			version = f.Version + ": "
		}
		fmt.Fprintf(b, "| %s | %s%s |\n", f.Title, version, f.Does)
	}
	fmt.Fprintf(b, "| Go | %s |\n", r.Host.Go)
	if r.Host.Wrk != "" {
		fmt.Fprintf(b, "| wrk | %s |\n", r.Host.Wrk)
	}
	if r.Host.Iperf3 != "" {
		fmt.Fprintf(b, "| iperf3 | %s |\n", r.Host.Iperf3)
	}
}

func (r *Report) writeSetups(b *strings.Builder) {
	b.WriteString("\n## Commands\n")
	for _, f := range r.Forwarders {
		fmt.Fprintf(b, "\n%s\n\n", f.Title)
		for line := range strings.Lines(strings.TrimRight(f.Setup, "\n") + "\n") {
			b.WriteString(strings.TrimRight("    "+line, " \n") + "\n")
		}
	}
}
