package config

import "net/netip"

// listeners checks that what is served to the host's network is where the kernel gets
// packets, and that each has a port of its own.
func (v *validator) listeners() {
	v.listener("metrics_listen", v.c.MetricsListen)
	v.listener("web_listen", v.c.WebListen)
	v.listener("admin_listen", v.c.AdminListen)
	if at := v.c.WebListen; at.IsValid() && at == v.c.MetricsListen {
		v.fail("web_listen", "%v is metrics_listen", at)
	}
	switch at := v.c.AdminListen; {
	case !at.IsValid():
	case at == v.c.MetricsListen:
		v.fail("admin_listen", "%v is metrics_listen", at)
	case at == v.c.WebListen:
		v.fail("admin_listen", "%v is web_listen", at)
	}
}

// secrets checks that commands by network come with all that guards them, and that no
// file guards what there is not.
func (v *validator) secrets() {
	c := v.c
	files := []struct{ key, value string }{
		{"admin_tls_cert", c.AdminTLSCert}, {"admin_tls_key", c.AdminTLSKey}, {"admin_token_file", c.AdminTokenFile},
	}
	for _, f := range files {
		switch given := f.value != "" || v.told[f.key]; {
		case c.AdminListen.IsValid() && !given:
			v.fail("admin_listen", "%s is missing: without it anybody could give commands", f.key)
		case !c.AdminListen.IsValid() && !v.told["admin_listen"] && f.value != "":
			v.fail(f.key, "there is no admin_listen that it is for")
		}
	}
	if c.WebTokenFile != "" && !c.WebListen.IsValid() && !v.told["web_listen"] {
		v.fail("web_token_file", "there is no web_listen that it is for")
	}
}

func (v *validator) listener(path string, at netip.AddrPort) {
	if i, ok := v.locals[at.Addr()]; ok {
		v.fail(path, "%v is a local address (local_addresses[%d]), which the kernel does not have", at.Addr(), i)
	}
	for i, s := range v.c.Services {
		if at.IsValid() && s.Address == at && s.Protocol == TCP {
			v.fail(path, "%v is the address of %s", at, v.c.called(i))
		}
	}
}
