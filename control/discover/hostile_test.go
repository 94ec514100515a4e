package discover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// Several members: one that is dead keeps nobody waiting, one without a leader is left for
// another, and what one hears the other has said.
func TestMembers(t *testing.T) {
	t.Parallel()
	ns, err := testbed.NewNamespace("etcd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, ns.Close()) })
	all, err := testbed.StartEtcds(t.Context(), ns, t.TempDir(), 3)
	t.Cleanup(func() {
		for _, e := range all {
			if e.Process != nil {
				e.Kill()
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Etcd: all[0], t: t}
	if s.client, err = s.Client(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.client.Close() })
	o := s.options()
	o.Endpoints = []string{"http://127.0.0.1:1"} // which is nobody
	for _, e := range all {
		o.Endpoints = append(o.Endpoints, e.Endpoint())
	}
	s.putLater("a")
	f := follow(t, all[0], o)
	f.sees("a")
	s.putLater("b")
	f.sees("a", "b")

	// The leader goes, whoever it is, or who is followed, or both.
	all[1].Kill()
	s.putLater("c")
	f.sees("a", "b", "c")
	all[2].Kill()
	f.says("lost", func(st Status) bool { return !st.Connected })
	check(t, all[1].Restart(context.Background()))
	f.says("there again", func(st Status) bool { return st.Connected })
	s.putLater("d")
	f.sees("a", "b", "c", "d")
}

// putLater is put when there may be no leader yet, or none any more: on a busy machine
// members take it for dead.
func (s *server) putLater(key string) {
	s.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
		_, err := s.client.Put(ctx, "/l4fwd/services/"+key, "{}")
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			s.t.Fatal(err)
		}
	}
}

// What anybody may write as a key does not reach a terminal, nor is taken for another.
func TestOddKeys(t *testing.T) {
	base := file(t, "keep")
	m := NewMerger(&base.Discovery.Etcd)
	r, err := m.Merge(t.Context(), base, &Set{9, []Document{
		doc(1, "a", bare("192.0.2.2:80")),
		doc(2, "a/backends/\x1b[2J", backend("10.0.0.9:80")),
		doc(3, "a/backends/\xfe", backend("10.0.0.8:80")),
		doc(4, "a/backends/\xff", backend("10.0.0.7:80")),
		doc(5, "a/backends/"+strings.Repeat("x", 256), backend("10.0.0.6:80")),
		doc(6, "a/backends/"+strings.Repeat("x", 255), backend("10.0.0.5:80")),
		doc(7, "b", "{\"\x9b2J\":1,\"\\u001b[31m\":2,\"\u009b\u202e\":3}"),
		doc(8, strings.Repeat("y", 1<<20), "{}"),
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"file 192.0.2.1:80 10.0.0.1:80", "a 192.0.2.2:80 10.0.0.5:80"}, served(r.Config)); diff != "" {
		t.Error(diff)
	}
	if len(r.Problems) != 6 {
		t.Errorf("%d problems", len(r.Problems))
	}
	for _, p := range r.Problems {
		if text := p.String(); !isPlain(text) || len(text) > 2*maxReason+100 {
			t.Errorf("%d bytes: %.200q", len(text), text)
		}
	}
}

// A follower that is stopped while nobody answers is stopped at once.
func TestStoppedWhileConnecting(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody speaks
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	password := filepath.Join(t.TempDir(), "password")
	check(t, os.WriteFile(password, []byte("secret"), 0o600))
	silent := func(ctx context.Context, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for name, f := range map[string]*Follower{
		"silent":   New(Options{Etcd: config.Etcd{Endpoints: []string{"http://" + l.Addr().String()}, Prefix: "/l4fwd", Timeout: time.Minute}}),
		"password": New(Options{Etcd: config.Etcd{Endpoints: []string{"http://" + l.Addr().String()}, Prefix: "/l4fwd", Timeout: time.Minute, Username: "u", PasswordFile: password}}),
		"no way":   New(Options{Etcd: config.Etcd{Endpoints: []string{"http://192.0.2.1:1"}, Prefix: "/l4fwd", Timeout: time.Minute}, Dial: silent}),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				f.Run(ctx)
			}()
			time.Sleep(50 * time.Millisecond) // it is somewhere in between; anywhere will do
			cancel()
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Fatal("it runs on")
			}
		})
	}
}

