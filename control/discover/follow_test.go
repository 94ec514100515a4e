package discover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// server is an etcd in a namespace of its own, and a client that writes.
type server struct {
	*testbed.Etcd
	t      *testing.T
	client *clientv3.Client
}

var loopback = netip.MustParseAddrPort("127.0.0.1:2379")

func startEtcd(t *testing.T, files *testbed.EtcdFiles) *testbed.Etcd {
	t.Helper()
	ns, err := testbed.NewNamespace("etcd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, ns.Close()) })
	e, err := testbed.StartEtcd(context.Background(), ns, t.TempDir(), loopback, files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Kill() }) // the one that runs then
	return e
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{Etcd: startEtcd(t, nil), t: t}
	var err error
	if s.client, err = s.Client(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.client.Close() })
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// put writes documents by their keys, in one revision.
func (s *server) put(keys ...string) {
	s.t.Helper()
	var ops []clientv3.Op
	for _, k := range keys {
		ops = append(ops, clientv3.OpPut("/l4fwd/services/"+k, "{}"))
	}
	if _, err := s.client.Txn(s.t.Context()).Then(ops...).Commit(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) remove(key string) {
	s.t.Helper()
	if _, err := s.client.Delete(s.t.Context(), "/l4fwd/services/"+key); err != nil {
		s.t.Fatal(err)
	}
}

// wipe kills it and starts it with the data of another directory, "" for none.
func (s *server) wipe(backup string) {
	s.t.Helper()
	s.Kill()
	check(s.t, os.RemoveAll(s.DataDir()))
	if backup != "" {
		check(s.t, os.CopyFS(s.DataDir(), os.DirFS(backup)))
		check(s.t, filepath.WalkDir(s.DataDir(), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			return os.Chmod(path, 0o700)
		}))
	}
	s.restart()
}

func (s *server) restart() {
	s.t.Helper()
	if err := s.Restart(context.Background()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) options() config.Etcd {
	return config.Etcd{Endpoints: []string{s.Endpoint()}, Prefix: "/l4fwd", Timeout: 5 * time.Second}
}

// followed is a Follower that runs, and what it has delivered.
type followed struct {
	*Follower
	t    *testing.T
	logs *observer.ObservedLogs
	sets chan *Set
	last *Set
	n    int
}

func follow(t *testing.T, e *testbed.Etcd, o config.Etcd) *followed {
	t.Helper()
	core, logs := observer.New(zap.WarnLevel)
	f := &followed{t: t, logs: logs, sets: make(chan *Set, 1000)}
	f.Follower = New(Options{Etcd: o, Log: zap.New(core), Dial: e.Dial, OnSet: func(s *Set) { f.sets <- s }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return f
}

// patience of tests outlasts some turns of a follower that has to pause for up to
// one and a half times the timeout.
const patience = 40 * time.Second

// sees waits until a set of these keys has been delivered.
func (f *followed) sees(keys ...string) {
	f.t.Helper()
	late := time.After(patience)
	for {
		select {
		case f.last = <-f.sets:
			f.n++
		case <-late:
			f.t.Fatalf("want %v, last seen %v; %+v", keys, f.keys(), f.Status())
		}
		if cmp.Equal(keys, f.keys()) {
			return
		}
	}
}

func (f *followed) keys() (out []string) {
	if f.last == nil {
		return []string{"none"}
	}
	for _, d := range f.last.Documents {
		out = append(out, strings.TrimPrefix(d.Key, "/l4fwd/services/"))
	}
	return out
}

// says waits until the status is as wanted.
func (f *followed) says(what string, is func(Status) bool) {
	f.t.Helper()
	for end := time.Now().Add(patience); !is(f.Status()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("not %s: %+v", what, f.Status())
		}
	}
}

// An etcd that is written to, killed, restored from a backup that is older, and wiped.
func TestFollow(t *testing.T) {
	s := newServer(t)
	s.put("a", "b")
	f := follow(t, s.Etcd, s.options())
	f.sees("a", "b")
	if st := f.Status(); !st.Connected || st.Documents != 2 || st.Revision != 2 || st.Error != "" {
		t.Errorf("%+v", st)
	}
	if _, err := s.client.Put(t.Context(), "/l4fwd/other", "x"); err != nil {
		t.Fatal(err)
	}
	s.put("c")
	f.sees("a", "b", "c")
	s.remove("a")
	f.sees("b", "c")

	backup := t.TempDir()
	s.Kill()
	f.says("refused", func(st Status) bool { return !st.Connected && strings.Contains(st.Error, "connection refused") })
	// The status has had the first error only until the next try.
	if lost := f.logs.FilterMessageSnippet("etcd is lost").FilterField(zap.Error(errLost)); lost.Len() != 1 {
		t.Errorf("%v", f.logs.All())
	}
	check(t, os.CopyFS(backup, os.DirFS(s.DataDir())))
	s.restart()
	f.sees("b", "c")
	f.says("there again", func(st Status) bool { return st.Connected })
	s.put("d")
	f.sees("b", "c", "d")
	later := f.last.Revision

	s.wipe(backup)
	f.sees("b", "c")
	if f.last.Revision >= later {
		t.Errorf("revision %d after %d", f.last.Revision, later)
	}
	s.put("e")
	f.sees("b", "c", "e")

	s.wipe("")
	f.sees()
	s.put("z")
	f.sees("z")
}

// A thousand changes are few batches, and none is lost; one that pauses is not kept
// waiting for the others.
func TestBatches(t *testing.T) {
	s := newServer(t)
	f := follow(t, s.Etcd, s.options())
	f.sees()
	var want []string
	began := time.Now()
	for i := range 1000 {
		key := fmt.Sprintf("s%03d", i%500)
		if i >= 500 && i%2 == 1 {
			s.remove(key)
			continue
		}
		s.put(key)
		if i >= 500 {
			want = append(want, key)
		}
	}
	took := time.Since(began)
	f.sees(want...)
	if most := 2 + int(took/quietTime); f.n > most {
		t.Errorf("%d sets in %v, more than %d", f.n, took, most)
	}
	if i := len(want) / 2; f.last.Documents[i].Revision < 500 || string(f.last.Documents[i].Value) != "{}" {
		t.Errorf("%+v", f.last.Documents[i])
	}
}

// A watch from what is compacted away ends, and the next session lists all again.
func TestCompacted(t *testing.T) {
	s := newServer(t)
	for range 10 {
		s.put("a")
	}
	r, err := s.client.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Compact(t.Context(), r.Header.Revision); err != nil {
		t.Fatal(err)
	}
	f := New(Options{Etcd: s.options()})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := f.watch(ctx, s.client, &Set{Revision: 1}, nil); !errors.Is(err, errCompacted) {
		t.Errorf("%v", err)
	}
	follow(t, s.Etcd, s.options()).sees("a")
}
