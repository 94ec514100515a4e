package access

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Bounds of a token, in bytes. One that could be guessed is none.
const (
	shortest = 16
	longest  = 512
)

// ReadToken reads the token in a file: one line of printable ASCII without blanks. open
// says that others than the file's owner and group can read or write it.
func ReadToken(path string) (token string, open bool, err error) {
	b, open, err := ReadSecret(path)
	if err != nil {
		return "", false, fmt.Errorf("token: %w", err)
	}
	b = bytes.TrimSpace(b)
	if bad := func(r rune) bool { return r <= ' ' || r > '~' }; len(b) < shortest || len(b) > longest || bytes.ContainsFunc(b, bad) {
		return "", false, fmt.Errorf("token: %s: expected one line of %d to %d characters without blanks", path, shortest, longest)
	}
	return string(b), open, nil
}

// ReadSecret reads a small file, at most 1 MiB of it, which must be a regular one: a pipe
// would be waited for. open says that others than the file's owner and group can read or
// write it.
func ReadSecret(path string) (b []byte, open bool, err error) {
	const most = 1 << 20
	info, err := os.Stat(path)
	if err != nil {
		return nil, false, err
	}
	if !info.Mode().IsRegular() {
		return nil, false, fmt.Errorf("%s: no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err = io.ReadAll(io.LimitReader(f, most))
	const others = 0o006
	return b, info.Mode().Perm()&others != 0, err
}

const silence = 10 * time.Second // between two lines of the log

// Guard lets in who sends a token. Make one with NewGuard; until Read and what that gives
// have been called nobody is let in. It may be used by several goroutines at once.
type Guard struct {
	path  string
	log   *zap.Logger
	now   func() time.Time
	sum   atomic.Pointer[[sha256.Size]byte]
	wrong atomic.Uint64

	mu     sync.Mutex
	debts  debts
	spoken time.Time
	unsaid int // since then
}

// NewGuard returns a guard that takes the token in a file.
func NewGuard(path string, log *zap.Logger) *Guard {
	return &Guard{path: path, log: log, now: time.Now}
}

// Read reads the file. changed says that use would put another token in force than there
// is; a file that others can read is logged.
func (g *Guard) Read() (changed bool, use func(), err error) {
	token, open, err := ReadToken(g.path)
	if err != nil {
		return false, nil, err
	}
	if open {
		g.log.Warn("others can read or change a token", zap.String("file", g.path), zap.String("run", "chmod o= "+g.path))
	}
	sum := sha256.Sum256([]byte(token))
	was := g.sum.Load()
	return was == nil || *was != sum, func() { g.sum.Store(&sum) }, nil
}

// Ready reports whether there is a token that somebody could send.
func (g *Guard) Ready() bool { return g != nil && g.sum.Load() != nil }

// Wrong is how many wrong tokens there have been.
func (g *Guard) Wrong() uint64 {
	if g == nil {
		return 0
	}
	return g.wrong.Load()
}

// Refusal is why a request is not let in.
type Refusal struct {
	Status int           // of HTTP
	Text   string        // for whoever asked
	After  time.Duration // when it may be tried again, 0 for at once
}

// Head sets what goes with the status.
func (r *Refusal) Head(h http.Header) {
	if r.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="l4fwd"`)
	}
	if r.After > 0 {
		h.Set("Retry-After", seconds(r.After))
	}
}

func seconds(d time.Duration) string { return strconv.Itoa(int(math.Ceil(d.Seconds()))) }

// Check returns nil if a request has the token, as RFC 6750 section 2.1 writes it. An
// address that has sent too many wrong ones is not listened to, whatever it sends now.
func (g *Guard) Check(r *http.Request) *Refusal {
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(kind, "Bearer") || token == "" {
		return &Refusal{Status: http.StatusUnauthorized, Text: "no token: send one in the header Authorization, after the word Bearer"}
	}
	now := g.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	from := placeOf(r.RemoteAddr)
	if wait := g.debts.wait(from, now); wait > 0 {
		return &Refusal{http.StatusTooManyRequests, fmt.Sprintf("too many wrong tokens from this address: again in %s s", seconds(wait)), wait}
	}
	got, want := sha256.Sum256([]byte(token)), g.sum.Load()
	if want != nil && subtle.ConstantTimeCompare(got[:], want[:]) == 1 {
		g.debts.welcome(from, now)
		return nil
	}
	g.debts.add(from, now)
	g.note(r.RemoteAddr, now)
	return &Refusal{Status: http.StatusUnauthorized, Text: "wrong token"}
}

// placeOf is what an address with a port is counted by: itself, or in IPv6 its network of
// 64 bits, whose addresses a host can have all. What is no address is the zero one.
func placeOf(remote string) netip.Addr {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	a := at.Addr().Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			a = p.Addr()
		}
	}
	return a
}

// note counts a wrong token, and says so now and then. Under mu.
func (g *Guard) note(remote string, now time.Time) {
	g.wrong.Add(1)
	if g.unsaid++; now.Sub(g.spoken) >= silence {
		g.log.Warn("wrong token", zap.String("from", remote), zap.Int("times", g.unsaid), zap.Uint64("since_start", g.wrong.Load()))
		g.spoken, g.unsaid = now, 0
	}
}
