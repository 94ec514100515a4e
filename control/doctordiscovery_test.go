package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/discover"
	"github.com/l4fwd/l4fwd/internal/testbed"
)

// told is what is found of discovery, a line each, without what differs from run to run.
func told(found []Finding) (out []string) {
	for _, f := range found {
		if f.Check != "discovery" {
			continue
		}
		line := fmt.Sprintf("%s %s: %s", f.Grade, f.Subject, f.Text)
		if f.Command != "" {
			line += " | " + f.Command
		}
		for _, r := range []struct{ what, with string }{
			{`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`, "TIME"}, {`etcd 3\.\d+\.\d+`, "etcd VERSION"}, {`(revision|revision of) \d+`, "revision N"}, {`, \d+ is:`, ", N is:"},
			{`refused: the key .*( \|)`, "refused: WHY$1"}, {`here: .*connection refused.*?( \||$)`, "here: connection refused$1"}, {`etcd( since TIME)? \(.*?\):`, "etcd$1 (ERROR):"},
		} {
			line = regexp.MustCompile(r.what).ReplaceAllString(line, r.with)
		}
		out = append(out, strings.ReplaceAll(line, "http://127.0.0.1:2379", "ETCD"))
	}
	return out
}

// TestDoctorDiscovery: an etcd that is empty, has services and one that is wrong, is dead;
// without l4fwd, and with one that follows it.
func TestDoctorDiscovery(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{})
	etcd := w.startEtcd()
	text := w.bare(filepath.Join(t.TempDir(), "state"))
	var d *daemon
	look := func(text string, probe bool) (found []Finding) {
		t.Helper()
		var running *admin.Status
		if d != nil {
			s, err := d.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			running = &s
		}
		cfg, err := config.Parse("test.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		check(t, w.LB.Do(func() (err error) {
			found, err = Diagnose(t.Context(), cfg, running, probe)
			return err
		}))
		return found
	}
	says := func(text string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, told(look(text, false))); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	const (
		answers = "ok ETCD: etcd VERSION answers"
		dead    = "fail ETCD: etcd does not answer here: connection refused | systemctl start etcd"
		bad     = `warn /l4fwd/services/bad: refused: WHY | etcdctl --endpoints=ETCD get /l4fwd/services/bad`
	)
	says(text, answers,
		"warn /l4fwd/services/: etcd has no document below it; the command says what keys there are, if we may read them | etcdctl --endpoints=ETCD get '' --prefix --keys-only --limit=20",
		"ok : a start would serve 0 services and 0 backends of etcd")

	etcd.put("web", "%s", w.web())
	etcd.put("web/backends/a", "%s", w.rs(0))
	etcd.put("bad", `{"colour":"red"}`)
	backend := w.ServerAddr(testbed.V4, 0).String()
	says(text, answers, bad, "ok : a start would serve 1 services and 1 backends of etcd")
	routed, probed := false, ""
	for _, f := range look(text, true) {
		routed = routed || f.Subject == backend && (f.Check == "route" || f.Check == "neighbour")
		if f.Check == "duplicate" {
			probed += f.Text
		}
	}
	cfg, err := config.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	addrs := 1 // the VIP
	for range cfg.Locals() {
		addrs++
	}
	if want := fmt.Sprintf("nobody else has answered for %d VIPs and local addresses", addrs); !routed || probed != want {
		t.Errorf("of what etcd alone knows: the way to the backend is looked for: %v; %s, want %s", routed, probed, want)
	}

	d = w.run(text)
	d.discovered("refused", func(s *admin.DiscoveryStatus) bool { return s.Refused == 1 })
	says(text, answers, "warn : revision N of etcd is in force, but for 1 documents since TIME", bad)
	const other = "a restart, which ends its flows | systemctl restart l4fwd"
	says(strings.Replace(text, "timeout: 3s", "timeout: 3s, prefix: /else", 1), answers,
		"warn /else/services/: etcd has no document below it; the command says what keys there are, if we may read them | etcdctl --endpoints=ETCD get '' --prefix --keys-only --limit=20",
		"warn : the running l4fwd follows /l4fwd at ETCD: another etcd takes effect with "+other)
	etcd.remove("bad")
	s := d.discovered("well", func(s *admin.DiscoveryStatus) bool { return s.Refused == 0 && s.InForce == s.Revision })
	if !s.RefusedSince.IsZero() {
		t.Errorf("%+v", s)
	}
	says(text, answers, "ok : revision N of etcd is in force, 1 services and 1 backends")
	etcd.Kill()
	d.discovered("lost", func(s *admin.DiscoveryStatus) bool { return !s.Connected })
	says(text, dead, "fail : the running l4fwd does not reach etcd since TIME (ERROR): revision N stays in force")
	d.end()
	d = nil
	says(text, dead, "warn : a start would serve 1 services and 1 backends of the last run, since etcd is not there")
	says(w.bare("off"), dead, "fail : a start would serve what is in the file alone: etcd is not there, and of an earlier run nothing is known")

	d = w.run(w.bare("off"))
	says(text, dead, "fail : the running l4fwd has never reached etcd (ERROR): what is in the file alone is in force")
	d.end()
	d = w.run(w.Config(testbed.Services(0, "dnat", "", "rr"), small...))
	says(text, dead, "warn : the running l4fwd follows no etcd: discovery takes effect with "+other)
	d.end()
	w.clean()
}

