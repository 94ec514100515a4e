package discover

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/l4fwd/l4fwd/control/access"
)

// keepAlive is how often a silent connection is tried; etcd's servers refuse less than 5 s.
const keepAlive = 10 * time.Second

var (
	errLost      = errors.New("the connection was lost")
	errCompacted = errors.New("what has happened since was compacted away")
)

// connect returns a client of its own for each session, so that certificates and
// passwords are what the files say now. Who watches must give it one endpoint: a client of
// several goes on at another one without a word, which after a restore from a backup,
// member by member, has another history.
func (f *Follower) connect(ctx context.Context, endpoints ...string) (*clientv3.Client, error) {
	e := &f.opt.Etcd
	c := clientv3.Config{
		Endpoints: endpoints, Context: ctx, Logger: zap.NewNop(), // errors are ours to tell
		DialTimeout: e.Timeout, DialKeepAliveTime: keepAlive, DialKeepAliveTimeout: e.Timeout,
		MaxUnaryRetries: 1, // the next try is the next session's
		DialOptions:     []grpc.DialOption{grpc.WithContextDialer(f.dial), grpc.WithChainUnaryInterceptor(failFast)},
	}
	var err error
	if strings.HasPrefix(endpoints[0], "https:") {
		if c.TLS, err = f.tls(); err != nil {
			return nil, err
		}
	}
	if e.Username != "" {
		b, _, err := access.ReadSecret(e.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("etcd's password: %w", err)
		}
		line, _, _ := bytes.Cut(b, []byte("\n"))
		line = bytes.TrimSuffix(line, []byte("\r"))
		if c.Username, c.Password = e.Username, string(line); c.Password == "" {
			return nil, fmt.Errorf("etcd's password: %s has none in its first line", e.PasswordFile)
		}
	}
	client, err := clientv3.New(c)
	if err != nil {
		return nil, explain("connecting to etcd", err)
	}
	return client, nil
}

// failFast has a request end when no endpoint can be reached, with the reason, instead of
// waiting for its time to be over.
//
// It ends the request for a new token as well: the expired one goes along with it, for
// which etcd refuses it, whereupon its client would first ask for a new token, without end.
// The next session begins without any.
func failFast(ctx context.Context, method string, q, a any, c *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := call(ctx, method, q, a, c, append(slices.Clone(opts), grpc.WaitForReady(false))...)
	if method == authenticate && status.Code(err) == codes.Unauthenticated {
		return status.Error(codes.Unauthenticated, "the token has expired")
	}
	return err
}

// authenticate is the request for a token.
const authenticate = "/etcdserverpb.Auth/Authenticate"

// dial opens a connection, in time for the other members to be tried within the timeout.
// With a function of its own gRPC takes no notice of proxies in the environment.
func (f *Follower) dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, f.opt.Etcd.Timeout/time.Duration(len(f.opt.Etcd.Endpoints)))
	defer cancel()
	if f.opt.Dial != nil {
		return f.opt.Dial(ctx, address)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

// tls is how to trust etcd, and be trusted.
func (f *Follower) tls() (*tls.Config, error) {
	e := &f.opt.Etcd
	c := &tls.Config{MinVersion: tls.VersionTLS12, VerifyConnection: f.peer}
	if e.CA != "" {
		pem, _, err := access.ReadSecret(e.CA)
		if err != nil {
			return nil, fmt.Errorf("etcd's authority: %w", err)
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd's authority: %s holds no certificate", e.CA)
		}
	}
	if e.Cert != "" {
		own, _, err := access.ReadPair(e.Cert, e.Key)
		if err != nil {
			return nil, fmt.Errorf("for etcd: %w", err)
		}
		c.Certificates = []tls.Certificate{own}
	}
	return c, nil
}

// Bounds of what is read: etcd itself may hold gigabytes, and who may write there need not
// be able to take the memory here.
const (
	pageKeys     = 1000      // at a time, each in its own time
	maxBytes     = 256 << 20 // of all keys and values
	maxDocuments = 250_000
)

var errTooMuch = fmt.Errorf("there are more than %d documents, or %d MiB", maxDocuments, maxBytes>>20)

// list reads all documents, as they were at one revision.
func (f *Follower) list(ctx context.Context, client *clientv3.Client) (*Set, error) {
	from := servicesOf(&f.opt.Etcd)
	set, end, size := &Set{}, clientv3.GetPrefixRangeEnd(from), 0
	for {
		r, err := f.page(ctx, client, from, clientv3.WithRange(end), clientv3.WithLimit(pageKeys), clientv3.WithRev(set.Revision))
		if err != nil {
			return nil, explain("reading from etcd", err)
		}
		if set.Revision == 0 { // the first page is as things are now
			if set.Revision = r.Header.Revision; r.Count > maxDocuments {
				return nil, errTooMuch
			}
			set.Documents = make([]Document, 0, r.Count)
		}
		for _, kv := range r.Kvs { // in the order of their keys
			set.Documents = append(set.Documents, Document{string(kv.Key), kv.ModRevision, kv.Value})
			size += len(kv.Key) + len(kv.Value)
		}
		switch {
		case size > maxBytes:
			return nil, errTooMuch
		case !r.More || len(r.Kvs) == 0:
			return set, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00" // the next key there can be
	}
}

// page is one request.
func (f *Follower) page(ctx context.Context, client *clientv3.Client, from string, o ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), f.opt.Etcd.Timeout)
	defer cancel()
	return client.Get(ctx, from, o...)
}

// watchConnection ends a session when its connection does.
func watchConnection(ctx context.Context, c *grpc.ClientConn, end context.CancelCauseFunc) {
	for c.GetState() == connectivity.Ready {
		if !c.WaitForStateChange(ctx, connectivity.Ready) {
			return // ctx is done
		}
	}
	end(errLost)
}

// watch follows changes of a set until something ends it, which the error says. deliver is
// given what there is when changes pause.
func (f *Follower) watch(ctx context.Context, client *clientv3.Client, set *Set, deliver func(*Set)) error {
	changes := client.Watch(clientv3.WithRequireLeader(ctx), servicesOf(&f.opt.Etcd),
		clientv3.WithPrefix(), clientv3.WithRev(set.Revision+1))
	b := batch{set: set, deliver: deliver}
	defer func() { _ = b.flush() }() // what was heard counts, whatever ended it
	for {
		select {
		case r, ok := <-changes:
			switch {
			case !ok && context.Cause(ctx) != nil:
				return context.Cause(ctx)
			case r.CompactRevision != 0:
				return errCompacted
			case r.Err() != nil:
				return explain("watching etcd", r.Err())
			case !ok:
				return errLost
			}
			b.add(&r)
		case <-b.quiet:
			if err := b.flush(); err != nil {
				return err
			}
		case <-b.limit:
			if err := b.flush(); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// explain keeps of an error what people can use.
func explain(what string, err error) error {
	if s, ok := status.FromError(err); ok && s.Code() != codes.OK {
		return fmt.Errorf("%s: %s (%w)", what, s.Message(), err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
