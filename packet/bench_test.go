package packet

import "testing"

var sink uint64

// BenchmarkParse runs over the same frames as TestParse.
func BenchmarkParse(b *testing.B) {
	for _, name := range []string{"tcp4", "udp4 64 bytes", "tcp4 vlan", "tcp4 ip options", "tcp6", "udp6", "tcp6 ext headers", "icmp4 unreachable udp", "arp request"} {
		frame := caseFrame(b, name)
		b.Run(name, func(b *testing.B) {
			var p Packet
			b.SetBytes(int64(len(frame)))
			for b.Loop() {
				sink += uint64(Parse(frame, &p))
			}
		})
	}
}

// BenchmarkParseBurst is closer to the worker: 64 frames apart in memory into
// 64 structs.
func BenchmarkParseBurst(b *testing.B) {
	const n, chunk = 64, 2048
	frame := caseFrame(b, "tcp4")
	umem := make([]byte, n*chunk)
	var ps [n]Packet
	for i := range n {
		copy(umem[i*chunk+256:], frame)
	}
	for b.Loop() {
		for i := range ps {
			at := i*chunk + 256
			sink += uint64(Parse(umem[at:at+len(frame)], &ps[i]))
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/packet")
}

func BenchmarkSum(b *testing.B) {
	buf := make([]byte, 1460)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	for _, n := range []int{20, 64, 1460} {
		b.Run(map[int]string{20: "20", 64: "64", 1460: "1460"}[n], func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				sink += Sum(buf[:n], 0)
			}
		})
	}
}

func BenchmarkScanOptions(b *testing.B) {
	frame := caseFrame(b, "tcp4 syn options")
	var p Packet
	Parse(frame, &p)
	for b.Loop() {
		o := ScanOptions(frame, &p)
		sink += uint64(o.MSS)
	}
}
