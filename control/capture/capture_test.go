package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/control/capture/pcapng"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/memport"
	"github.com/l4fwd/l4fwd/packet"
)

// source is workers without services, who drop what they are fed.
type source struct {
	dp    *dataplane.Dataplane
	ports []*memport.Port
	taps  []*dataplane.Tap
}

func newSource(t *testing.T, workers, ring int) *source {
	t.Helper()
	umem := make([]byte, workers*128<<11)
	dp, err := dataplane.New(dataplane.Options{Workers: workers, UMEM: umem, FrameSize: 2048, Flows: 16, Unpopulated: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dp.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &source{dp: dp}
	for _, w := range dp.Workers {
		p := memport.New(umem, 2048, 128)
		if err := w.Attach(0, [6]byte{2}, p); err != nil {
			t.Fatal(err)
		}
		tap := dataplane.NewTap(dataplane.TapOptions{Points: dataplane.TapRX, SnapLen: 64, Frames: ring})
		w.Tap(tap)
		s.ports, s.taps = append(s.ports, p), append(s.taps, tap)
	}
	return s
}

// drop has a worker drop a frame of a kind that nobody knows, at a time.
func (s *source) drop(worker int, at int64) {
	frame := make([]byte, 60)
	frame[12] = 0x99
	frame[20] = byte(at)
	s.ports[worker].Feed([][]byte{frame}, 1)
	for s.dp.Workers[worker].Poll(at) > 0 {
	}
}

// read is what of a file are packets, and the last count of dropped frames.
func read(t *testing.T, file []byte) (out []pcapng.Packet, names []string, missed uint64) {
	t.Helper()
	err := pcapng.Read(bytes.NewReader(file), func(b *pcapng.Block) error {
		switch {
		case b.Interface != nil:
			names = append(names, b.Interface.Name)
		case b.Packet != nil:
			p := *b.Packet
			p.Data = bytes.Clone(p.Data[20:21])
			out = append(out, p)
		case b.Statistics != nil:
			missed = max(missed, b.Statistics.Dropped)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, names, missed
}

// Frames of all workers come in order of time, with what is known of them, up to the
// count; what found no room is counted.
func TestRun(t *testing.T) {
	s := newSource(t, 2, 4)
	for i, worker := range []int{1, 0, 0, 1, 1, 1, 1} {
		s.drop(worker, int64(i+1))
	}
	var file bytes.Buffer
	c := Session{Taps: s.taps, NICs: []string{"eth7"}, SnapLen: 64, Count: 5, Epoch: 1000}
	if err := c.Run(t.Context(), &file, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	got, names, missed := read(t, file.Bytes())
	var want []pcapng.Packet
	for i, worker := range []int{1, 0, 0, 1, 1} {
		id := []uint64{1, 1, 2, 2, 3}[i]
		want = append(want, pcapng.Packet{
			Nanos: int64(1001 + i), Len: 60, Data: []byte{byte(i + 1)}, Flags: pcapng.Inbound, ID: uint64(worker)<<48 | id, Queue: worker,
			Comment: fmt.Sprintf("dropped: unknown_ethertype; received by eth7 queue %d, worker %d", worker, worker),
		})
	}
	if d := cmp.Diff(want, got); d != "" || missed != 1 {
		t.Errorf("%d missed, want 1\n%s", missed, d)
	}
	if d := cmp.Diff([]string{"eth7-rx", "eth7-tx"}, names); d != "" {
		t.Error(d)
	}
}

var errGone = errors.New("the reader is gone")

// broken takes so many writes.
type broken int

func (b *broken) Write(p []byte) (int, error) {
	if *b--; *b < 0 {
		return 0, errGone
	}
	return len(p), nil
}

// A capture ends with its context, and where nobody takes what it writes.
func TestRunEnds(t *testing.T) {
	s := newSource(t, 1, 4)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	c := Session{Taps: s.taps, NICs: []string{"a"}}
	if err := c.Run(ctx, &bytes.Buffer{}, func() error { return nil }); err != nil {
		t.Error(err)
	}
	s.drop(0, 1)
	for writes := range 2 {
		b := broken(writes)
		c := Session{Taps: s.taps, NICs: []string{"a"}}
		if err := c.Run(t.Context(), &b, func() error { return nil }); !errors.Is(err, errGone) {
			t.Errorf("after %d writes: %v", writes, err)
		}
	}
	c = Session{Taps: s.taps, NICs: []string{"a"}}
	if err := c.Run(t.Context(), &bytes.Buffer{}, func() error { return errGone }); !errors.Is(err, errGone) {
		t.Errorf("%v", err)
	}
}

func TestDescribe(t *testing.T) {
	end := func(s string) conntrack.Endpoint {
		a := netip.MustParseAddrPort(s)
		return conntrack.Endpoint{Addr: packet.AddrFrom(a.Addr()), Port: a.Port(), Proto: packet.ProtoTCP}
	}
	flow := dataplane.TapFrame{
		Verdict: dataplane.Forwarded, Point: dataplane.TapRX, Service: "web", Flow: true, Mode: conntrack.FullNAT,
		Client: end("198.51.100.7:4000"), VIP: end("192.0.2.10:80"), Local: end("10.0.1.10:1025"), Backend: end("10.0.1.20:8080"),
	}
	reply, dnat, answer, lone, handed := flow, flow, flow, flow, flow
	reply.Verdict, reply.Dir, reply.Point, reply.Queue = dataplane.Replied, conntrack.Reply, dataplane.TapTX, 3
	dnat.Mode = conntrack.DNAT
	answer.Verdict, answer.Point, answer.Flow = dataplane.DropTTL, dataplane.TapTX, false
	lone.Flow, lone.Service, lone.Own, lone.Point = false, "", true, dataplane.TapTX
	handed.Verdict, handed.Flow, handed.Queue = dataplane.DropNoFlow, false, -1
	for want, f := range map[string]*dataplane.TapFrame{
		"forwarded; service web; client 198.51.100.7:4000, VIP 192.0.2.10:80, local 10.0.1.10:1025, backend 10.0.1.20:8080; received by e queue 0, worker 2":  &flow,
		"replied; service web; client 198.51.100.7:4000, VIP 192.0.2.10:80, local 10.0.1.10:1025, backend 10.0.1.20:8080, reply; sent by e queue 3, worker 2": &reply,
		"forwarded; service web; client 198.51.100.7:4000, VIP 192.0.2.10:80, backend 10.0.1.20:8080; received by e queue 0, worker 2":                        &dnat,
		"l4fwd's answer to what it dropped: ttl_exceeded; service web; sent by e queue 0, worker 2":                                                           &answer,
		"of l4fwd's own accord; sent by e queue 0, worker 2":                                                                                                  &lone,
		"dropped: no_flow; service web; received by e, kept or handed over, worker 2":                                                                         &handed,
	} {
		if got := Describe(f, 2, "e"); got != want {
			t.Errorf("%s\nwant\n%s", got, want)
		}
	}
}
