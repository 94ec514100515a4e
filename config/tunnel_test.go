package config

import (
	"strings"
	"testing"
)

// TestParseSource: no network holds an address that is refused by itself.
func TestParseSource(t *testing.T) {
	for _, tt := range []struct{ in, want string }{ // want: the hint of the error
		{"", ""}, {"172.16.0.1", ""}, {"172.16.0.0/16", ""}, {"2001:db8:9::/96", ""}, {"223.0.0.0/8", ""}, {"2000::/3", ""},
		{"0.0.0.0/0", "expected"}, {"::/0", "expected"}, {"172.16.0.1/16", "did you mean 172.16.0.0/16?"}, {"::ffff:1.2.3.0/120", "expected"},
		{"0.0.0.0", "unspecified"}, {"127.0.0.1", "loopback"}, {"224.0.0.1", "multicast"}, {"ff02::1", "multicast"}, {"255.255.255.255", "broadcast"},
		{"0.0.0.0/7", "unspecified"}, {"126.0.0.0/7", "loopback (127.0.0.0/8)"}, {"127.9.0.0/16", "loopback"}, {"169.254.7.0/24", "link-local"},
		{"168.0.0.0/5", "link-local"}, {"192.0.0.0/2", "multicast"}, {"239.1.0.0/16", "multicast"}, {"240.0.0.0/4", "broadcast"},
		{"::/64", "unspecified and loopback"}, {"::/80", "unspecified and loopback"}, {"fe80::/64", "link-local"}, {"ff00::/9", "multicast"}, {"f000::/4", "link-local"},
	} {
		got, err := parseSource(tt.in)
		switch {
		case tt.want == "" && err != nil, tt.want != "" && err == nil:
			t.Errorf("%q: %v, %v", tt.in, got, err)
		case err != nil && !strings.Contains(strings.ReplaceAll(err.Error(), " addresses", ""), tt.want):
			t.Errorf("%q: %v, want %q", tt.in, err, tt.want)
		}
	}
	for _, n := range unfitNetworks { // each by an address of it
		if a := n.Addr(); unfit(a) == nil {
			t.Errorf("%v: %v is fit", n.Prefix, a)
		}
	}
}
