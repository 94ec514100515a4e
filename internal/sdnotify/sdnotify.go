package sdnotify

import (
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Reloading tells systemd, if it started us, that the configuration is being read anew,
// until READY=1 is sent. It needs to know since when (Type=notify-reload).
func Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	return Send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", time.Duration(now.Nano()).Microseconds()))
}

// patience bounds the wait for a manager that does not read what it is told.
const patience = time.Second

// Send tells systemd a state such as "READY=1", if it started us: if NOTIFY_SOCKET
// names where to.
func Send(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	err = c.SetWriteDeadline(time.Now().Add(patience))
	if err == nil {
		_, err = c.Write([]byte(state))
	}
	if cerr := c.Close(); err == nil {
		err = cerr
	}
	return err
}
