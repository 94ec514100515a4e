package rings

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/bench/cpu"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Options of Run.
type Options struct {
	Rounds   int // 0 is 25
	Progress func(done float64)
}

// What is measured. In a round, so many packets lie ready on a ring, or are sent.
const (
	ring     = 2048
	frames   = 4 * ring
	perRound = 1024
	burst    = 64
	frameLen = 60
)

// Row is what a kind of rings takes.
type Row struct {
	Rings string `json:"rings"`
	// Receive is nanoseconds a packet for taking it and giving the kernel a fresh
	// frame; Transmit for having it sent and its frame back, system calls and the
	// kernel's work in them included.
	Receive  Figure `json:"receive"`
	Transmit Figure `json:"transmit"`
}

// Figure is nanoseconds a packet over the rounds.
type Figure struct {
	Median float64 `json:"median_ns"`
	Best   float64 `json:"best_ns"`
}

// Report is the result of Run.
type Report struct {
	Rounds int    `json:"rounds"`
	Ours   Row    `json:"ours"`
	Asavie Row    `json:"asavie"`
	Kernel string `json:"kernel"`
}

// ErrLost means that packets did not arrive on a ring, or were not sent.
var ErrLost = errors.New("packets lost")

// rings is one of the kinds, on a veth.
type rings interface {
	// receive takes what is there, a burst at a time, giving back as many frames,
	// until there is nothing. It returns how many it took.
	receive() int
	// transmit has n packets sent, in bursts, and takes their frames back.
	transmit(n int) error
	close() error
}

// side is a kind of rings with the far end of its veth, and its figures.
type side struct {
	name              string
	r                 rings
	far               int // interface index
	received, sending []float64
}

// Run measures. It needs root.
func Run(ctx context.Context, o Options) (rep *Report, err error) {
	if o.Rounds == 0 {
		o.Rounds = 25
	}
	if o.Rounds < 1 {
		return nil, fmt.Errorf("rings: %d rounds", o.Rounds)
	}
	if err := testbed.NeedRoot(); err != nil {
		return nil, fmt.Errorf("rings: %w", err)
	}
	ns, err := testbed.NewNamespace("rings")
	if err != nil {
		return nil, fmt.Errorf("rings: %w", err)
	}
	defer func() {
		if e := ns.Close(); err == nil && e != nil {
			rep, err = nil, fmt.Errorf("rings: %w", e)
		}
	}()
	// Nothing but our packets.
	if err := ns.Sysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
		return nil, fmt.Errorf("rings: %w", err)
	}
	ourNear, ourFar, err := testbed.Veth(ns, "ours0", ns, "ours1", testbed.VethOptions{})
	if err != nil {
		return nil, fmt.Errorf("rings: %w", err)
	}
	theirNear, theirFar, err := testbed.Veth(ns, "asavie0", ns, "asavie1", testbed.VethOptions{})
	if err != nil {
		return nil, fmt.Errorf("rings: %w", err)
	}
	err = ns.Do(func() error {
		rep, err = run(ctx, &o, [2]int{ourNear.Index, ourFar.Index}, [2]int{theirNear.Index, theirFar.Index})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("rings: %w", err)
	}
	return rep, nil
}

// run measures in the namespace, on the thread that is in it.
func run(ctx context.Context, o *Options, our, their [2]int) (rep *Report, err error) {
	ours, err := openOurs(ctx, our[0])
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.close()) }()
	theirs, err := openAsavie(their[0])
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, theirs.close()) }()
	sides := []*side{{name: "l4fwd", r: ours, far: our[1]}, {name: "asavie/xdp", r: theirs, far: their[1]}}
	g, err := newGenerator()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	busy := cpu.NewThread()
	for i := range o.Rounds + 1 { // the first warms up
		for _, s := range sides {
			if err := s.round(g, busy); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			if i == 0 {
				s.received, s.sending = nil, nil
			}
		}
		if o.Progress != nil {
			o.Progress(float64(i) / float64(o.Rounds))
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return &Report{Rounds: o.Rounds, Ours: sides[0].row(), Asavie: sides[1].row(), Kernel: kernel()}, nil
}

// lost is how many packets of a round may be lost: what the kernel puts off, it
// may drop when its own queue is full.
const lost = perRound / 2

// round measures both ways once.
func (s *side) round(g *generator, busy *cpu.Thread) error {
	if err := g.send(s.far, perRound); err != nil {
		return err
	}
	// What softirqs have put off gets its turn.
	time.Sleep(time.Millisecond)
	from := busy.Now()
	n := s.r.receive()
	took := busy.Since(from)
	if n < perRound-lost {
		return fmt.Errorf("%w: %d of %d arrived", ErrLost, n, perRound)
	}
	s.received = append(s.received, float64(took)/float64(n))
	from = busy.Now()
	if err := s.r.transmit(perRound); err != nil {
		return err
	}
	s.sending = append(s.sending, float64(busy.Since(from))/perRound)
	return nil
}

func (s *side) row() Row {
	return Row{Rings: s.name, Receive: figure(s.received), Transmit: figure(s.sending)}
}

func figure(ns []float64) Figure {
	v := slices.Sorted(slices.Values(ns))
	return Figure{Median: v[len(v)/2], Best: v[0]}
}

// generator sends packets out of the far ends, whence they arrive on the rings.
type generator struct {
	fd    int
	frame [frameLen]byte
}

// etherLocal is an Ethernet type for local experiments (IEEE 802).
const etherLocal = 0x88b5

func newGenerator() (*generator, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	g := &generator{fd: fd}
	fillFrame(g.frame[:])
	return g, nil
}

// fillFrame makes a frame that the kernel has no use for.
func fillFrame(f []byte) {
	copy(f, "\x02l4fwd\x02l4fwd")
	f[12], f[13] = etherLocal>>8, etherLocal&0xff
}

func (g *generator) send(ifindex, n int) error {
	to := &unix.SockaddrLinklayer{Ifindex: ifindex, Halen: 6}
	for range n {
		if err := unix.Sendto(g.fd, g.frame[:], 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

func (g *generator) close() error { return unix.Close(g.fd) }

// kernel is the kernel's release, empty if it does not say.
func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// WriteJSON writes the report as one JSON object.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteText writes the report as a table in Markdown.
func (r *Report) WriteText(w io.Writer) error {
	_, err := fmt.Fprintf(w, "copy mode on veth, Linux %s, medians (best) of %d rounds in turn, ns a packet\n"+
		"| rings | receive and refill | transmit, system calls included |\n|---|---|---|\n", r.Kernel, r.Rounds)
	for _, row := range []Row{r.Ours, r.Asavie} {
		if err == nil {
			_, err = fmt.Fprintf(w, "| %s | %.1f (%.1f) | %.0f (%.0f) |\n", row.Rings, row.Receive.Median, row.Receive.Best, row.Transmit.Median, row.Transmit.Best)
		}
	}
	if err == nil {
		_, err = fmt.Fprintf(w, "receive and refill: asavie/xdp takes %.1f times what l4fwd does\n", r.Asavie.Receive.Median/r.Ours.Receive.Median)
	}
	return err
}
