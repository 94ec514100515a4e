package sdnotify

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

func TestSend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	t.Setenv("NOTIFY_SOCKET", path)
	hear := func() string {
		t.Helper()
		buf := make([]byte, 256)
		if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := l.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	if err := Send("READY=1"); err != nil {
		t.Fatal(err)
	}
	if got := hear(); got != "READY=1" {
		t.Errorf("said %q", got)
	}
	if err := Reloading(); err != nil {
		t.Fatal(err)
	}
	if got := hear(); !regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*$`).MatchString(got) {
		t.Errorf("said %q", got)
	}
}

func TestSendToNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Send("READY=1"); err != nil {
		t.Error(err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	if err := Send("READY=1"); err == nil {
		t.Error("nobody heard it, and that is no error")
	}
}

func TestWatchdog(t *testing.T) {
	for name, c := range map[string]struct {
		period, pid string
		want        time.Duration
	}{
		"not watched":     {"", "", 0},
		"watched":         {"30000000", "", 30 * time.Second},
		"this process":    {"500000", strconv.Itoa(os.Getpid()), 500 * time.Millisecond},
		"another process": {"500000", strconv.Itoa(os.Getppid()), 0},
		"no number":       {"soon", "", 0},
		"negative":        {"-1", "", 0},
		"too large":       {"18446744073709551615", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("WATCHDOG_USEC", c.period)
			t.Setenv("WATCHDOG_PID", c.pid)
			if got := Watchdog(); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

// TestSendToTheDeaf: a manager that does not read cannot hold the caller for ever.
func TestSendToTheDeaf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	t.Setenv("NOTIFY_SOCKET", path)
	for range 10_000 { // the queue's length is a sysctl, 10 or 512
		if err := Send("WATCHDOG=1"); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			return
		}
	}
	t.Error("nobody reads, and all was sent")
}
