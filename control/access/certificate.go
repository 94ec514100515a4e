package access

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Certificate is one with its key, in two files. Make one with NewCertificate; until Read
// and what that gives have been called handshakes fail.
type Certificate struct {
	cert, key string
	log       *zap.Logger
	now       atomic.Pointer[tls.Certificate]
}

// NewCertificate returns the certificate in two files of PEM.
func NewCertificate(cert, key string, log *zap.Logger) *Certificate {
	return &Certificate{cert: cert, key: key, log: log}
}

// ReadPair reads a certificate and its key from two files of PEM. open says that others
// than the owner and group of the key's file can read or write it, with an error too.
func ReadPair(cert, key string) (pair tls.Certificate, open bool, err error) {
	c, _, err := ReadSecret(cert)
	if err != nil {
		return pair, false, fmt.Errorf("certificate: %w", err)
	}
	k, open, err := ReadSecret(key)
	if err != nil {
		return pair, false, fmt.Errorf("key: %w", err)
	}
	if pair, err = tls.X509KeyPair(c, k); err != nil {
		return pair, open, fmt.Errorf("certificate %s with key %s: %w", cert, key, err)
	}
	return pair, open, nil
}

// Read reads the files, as Guard.Read does its own.
func (c *Certificate) Read() (changed bool, use func(), err error) {
	pair, open, err := ReadPair(c.cert, c.key)
	if open {
		c.log.Warn("others can read or change a key", zap.String("file", c.key), zap.String("run", "chmod o= "+c.key))
	}
	if err != nil {
		return false, nil, err
	}
	if now := time.Now(); pair.Leaf != nil && (now.After(pair.Leaf.NotAfter) || now.Before(pair.Leaf.NotBefore)) {
		c.log.Warn("no client will take a certificate that is not valid at this time", zap.String("file", c.cert),
			zap.Time("from", pair.Leaf.NotBefore), zap.Time("until", pair.Leaf.NotAfter))
	}
	was := c.now.Load()
	return was == nil || !bytes.Equal(was.Certificate[0], pair.Certificate[0]), func() { c.now.Store(&pair) }, nil
}

var errNoCertificate = errors.New("there is no certificate that could be read")

// Config is that of a server with the certificate as it is at each handshake, for
// HTTP/1.1 and TLS 1.3: every client is l4fwd's own or at most a few years old.
func (c *Certificate) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if now := c.now.Load(); now != nil {
				return now, nil
			}
			return nil, errNoCertificate
		},
	}
}
