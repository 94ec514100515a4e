package demo

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// How often the state is shown.
const (
	redrawPeriod = 200 * time.Millisecond // the table on a terminal
	linePeriod   = time.Second            // plain lines
)

// Escape sequences (ECMA-48).
const (
	cursorUp   = "\x1b[%dA"
	clearLine  = "\x1b[2K"
	styleGood  = "\x1b[32m"
	styleBad   = "\x1b[1;31m"
	styleFaint = "\x1b[2m"
	styleBold  = "\x1b[1m"
	styleOff   = "\x1b[0m"
)

// tableLines and tableWidth are what the live table takes of a terminal at most.
const (
	tableLines = 13
	tableWidth = 100
)

// logLines is how much of the forwarder's log is shown when something fails.
const logLines = 40

// screen prints the demo. It is used by one goroutine. What cannot be printed
// is lost: a reader that went away is no reason to stop.
type screen struct {
	w      io.Writer
	redraw bool // a terminal large enough for the live table
	width  int  // of that terminal, in columns
	color  bool
	drawn  int // lines of the table that stands above the cursor
}

func newScreen(w io.Writer) *screen {
	s := &screen{w: w}
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return s
	}
	s.color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	width, height, err := term.GetSize(int(f.Fd()))
	s.width = width
	s.redraw = err == nil && width >= tableWidth && height > tableLines+1 && os.Getenv("TERM") != "dumb"
	return s
}

func (s *screen) line(text string) { _, _ = fmt.Fprintln(s.w, strings.TrimRight(text, " ")) }

// style wraps text in an escape sequence, on a terminal.
func (s *screen) style(style, text string) string {
	if !s.color {
		return text
	}
	return style + text + styleOff
}

func (s *screen) intro(modes []*mode, topology string) {
	s.line(s.style(styleBold, "l4fwd demo") + ", " + names(modes) + ", " + topology + ": a small network of its own, taken down at the end; Ctrl-C ends it early")
	s.line("")
}

// step prints one step of the demo.
func (s *screen) step(name, what string) {
	s.line(s.style(styleBold, fmt.Sprintf("%-10s", name)) + " " + what)
}

// timed prints a step once it is done, with the time it took.
func (s *screen) timed(name, what string) (done func()) {
	begin := time.Now()
	return func() { s.step(name, fmt.Sprintf("%s (%s)", what, round(time.Since(begin)))) }
}

// picture draws the network with its addresses, and says what goes where.
func (s *screen) picture(n *network) {
	top := n.top
	row := func(what string, of func(testbed.Family) netip.Addr, more string) {
		s.line(fmt.Sprintf("    %-39s %-16s %-16s %s", what, of(testbed.V4), of(testbed.V6), more))
	}
	server := func(i int) func(testbed.Family) netip.Addr {
		return func(f testbed.Family) netip.Addr { return top.ServerAddr(f, i) }
	}
	weight := func(i int) string { return fmt.Sprintf("weight %d", weights[i]) }
	s.line("")
	forwarders, servers := n.joints()
	for i, joint := range forwarders {
		row(joint, n.arms()[i].Addr, map[int]string{1: "the servers' default gateway"}[i])
	}
	for i, joint := range servers {
		row(joint, server(i), weight(i))
	}
	if n.topology == trunk {
		s.line("    10 and 20 are VLANs of one cable, l4fwd's")
	}
	row("client", func(f testbed.Family) netip.Addr { return top.ClientAddr(f, 0) }, "")
	for _, m := range n.modes {
		row(m.vips, func(f testbed.Family) netip.Addr { return n.vip(f, m) }, "")
		if m.name == fullNAT {
			row("local addresses of l4fwd, for Full-NAT", func(f testbed.Family) netip.Addr { return top.LocalAddr(f, 0) }, "and the next 3")
		}
	}
	s.line("")
	for _, m := range n.modes {
		s.line(fmt.Sprintf("    %-8s  request  %s", m.name, m.request))
		s.line(fmt.Sprintf("    %-8s  answer   %s", "", m.answer))
	}
	s.line("")
}

// names are the modes' for people.
func names(modes []*mode) string {
	var out []string
	for _, m := range modes {
		out = append(out, m.name)
	}
	return strings.Join(out, " and ")
}

// config shows the configuration as far as its first service.
func (s *screen) config(text string, modes []*mode) {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	shown, more, inServices := 0, 0, false
	s.line("")
	for _, l := range lines {
		inServices = inServices || l == "services:"
		if inServices && strings.HasPrefix(l, "  - name:") {
			if shown++; shown > 1 {
				more++
			}
		}
		if shown <= 1 {
			s.line(s.style(styleFaint, "    "+l))
		}
	}
	if more > 0 {
		all := fmt.Sprintf("    # and %d services more: IPv4 and IPv6, HTTP and UDP", more)
		if len(modes) > 1 {
			all += ", " + names(modes)
		}
		s.line(s.style(styleFaint, all))
	}
	s.line("")
}

// period is how often live wants to be called.
func (s *screen) period() time.Duration {
	if s.redraw {
		return redrawPeriod
	}
	return linePeriod
}

