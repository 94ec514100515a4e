package discover

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/l4fwd/l4fwd/config"
)

// One endpoint that answers and one where nobody listens; what the first has is read, and
// nothing is heard of it any more when it has lost its leader.
func TestAsk(t *testing.T) {
	s := newServer(t)
	s.put("a", "b")
	s.put("b")
	o := Options{Etcd: s.options(), Dial: s.Dial}
	o.Etcd.Endpoints = append(o.Etcd.Endpoints, "http://127.0.0.1:1")
	got := Ask(t.Context(), o)
	if err := got[1].Err; err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("%v", err)
	}
	if got[0].Version == "" {
		t.Error("no version")
	}
	want := []Answer{{Endpoint: s.Endpoint(), Documents: 2, Newest: 3}, {Endpoint: "http://127.0.0.1:1"}}
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(Answer{}, "Version", "Err")); d != "" || got[0].Err != nil {
		t.Errorf("%v (-want +got)\n%s", got[0].Err, d)
	}
	set, err := List(t.Context(), o)
	if err != nil || len(set.Documents) != 2 || set.Revision != 3 {
		t.Errorf("%v %+v", err, set)
	}
	o.Etcd.Endpoints, o.Etcd.Prefix = o.Etcd.Endpoints[:1], "/other"
	if got := Ask(t.Context(), o)[0]; got.Err != nil || got.Documents != 0 || got.Newest != 0 {
		t.Errorf("%+v", got)
	}

	if _, err := s.client.MemberAdd(t.Context(), []string{"http://127.0.0.1:2"}); err != nil { // who never comes
		t.Fatal(err)
	}
	var last Answer
	for end := time.Now().Add(patience); !errors.Is(last.Err, errLeaderless) && time.Now().Before(end); {
		last = Ask(t.Context(), o)[0]
	}
	if !errors.Is(last.Err, errLeaderless) {
		t.Errorf("%+v", last)
	}
}

// One that accepts a connection and says nothing is waited for no longer than is said.
func TestAskSilent(t *testing.T) {
	silent := func(context.Context, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { check(t, theirs.Close()) })
		return ours, nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	began := time.Now()
	for _, user := range []string{"", "l4fwd"} {
		password := filepath.Join(t.TempDir(), "password")
		check(t, os.WriteFile(password, []byte("secret"), 0o600))
		e := config.Etcd{Endpoints: []string{"http://10.0.0.5:2379"}, Prefix: "/l4fwd", Timeout: time.Minute, Username: user, PasswordFile: password}
		o := Options{Etcd: e, Dial: silent}
		if got := Ask(ctx, o)[0]; got.Err == nil {
			t.Errorf("%+v", got)
		}
		if _, err := List(ctx, o); err == nil {
			t.Error("it was read")
		}
	}
	if took := time.Since(began); took > 20*time.Second { // of four minutes
		t.Errorf("it took %v", took)
	}
}

// An etcd that is full says so, and can be read.
func TestAskFull(t *testing.T) {
	t.Setenv("ETCD_QUOTA_BACKEND_BYTES", "1000000")
	s := newServer(t)
	s.put("a")
	var err error
	for i := 0; i < 100 && err == nil; i++ {
		_, err = s.client.Put(t.Context(), "/other", strings.Repeat("x", 500_000))
	}
	if err == nil {
		t.Fatal("it is never full")
	}
	got := Ask(t.Context(), Options{Etcd: s.options(), Dial: s.Dial})[0]
	if got.Err != nil || got.Documents != 1 || len(got.Complaints) != 1 || !strings.Contains(got.Complaints[0], "alarm:NOSPACE") {
		t.Errorf("%+v", got)
	}
}
