package main

import (
	"net/netip"
	"slices"
	"testing"
)

// What --from names; what it cannot is in the script.
func TestPrefixes(t *testing.T) {
	for word, want := range map[string][]string{
		"10.0.1.10":                       {"10.0.1.10/32"},
		"10.0.1.254-10.0.2.1":             {"10.0.1.254/32", "10.0.1.255/32", "10.0.2.0/32", "10.0.2.1/32"},
		"2001:db8::ffff-2001:db8::1:0":    {"2001:db8::ffff/128", "2001:db8::1:0/128"},
		"10.0.1.0/28":                     {"10.0.1.0/28"},
		"255.255.255.255":                 {"255.255.255.255/32"},
		"255.255.255.254-255.255.255.255": {"255.255.255.254/32", "255.255.255.255/32"},
	} {
		var p []netip.Prefix
		for _, w := range want {
			p = append(p, netip.MustParsePrefix(w))
		}
		if got, err := prefixes([]string{word}); err != nil || !slices.Equal(got, p) {
			t.Errorf("%s: %v %v", word, got, err)
		}
	}
}