// live shows how the traffic stands: the table again, or one more line.
func (s *screen) live(at time.Duration, tests []*scenario, st stats) {
	if s.redraw {
		s.table(tests, st, s.width-1)
		return
	}
	answered, planned, flows := map[string]int{}, map[string]int{}, map[string]int{}
	for _, sc := range tests {
		t := sc.tally()
		answered[sc.protocol] += t.OK
		planned[sc.protocol] += t.Planned
		for name, n := range t.ByServer {
			flows[name] += n
		}
	}
	s.line(fmt.Sprintf("  %5.1f s   http %s/%s   udp %s/%s   rs1 %s   rs2 %s   l4fwd: %s packets, %s dropped", at.Seconds(),
		thousands(answered["http"]), thousands(planned["http"]), thousands(answered["udp"]), thousands(planned["udp"]),
		thousands(flows["rs1"]), thousands(flows["rs2"]), thousands(st.Verdicts[verdictForwarded]+st.Verdicts[verdictReplied]), thousands(st.Dropped)))
}

// settled shows the final state.
func (s *screen) settled(tests []*scenario, st stats) {
	if !s.redraw {
		s.line("")
	}
	s.table(tests, st, 0)
	s.line("")
}

// table draws the state of all scenarios over the table that stands. Lines are
// cut to width columns, since one that wraps would put the cursor off; 0 is for
// the last table, which may.
func (s *screen) table(tests []*scenario, st stats, width int) {
	const columns = "  %-8s  %-4s  %-4s  %13s  %5s  %5s  %-26s  %s"
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, cursorUp, s.drawn)
	}
	s.drawn = 0
	add := func(style, line string) {
		line = strings.TrimRight(line, " ")
		if s.redraw {
			b.WriteString(clearLine)
			s.drawn++
		}
		if r := []rune(line); width > 0 && len(r) > width {
			line = string(r[:width])
		}
		if style != "" {
			line = s.style(style, line)
		}
		b.WriteString(line + "\n")
	}
	toa := ""
	if slices.ContainsFunc(tests, func(sc *scenario) bool { return sc.mode.name == fullNAT }) {
		toa = "TOA names"
	}
	add(styleBold, fmt.Sprintf(columns, "mode", "", "", "answered", "rs1", "rs2", "the server's peer is", toa))
	for _, sc := range tests {
		t := sc.tally()
		style := ""
		if t.Failed > 0 {
			style = styleBad
		}
		add(style, fmt.Sprintf(columns, sc.mode.name, sc.protocol, "IP"+sc.family.String(), fmt.Sprintf("%d/%d", t.OK, t.Planned),
			strconv.Itoa(t.ByServer["rs1"]), strconv.Itoa(t.ByServer["rs2"]), place(t.Peer), place(t.Client)))
	}
	add("", "")
	for _, l := range st.brief() {
		add("", "  "+l)
	}
	_, _ = io.WriteString(s.w, b.String())
}

// place is an address for people: without a port that is not known, and
// nothing at all for none.
func place(a netip.AddrPort) string {
	switch {
	case !a.IsValid():
		return ""
	case a.Port() == 0:
		return a.Addr().String()
	}
	return a.String()
}

// brief is the forwarder's figures in three lines.
func (s stats) brief() [3]string {
	if s.Verdicts == nil {
		return [3]string{"l4fwd has no figures yet"}
	}
	drops := "none dropped"
	if d := s.drops(); len(d) > 0 {
		drops = "dropped: " + strings.Join(d, ", ")
	}
	return [3]string{
		fmt.Sprintf("l4fwd   flows    %s opened, %s in the table", thousands(s.Opened), thousands(s.Flows)),
		fmt.Sprintf("        packets  %s to servers, %s back, %s answered by itself (ARP, ND, ping)",
			thousands(s.Verdicts[verdictForwarded]), thousands(s.Verdicts[verdictReplied]), thousands(s.Verdicts[verdictAnswered])),
		"                 " + drops,
	}
}

// verdict prints the checks.
func (s *screen) verdict(checks []check) {
	wide := 0
	for _, c := range checks {
		wide = max(wide, utf8.RuneCountInString(c.name))
	}
	s.line(s.style(styleBold, "verdict"))
	for _, c := range checks {
		word := s.style(styleGood, "ok    ")
		if !c.ok {
			word = s.style(styleBad, "FAILED")
		}
		s.line(fmt.Sprintf("  %s  %-*s  %s", word, wide, c.name, c.detail))
		if c.ok {
			continue
		}
		for _, b := range c.because {
			s.line("          " + b)
		}
	}
	s.line("")
}

// log prints the end of a log.
func (s *screen) log(title, text string) {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if left := len(lines) - logLines; left > 0 {
		title += fmt.Sprintf(" (the last %d lines of %d)", logLines, len(lines))
		lines = lines[left:]
	}
	s.line(s.style(styleBold, title))
	for _, l := range lines {
		s.line("  | " + l)
	}
	s.line("")
}

// thousands writes a count in groups of three digits.
func thousands[N int | uint64](n N) string {
	digits := fmt.Sprint(n)
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return b.String()
}

func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Millisecond)
}
