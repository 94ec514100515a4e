package testbed

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Inject sends whole Ethernet frames out of the device as they are, past the IP
// stack: hand-made packets, right or wrong.
func (d *Device) Inject(frames ...[]byte) error {
	err := d.NS.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		to := &unix.SockaddrLinklayer{Ifindex: d.Index, Halen: 6}
		for i, f := range frames {
			if err := unix.Sendto(fd, f, 0, to); err != nil {
				return errors.Join(fmt.Errorf("frame %d of %d bytes: %w", i, len(f), err), unix.Close(fd))
			}
		}
		return unix.Close(fd)
	})
	if err != nil {
		return fmt.Errorf("inject into %s: %w", d.Name, err)
	}
	return nil
}
