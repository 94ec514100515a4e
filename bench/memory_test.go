package bench

import "testing"

// TestHugeMemory: memory of any size is zero, may be written to, has the size asked
// for and no more, begins at a huge page, and can be closed twice.
func TestHugeMemory(t *testing.T) {
	for _, size := range []uint64{0, 1, 4095, hugePage - 1, hugePage, hugePage + 1, 3*hugePage + 5} {
		for range 4 {
			m, err := hugeMemory(size)
			if err != nil {
				t.Fatalf("%d: %v", size, err)
			}
			if uint64(len(m.used)) != size || uint64(cap(m.used)) != size || size > 0 && address(m.used)%hugePage != 0 {
				t.Errorf("%d: %d, %d, %x", size, len(m.used), cap(m.used), address(m.used))
			}
			for i := range m.used {
				if m.used[i] != 0 {
					t.Fatal("not zero")
				}
				m.used[i] = 1
			}
			if err := m.close(); err != nil || m.used != nil || m.mapping != nil {
				t.Error(err)
			}
			if err := m.close(); err != nil {
				t.Error(err)
			}
		}
	}
}
