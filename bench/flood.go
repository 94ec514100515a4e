package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// FloodOptions say what Flood measures.
type FloodOptions struct {
	Spec       dataplane.Spec // whose TCP services are flooded, in turn
	LocalPorts []nat.PortRange
	FrameSize  int // as in SynthOptions
	MaxFlows   int // as there
	Seed       uint64
	Family     int

	// Live flows go on meanwhile; of all packets, the share LiveShare (0 to 1) is
	// theirs. 0 is 10,000 and 0.1.
	Live      int
	LiveShare float64
	// Rate is how many packets arrive a second by the worker's clock, 0 is 3
	// million; Duration how long by that clock, 0 is 4 s.
	Rate     int
	Duration time.Duration
	// Honest clients begin so many connections a second, 0 is 1000, in the first
	// half of the flood; their round trip takes RTT, 0 is 50 ms. Whose SYN is not
	// answered sends it again after 1 s, and again 2 s later (RFC 6298 section 2).
	Honest int
	RTT    time.Duration
	// Limit measures the limit (see the package comment) just after, with the live
	// flows.
	Limit bool
	// CPUProfile and Progress as in SynthOptions.
	CPUProfile io.Writer
	Progress   func(done float64)
}

// FloodReport is the result of Flood. Packets and rates are of flood and live
// flows; honest clients' few packets are fed between and not timed.
type FloodReport struct {
	Packets     uint64  `json:"packets"`
	Mpps        float64 `json:"mpps"` // median of the rounds
	Best        float64 `json:"best_mpps"`
	Worst       float64 `json:"worst_mpps"`
	NsPerPacket float64 `json:"ns_per_packet"`

	SYNs        uint64 `json:"syns"`         // of the flood
	LivePackets uint64 `json:"live_packets"` // fed
	LiveSent    uint64 `json:"live_sent"`    // and forwarded
	Live        int    `json:"live"`         // flows before
	Lost        int    `json:"lost"`         // of them afterwards
	Honest      int    `json:"honest"`       // connections that began
	// Opened got data through before the flood was over, by how many SYNs it took,
	// one to three.
	Opened [honestSYNs]int `json:"opened"`
	GaveUp int             `json:"gave_up"` // after their last SYN, like the others, had no answer
	Broken int             `json:"broken"`  // let in, and thrown out before their data
	Trying int             `json:"trying"`  // when the flood was over

	Flows        int               `json:"flows"`   // opened for the flood
	Evicted      uint64            `json:"evicted"` // half-open flows
	Expired      uint64            `json:"expired"`
	ClockSeconds float64           `json:"clock_seconds"`
	Dropped      map[string]uint64 `json:"dropped"`
	TableBytes   uint64            `json:"table_bytes"`
	Limit        *LimitAlone       `json:"limit,omitempty"`
}

// floodRounds is how many parts of the flood are timed on their own.
const floodRounds = 5

// Flood opens live flows, then has SYNs arrive from addresses that are made up,
// every one a new flow that nobody answers, among packets of the live flows. It
// says how fast that goes, how many live flows are lost, and how many new
// connections of honest clients open meanwhile. Packets are made as in Synthesize
// and only their feeding is timed, as there.
func Flood(ctx context.Context, o FloodOptions) (*FloodReport, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o.Live, o.Rate, o.Honest = orDefault(o.Live, 10_000), orDefault(o.Rate, 3_000_000), orDefault(o.Honest, 1000)
	if o.LiveShare == 0 {
		o.LiveShare = 0.1
	}
	if o.Duration == 0 {
		o.Duration = 4 * time.Second
	}
	if o.RTT == 0 {
		o.RTT = 50 * time.Millisecond
	}
	if o.Live < 1 || o.Rate < 1 || o.Rate > 1e9 || o.Honest < 1 || o.Duration < 0 || o.RTT < 0 || o.LiveShare < 0 || o.LiveShare > 1 {
		return nil, fmt.Errorf("flood: %w: %d live flows, %d packets and %d honest clients a second, %v, round trip %v, share %g",
			ErrOptions, o.Live, o.Rate, o.Honest, o.Duration, o.RTT, o.LiveShare)
	}
	s, err := newSynth(SynthOptions{
		Spec: answering(o.Spec), LocalPorts: o.LocalPorts, FrameSize: o.FrameSize, Seed: o.Seed, Family: o.Family,
		MaxFlows: max(o.MaxFlows, 2*o.Live), Protocol: packet.ProtoTCP, Flows: o.Live,
	})
	if err != nil {
		return nil, fmt.Errorf("flood: %w", err)
	}
	f := &flooder{o: &o, s: s, watch: newWatcher(s), pupil: newPupil(s), rep: &FloodReport{Live: o.Live}}
	f.onSend = f.sent
	err = f.run(ctx)
	if err == nil && o.Limit {
		f.rep.Limit, err = limitAfter(ctx, s, o.Live)
	}
	if err = errors.Join(err, s.close()); err != nil {
		return nil, fmt.Errorf("flood: %w", err)
	}
	return f.rep, nil
}

