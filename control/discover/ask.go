package discover

import (
	"context"
	"crypto/tls"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Answer is what one of etcd's endpoints says to Ask.
type Answer struct {
	Endpoint string
	// Err is why the documents cannot be read there; nil if they can.
	Err error
	// Version of etcd, "" if it does not tell. Complaints are what it says about itself,
	// such as an alarm for want of space.
	Version    string
	Complaints []string
	// Documents of the prefix, and the revision at which the last one was written.
	Documents, Newest int64
	// Expires is when the first certificate ends of those that show who it is; zero
	// without TLS, and where it is not believed.
	Expires time.Time
}

var errLeaderless = errors.New("it has no leader: half of etcd's members or more are missing")

// Ask asks all endpoints, each by itself and at the same time, and waits for the timeout
// at most, twice as long where there is a password. Of the options Etcd and Dial count.
func Ask(ctx context.Context, o Options) []Answer {
	out := make([]Answer, len(o.Etcd.Endpoints))
	var all sync.WaitGroup
	for i, endpoint := range o.Etcd.Endpoints {
		one := o
		one.Etcd.Endpoints = []string{endpoint}
		all.Go(func() { out[i] = New(one).ask(ctx) })
	}
	all.Wait()
	return out
}

// ask is Ask of one endpoint.
func (f *Follower) ask(ctx context.Context) Answer {
	a := Answer{Endpoint: f.opt.Etcd.Endpoints[0]}
	var expires atomic.Pointer[time.Time] // gRPC's goroutines shake hands
	f.peer = func(s tls.ConnectionState) error {
		end := expiry(&s)
		expires.Store(&end)
		return nil
	}
	a.Err = f.askAs(ctx, &a)
	if end := expires.Load(); end != nil {
		a.Expires = *end
	}
	return a
}

func (f *Follower) askAs(ctx context.Context, a *Answer) error {
	client, err := f.connect(ctx, a.Endpoint)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }() // it only says that ctx is done
	ctx, cancel := context.WithTimeout(ctx, f.opt.Etcd.Timeout)
	defer cancel()
	// What it says of itself it says at once, leader or not, but not to everybody.
	if s, err := client.Status(ctx, a.Endpoint); err == nil {
		if a.Version = s.Version; s.Leader == 0 {
			return errLeaderless
		}
		a.Complaints = s.Errors
	}
	r, err := client.Get(ctx, servicesOf(&f.opt.Etcd), append(clientv3.WithLastRev(), clientv3.WithKeysOnly())...)
	if err != nil {
		return explain("reading from etcd", err)
	}
	a.Documents = r.Count
	for _, kv := range r.Kvs {
		a.Newest = kv.ModRevision
	}
	return nil
}

// expiry is until when a connection like this would be believed.
func expiry(s *tls.ConnectionState) (end time.Time) {
	for _, chain := range s.VerifiedChains {
		first := chain[0].NotAfter
		for _, c := range chain {
			if c.NotAfter.Before(first) {
				first = c.NotAfter
			}
		}
		if first.After(end) {
			end = first
		}
	}
	return end
}

// List reads all documents as they are now. Of the options Etcd and Dial count.
func List(ctx context.Context, o Options) (*Set, error) {
	f := New(o)
	client, err := f.connect(ctx, o.Etcd.Endpoints...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.Close() }() // it only says that ctx is done
	return f.list(ctx, client)
}