// A password's token that has expired ends nothing: what is followed is, and who connects
// anew gets another.
func TestTokenExpires(t *testing.T) {
	t.Parallel()
	s := newTokenServer(t, "2")
	write := func(key string) { // with a token of its own, which a busy machine may let expire
		var err error
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
			if err = s.putAs("root", "root", key); err == nil {
				return
			}
		}
		t.Fatal(err)
	}
	o := s.options()
	o.Timeout = 10 * time.Second // to be late is no error here, where other tests run beside
	o.Username, o.PasswordFile = "l4fwd", filepath.Join(t.TempDir(), "password")
	check(t, os.WriteFile(o.PasswordFile, []byte("secret\n"), 0o600))
	f := follow(t, s.Etcd, o)
	f.sees("a")
	write("b")
	f.sees("a", "b") // it is followed, perhaps after a token that was late at the start
	before := f.Status()
	time.Sleep(3500 * time.Millisecond)
	write("c")
	f.sees("a", "b", "c")
	if st := f.Status(); !st.Connected || st.ErrorAt != before.ErrorAt {
		t.Errorf("%+v", st)
	}
	s.Kill()
	s.restart()
	f.sees("a", "b", "c")
	write("d")
	f.sees("a", "b", "c", "d")
}

// newTokenServer is a server with a document and passwords, whose tokens expire after so
// many seconds.
func newTokenServer(t *testing.T, seconds string) *server {
	t.Helper()
	s := newServer(t)
	s.Kill()
	s.Args = []string{"--auth-token-ttl", seconds}
	s.restart()
	s.put("a")
	s.requirePasswords()
	return s
}

// putAs is put of one document by somebody who logs in for it.
func (s *server) putAs(user, password, key string) error {
	c, err := s.Login(s.t.Context(), user, password)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(s.t.Context(), 3*time.Second)
	defer cancel()
	_, err = c.Put(ctx, "/l4fwd/services/"+key, "{}")
	return err
}

// A token that has expired between two requests of a session ends it, and at once.
func TestTokenExpiresEarly(t *testing.T) {
	t.Parallel()
	s := newTokenServer(t, "1")
	o := Options{Etcd: s.options(), Dial: s.Dial}
	o.Etcd.Username, o.Etcd.PasswordFile, o.Etcd.Timeout = "l4fwd", filepath.Join(t.TempDir(), "password"), time.Minute
	check(t, os.WriteFile(o.Etcd.PasswordFile, []byte("secret\n"), 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	f := New(o)
	for name, request := range map[string]func(*clientv3.Client) error{
		"list":  func(c *clientv3.Client) error { _, err := f.list(ctx, c); return err },
		"watch": func(c *clientv3.Client) error { return f.watch(ctx, c, &Set{Revision: 1}, nil) },
	} {
		client, err := f.connect(ctx, s.Endpoint())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2500 * time.Millisecond)
		if err := request(client); err == nil || !strings.Contains(err.Error(), "the token has expired") {
			t.Errorf("%s: %v", name, err)
		}
		_ = client.Close()
	}
}

// Documents as large as etcd takes them are followed.
func TestLargeDocuments(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for i := range 4 {
		if _, err := s.client.Put(t.Context(), fmt.Sprintf("/l4fwd/services/large%d", i), strings.Repeat(" ", 1500<<10)+"{}"); err != nil {
			t.Fatal(err)
		}
	}
	s.put("small")
	f := follow(t, s.Etcd, s.options())
	f.sees("large0", "large1", "large2", "large3", "small")
	base := file(t, "keep")
	r, err := NewMerger(&base.Discovery.Etcd).Merge(t.Context(), base, f.last, nil)
	if err != nil || len(r.Problems) != 5 || !strings.Contains(r.Problems[0].Text, "the key address is missing") {
		t.Errorf("%v %+v", err, r)
	}
	if _, err := s.client.Put(t.Context(), "/l4fwd/services/large9", strings.Repeat(" ", 1500<<10)+"{}"); err != nil {
		t.Fatal(err)
	}
	f.sees("large0", "large1", "large2", "large3", "large9", "small")
}

// More documents than fit into one page, one of them on each side of its end, are one set;
// and so many that they fill the memory are none.
func TestManyDocuments(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	var want []string
	for i := range 25 {
		var keys []string
		for j := range 100 {
			keys = append(keys, fmt.Sprintf("s%04d", 100*i+j))
		}
		s.put(keys...)
		want = append(want, keys...)
	}
	f := follow(t, s.Etcd, s.options())
	f.sees(want...)
	if f.n != 1 {
		t.Errorf("%d sets", f.n)
	}
	s.put("t")
	f.sees(append(want, "t")...)

	was := f.last
	large := make([]byte, 1<<20)
	b := batch{set: was, pending: map[string]*Document{}, deliver: func(*Set) { t.Error("delivered") }}
	for i := range maxBytes >> 20 {
		key := fmt.Sprint("large", i)
		b.pending[key] = &Document{key, 1, large}
	}
	if err := b.flush(); !errors.Is(err, errTooMuch) {
		t.Error(err)
	}
}
