package access

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
)

// Hosts knows the names that this host is asked by. A page of somebody else's, whose name
// he has made to lead here (DNS rebinding), is of the same origin for a browser: only by
// the name in its requests can it be told. Names without a dot and those below
// .localhost are nobody's to give in the DNS.
type Hosts struct {
	own   string
	names atomic.Pointer[[]string]
}

// NewHosts returns one that knows addresses, the host's own name and those given, which
// are in lower case.
func NewHosts(names []string) *Hosts {
	h := &Hosts{}
	if own, err := os.Hostname(); err == nil {
		h.own = strings.ToLower(own)
	}
	h.Set(names)
	return h
}

// Set changes the names given.
func (h *Hosts) Set(names []string) { h.names.Store(&names) }

// Knows reports whether a request's Host is one of this host. None is: every browser
// sends it.
func (h *Hosts) Knows(host string) bool {
	name := strings.ToLower(strings.TrimSuffix(withoutPort(host), "."))
	// A zone may be anything, a name included.
	if a, err := netip.ParseAddr(name); err == nil && a.Zone() == "" || !strings.Contains(name, ".") {
		return true
	}
	if name == h.own || strings.HasSuffix(name, ".localhost") {
		return true
	}
	for _, n := range *h.names.Load() {
		if n == name {
			return true
		}
	}
	return false
}

// withoutPort is net.SplitHostPort for what may have no port. What is neither stays as it
// is, which is no name of this host.
func withoutPort(host string) string {
	name, port := host, ""
	if i := strings.LastIndexByte(host, ':'); i >= 0 && (strings.IndexByte(host, ':') == i || strings.HasSuffix(host[:i], "]")) {
		name, port = host[:i], host[i+1:]
	}
	if strings.Trim(port, "0123456789") != "" {
		return host
	}
	if inner, ok := strings.CutPrefix(name, "["); ok && strings.HasSuffix(inner, "]") {
		return strings.TrimSuffix(inner, "]")
	}
	return name
}

// Handler answers requests by names that it does not know itself, with what to do about
// it. Those that may is false of pass by whatever name; nil is true of all. No Hosts
// knows all names.
func (h *Hosts) Handler(next http.Handler, may func(*http.Request) bool) http.Handler {
	if h == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.Knows(r.Host) || may != nil && !may(r) {
			next.ServeHTTP(w, r)
			return
		}
		const shown = 100
		w.Header().Set("X-Content-Type-Options", "nosniff")
		http.Error(w, fmt.Sprintf("This is not served by the name %.*q. If it is this host's, add it to web_hosts in l4fwd's configuration.", shown, withoutPort(r.Host)),
			http.StatusMisdirectedRequest)
	})
}

// Browser reports whether a request looks like a browser's. The script of a page can
// change some of this and cannot leave out that it has a language.
func Browser(r *http.Request) bool {
	for _, k := range []string{"Accept-Language", "Origin", "Referer", "Sec-Fetch-Site", "Sec-Fetch-Mode"} {
		if _, ok := r.Header[k]; ok {
			return true
		}
	}
	return strings.HasPrefix(r.UserAgent(), "Mozilla/")
}
