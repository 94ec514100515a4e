package config

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// Discovery is where services are found beside the file.
type Discovery struct {
	// Etcd is a prefix of keys in etcd.
	Etcd Etcd `yaml:"etcd"`
}

// Etcd is how a prefix of keys in etcd is followed.
type Etcd struct {
	// Endpoints are URLs of the cluster's members, http or https, all alike. Default:
	// none, which is no discovery.
	Endpoints []string `yaml:"endpoints"`
	// Prefix of the keys, without a slash at its end. Default: /l4fwd.
	Prefix string `yaml:"prefix"`
	// CA, Cert and Key are PEM files for https: who vouches for etcd, and who we are.
	// Default: the machine's authorities, and nobody.
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	// Username, and the file that holds its password. Default: none.
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"`
	// Timeout of a request, and for how long a start waits for etcd; 100 ms to 1 minute.
	// Default: 5s.
	Timeout time.Duration `yaml:"timeout"`
	// OnEmpty is what follows when all services are gone. Default: keep.
	OnEmpty OnEmpty `yaml:"on_empty"`
	// StateDir is where what is in force is kept for a start without etcd, "" for
	// nowhere. Default: /var/lib/l4fwd.
	StateDir string `yaml:"state_dir"`
}

// On reports whether there is anything to follow.
func (e *Etcd) On() bool { return len(e.Endpoints) > 0 }

// OnEmpty is what becomes of the services when all are gone, and of a service when
// all of its backends are.
type OnEmpty uint8

// What becomes of them.
const (
	OnEmptyKeep  OnEmpty = iota + 1 // they stay as they were
	OnEmptyApply                    // they go
)

var onEmptyNames = names{"keep", "apply"}

// String returns the name used in the configuration.
func (o OnEmpty) String() string { return onEmptyNames.name(uint8(o)) }

func defaultDiscovery() Discovery {
	return Discovery{Etcd{Prefix: "/l4fwd", Timeout: 5 * time.Second, OnEmpty: OnEmptyKeep, StateDir: "/var/lib/l4fwd"}}
}

const (
	wantEndpoint  = "a URL such as https://10.0.0.5:2379, http or https, with a port and nothing behind it"
	wantPrefix    = "a prefix of keys such as /l4fwd, of printable characters, no / at its end"
	wantTimeout   = "a duration from 100ms to 1m"
	wantUsername  = "a name of printable characters without spaces, or nothing"
	maxEtcdWait   = time.Minute
	maxKeyPrefix  = 200
	maxEtcdMember = 16
)

func checkEndpoint(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || s != u.Scheme+"://"+u.Host || !oneLine(s) {
		return expected(wantEndpoint, s, "")
	}
	host, port, err := net.SplitHostPort(u.Host)
	if err != nil || host == "" {
		return expected(wantEndpoint, s, "")
	}
	if n, err := parseDecimal(port, 65535); err != nil || n == 0 {
		return expected(wantEndpoint, s, "")
	}
	return nil
}

func parseKeyPrefix(s string) (string, error) {
	if len(s) < 2 || len(s) > maxKeyPrefix || !strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/") || !oneLine(s) {
		return "", expected(wantPrefix, s, "")
	}
	return s, nil
}

func parseEtcdTimeout(s string) (time.Duration, error) {
	d, err := parseDuration(s)
	if err != nil || d > maxEtcdWait {
		return 0, expected(wantTimeout, s, "")
	}
	return d, nil
}

func parseUsername(s string) (string, error) {
	if !oneLine(s) {
		return "", expected(wantUsername, s, "")
	}
	return s, nil
}

func decodeEndpoints(d *decoder, path string, n ast.Node, e *Etcd) {
	items, ok := d.items(path, n, "URLs")
	if !ok {
		return
	}
	if len(items) > maxEtcdMember {
		d.fail(path, "%d endpoints; expected at most %d", len(items), maxEtcdMember)
	}
	for i, item := range items {
		sub := fmt.Sprintf("%s[%d]", path, i)
		d.c.at[sub] = nodePosition(item)
		s, ok := d.plainValue(sub, item, text, wantEndpoint)
		if err := checkEndpoint(s); ok && err != nil {
			d.fail(sub, "%v", err)
		}
		e.Endpoints = append(e.Endpoints, s) // a bad one too: somebody wants discovery
	}
}

