package bench_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/l4fwd/l4fwd/bench"
)

// pcapng writes the packets of a pcap as pcapng.
func pcapng(t testing.TB, pcap []byte) []byte {
	t.Helper()
	r, err := pcapgo.NewReader(bytes.NewReader(pcap))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriter(&b, layers.LinkTypeEthernet)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, ci, err := r.ReadPacketData()
		if err != nil {
			break
		}
		if err := w.WritePacket(ci, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestFormatsAlike(t *testing.T) {
	spec := loadSpec(t, "all.yaml")
	pcap := generate(t, bench.GenOptions{Spec: spec})
	a, b := read(t, pcap), read(t, pcapng(t, pcap))
	if diff := cmp.Diff(a, b, cmpopts.IgnoreUnexported(bench.Capture{})); diff != "" {
		t.Errorf("pcap and pcapng (-pcap +pcapng):\n%s", diff)
	}
	var one, two bytes.Buffer
	replay(t, pcap, bench.Options{Spec: spec, Output: &one})
	replay(t, pcapng(t, pcap), bench.Options{Spec: spec, Output: &two})
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("replay of pcap and pcapng differ")
	}
}

// A capture cut anywhere is told to be cut, with its name and the packet, or,
// cut between packets, is that much shorter.
func TestTruncated(t *testing.T) {
	spec := loadSpec(t, "bench.yaml")
	pcap := generate(t, bench.GenOptions{Spec: spec, Flows: 2, Packets: 9})
	for _, f := range []struct {
		name string
		data []byte
	}{{"pcap", pcap}, {"pcapng", pcapng(t, pcap)}} {
		t.Run(f.name, func(t *testing.T) {
			whole := read(t, f.data)
			shorter := 0
			for n := range f.data {
				c, err := bench.ReadCapture("cut", bytes.NewReader(f.data[:n]))
				switch {
				case err == nil:
					shorter++
					if len(c.Frames) >= len(whole.Frames) {
						t.Errorf("%d of %d bytes have all %d packets", n, len(f.data), len(c.Frames))
					}
				case !errors.Is(err, bench.ErrCapture) || !strings.HasPrefix(err.Error(), "cut: "):
					t.Errorf("%d bytes: %v", n, err)
				}
			}
			if shorter != len(whole.Frames)-1 {
				t.Errorf("%d cuts were taken for a whole file, want %d", shorter, len(whole.Frames)-1)
			}
			_, err := bench.ReadCapture("cut.pcap", bytes.NewReader(f.data[:len(f.data)-30]))
			if want := "cut.pcap: unusable capture: packet 9: the file ends within it"; err == nil || err.Error() != want {
				t.Errorf("got %q, want %q", err, want)
			}
		})
	}
}

func TestUnusable(t *testing.T) {
	good := generate(t, bench.GenOptions{Spec: loadSpec(t, "bench.yaml"), Flows: 1, Packets: 4})
	change := func(at int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	for _, tt := range []struct {
		name, want string
		data       []byte
	}{
		{"empty", "bad: unusable capture: too short for pcap or pcapng", nil},
		{"text", "bad: unusable capture: pcap: Unknown magic 3a737070", []byte(strings.Repeat("pps: 1\n", 9))},
		{"no packet", "bad: unusable capture: no packet in it", good[:24]},
		{"link type", "bad: unusable capture: link type Raw, want Ethernet", change(20, uint32(layers.LinkTypeRaw))},
		{"length", "bad: unusable capture: packet 1: capture length exceeds snap length: 4294967295 > 262144", change(24+8, 0xffffffff)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := bench.ReadCapture("bad", bytes.NewReader(tt.data)); err == nil || err.Error() != tt.want {
				t.Errorf("got %q, want %q", err, tt.want)
			}
		})
	}
	if _, err := bench.LoadCapture("testdata/nothing.pcap"); err == nil {
		t.Error("a missing file is no error")
	}
}

// Time never goes back and makes no leaps, and packets are fed in the order of the file.
func TestUnsortedTimes(t *testing.T) {
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	if err := w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for i, at := range []int64{100, 300, 50, 200, 400, 400 + int64(time.Hour*1000)} {
		f := make([]byte, 60)
		f[0] = byte(i)
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(7, at), CaptureLength: 60, Length: 60}, f); err != nil {
			t.Fatal(err)
		}
	}
	c := read(t, b.Bytes())
	if diff := cmp.Diff([]int64{0, 200, 200, 200, 300, 300 + int64(24*time.Hour)}, c.Times); diff != "" {
		t.Error(diff)
	}
	for i, f := range c.Frames {
		if int(f[0]) != i {
			t.Errorf("frame %d is the file's %d", i, f[0])
		}
	}
	if !c.Start.Equal(time.Unix(7, 100)) {
		t.Errorf("starts at %v", c.Start)
	}
}

