package conntrack

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/l4fwd/l4fwd/packet"
)

func secret(b byte) *[32]byte { return &[32]byte{0: b, 31: 1} }

// flip changes bit n of a tuple and reports false when there is no such bit.
func flip(tu packet.Tuple, n int, v6 bool) (packet.Tuple, bool) {
	addrBits := 32
	if v6 {
		addrBits = 128
	}
	bit := func(a *packet.Addr, n int) {
		if n < 64 {
			a.Lo ^= 1 << n
		} else {
			a.Hi ^= 1 << (n - 64)
		}
	}
	switch {
	case n < addrBits:
		bit(&tu.Src, n)
	case n < 2*addrBits:
		bit(&tu.Dst, n-addrBits)
	case n < 2*addrBits+16:
		tu.SrcPort ^= 1 << (n - 2*addrBits)
	case n < 2*addrBits+32:
		tu.DstPort ^= 1 << (n - 2*addrBits - 16)
	case n < 2*addrBits+40:
		tu.Proto ^= 1 << (n - 2*addrBits - 32)
	default:
		return tu, false
	}
	return tu, true
}

// TestHashAvalanche: each input bit flips each output bit about half the time.
func TestHashAvalanche(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		k := expand(secret(1))
		rng := rand.New(rand.NewPCG(1, 2))
		const rounds = 2000
		for n := 0; ; n++ {
			var flips [32]int
			for range rounds {
				tu := packet.Tuple{Src: addr4(rng.Uint32()), Dst: addr4(rng.Uint32()),
					SrcPort: uint16(rng.Uint32()), DstPort: uint16(rng.Uint32()), Proto: packet.ProtoTCP}
				if v6 {
					tu.Src = packet.Addr{Hi: rng.Uint64(), Lo: rng.Uint64()}
					tu.Dst = packet.Addr{Hi: rng.Uint64(), Lo: rng.Uint64()}
				}
				other, ok := flip(tu, n, v6)
				if !ok {
					break
				}
				for d := k.hash(&tu) ^ k.hash(&other); d != 0; d &= d - 1 {
					flips[bits.TrailingZeros32(d)]++
				}
			}
			if _, ok := flip(packet.Tuple{}, n, v6); !ok {
				break
			}
			for out, c := range flips {
				if c < rounds*4/10 || c > rounds*6/10 {
					t.Errorf("v6 %v: input bit %d flips output bit %d %d times in %d", v6, n, out, c, rounds)
				}
			}
		}
	}
}

// TestHashSpread: sequential addresses and ports, the usual ones and the
// hostile ones, fall into buckets like drops of rain.
func TestHashSpread(t *testing.T) {
	const buckets, items = 4096, 4096 * 32
	for _, c := range []struct {
		name string
		make func(i uint32) packet.Tuple
	}{
		{"ports", func(i uint32) packet.Tuple {
			return packet.Tuple{Src: addr4(0x0a000001 + i>>16), Dst: addr4(0xc000020a), SrcPort: uint16(i), DstPort: 80, Proto: 6}
		}},
		{"addresses", func(i uint32) packet.Tuple {
			return packet.Tuple{Src: addr4(0x0a000000 + i), Dst: addr4(0xc000020a), SrcPort: 1024, DstPort: 80, Proto: 6}
		}},
		{"addresses by 64k", func(i uint32) packet.Tuple {
			return packet.Tuple{Src: addr4(i<<16 | i>>16), Dst: addr4(0xc000020a), SrcPort: 1024, DstPort: 80, Proto: 6}
		}},
		{"local ports", func(i uint32) packet.Tuple {
			return packet.Tuple{Src: addr4(0x0a000114), Dst: addr4(0x0a00010a + i>>16), SrcPort: 8080, DstPort: uint16(i), Proto: 6}
		}},
		{"v6 hosts", func(i uint32) packet.Tuple {
			return packet.Tuple{Src: packet.Addr{Hi: 0x20010db8 << 32, Lo: uint64(i)}, Dst: packet.Addr{Hi: 0x20010db8 << 32, Lo: 1 << 40}, SrcPort: 1024, DstPort: 80, Proto: 6}
		}},
		{"v6 networks", func(i uint32) packet.Tuple {
			return packet.Tuple{Src: packet.Addr{Hi: 0x20010db8<<32 | uint64(i), Lo: 1}, Dst: packet.Addr{Hi: 0x20010db8 << 32, Lo: 1 << 40}, SrcPort: 1024, DstPort: 80, Proto: 6}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := expand(secret(1))
			var high, low [buckets]float64
			for i := range uint32(items) {
				tu := c.make(i)
				h := k.hash(&tu)
				high[uint64(h)*buckets>>32]++
				low[h%buckets]++
			}
			for name, counts := range map[string]*[buckets]float64{"bucket": &high, "tag": &low} {
				chi := 0.0
				for _, n := range counts {
					chi += (n - items/buckets) * (n - items/buckets) / (items / buckets)
				}
				// Five standard deviations of a chi-square with buckets-1 degrees.
				if limit := 5 * math.Sqrt(2*buckets); math.Abs(chi-buckets) > limit {
					t.Errorf("%s: chi-square %.0f, want %d ± %.0f", name, chi, buckets, limit)
				}
			}
		})
	}
}

// TestHashSecret: tuples that share a bucket under one secret do not under
// another.
func TestHashSecret(t *testing.T) {
	k1, k2 := expand(secret(1)), expand(secret(2))
	const buckets = 1024
	same := map[uint32]int{}
	n := 0
	for i := range uint32(1 << 20) {
		tu := packet.Tuple{Src: addr4(i), Dst: addr4(0xc000020a), SrcPort: 1024, DstPort: 80, Proto: 6}
		if uint64(k1.hash(&tu))*buckets>>32 == 7 {
			same[uint32(uint64(k2.hash(&tu))*buckets>>32)]++
			n++
		}
	}
	if len(same) < buckets/2 {
		t.Errorf("%d tuples of one bucket fall into only %d of %d under another secret", n, len(same), buckets)
	}
	for b, c := range same {
		if c > 12 { // Poisson with mean 1
			t.Errorf("%d of %d meet again in bucket %d", c, n, b)
		}
	}
}
