package bench_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"

	"github.com/l4fwd/l4fwd/bench"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
)

// Everything generated is forwarded, in every mode, family and protocol, over
// several loops, and no loop allocates.
func TestRoundTrip(t *testing.T) {
	for _, name := range allServices {
		for _, size := range []int{64, 594, 1518} {
			t.Run(fmt.Sprint(name, "/", size), func(t *testing.T) {
				spec := loadSpec(t, "all.yaml", name)
				pcap := generate(t, bench.GenOptions{Spec: spec, Size: size})
				for _, loops := range []int{1, 3} {
					rep := replayUnmoved(t, pcap, bench.Options{Spec: spec, Loops: loops})
					allForwarded(t, rep)
					if rep.Flows != 100 || rep.HeldBack != 0 {
						t.Errorf("%d flows, %d replies held back", rep.Flows, rep.HeldBack)
					}
					opening := uint64(300)
					if spec.Services[0].VIP.Proto == 17 {
						opening = 200
					}
					if want := 3000 + uint64(loops-1)*(3000-opening); rep.Packets != want {
						t.Errorf("%d loops: %d packets, want %d", loops, rep.Packets, want)
					}
					if loops > 1 && rep.AllocsPerPacket != 0 {
						t.Errorf("%g allocations a packet", rep.AllocsPerPacket)
					}
				}
			})
		}
	}
}

func TestRoundTripProperty(t *testing.T) {
	spec := loadSpec(t, "all.yaml")
	rapid.Check(t, func(rt *rapid.T) {
		o := bench.GenOptions{
			Spec: spec, Seed: rapid.Uint64().Draw(rt, "seed"),
			Flows:    rapid.IntRange(1, 300).Draw(rt, "flows"),
			Packets:  rapid.IntRange(1, 1500).Draw(rt, "packets"),
			Size:     rapid.IntRange(bench.MinSize, bench.MaxSize).Draw(rt, "size"),
			Protocol: rapid.SampledFrom([]uint8{0, 6, 17}).Draw(rt, "protocol"),
			Family:   rapid.SampledFrom([]int{0, 4, 6}).Draw(rt, "family"),
		}
		rep := replay(t, generate(t, o), bench.Options{
			Spec: spec, Seed: o.Seed,
			Workers:  rapid.IntRange(1, 3).Draw(rt, "workers"),
			RSSKnown: rapid.Bool().Draw(rt, "rss"),
		})
		if rep.Forwarded != rep.Packets || rep.Flows != o.Flows {
			rt.Fatalf("%d of %d packets forwarded, %d of %d flows, dropped %v", rep.Forwarded, rep.Packets, rep.Flows, o.Flows, rep.Dropped)
		}
	})
}

// replayUnmoved is replay, once more if the Go runtime allocated something of
// its own meanwhile: what the pipeline allocates it allocates each time.
func replayUnmoved(t testing.TB, pcap []byte, o bench.Options) (rep *bench.Report) {
	t.Helper()
	for range 3 {
		if rep = replay(t, pcap, o); o.Loops == 1 || rep.AllocsPerPacket == 0 {
			break
		}
	}
	return rep
}

// translation is what must hold between a packet and what became of it.
type translation struct {
	spec  *dataplane.ServiceSpec
	delta uint32 // of the sequence numbers, by the SYN
	local string // what the server sees as client
	ack   uint32 // the client's first; with a later one TOA ends
	acked bool
	flows map[string]string // local end → client, over all flows
}

