package testbed

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// EtcdFiles are PEM files of an etcd that speaks TLS to clients, and asks for their
// certificates.
type EtcdFiles struct{ CA, Cert, Key string }

// Etcd is an etcd of one member in a namespace. Its data outlive the process.
type Etcd struct {
	*Process
	ns     *Namespace
	dir    string
	listen netip.AddrPort
	files  *EtcdFiles
}

// StartEtcd runs one, with its data in dir/data. With files it speaks TLS.
func StartEtcd(ctx context.Context, ns *Namespace, dir string, listen netip.AddrPort, files *EtcdFiles) (*Etcd, error) {
	e := &Etcd{ns: ns, dir: dir, listen: listen, files: files}
	return e, e.Restart(ctx)
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
		"--listen-peer-urls", "http://127.0.0.1:2380", "--logger", "zap", "--log-outputs", "stderr",
		"--heartbeat-interval", "50", "--election-timeout", "500",
	}
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