func formatEndpoints(e *Etcd) string {
	parts := make([]string, len(e.Endpoints))
	for i, s := range e.Endpoints {
		parts[i] = strconv.Quote(s)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

var discoveryFields = []field[Discovery]{
	{key: "etcd", decode: func(d *decoder, path string, n ast.Node, c *Discovery) {
		decodeMap(d, path, n, etcdFields, &c.Etcd)
	}, doc: "A prefix of keys in etcd, whose changes take effect as they are made."},
}

func etcdText(key, want string, at func(*Etcd) *string, parse func(string) (string, error), doc string) field[Etcd] {
	return plain(key, text, want, at, parse, strconv.Quote, doc).needsRestart()
}

func etcdFile(key string, at func(*Etcd) *string, doc string) field[Etcd] {
	return plain(key, anyPlain, wantFile, at, parseFile, formatSocket, doc).needsRestart()
}

var etcdFields = []field[Etcd]{
	field[Etcd]{key: "endpoints", decode: decodeEndpoints, text: formatEndpoints,
		doc: "URLs of the members. None: no discovery."}.needsRestart(),
	etcdText("prefix", wantPrefix, func(e *Etcd) *string { return &e.Prefix }, parseKeyPrefix,
		"Of the keys: PREFIX/services/NAME and PREFIX/services/NAME/backends/ID."),
	etcdFile("ca", func(e *Etcd) *string { return &e.CA }, "PEM file of who vouches for etcd. off: the machine's authorities."),
	etcdFile("cert", func(e *Etcd) *string { return &e.Cert }, "PEM files of our certificate and its key. off: none."),
	etcdFile("key", func(e *Etcd) *string { return &e.Key }, ""),
	etcdText("username", wantUsername, func(e *Etcd) *string { return &e.Username }, parseUsername, "Empty: none."),
	etcdFile("password_file", func(e *Etcd) *string { return &e.PasswordFile }, "Its first line is the password."),
	plain("timeout", anyPlain, wantTimeout, func(e *Etcd) *time.Duration { return &e.Timeout }, parseEtcdTimeout, formatDuration,
		"Of a request, and for how long a start waits for etcd.").needsRestart(),
	enum("on_empty", onEmptyNames, func(e *Etcd) *OnEmpty { return &e.OnEmpty },
		"When all services are gone, or all backends of one. keep: what was there\nstays. apply: it goes.").needsRestart(),
	etcdFile("state_dir", func(e *Etcd) *string { return &e.StateDir },
		"Directory where what is in force is kept, for a start without etcd. off: none."),
}

// discovery checks what keys of discovery mean together.
func (v *validator) discovery() {
	e := &v.c.Discovery.Etcd
	const path = "discovery.etcd"
	if !e.On() {
		for _, f := range etcdFields[1:] {
			if v.c.given(path+"."+f.key) && !v.told[path+"."+f.key] && !v.c.given(path+".endpoints") {
				v.fail(path+"."+f.key, "it means nothing without endpoints")
				return
			}
		}
		return
	}
	tls := strings.HasPrefix(e.Endpoints[0], "https:")
	for i, s := range e.Endpoints {
		if strings.HasPrefix(s, "https:") != tls && !v.toldOf(path+".endpoints") {
			v.fail(fmt.Sprintf("%s.endpoints[%d]", path, i), "http and https cannot be mixed")
			break
		}
	}
	switch {
	case !tls && (e.CA != "" || e.Cert != "" || e.Key != ""):
		v.fail(path+".endpoints", "ca, cert and key are for https")
	case (e.Cert == "") != (e.Key == ""):
		v.fail(path, "cert and key belong together")
	}
	if (e.Username == "") != (e.PasswordFile == "") {
		v.fail(path, "username and password_file belong together")
	}
}

// toldOf reports whether decoding has complained of anything below a path.
func (v *validator) toldOf(path string) bool {
	for p := range v.told {
		if strings.HasPrefix(p, path) {
			return true
		}
	}
	return false
}

func (w *writer) discovery(c *Config) {
	w.line(0, "discovery:")
	w.doc(1, discoveryFields[0].doc)
	w.line(1, "%s:", discoveryFields[0].key)
	for _, f := range etcdFields {
		if f.doc != "" {
			w.doc(2, f.doc)
		}
		w.line(2, "%s: %s", f.key, f.text(&c.Discovery.Etcd))
	}
}
