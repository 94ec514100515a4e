package rings_test

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/bench/liveframes"
	"github.com/l4fwd/l4fwd/bench/rings"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// quietNamespace has no packets but ours.
func quietNamespace(t *testing.T, role string) *testbed.Namespace {
	t.Helper()
	ns, err := testbed.NewNamespace(role)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := ns.Sysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil {
		t.Fatal(err)
	}
	return ns
}

// What comes in leaves by the other side, with other MAC addresses and nothing
// else changed.
func TestBare(t *testing.T) {
	client, fwd, server := quietNamespace(t, "client"), quietNamespace(t, "bare"), quietNamespace(t, "server")
	c0, in, err := testbed.Veth(client, "c0", fwd, "in", testbed.VethOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out, s0, err := testbed.Veth(fwd, "out", server, "s0", testbed.VethOptions{})
	if err != nil {
		t.Fatal(err)
	}
	bare, err := rings.StartBare(context.Background(), rings.BareOptions{NS: fwd, In: in, Out: out, To: s0.MAC, CPU: 0})
	if err != nil {
		t.Fatal(err)
	}
	var wrong atomic.Uint64
	want := append(bytes.Clone(s0.MAC), out.MAC...)
	sniffer, err := server.Sniff(s0.Name, testbed.SnifferOptions{
		Direction: testbed.Incoming,
		Watch: func(frame []byte, _ bool) {
			if len(frame) != liveframes.FrameLen || !bytes.HasPrefix(frame, want) {
				wrong.Add(1)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	sink, err := liveframes.NewSink(server, s0.Name, netip.MustParsePrefix("10.1.0.2/32"))
	if err != nil {
		t.Fatal(err)
	}
	// More than the loop has frames, so that all of them go round.
	const packets = 20_000
	g, err := liveframes.Start(context.Background(), liveframes.Options{
		NetNS: client, Interface: c0.Name, CPU: -1, PPS: 40_000,
		Frames: liveframes.Frames{
			SrcMAC: c0.MAC, DstMAC: in.MAC, Flows: 16,
			Src: netip.MustParseAddr("10.1.0.2"), Dst: netip.MustParseAddrPort("10.1.0.100:53"),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var c liveframes.SinkCount
	for end := time.Now().Add(20 * time.Second); c.Packets < packets && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if c, err = sink.Count(); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Stop(); err != nil {
		t.Error(err)
	}
	rxIn, rxOut, err := bare.Stats()
	if err != nil {
		t.Error(err)
	}
	rep, err := sniffer.Stop()
	if err != nil {
		t.Error(err)
	}
	if err := bare.Stop(); err != nil {
		t.Error(err)
	}
	if c, err = sink.Count(); err != nil || c.Packets < packets || c.From != c.Packets {
		t.Errorf("sink: %+v, %v", c, err)
	}
	if err := sink.Close(); err != nil {
		t.Error(err)
	}
	if rep.Bad != 0 || wrong.Load() != 0 {
		t.Errorf("%d frames with other addresses; sniffer %+v", wrong.Load(), rep)
	}
	if rxIn.Received < packets || rxOut.Transmitted > rxIn.Received || rxIn.Doubled+rxOut.Doubled+rxOut.TxRefused != 0 {
		t.Errorf("in %+v\nout %+v", rxIn, rxOut)
	}
}

func TestBareRefused(t *testing.T) {
	ns := quietNamespace(t, "bare")
	a, b, err := testbed.Veth(ns, "a", ns, "b", testbed.VethOptions{})
	if err != nil {
		t.Fatal(err)
	}
	gone := &testbed.Device{NS: ns, Name: "gone", Index: 999, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	for name, o := range map[string]rings.BareOptions{
		"no such device": {In: a, Out: gone},
		"no such CPU":    {In: a, Out: b, CPU: 1000},
	} {
		o.NS, o.To = ns, b.MAC
		if _, err := rings.StartBare(context.Background(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
