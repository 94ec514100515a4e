package testbed

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// goLocked runs fn on a new goroutine locked to its thread, never the main one.
// A locked thread ends with its goroutine, but Go cannot end the main thread: it
// would keep a namespace alive for ever, and /proc/self would show it to all.
// fn unlocks the thread if it is fit for others again.
func goLocked(fn func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			fn()
			return
		}
		// While this goroutine holds the main thread, another gets another.
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			fn()
		}()
		<-done
		runtime.UnlockOSThread()
	}()
}
