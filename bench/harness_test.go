package bench_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/l4fwd/l4fwd/bench"
	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/plan"
	"github.com/l4fwd/l4fwd/dataplane"
)

// loadSpec is the plan of a configuration, with only the services named if any
// are.
func loadSpec(t testing.TB, file string, services ...string) dataplane.Spec {
	t.Helper()
	cfg, err := config.Load("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	spec := plan.Spec(cfg, nil)
	if len(services) > 0 {
		spec.Services = slices.DeleteFunc(spec.Services, func(s dataplane.ServiceSpec) bool { return !slices.Contains(services, s.Name) })
	}
	if len(spec.Services) == 0 {
		t.Fatalf("%s has no service %v", file, services)
	}
	return spec
}

// allServices are those of testdata/all.yaml.
var allServices = []string{"fnat4", "fnat6", "fnat4u", "fnat6u", "dnat4", "dnat6", "dnat4u", "dnat6u"}

// generate makes a capture of few flows and packets, unless o says more.
func generate(t testing.TB, o bench.GenOptions) []byte {
	t.Helper()
	if o.Flows == 0 {
		o.Flows = 100
	}
	if o.Packets == 0 {
		o.Packets = 3000
	}
	if o.Size == 0 {
		o.Size = 64
	}
	var b bytes.Buffer
	if err := bench.Generate(&b, o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func read(t testing.TB, pcap []byte) *bench.Capture {
	t.Helper()
	c, err := bench.ReadCapture("test.pcap", bytes.NewReader(pcap))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// replay runs a capture and wants no error. Tables are small so that tests are
// quick.
func replay(t testing.TB, pcap []byte, o bench.Options) *bench.Report {
	t.Helper()
	if o.MaxFlows == 0 {
		o.MaxFlows = 4096
	}
	rep, err := bench.Replay(context.Background(), read(t, pcap), o)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// allForwarded wants every packet to have left.
func allForwarded(t testing.TB, rep *bench.Report) {
	t.Helper()
	if rep.Forwarded != rep.Packets || len(rep.Dropped) != 0 || rep.Packets == 0 {
		t.Errorf("%d of %d packets forwarded, dropped %v, unmatched %d", rep.Forwarded, rep.Packets, rep.Dropped, rep.Unmatched)
	}
}

// frame is a frame of a capture and gopacket's view of it.
type frame struct {
	gopacket.Packet
	at time.Time
}

func (f frame) tcp() *layers.TCP { l, _ := f.Layer(layers.LayerTypeTCP).(*layers.TCP); return l }

// Data is data to gopacket, whatever service a local port is known for.
func init() {
	for port := range 1 << 16 {
		layers.RegisterTCPPortLayerType(layers.TCPPort(port), gopacket.LayerTypePayload)
		layers.RegisterUDPPortLayerType(layers.UDPPort(port), gopacket.LayerTypePayload)
	}
}

// ends are source and destination as addr:port.
func (f frame) ends() (src, dst string) {
	n, t := f.NetworkLayer().NetworkFlow(), f.TransportLayer().TransportFlow()
	return n.Src().String() + " " + t.Src().String(), n.Dst().String() + " " + t.Dst().String()
}

// payload is what the transport header carries, without Ethernet padding.
func (f frame) payload() []byte { return f.TransportLayer().LayerPayload() }

// frames reads a pcap with gopacket.
func frames(t testing.TB, pcap []byte) (out []frame) {
	t.Helper()
	r, err := pcapgo.NewReader(bytes.NewReader(pcap))
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, ci, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		p := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.NoCopy)
		if e := p.ErrorLayer(); e != nil {
			t.Fatalf("packet %d: %v", len(out)+1, e.Error())
		}
		out = append(out, frame{p, ci.Timestamp})
	}
}

// checksums has gopacket make every checksum anew and wants the same frame.
func checksums(t testing.TB, f frame) {
	t.Helper()
	var ls []gopacket.SerializableLayer
	for _, l := range f.Layers() {
		switch l := l.(type) {
		case *layers.TCP:
			_ = l.SetNetworkLayerForChecksum(f.NetworkLayer())
		case *layers.UDP:
			_ = l.SetNetworkLayerForChecksum(f.NetworkLayer())
		}
		ls = append(ls, l.(gopacket.SerializableLayer))
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	got, want := f.Data(), b.Bytes()
	n := min(len(got), len(want)) // padding
	if !bytes.Equal(got[:n], want[:n]) {
		t.Fatalf("checksum wrong\n got %x\nwant %x", got, want)
	}
}

// writePcap makes a capture of frames a microsecond apart.
func writePcap(t testing.TB, frames ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	if err := w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for i, f := range frames {
		ci := gopacket.CaptureInfo{Timestamp: time.Unix(1, int64(i)*1000), CaptureLength: len(f), Length: len(f)}
		if err := w.WritePacket(ci, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}
