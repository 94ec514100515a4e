package peers

import (
	"math/big"
	"strings"
	"testing"
)

// Masks are a power of two, in groups of the kernel's size, however many CPUs
// there are.
func TestMasks(t *testing.T) {
	for cpu, want := range map[int]string{
		-1: "0", 0: "1", 1: "2", 7: "80", 31: "80000000", 32: "1,00000000", 33: "2,00000000", 63: "80000000,00000000", 64: "1,00000000,00000000",
	} {
		if got := sysfsMask(cpu); got != want {
			t.Errorf("CPU %d: %s, want %s", cpu, got, want)
		}
	}
	for cpu := range 300 {
		groups := strings.Split(sysfsMask(cpu), ",")
		for _, g := range groups[1:] {
			if len(g) != 8 {
				t.Errorf("CPU %d: a group of %d digits in %s", cpu, len(g), sysfsMask(cpu))
			}
		}
		for text, base := range map[string]int{strings.Join(groups, ""): 16, nginxMask(cpu): 2} {
			got, ok := new(big.Int).SetString(text, base)
			if want := new(big.Int).Lsh(big.NewInt(1), uint(cpu)); !ok || got.Cmp(want) != 0 {
				t.Errorf("CPU %d: %s", cpu, text)
			}
		}
	}
}
