package hot

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Find compiles the packages that packets go through, of the module at root, for
// amd64. overlay is a file for the go command's flag of that name, which puts other
// files in the place of the module's, or adds some; empty for none.
func Find(ctx context.Context, root, overlay string) ([]Finding, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	replaced, err := readOverlay(overlay)
	if err != nil {
		return nil, err
	}
	args := []string{"build", "-gcflags=-d=ssa/check_bce -S"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	for _, pkg := range Packages {
		args = append(args, "./"+pkg)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("compile: %w\n%s", err, out[max(0, len(out)-2000):])
	}
	t := newTree(root, func(path string) ([]byte, error) {
		if other := replaced[path]; other != "" {
			path = other
		}
		return os.ReadFile(path)
	})
	return t.parse(bytes.NewReader(out))
}

// readOverlay is what an overlay file puts in the place of what.
func readOverlay(path string) (map[string]string, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var o struct{ Replace map[string]string }
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return o.Replace, nil
}