// Packet by packet, what leaves is what came in, translated: for clients the
// reply of the capture with the VIP before it, for servers the client's packet
// with a new sequence number and TOA.
func TestTranslation(t *testing.T) {
	for _, name := range allServices {
		t.Run(name, func(t *testing.T) {
			spec := loadSpec(t, "all.yaml", name)
			pcap := generate(t, bench.GenOptions{Spec: spec, Size: 120})
			var b bytes.Buffer
			allForwarded(t, replay(t, pcap, bench.Options{Spec: spec, Output: &b}))
			in, out := frames(t, pcap), frames(t, b.Bytes())
			if len(in) != len(out) {
				t.Fatalf("%d packets in, %d out", len(in), len(out))
			}
			flows := map[uint32]*translation{}
			locals := map[string]string{}
			for i := range in {
				checksums(t, in[i])
				checksums(t, out[i])
				number := in[i].LinkLayer().(*layers.Ethernet).SrcMAC
				key := uint32(number[2])<<24 | uint32(number[3])<<16 | uint32(number[4])<<8 | uint32(number[5])
				if flows[key] == nil {
					flows[key] = &translation{spec: &spec.Services[0], flows: locals}
				}
				flows[key].check(t, i, in[i], out[i])
			}
		})
	}
}

func (tr *translation) check(t *testing.T, i int, in, out frame) {
	t.Helper()
	vip := fmt.Sprint(tr.spec.VIP.Addr, " ", tr.spec.VIP.Port)
	inSrc, inDst := in.ends()
	outSrc, outDst := out.ends()
	if !bytes.Equal(in.payload(), out.payload()) {
		t.Fatalf("packet %d: another payload", i)
	}
	backend := func(s string) bool {
		return slices.ContainsFunc(tr.spec.Backends, func(b dataplane.BackendSpec) bool {
			return s == fmt.Sprint(b.Endpoint.Addr, " ", b.Endpoint.Port)
		})
	}
	if inDst != vip { // a reply
		client := tr.flows[tr.local]
		if outSrc != vip || outDst != client {
			t.Fatalf("packet %d: reply %s → %s, want %s → %s", i, outSrc, outDst, vip, client)
		}
		if a := in.tcp(); a != nil {
			if z := out.tcp(); a.Seq != z.Seq || a.Ack != z.Ack || a.SYN != z.SYN {
				t.Fatalf("packet %d: seq %d ack %d became %d and %d", i, a.Seq, a.Ack, z.Seq, z.Ack)
			}
		}
		return
	}
	if !backend(outDst) {
		t.Fatalf("packet %d: goes to %s", i, outDst)
	}
	switch dnat := tr.spec.Mode == conntrack.DNAT; {
	case dnat && outSrc != inSrc:
		t.Fatalf("packet %d: DNAT made %s of %s", i, outSrc, inSrc)
	case tr.local == "":
		if other, ok := tr.flows[outSrc+outDst]; ok {
			t.Fatalf("packet %d: %s → %s serves %s and %s", i, outSrc, outDst, other, inSrc)
		}
		tr.local = outSrc + outDst
		tr.flows[tr.local] = inSrc
	case tr.local != outSrc+outDst:
		t.Fatalf("packet %d: flow changed to %s → %s", i, outSrc, outDst)
	}
	if a := in.tcp(); a != nil {
		tr.checkTCP(t, i, a, out.tcp())
	}
}

func (tr *translation) checkTCP(t *testing.T, i int, a, z *layers.TCP) {
	t.Helper()
	if a.SYN {
		tr.delta = z.Seq - a.Seq
		if tr.spec.Mode == conntrack.FullNAT == (tr.delta == 0) {
			t.Errorf("packet %d: sequence numbers move by %d", i, tr.delta)
		}
	}
	if z.Seq-a.Seq != tr.delta || z.Ack != a.Ack {
		t.Fatalf("packet %d: seq %d ack %d became %d and %d", i, a.Seq, a.Ack, z.Seq, z.Ack)
	}
	if tr.ack == 0 {
		tr.ack = a.Ack // 0 on the SYN
	}
	tr.acked = tr.acked || a.Ack != tr.ack
	toa := slices.ContainsFunc(z.Options, func(o layers.TCPOption) bool { return o.OptionType == 254 })
	if want := tr.spec.TOA && !a.SYN && !tr.acked; toa != want {
		t.Errorf("packet %d: TOA %v, want %v", i, toa, want)
	}
}

