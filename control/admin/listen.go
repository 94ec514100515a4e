package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// DefaultSocket is where the daemon listens unless the configuration says otherwise.
const DefaultSocket = "/run/l4fwd/admin.sock"

// ErrTaken says that another daemon answers at the socket.
var ErrTaken = errors.New("another l4fwd listens there")

// Listen opens the socket and makes its directory if there is none. What a daemon that
// is no more has left behind is replaced; where one still answers, the error is ErrTaken,
// and what is no socket is left alone. Closing removes it.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("admin socket %s: %w", path, ErrTaken), c.Close())
	}
	if there, err := os.Lstat(path); err == nil && there.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("admin socket %s: something else has that name, which is no socket", path)
	}
	// It gets its name when its mode is set: there is no moment at which others could
	// open it.
	early := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(early); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: early, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(early, 0o600); err == nil {
		err = os.Rename(early, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("admin socket: %w", err), l.Close(), os.Remove(early))
	}
	here, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("admin socket: %w", err), l.Close())
	}
	return &listener{UnixListener: l, path: path, file: here}, nil
}

// listener removes its socket at the end, if it is still its own.
type listener struct {
	*net.UnixListener
	path string
	file fs.FileInfo
}

// Close ends it and removes the socket.
func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if now, serr := os.Lstat(l.path); serr == nil && os.SameFile(now, l.file) {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}