// flooder floods.
type flooder struct {
	o      *FloodOptions
	s      *synth
	watch  *watcher
	pupil  *pupil
	onSend func([]byte) // sent, made once
	rep    *FloodReport
	burst  [dataplane.BurstSize][]byte
	buf    [dataplane.BurstSize * handshakeRoom]byte
	nanos  int64
	honest []honest // under way, oldest first
	begun  int64    // when the last honest client began
}

// honest is a client whose connection is being opened.
type honest struct {
	flow   synthFlow
	number int
	step   int   // next
	syns   int   // sent
	due    int64 // by the worker's clock
}

// Numbers of clients: live flows come first, then honest clients, then those that
// are made up.
const (
	honestFrom = 1 << 31
	madeUpFrom = 1 << 32
)

// honestSYNs is how many SYNs an honest client sends before it gives up.
const honestSYNs = 3

// honestEvery is how many bursts of the flood pass between two looks at the
// honest clients.
const honestEvery = 16

func (f *flooder) run(ctx context.Context) error {
	if err := f.s.open(ctx); err != nil {
		return err
	}
	stop, err := startProfile(f.o.CPUProfile)
	if err != nil {
		return err
	}
	defer stop()
	was := f.s.r.counts()
	pace := int64(dataplane.BurstSize) * int64(time.Second) / int64(f.o.Rate)
	start := f.s.time
	f.begun = start
	bursts := max(int(int64(f.o.Duration)/max(pace, 1)), floodRounds)
	rates := make([]float64, 0, floodRounds)
	last := f.nanos
	f.s.r.ports[0].OnSend = f.onSend
	for i := range bursts {
		f.make()
		f.s.time += pace
		f.nanos += f.s.burst(f.burst[:], f.s.time)
		if i%honestEvery == 0 {
			if err := f.honestClients(i < bursts/2); err != nil {
				return err
			}
		}
		if (i+1)%(bursts/floodRounds) == 0 {
			n := float64(bursts / floodRounds * dataplane.BurstSize)
			rates = append(rates, n*1e3/max(float64(f.nanos-last), 1))
			last = f.nanos
			if f.o.Progress != nil {
				f.o.Progress(float64(i) / float64(bursts))
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	f.s.r.ports[0].OnSend = nil
	f.rep.ClockSeconds = float64(f.s.time-start) / 1e9
	f.count(rates, &was)
	return f.after()
}

// make fills the burst.
func (f *flooder) make() {
	s := f.s
	for i := range f.burst {
		var g segment
		if float64(s.random.next()>>11)/(1<<53) < f.o.LiveShare {
			g = s.data(s.random.below(len(s.flows)), s.random.next()>>63 != 0)
			f.rep.LivePackets++
		} else {
			g = s.handshakeOf(&synthFlow{}, madeUpFrom+int(f.rep.SYNs), 0)
			f.rep.SYNs++
		}
		f.burst[i] = g.build(f.buf[i*handshakeRoom : (i+1)*handshakeRoom])
	}
}

// sent counts what leaves of live flows: all that is no SYN.
func (f *flooder) sent(b []byte) {
	at := packet.EthLen + packet.IPv4MinLen + packet.TCPFlags
	if limitIs6(b) {
		at = packet.EthLen + packet.IPv6Len + packet.TCPFlags
	}
	if b[at]&packet.SYN == 0 {
		f.rep.LiveSent++
	}
}

// honestClients lets those whose time has come go on, and, if more is set, new
// ones begin.
func (f *flooder) honestClients(more bool) error {
	now := f.s.time
	gap := int64(time.Second) / int64(f.o.Honest)
	for ; more && f.begun+gap <= now; f.begun += gap {
		f.honest = append(f.honest, honest{number: honestFrom + f.rep.Honest, due: now})
		f.rep.Honest++
	}
	kept := f.honest[:0]
	for i := range f.honest {
		h := &f.honest[i]
		goOn := true
		for goOn && h.due <= now {
			var err error
			if goOn, err = f.goOn(h, now); err != nil {
				return err
			}
		}
		if goOn {
			kept = append(kept, *h)
		}
	}
	f.honest = kept
	f.s.r.ports[0].OnSend = f.onSend
	return nil
}

// serverRTT is how long a real server takes to answer.
const serverRTT = int64(time.Millisecond)

// goOn feeds an honest client's next packet, or its server's, and reports whether
// there will be another: SYN, SYN-ACK, the last ACK, data.
func (f *flooder) goOn(h *honest, now int64) (bool, error) {
	var g segment
	if h.step < 3 {
		g = f.s.handshakeOf(&h.flow, h.number, h.step)
	} else {
		g = f.s.segmentOf(&h.flow, h.number, false)
		g.load(f.s.service(h.number), f.s.o.Size, false)
	}
	f.watch.feed([][]byte{g.build(f.buf[:handshakeRoom])}, now)
	o := &f.watch.sent[0]
	if h.step == 0 {
		h.syns++
	}
	switch {
	case o.n == 0 && h.step == 0 && h.syns < honestSYNs:
		h.due = now + int64(h.syns)*int64(time.Second)
		return true, nil
	case o.n == 0 && h.step == 0:
		f.rep.GaveUp++
		return false, nil
	case o.n == 0:
		f.rep.Broken++
		return false, nil
	}
	switch h.step {
	case 0:
		if err := f.pupil.learn(&h.flow, o.head[:o.n], h.number, 0); err != nil {
			return false, err
		}
		h.due = now + serverRTT
	case 1:
		h.due = now + int64(f.o.RTT)
	case 3:
		f.rep.Opened[h.syns-1]++
		return false, nil
	}
	h.step++
	return true, nil
}

// count fills in what the flood did.
func (f *flooder) count(rates []float64, was *dataplane.Counts) {
	is := f.s.r.counts()
	f.rep.Packets = f.rep.SYNs + f.rep.LivePackets
	f.rep.Mpps, f.rep.Best, f.rep.Worst = summary(rates)
	f.rep.NsPerPacket = float64(f.nanos) / float64(f.rep.Packets)
	f.rep.Evicted, f.rep.Expired = is.Evicted-was.Evicted, is.Expired-was.Expired
	f.rep.Flows = int(is.Opened - was.Opened)
	f.rep.TableBytes = f.s.r.dp.TableBytes()
	var all Report
	all.count(&is)
	f.rep.Dropped = all.Dropped
}

// after sees which live flows are still there.
func (f *flooder) after() error {
	f.rep.Trying = len(f.honest)
	for k := range f.s.flows {
		g := f.s.data(k, false)
		f.watch.feed([][]byte{g.build(f.buf[:handshakeRoom])}, f.s.time)
		if f.watch.sent[0].n == 0 {
			f.rep.Lost++
		}
	}
	return f.s.r.dp.Audit()
}

// WriteJSON writes the report as one JSON object.
func (r *FloodReport) WriteJSON(w io.Writer) error { return writeJSON(w, r) }

// WriteText writes the report for people.
func (r *FloodReport) WriteText(w io.Writer) error {
	p := &printer{w: w}
	p.linef("%d packets, %d of them SYNs of a flood: %.2f Mpps (median; best %.2f, worst %.2f), %.1f ns a packet", r.Packets, r.SYNs, r.Mpps, r.Best, r.Worst, r.NsPerPacket)
	p.linef("  %.1f s by the worker's clock, so %.2f million SYNs a second were offered", r.ClockSeconds, float64(r.SYNs)/max(r.ClockSeconds, 1e-9)/1e6)
	r.Limit.writeBeside(p)
	p.linef("live flows: %d of %d lost; %d of their %d packets forwarded", r.Lost, r.Live, r.LiveSent, r.LivePackets)
	p.linef("honest new connections: of %d, %d opened by the first SYN, %d by the second, %d by the third; %d gave up after it, %d were let in and thrown out, %d were still trying",
		r.Honest, r.Opened[0], r.Opened[1], r.Opened[2], r.GaveUp, r.Broken, r.Trying)
	p.linef("flows opened %d, half-open ones evicted %d, expired %d", r.Flows, r.Evicted, r.Expired)
	writeDropped(p, r.Dropped)
	p.linef("flow table %.1f MiB", float64(r.TableBytes)/(1<<20))
	return p.err
}