// The same options give the same bytes; another seed gives others.
func TestReproducible(t *testing.T) {
	spec := loadSpec(t, "all.yaml")
	for _, workers := range []int{1, 3} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			run := func(gen, seed uint64) ([]byte, []byte) {
				pcap := generate(t, bench.GenOptions{Spec: spec, Seed: gen})
				var b bytes.Buffer
				allForwarded(t, replay(t, pcap, bench.Options{Spec: spec, Seed: seed, Workers: workers, Loops: 3, Output: &b}))
				return pcap, b.Bytes()
			}
			pcap, out := run(1, 1)
			pcap2, out2 := run(1, 1)
			if !bytes.Equal(pcap, pcap2) || !bytes.Equal(out, out2) {
				t.Error("two runs differ")
			}
			if _, other := run(1, 2); bytes.Equal(out, other) {
				t.Error("another seed of the replay gives the same")
			}
			if other, _ := run(2, 1); bytes.Equal(pcap, other) {
				t.Error("another seed of the capture gives the same")
			}
		})
	}
}

// However many workers, clients see the same packets; servers see the same but
// for local ports and what follows from them.
func TestWorkersAlike(t *testing.T) {
	for _, name := range allServices {
		t.Run(name, func(t *testing.T) {
			spec := loadSpec(t, "all.yaml", name)
			spec.Services[0].Backends = spec.Services[0].Backends[:1] // schedulers start elsewhere
			pcap := generate(t, bench.GenOptions{Spec: spec})
			seen := func(workers int, rss bool) []string {
				var b bytes.Buffer
				rep := replay(t, pcap, bench.Options{Spec: spec, Workers: workers, RSSKnown: rss, Loops: 2, Output: &b})
				allForwarded(t, rep)
				if handed := rep.Verdicts["handed_over"]; workers > 1 && !rss && handed == 0 {
					t.Error("nothing was handed over")
				} else if rss && spec.Services[0].Mode == conntrack.FullNAT && handed != 0 {
					t.Errorf("%d packets handed over with flows at home", handed)
				}
				return outcomes(t, b.Bytes(), &spec)
			}
			one := seen(1, false)
			if diff := cmp.Diff(one, seen(4, false)); diff != "" {
				t.Errorf("one worker and four (-one +four):\n%.2000s", diff)
			}
			if diff := cmp.Diff(one, seen(2, true)); diff != "" {
				t.Errorf("one worker and two that know RSS (-one +two):\n%.2000s", diff)
			}
		})
	}
}

