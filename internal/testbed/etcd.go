package testbed

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// EtcdFiles are PEM files of an etcd that speaks TLS to clients, and asks for their
// certificates.
type EtcdFiles struct{ CA, Cert, Key string }

// Etcd is a member of etcd, mostly the only one, in a namespace. Its data outlive the
// process.
type Etcd struct {
	*Process
	ns      *Namespace
	dir     string
	listen  netip.AddrPort
	files   *EtcdFiles
	name    string
	peer    string // URL where it talks with others
	members string // all of them, as --initial-cluster wants it
	// Args are further arguments, from the next start on.
	Args []string
}

// StartEtcd runs one, with its data in dir/data. With files it speaks TLS.
func StartEtcd(ctx context.Context, ns *Namespace, dir string, listen netip.AddrPort, files *EtcdFiles) (*Etcd, error) {
	e := &Etcd{ns: ns, dir: dir, listen: listen, files: files, name: "default", peer: "http://127.0.0.1:2380"}
	e.members = e.name + "=" + e.peer
	return e, e.Restart(ctx)
}

// StartEtcds runs a cluster of so many members at ports of 127.0.0.1. Those that have been
// started are returned with an error too.
func StartEtcds(ctx context.Context, ns *Namespace, dir string, n int) ([]*Etcd, error) {
	var all []*Etcd
	var members []string
	for i := range n {
		e := &Etcd{
			ns: ns, dir: fmt.Sprintf("%s/%d", dir, i), name: fmt.Sprintf("m%d", i), peer: fmt.Sprintf("http://127.0.0.1:%d", 12380+i),
			listen: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(12370+i)),
		}
		all, members = append(all, e), append(members, e.name+"="+e.peer)
	}
	errs := make([]error, n)
	var starts sync.WaitGroup // none is ready before most of them are
	for i, e := range all {
		e.members = strings.Join(members, ",")
		starts.Go(func() { errs[i] = e.Restart(ctx) })
	}
	starts.Wait()
	return all, errors.Join(errs...)
}

// DataDir is where its data are.
func (e *Etcd) DataDir() string { return e.dir + "/data" }

// Endpoint is its URL.
func (e *Etcd) Endpoint() string {
	if e.files != nil {
		return "https://" + e.listen.String()
	}
	return "http://" + e.listen.String()
}

// Restart starts it after it has ended.
func (e *Etcd) Restart(ctx context.Context) (err error) {
	if err := os.MkdirAll(e.DataDir(), 0o700); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	args := []string{
		"--data-dir", e.DataDir(), "--listen-client-urls", e.Endpoint(), "--advertise-client-urls", e.Endpoint(),
		"--name", e.name, "--listen-peer-urls", e.peer, "--initial-advertise-peer-urls", e.peer, "--initial-cluster", e.members, "--logger", "zap", "--log-outputs", "stderr",
		"--heartbeat-interval", "50", "--election-timeout", "500",
	}
	args = append(args, e.Args...)
	if f := e.files; f != nil {
		args = append(args, "--cert-file", f.Cert, "--key-file", f.Key, "--trusted-ca-file", f.CA, "--client-cert-auth")
	}
	e.Process, err = e.ns.StartProcess(ctx, ProcessOptions{
		Path: "etcd", Args: args, Ready: "serving client traffic", ReadyTimeout: 30 * time.Second,
		Env: []string{"GOMAXPROCS=1"},
	})
	return err
}

// Dial opens a connection from its namespace.
func (e *Etcd) Dial(ctx context.Context, address string) (c net.Conn, err error) {
	err = e.ns.Do(func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, "tcp", address)
		return err
	})
	return c, err
}

// Client returns a client of it in its namespace, which the caller closes.
func (e *Etcd) Client(ctx context.Context, tls *tls.Config) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{e.Endpoint()}, Context: ctx, Logger: zap.NewNop(), TLS: tls,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(e.Dial)},
	})
}

// Login is Client for a user, without TLS.
func (e *Etcd) Login(ctx context.Context, user, password string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{e.Endpoint()}, Context: ctx, Logger: zap.NewNop(), Username: user, Password: password,
		DialTimeout: 10 * time.Second, DialOptions: []grpc.DialOption{grpc.WithContextDialer(e.Dial)},
	})
}
