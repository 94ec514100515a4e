package peers

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/l4fwd/l4fwd/bench/liveframes"
)

// rateName is the figure of forwarding datagrams.
const rateName = "forwarded"

// quintileName is that of its windows of which every fifth does more: what a host
// does that takes this machine's CPUs away for tens of milliseconds, all forwarders
// suffer alike, and more than they differ.
const quintileName = "upper quintile of 100 ms"

const window = 100 * time.Millisecond

func udpWork(name, title string, flows int) work {
	return work{
		name: name, title: title, traffic: udp,
		how:     fmt.Sprintf("BPF_PROG_RUN with live frames, as many as CPU and veth make, %d flows drawn at random; counted at TCX ingress of the server's device", flows),
		metrics: []Metric{{Name: rateName, Unit: "Mpps", Charted: true}, {Name: quintileName, Unit: "Mpps"}},
		tools:   []tool{kernelTCX},
		measure: func(ctx context.Context, _ *run, n *network, k *kind, took time.Duration) ([]float64, error) {
			return n.measureUDP(ctx, k, took, flows)
		},
	}
}

// warmUDP is how long datagrams flow before they are counted: enough that each of
// 50,000 flows has been drawn.
const warmUDP = time.Second

// measureUDP floods the forwarder with 64-byte datagrams and gives the rate at
// which they arrive at the server, in Mpps: over all, and the upper quintile of
// windows.
func (n *network) measureUDP(ctx context.Context, k *kind, took time.Duration, flows int) (v []float64, err error) {
	sources := netip.PrefixFrom(clientAddr.Addr(), 32)
	if k.nat {
		sources = localNet
	}
	sink, err := liveframes.NewSink(n.server, n.s0.Name, sources)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := sink.Close(); err == nil {
			err = cerr
		}
	}()
	gen, err := liveframes.Start(ctx, liveframes.Options{
		NetNS: n.client, Interface: n.c0.Name, CPU: n.cpus.Load,
		Frames: liveframes.Frames{SrcMAC: n.c0.MAC, DstMAC: n.l0.MAC, Src: clientAddr.Addr(), Dst: k.target(portUDP), Flows: flows},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if serr := gen.Stop(); err == nil {
			err = serr
		}
	}()
	if _, _, err := sink.Rate(ctx, warmUDP); err != nil {
		return nil, err
	}
	before, err := gen.Sent()
	if err != nil {
		return nil, err
	}
	from, pps, arrived := time.Now(), []float64(nil), uint64(0)
	for time.Since(from) < took {
		rate, n, err := sink.Rate(ctx, window)
		if err != nil {
			return nil, err
		}
		pps = append(pps, rate)
		arrived += n.Packets
	}
	mean := float64(arrived) / time.Since(from).Seconds()
	after, err := gen.Sent()
	if err != nil {
		return nil, err
	}
	if err := checkUDP(after-before, arrived); err != nil {
		return nil, err
	}
	if err := gen.Stop(); err != nil {
		return nil, err
	}
	all, err := atRest(ctx, sink)
	if err != nil {
		return nil, err
	}
	if err := checkNAT(k, all); err != nil {
		return nil, err
	}
	slices.Sort(pps)
	return []float64{mean / 1e6, pps[len(pps)*4/5] / 1e6}, nil
}

// underway is how many datagrams may be in rings and queues when counting begins.
const underway = 100_000

// atRest is all that a sink has counted when nothing comes any more. While something
// does, its two counts are not of one moment.
func atRest(ctx context.Context, sink *liveframes.Sink) (c liveframes.SinkCount, err error) {
	for n := uint64(1); n > 0; {
		var while liveframes.SinkCount
		if _, while, err = sink.Rate(ctx, window/2); err != nil {
			return c, err
		}
		n = while.Packets
	}
	return sink.Count()
}

// checkUDP compares what was sent with what arrived.
func checkUDP(sent, arrived uint64) error {
	switch {
	case arrived == 0:
		return fmt.Errorf("%w: nothing arrived of %d datagrams", ErrWrong, sent)
	case arrived > sent+underway:
		return fmt.Errorf("%w: %d datagrams sent, %d arrived", ErrWrong, sent, arrived)
	}
	return nil
}

// checkNAT looks at whose address the datagrams had.
func checkNAT(k *kind, got liveframes.SinkCount) error {
	switch {
	case got.From != got.Packets && k.nat:
		return fmt.Errorf("%w: %d of %d datagrams do not come from a local address", ErrNAT, got.Packets-got.From, got.Packets)
	case got.From != got.Packets:
		return fmt.Errorf("%w: %d of %d datagrams do not come from the client", ErrNAT, got.Packets-got.From, got.Packets)
	}
	return nil
}
