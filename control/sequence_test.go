package control

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSequences: a secret outlives its process, in a file that is nobody else's.
func TestSequences(t *testing.T) {
	dir := t.TempDir()
	first, start, err := sequences(dir)
	if err != nil || first == ([16]byte{}) {
		t.Fatalf("%x, %v", first, err)
	}
	again, later, err := sequences(dir)
	if err != nil || again != first || later < start {
		t.Errorf("%x at %d, then %x at %d: %v", first, start, again, later, err)
	}
	path := filepath.Join(dir, secretFile)
	if s, err := os.Stat(path); err != nil || s.Mode() != 0o600 {
		t.Errorf("%v %v", s.Mode(), err)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
		t.Errorf("%v %v", all, err)
	}

	// Half a secret is none.
	check(t, os.WriteFile(path, first[:8], 0o600))
	other, _, err := sequences(dir)
	if err != nil || other == first || [8]byte(other[8:]) == [8]byte{} {
		t.Errorf("%x, %v", other, err)
	}
	if again, _, err = sequences(dir); err != nil || again != other {
		t.Errorf("%x, then %x: %v", other, again, err)
	}

	// Where none can be kept there is one nevertheless.
	for _, dir := range []string{filepath.Join(dir, "nowhere"), path} {
		if got, epoch, err := sequences(dir); err == nil || got == ([16]byte{}) || epoch < later {
			t.Errorf("in %s: %x, %d, %v", dir, got, epoch, err)
		}
	}
}
