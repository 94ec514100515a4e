package browser

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// program is Debian's.
const program = "chromium"

// flags keep it from everything that is not the page: it runs as root in tests, has no
// display, and asks nobody on the internet.
var flags = []string{
	"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
	"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio", "--host-resolver-rules=MAP *.test 127.0.0.1", "--remote-debugging-pipe",
}

// Browser is a running one. Its methods and its pages' belong to one goroutine.
type Browser struct {
	cmd   *testbed.Cmd
	dir   string
	in    *os.File
	out   *os.File
	said  bytes.Buffer // standard error
	done  chan struct{}
	life  context.Context
	next  int
	read  error // why no more is read; once done is closed
	mu    sync.Mutex
	calls map[int]chan message
	pages map[string]*Page
}

// message is one in either direction.
type message struct {
	ID      int             `json:"id,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  any             `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

// Start starts one in a namespace; it ends with ctx, and with Close.
func Start(ctx context.Context, ns *testbed.Namespace) (*Browser, error) {
	b := &Browser{done: make(chan struct{}), life: ctx, calls: make(map[int]chan message), pages: make(map[string]*Page)}
	var theirs []*os.File
	err := func() (err error) {
		if b.dir, err = os.MkdirTemp("", "browser-"); err != nil {
			return err
		}
		r, in, err := os.Pipe()
		if err != nil {
			return err
		}
		out, w, err := os.Pipe()
		if err != nil {
			return errors.Join(err, r.Close(), in.Close())
		}
		b.in, b.out, theirs = in, out, []*os.File{r, w}
		b.cmd = ns.Command(ctx, program, append(flags, "--user-data-dir="+b.dir)...)
		b.cmd.ExtraFiles, b.cmd.Stderr = theirs, &b.said // descriptors 3 and 4, where it looks
		return b.cmd.Start()
	}()
	for _, f := range theirs {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("browser: %w", err), b.tidy())
	}
	go b.listen()
	return b, nil
}

// Close ends the browser.
func (b *Browser) Close() error {
	err := b.cmd.Signal(syscall.SIGKILL) // nothing of it is kept
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	_ = b.cmd.Wait() // killed
	return errors.Join(err, b.tidy())
}

func (b *Browser) tidy() (err error) {
	for _, f := range []*os.File{b.in, b.out} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

// listen hands on what the browser says until it ends.
func (b *Browser) listen() {
	defer close(b.done)
	for in := bufio.NewReader(b.out); ; {
		raw, err := in.ReadBytes(0)
		if err != nil {
			b.read = err
			return
		}
		var m struct {
			message
			Params json.RawMessage `json:"params"`
		}
		if err := json.Unmarshal(raw[:len(raw)-1], &m); err != nil {
			b.read = err
			return
		}
		b.mu.Lock()
		answer, page := b.calls[m.ID], b.pages[m.Session]
		delete(b.calls, m.ID)
		if page != nil && m.Method != "" {
			page.note(m.Method, m.Params)
		}
		b.mu.Unlock()
		if answer != nil {
			answer <- m.message
		}
	}
}

// call sends a command and decodes its result into out, unless that is nil.
func (b *Browser) call(session, method string, params, out any) error {
	b.next++
	answer := make(chan message, 1)
	b.mu.Lock()
	b.calls[b.next] = answer
	b.mu.Unlock()
	raw, err := json.Marshal(message{ID: b.next, Session: session, Method: method, Params: params})
	if err == nil {
		_, err = b.in.Write(append(raw, 0))
	}
	if err != nil {
		return fmt.Errorf("browser: %s: %w", method, err)
	}
	select {
	case m := <-answer:
		if m.Error != nil {
			return fmt.Errorf("browser: %s: %s", method, m.Error.Message)
		}
		if out == nil {
			return nil
		}
		return json.Unmarshal(m.Result, out)
	case <-b.life.Done():
		return fmt.Errorf("browser: %s: %w", method, b.life.Err())
	case <-b.done:
		return fmt.Errorf("browser: %s: it has ended: %w", method, b.read)
	}
}