// TestDoctorCertificates: until when certificates are good, ours and etcd's; and a key that
// cannot be read.
func TestDoctorCertificates(t *testing.T) {
	w := newWorld(t, testbed.TopologyOptions{Servers: 1})
	at := netip.MustParseAddrPort("127.0.0.1:2379")
	cert, key, err := testbed.Certificate(t.TempDir(), at.Addr()) // for an hour
	if err != nil {
		t.Fatal(err)
	}
	e, err := testbed.StartEtcd(context.Background(), w.LB, t.TempDir(), at, &testbed.EtcdFiles{CA: cert, Cert: cert, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Kill() })
	cfg, err := config.Parse("test.yaml", []byte(w.Config(testbed.Services(0, "full-nat", "toa", "rr"), small...)))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Discovery.Etcd = config.Etcd{Endpoints: []string{e.Endpoint()}, Prefix: "/l4fwd", Timeout: 5 * time.Second, CA: cert, Cert: cert, Key: key}
	look := func() []string {
		t.Helper()
		return told(w.within("discovery", func() ([]Finding, error) { return Diagnose(t.Context(), cfg, nil, false) }))
	}
	const renew = " ends on TIME: put a new one in its place, no restart is needed"
	got := look()
	want := []string{"warn " + cert + ": our certificate" + renew, "warn " + e.Endpoint() + ": its certificate, or that of who vouches for it," + renew}
	if diff := cmp.Diff(want, got[:min(2, len(got))]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	check(t, os.Remove(key))
	if got := look(); len(got) < 2 || !strings.HasPrefix(got[0], "fail "+cert+": etcd is not asked as the configuration says: key: ") || !strings.HasPrefix(got[1], "fail "+e.Endpoint()) {
		t.Errorf("%q", got)
	}
}

// TestDoctorEndpoints: one of several that is dead, full, or has a certificate that ends,
// beside one that is well.
func TestDoctorEndpoints(t *testing.T) {
	e := &config.Etcd{Endpoints: []string{"https://a:1", "https://b:1"}, Prefix: "/l4fwd", CA: "/etc/my ca.pem", Username: "l4fwd"}
	const ctl = "etcdctl --endpoints=https://b:1 --cacert='/etc/my ca.pem' --user=l4fwd"
	well := discover.Answer{Endpoint: "https://a:1", Version: "3.5.1", Documents: 4, Newest: 12, Expires: time.Now().Add(renewal + time.Hour)}
	const good = "ok https://a:1: etcd VERSION answers, its certificate is good until TIME"
	for name, c := range map[string]struct {
		second discover.Answer
		want   string
	}{
		"dead":    {discover.Answer{Err: errors.New("timeout")}, "warn https://b:1: etcd does not answer here: timeout"},
		"far":     {discover.Answer{Err: errors.New("connection refused")}, "warn https://b:1: etcd does not answer here: connection refused"},
		"unwell":  {discover.Answer{Complaints: []string{"alarm:CORRUPT", "no"}, Newest: 13}, "warn https://b:1: it answers, and says of itself: alarm:CORRUPT; no"},
		"expired": {discover.Answer{Expires: time.Now()}, "fail https://b:1: its certificate, or that of who vouches for it, ended on TIME: put a new one in its place, no restart is needed"},
		"full": {discover.Answer{Complaints: []string{"alarm:NOSPACE"}},
			"warn https://b:1: it answers, and says of itself: alarm:NOSPACE; it takes no changes: compact its history if nothing else does, then give the space back | " + ctl + " defrag && " + ctl + " alarm disarm"},
	} {
		t.Run(name, func(t *testing.T) {
			c.second.Endpoint = "https://b:1"
			x := &exam{}
			newest, there := x.endpoints(e, []discover.Answer{well, c.second})
			if diff := cmp.Diff([]string{good, c.want}, told(x.found)); diff != "" || !there || newest != max(well.Newest, c.second.Newest) {
				t.Errorf("%v, revision %d (-want +got)\n%s", there, newest, diff)
			}
		})
	}
}

// TestDoctorFollowed: what a running l4fwd says that is hard to bring about.
func TestDoctorFollowed(t *testing.T) {
	at := time.Now()
	e := &config.Etcd{Endpoints: []string{"http://a:1"}, Prefix: "/l4fwd"}
	for name, c := range map[string]struct {
		in     admin.DiscoveryStatus
		newest int64
		want   []string
	}{
		"well":     {admin.DiscoveryStatus{Connected: true, Revision: 7, InForce: 7, Services: 2, Backends: 3}, 7, []string{"ok : revision N of etcd is in force, 2 services and 3 backends"}},
		"behind":   {admin.DiscoveryStatus{Connected: true, Revision: 7, InForce: 7}, 8, []string{"warn : revision N of etcd is not in force yet, N is: look again in a moment"}},
		"at work":  {admin.DiscoveryStatus{Connected: true, Revision: 8, InForce: 7}, 7, []string{"warn : revision N of etcd is not in force yet, N is: look again in a moment"}},
		"recalled": {admin.DiscoveryStatus{Error: "no", Recalled: true}, 0, []string{"fail : the running l4fwd has never reached etcd (ERROR): what was in force in its last run is"}},
		"refused": {admin.DiscoveryStatus{Connected: true, Revision: 8, InForce: 7, Refusal: "one\ntwo", RefusedSince: at}, 8,
			[]string{"fail : revision N of etcd is refused since TIME, revision N stays in force: one; two"}},
		"documents": {admin.DiscoveryStatus{Connected: true, Revision: 7, InForce: 7, Refused: 12, RefusedSince: at, Problems: []string{
			"/l4fwd/services/: all stays", "/l4fwd/services/it's: wrong", "/l4fwd/services/a\nb: \x1b[31mred"}}, 7, []string{
			"warn : revision N of etcd is in force, but for 12 documents since TIME",
			"warn /l4fwd/services/: all stays | etcdctl --endpoints=http://a:1 get /l4fwd/services/ --prefix --keys-only",
			`warn /l4fwd/services/it's: wrong | etcdctl --endpoints=http://a:1 get '/l4fwd/services/it'\''s'`,
			`warn /l4fwd/services/a\nb: \x1b[31mred`,
			"warn : 2 more documents are refused; `l4fwd status` lists a hundred"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.in.Endpoints, c.in.Prefix = e.Endpoints, e.Prefix
			x := &exam{}
			x.followed(e, &c.in, c.newest)
			if diff := cmp.Diff(c.want, told(x.found)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestShellWord: a shell takes it for one word, whatever is in it.
func TestShellWord(t *testing.T) {
	for _, s := range []string{"", "plain/word", "two words", "it's", "`id`", "$(id) \"$HOME\" \\ ; #", "-x", "日本"} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+shellWord(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q: %q %v", s, out, err)
		}
	}
}
