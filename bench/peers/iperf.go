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
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		out, err := n.client.Command(ctx, args[0], args[1:]...).Output()
		if res, err = testbed.ParseIperf3(out, err); err == nil {
			break
		}
		// The server takes a moment to see that the test before is over.
		if time.Since(begun) > patience || ctx.Err() != nil || !strings.Contains(err.Error(), "server is busy") {
			return nil, err
		}
	}
	if err := checkIperf(&res, streams); err != nil {
		return nil, err
	}
	return []float64{res.ReceivedMbps}, nil
}

// iperfBlock is what iperf3 writes to TCP at a time.
const iperfBlock = 128 << 10

// checkIperf compares what was sent with what arrived: bytes, since the rate of each side
// has a duration of its own. Of each stream a block that was being written at the end may
// not count as sent.
func checkIperf(r *testbed.Iperf3Result, streams int) error {
	if r.ReceivedMbps <= 0 || r.ReceivedBytes == 0 || r.ReceivedBytes > r.SentBytes+uint64(streams)*iperfBlock {
		return fmt.Errorf("%w: iperf3 sent %d bytes, received %d, %.0f Mbit/s", ErrWrong, r.SentBytes, r.ReceivedBytes, r.ReceivedMbps)
	}
	return nil
}