// outcomes lists frames, sorted, without what may differ from run to run.
func outcomes(t *testing.T, pcap []byte, spec *dataplane.Spec) (out []string) {
	for _, f := range frames(t, pcap) {
		src, dst := f.ends()
		if src == fmt.Sprint(spec.Services[0].VIP.Addr, " ", spec.Services[0].VIP.Port) {
			out = append(out, fmt.Sprintf("%x", f.Data()))
			continue
		}
		s := fmt.Sprint(dst, " ", len(f.Data()), f.payload())
		if tcp := f.tcp(); tcp != nil {
			s += fmt.Sprint(tcp.Ack, tcp.SYN, tcp.ACK, tcp.Options)
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// Workers in threads of their own lose nothing either.
func TestThreads(t *testing.T) {
	spec := loadSpec(t, "all.yaml")
	pcap := generate(t, bench.GenOptions{Spec: spec, Flows: 500, Packets: 6000})
	rep := replay(t, pcap, bench.Options{Spec: spec, Workers: 2, Loops: 3, RSSKnown: true})
	var dropped uint64
	for _, n := range rep.Dropped {
		dropped += n
	}
	// A thread that has to wait for its core may find its hand-off ring full.
	if rep.Forwarded+dropped != rep.Packets || dropped != rep.Dropped["handoff_full"] {
		t.Errorf("%d packets, %d forwarded, dropped %v", rep.Packets, rep.Forwarded, rep.Dropped)
	}
}

func TestDuration(t *testing.T) {
	spec := loadSpec(t, "bench.yaml")
	pcap := generate(t, bench.GenOptions{Spec: spec})
	from := time.Now()
	rep := replay(t, pcap, bench.Options{Spec: spec, Duration: 50 * time.Millisecond})
	allForwarded(t, rep)
	if took := time.Since(from); took < 50*time.Millisecond || took > 30*time.Second || rep.Loops < 2 {
		t.Errorf("%d loops in %v", rep.Loops, took)
	}
}

func TestJSON(t *testing.T) {
	spec := loadSpec(t, "bench.yaml")
	rep := replay(t, generate(t, bench.GenOptions{Spec: spec}), bench.Options{Spec: spec, Loops: 2})
	var b bytes.Buffer
	if err := rep.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"packets", "seconds", "mpps", "ns_per_packet", "gbps", "allocs_per_packet", "forwarded", "copy_ns_per_packet", "pipeline_ns_per_packet", "table_bytes"} {
		if v, ok := got[key].(float64); !ok || v < 0 || key != "allocs_per_packet" && v == 0 {
			t.Errorf("%s is %v", key, got[key])
		}
	}
	if d, ok := got["dropped"].(map[string]any); !ok || len(d) != 0 {
		t.Errorf("dropped is %v, want an empty object", got["dropped"])
	}
	if s, ok := got["stages"].([]any); !ok || len(s) != int(dataplane.NumStages) {
		t.Errorf("stages are %v", got["stages"])
	}
	b.Reset()
	if err := rep.WriteText(&b); err != nil || !bytes.Contains(b.Bytes(), []byte("Mpps")) {
		t.Errorf("text: %v\n%s", err, &b)
	}
}

// Generous, so that a busy machine does not fail it: what it is really able to
// is in the README.
func TestFloor(t *testing.T) {
	const floor = 2 // Mpps
	spec := loadSpec(t, "bench.yaml")
	pcap := generate(t, bench.GenOptions{Spec: spec, Flows: 65536, Packets: 400000})
	var best float64
	for range 20 { // others may have the machine for a while
		rep := replayUnmoved(t, pcap, bench.Options{Spec: spec, Loops: 4, MaxFlows: 1 << 17})
		allForwarded(t, rep)
		if rep.AllocsPerPacket != 0 {
			t.Errorf("%g allocations a packet", rep.AllocsPerPacket)
		}
		if best = max(best, rep.Steady.Mpps); best >= floor {
			return
		}
	}
	t.Errorf("%.2f Mpps at best, want %d", best, floor)
}

// TestReplayHalves: of DNAT's halves the one gets clients' packets only and the other
// servers' only, and each sends all of them on.
func TestReplayHalves(t *testing.T) {
	for _, name := range []string{"dnat4", "dnat6u"} {
		for _, half := range []string{"forwarded", "replied"} {
			t.Run(name+"/"+half, func(t *testing.T) {
				spec := loadSpec(t, "all.yaml", name)
				flows, opening := 100, uint64(100) // the first packet of each
				if s := &spec.Services[0]; half == "forwarded" {
					s.Mode = conntrack.DNATOneWay
				} else {
					s.ReturnOnly, flows, opening = true, 0, 0
				}
				pcap := generate(t, bench.GenOptions{Spec: spec, Size: 64})
				rep := replayUnmoved(t, pcap, bench.Options{Spec: spec, Loops: 3})
				allForwarded(t, rep)
				if n := rep.Packets; rep.Verdicts[half] != n || rep.Flows != flows || n != 3000+2*(3000-opening) {
					t.Errorf("%d packets, %v, %d flows", n, rep.Verdicts, rep.Flows)
				}
				if rep.AllocsPerPacket != 0 {
					t.Errorf("%g allocations a packet", rep.AllocsPerPacket)
				}
				if half == "replied" {
					_, err := bench.Synthesize(t.Context(), bench.SynthOptions{Spec: spec, Flows: 10})
					if !errors.Is(err, bench.ErrOptions) {
						t.Errorf("synthesized: %v", err)
					}
				}
			})
		}
	}
}
