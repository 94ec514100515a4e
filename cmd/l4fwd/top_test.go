package main

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// watchOnTerminal runs top on a terminal, sorts, quits, and looks whether the terminal
// is as it was.
func watchOnTerminal(t *testing.T, cmd *testbed.Cmd) {
	t.Helper()
	user, program, err := testbed.Terminal()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = user.Close(), program.Close() })
	noError(t, unix.IoctlSetWinsize(int(program.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 60}))
	was, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
	noError(t, err)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
	noError(t, cmd.Start())
	var mu sync.Mutex
	var screen bytes.Buffer
	go func() {
		for buf := make([]byte, 4096); ; {
			n, err := user.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			screen.Write(buf[:n])
			mu.Unlock()
		}
	}()
	until := func(want string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			mu.Lock()
			seen := screen.String()
			mu.Unlock()
			if strings.Contains(seen, want) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("no %q on the screen: %q", want, seen)
			}
		}
	}
	until(enterScreen)
	until("backends by traffic")
	_, err = user.WriteString("s")
	noError(t, err)
	until("backends by new flows")
	_, err = user.WriteString("q")
	noError(t, err)
	if err := cmd.Wait(); err != nil {
		t.Errorf("top: %v", err)
	}
	until(leaveScreen)
	is, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
	noError(t, err)
	if *is != *was {
		t.Errorf("the terminal was %+v and is %+v", *was, *is)
	}
}
