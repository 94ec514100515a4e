package testbed

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Terminal opens a pseudo-terminal: its user's end and its programs', both to be closed.
// It is nobody's controlling terminal.
func Terminal() (user, program *os.File, err error) {
	if user, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, fmt.Errorf("terminal: %w", err)
	}
	if err = unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err == nil {
		var n int
		if n, err = unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN); err == nil {
			program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
		}
	}
	if err != nil {
		_ = user.Close()
		return nil, nil, fmt.Errorf("terminal: %w", err)
	}
	return user, program, nil
}
