package peers

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/l4fwd/l4fwd/bench/liveframes"
)

// rateName is the figure of forwarding datagrams.
const rateName = "forwarded"

func udpWork(name, title string, flows int) work {
	return work{
		name: name, title: title, traffic: udp,
		how:     fmt.Sprintf("BPF_PROG_RUN with live frames, as many as CPU and veth make, %d flows drawn at random; counted at TCX ingress of the server's device", flows),
		metrics: []Metric{{Name: rateName, Unit: "Mpps", Charted: true}},
		measure: func(ctx context.Context, _ *run, n *network, k *kind, took time.Duration) ([]float64, error) {
			return n.measureUDP(ctx, k, took, flows)
		},
	}
}

// warmUDP is how long datagrams flow before they are counted: enough that each of
// 50,000 flows has been drawn.
const warmUDP = time.Second

// measureUDP floods the forwarder with 64-byte datagrams and gives the rate at
// which they arrive at the server, in Mpps.
func (n *network) measureUDP(ctx context.Context, k *kind, took time.Duration, flows int) (v []float64, err error) {
	from := netip.PrefixFrom(clientAddr.Addr(), 32)
	if k.nat {
		from = localNet
	}
	sink, err := liveframes.NewSink(n.server, n.s0.Name, from)
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
	pps, got, err := sink.Rate(ctx, took)
	if err != nil {
		return nil, err
	}
	after, err := gen.Sent()
	if err != nil {
		return nil, err
	}
	if err := checkUDP(k, after-before, got); err != nil {
		return nil, err
	}
	return []float64{pps / 1e6}, nil
}

// underway is how many datagrams may be in rings and queues when counting begins.
const underway = 100_000

// checkUDP compares what was sent with what arrived, and with whose address.
func checkUDP(k *kind, sent uint64, got liveframes.SinkCount) error {
	switch {
	case got.Packets == 0:
		return fmt.Errorf("%w: nothing arrived of %d datagrams", ErrWrong, sent)
	case got.Packets > sent+underway:
		return fmt.Errorf("%w: %d datagrams sent, %d arrived", ErrWrong, sent, got.Packets)
	case got.From != got.Packets && k.nat:
		return fmt.Errorf("%w: %d of %d datagrams do not come from a local address", ErrNAT, got.Packets-got.From, got.Packets)
	case got.From != got.Packets:
		return fmt.Errorf("%w: %d of %d datagrams do not come from the client", ErrNAT, got.Packets-got.From, got.Packets)
	}
	return nil
}
