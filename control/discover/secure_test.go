package discover

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// authority makes certificates in a directory.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// issue makes a certificate and its key as NAME.pem and NAME.key.
func (a *authority) issue(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: private}} {
		check(a.t, os.WriteFile(a.file(file), pem.EncodeToMemory(block), 0o600))
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return out, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// An etcd that speaks TLS, wants a certificate, and a password: what is wrong is said,
// and what is right in the files then does.
func TestSecure(t *testing.T) {
	a := newAuthority(t)
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, name := range []string{"server", "client"} {
		a.issue(name, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: usage})
	}
	e := startEtcd(t, &testbed.EtcdFiles{CA: a.file("ca.pem"), Cert: a.file("server.pem"), Key: a.file("server.key")})
	pair, err := tls.LoadX509KeyPair(a.file("client.pem"), a.file("client.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	s := &server{Etcd: e, t: t}
	if s.client, err = e.Client(t.Context(), &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.client.Close() })
	s.put("a")
	s.requirePasswords()

	password, empty, pipe := a.file("password"), a.file("empty"), a.file("pipe")
	check(t, os.WriteFile(password, []byte("no\n"), 0o600))
	check(t, os.WriteFile(empty, nil, 0o600))
	check(t, syscall.Mkfifo(pipe, 0o600))
	good := config.Etcd{
		Endpoints: []string{e.Endpoint()}, Prefix: "/l4fwd", Timeout: 5 * time.Second,
		CA: a.file("ca.pem"), Cert: a.file("client.pem"), Key: a.file("client.key"), Username: "l4fwd", PasswordFile: password,
	}
	other := newAuthority(t)
	for _, tt := range []struct {
		name, want string
		change     func(*config.Etcd)
	}{
		{"another authority", "certificate signed by unknown authority", func(c *config.Etcd) { c.CA = other.file("ca.pem") }},
		{"no certificate", "tls: ", func(c *config.Etcd) { c.Cert, c.Key = "", "" }},
		{"no file", "no such file", func(c *config.Etcd) { c.Cert = "/nowhere" }},
		{"no authority", "holds no certificate", func(c *config.Etcd) { c.CA = password }},
		{"no password", "has none in its first line", func(c *config.Etcd) { c.PasswordFile = empty }},
		{"password of a pipe", "no regular file", func(c *config.Etcd) { c.PasswordFile = pipe }},
		{"authority of a pipe", "no regular file", func(c *config.Etcd) { c.CA = pipe }},
		{"certificate of a pipe", "no regular file", func(c *config.Etcd) { c.Cert = pipe }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := good
			tt.change(&o)
			if got := Ask(t.Context(), Options{Etcd: o, Dial: e.Dial})[0]; got.Err == nil { // etcd may hang up before it has said why
				t.Errorf("%+v", got)
			}
			follow(t, e, o).says("refused", func(st Status) bool { return !st.Connected && strings.Contains(st.Error, tt.want) })
		})
	}
	f := follow(t, e, good)
	f.says("refused", func(st Status) bool { return strings.Contains(st.Error, "invalid user ID or password") })
	check(t, os.WriteFile(password, []byte("secret\r\nand a comment"), 0o600))
	f.sees("a")
	if got := Ask(t.Context(), Options{Etcd: good, Dial: e.Dial})[0]; got.Err != nil || got.Documents != 1 || !got.Expires.Equal(a.cert.NotAfter) {
		t.Errorf("%+v, the authority's end is %v", got, a.cert.NotAfter)
	}
}

// requirePasswords has etcd ask for them; the user l4fwd may only read.
func (s *server) requirePasswords() {
	s.t.Helper()
	ctx, c := s.t.Context(), s.client
	for _, f := range []func() error{
		func() error { _, err := c.UserAdd(ctx, "root", "root"); return err },
		func() error { _, err := c.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := c.RoleAdd(ctx, "reader"); return err },
		func() error {
			_, err := c.RoleGrantPermission(ctx, "reader", "/l4fwd/", clientv3.GetPrefixRangeEnd("/l4fwd/"), clientv3.PermissionType(clientv3.PermRead))
			return err
		},
		func() error { _, err := c.UserAdd(ctx, "l4fwd", "secret"); return err },
		func() error { _, err := c.UserGrantRole(ctx, "l4fwd", "reader"); return err },
		func() error { _, err := c.AuthEnable(ctx); return err },
	} {
		if err := f(); err != nil {
			s.t.Fatal(err)
		}
	}
}
