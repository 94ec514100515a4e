package bench_test

import (
	"testing"

	"github.com/l4fwd/l4fwd/bench"
)

// BenchmarkReplay is `bench replay` as a Go benchmark: for -cpuprofile and
// benchstat. The time of an operation is that of a packet, copy included, in
// the loops after the first.
func BenchmarkReplay(b *testing.B) {
	for _, name := range []string{"fnat4", "fnat6", "fnat4u", "dnat4"} {
		b.Run(name, func(b *testing.B) {
			spec := loadSpec(b, "all.yaml", name)
			pcap := generate(b, bench.GenOptions{Spec: spec, Flows: 65536, Packets: 1000000})
			b.ResetTimer()
			loops := 2 + b.N/800000
			rep := replay(b, pcap, bench.Options{Spec: spec, Loops: loops, MaxFlows: 1 << 20})
			allForwarded(b, rep)
			b.ReportMetric(rep.Steady.NsPerPacket, "ns/packet")
			b.ReportMetric(rep.CopyNsPerPacket, "copy-ns/packet")
		})
	}
}
