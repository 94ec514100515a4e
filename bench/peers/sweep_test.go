package peers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSweepFiles(t *testing.T) {
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	left := fmt.Sprintf("%s%d", filePrefix, gone.Process.Pid)
	for _, name := range []string{
		left, left + "-v", left + "-123", "other-1", filePrefix + "x",
		fmt.Sprintf("%s%d-1", filePrefix, os.Getpid()),
	} {
		if err := os.MkdirAll(filepath.Join(dir, name, "l4fwd"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := sweepFiles(dir, filepath.Join(dir, "not there")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	want := []string{fmt.Sprintf("%s%d-1", filePrefix, os.Getpid()), filePrefix + "x", "other-1"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestReleaseAtLeast(t *testing.T) {
	for release, want := range map[string]bool{
		"6.6.0": true, "6.18.1-fc": true, "7.0": true, "6.1.0-18-amd64": false, "5.15.0": false, "?": false,
	} {
		if releaseAtLeast(release, 6, 6) != want {
			t.Errorf("%s: not %t", release, want)
		}
	}
}
