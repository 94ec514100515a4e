package sdnotify

import (
	"os"
	"strconv"
	"time"
)

// Watchdog is how often the service manager wants to hear Send("WATCHDOG=1") at least, or
// it takes this process for hung, kills and restarts it; 0 if it does not watch it
// (sd_watchdog_enabled(3)).
func Watchdog() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0 // it is a parent's
	}
	n, err := strconv.ParseUint(os.Getenv("WATCHDOG_USEC"), 10, 53)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Microsecond
}
