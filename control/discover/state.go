package discover

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/l4fwd/l4fwd/config"
)

// stateFile, in the state directory, is what was last in force.
const stateFile = "discovery.json"

// stateVersion is that of its form.
const stateVersion = 1

type state struct {
	Version   int        `json:"version"`
	Prefix    string     `json:"prefix"`
	Revision  int64      `json:"revision"`
	Documents []Document `json:"documents"`
}

// Load returns what Save has kept of the same prefix. The error is of type *fs.PathError
// with fs.ErrNotExist where there is nothing.
func Load(e *config.Etcd) (*Set, error) {
	path := filepath.Join(e.StateDir, stateFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("what was in force: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if s.Version != stateVersion || s.Prefix != e.Prefix {
		return nil, fmt.Errorf("%s is of version %d and the prefix %s: expected version %d and %s", path, s.Version, s.Prefix, stateVersion, e.Prefix)
	}
	return &Set{s.Revision, s.Documents}, nil
}

// Save keeps what is in force, the whole file or nothing, for its owner's eyes.
func Save(e *config.Etcd, s *Set) (err error) {
	b, err := json.Marshal(state{stateVersion, e.Prefix, s.Revision, s.Documents})
	if err != nil {
		return fmt.Errorf("keeping what is in force: %w", err)
	}
	if err := os.MkdirAll(e.StateDir, 0o700); err != nil {
		return fmt.Errorf("keeping what is in force: %w", err)
	}
	// One name, for what a crash leaves behind is written over then.
	f, err := os.OpenFile(filepath.Join(e.StateDir, "."+stateFile+".tmp"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("keeping what is in force: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(e.StateDir, stateFile))
	}
	if err != nil {
		return fmt.Errorf("keeping what is in force: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}
