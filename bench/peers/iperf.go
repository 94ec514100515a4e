package peers

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// measureIperf sends TCP from the client to the server and gives what arrived, in
// Mbit/s of payload.
func measureIperf(ctx context.Context, n *network, k *kind, took time.Duration, streams int) ([]float64, error) {
	to := k.target(portIperf)
	args := pinned(n.cpus.Load, "iperf3", "-J", "-c", to.Addr().String(), "-p", strconv.Itoa(int(to.Port())),
		"-t", strconv.Itoa(wholeSeconds(took)), "-P", strconv.Itoa(streams))
	var res testbed.Iperf3Result
	for try := range 10 {
		out, err := n.client.Command(ctx, args[0], args[1:]...).Output()
		if res, err = testbed.ParseIperf3(out, err); err == nil {
			break
		}
		// The server takes a moment to see that the test before is over.
		if try == 9 || ctx.Err() != nil || !strings.Contains(err.Error(), "server is busy") {
			return nil, err
		}
		time.Sleep(100 * time.Millisecond)
	}
	// What is under way at the end is in one of both only, and each rate has a
	// duration of its own.
	if res.ReceivedMbps <= 0 || res.ReceivedMbps > 1.1*res.SentMbps {
		return nil, fmt.Errorf("%w: iperf3 sent %.0f Mbit/s, received %.0f", ErrWrong, res.SentMbps, res.ReceivedMbps)
	}
	return []float64{res.ReceivedMbps}, nil
}