func TestGenerateRefuses(t *testing.T) {
	spec := loadSpec(t, "bench.yaml")
	good := bench.GenOptions{Spec: spec, Flows: 1, Packets: 1, Size: 64}
	for _, tt := range []struct {
		name   string
		want   error
		change func(*bench.GenOptions)
	}{
		{"no flows", bench.ErrOptions, func(o *bench.GenOptions) { o.Flows = 0 }},
		{"too many flows", bench.ErrOptions, func(o *bench.GenOptions) { o.Flows = bench.MaxFlow + 1 }},
		{"no packets", bench.ErrOptions, func(o *bench.GenOptions) { o.Packets = 0 }},
		{"short", bench.ErrOptions, func(o *bench.GenOptions) { o.Size = 63 }},
		{"long", bench.ErrOptions, func(o *bench.GenOptions) { o.Size = 1519 }},
		{"protocol", bench.ErrNoService, func(o *bench.GenOptions) { o.Protocol = 17 }},
		{"family", bench.ErrNoService, func(o *bench.GenOptions) { o.Family = 6 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := good
			tt.change(&o)
			if err := bench.Generate(new(bytes.Buffer), o); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// The capture has as many packets as asked for, or all handshakes, and frames
// of the size asked for.
func TestGenerateCounts(t *testing.T) {
	spec := loadSpec(t, "bench.yaml")
	for _, tt := range []struct{ flows, packets, size, want int }{
		{10, 1000, 64, 1000}, {10, 5, 64, 30}, {200, 601, 256, 601}, {1, 4, 1000, 4},
	} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			got := frames(t, generate(t, bench.GenOptions{Spec: spec, Flows: tt.flows, Packets: tt.packets, Size: tt.size}))
			if len(got) != tt.want {
				t.Errorf("%d packets, want %d", len(got), tt.want)
			}
			flows := map[string]bool{}
			for i, f := range got {
				if src, dst := f.ends(); f.tcp().SYN && !f.tcp().ACK {
					flows[src+dst] = true
				}
				if i >= 3*tt.flows && len(f.Data()) != tt.size-4 {
					t.Errorf("packet %d has %d bytes", i+1, len(f.Data()))
				}
				checksums(t, f)
			}
			if len(flows) != tt.flows {
				t.Errorf("%d flows, want %d", len(flows), tt.flows)
			}
		})
	}
}

// failing is a file on a full disk.
type failing struct{ room int }

var errFull = errors.New("no space left")

func (f *failing) Write(b []byte) (int, error) {
	if f.room -= len(b); f.room < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestWriteErrors(t *testing.T) {
	spec := loadSpec(t, "bench.yaml")
	o := bench.GenOptions{Spec: spec, Flows: 100, Packets: 40000, Size: 64}
	if err := bench.Generate(&failing{1 << 20}, o); !errors.Is(err, errFull) {
		t.Errorf("generate: %v", err)
	}
	c := read(t, generate(t, o))
	if _, err := bench.Replay(context.Background(), c, bench.Options{Spec: spec, Output: &failing{1 << 20}}); !errors.Is(err, errFull) {
		t.Errorf("replay: %v", err)
	}
}

func FuzzReadCapture(f *testing.F) {
	spec := loadSpec(f, "all.yaml")
	pcap := generate(f, bench.GenOptions{Spec: spec, Flows: 3, Packets: 12})
	f.Add(pcap)
	f.Add(pcapng(f, pcap))
	f.Add(pcap[:100])
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := bench.ReadCapture("fuzz", bytes.NewReader(data))
		if err != nil {
			if !errors.Is(err, bench.ErrCapture) {
				t.Fatal(err)
			}
			return
		}
		// Whatever is in it, every packet is accounted for, and no frame lost.
		rep, err := bench.Replay(context.Background(), c, bench.Options{Spec: spec, MaxFlows: 1024, Loops: 2, Output: new(bytes.Buffer)})
		if err != nil {
			if !strings.Contains(err.Error(), "more than frames") {
				t.Fatal(err)
			}
			return
		}
		sum := rep.Forwarded + rep.Waiting
		for _, n := range rep.Dropped {
			sum += n
		}
		if sum != rep.Packets {
			t.Fatalf("%d packets, %d accounted for", rep.Packets, sum)
		}
	})
}
