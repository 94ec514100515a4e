package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/access"
	"github.com/l4fwd/l4fwd/control/admin"
	"github.com/l4fwd/l4fwd/control/discover"
	"github.com/l4fwd/l4fwd/control/plan"
)

const (
	// etcdPatience bounds how long etcd is asked, and how long it is read.
	etcdPatience = 3 * time.Second
	// renewal is how long before its end a certificate should have been renewed.
	renewal = 14 * 24 * time.Hour
	// mostRefused documents are listed.
	mostRefused = 10
)

// discovery: whether etcd answers, and whether what it has is in force. What it adds to
// the configuration is looked at by those that follow as if it stood in the file.
func (x *exam) discovery(ctx context.Context) (err error) {
	o := discover.Options{Etcd: x.d.cfg.Discovery.Etcd}
	e := &o.Etcd
	if !e.On() {
		return nil
	}
	if o.Dial, err = x.d.dialer(); err != nil {
		return err
	}
	e.Timeout = min(e.Timeout, etcdPatience)
	if e.Cert != "" {
		pair, _, err := access.ReadPair(e.Cert, e.Key)
		if err != nil {
			x.add("discovery", e.Cert, Fail, "", "etcd is not asked as the configuration says: %v", err)
		} else if !x.ends(e.Cert, "our certificate", pair.Leaf.NotAfter) {
			x.add("discovery", e.Cert, Good, "", "our certificate is good until %s", pair.Leaf.NotAfter.Local().Format(time.DateTime))
		}
	}
	asking, enough := context.WithTimeout(ctx, etcdPatience)
	answers := discover.Ask(asking, o)
	enough()
	newest, there := x.endpoints(e, answers)
	if x.status != nil {
		x.followed(e, x.status.Discovery, newest)
	}
	reading, enough := context.WithTimeout(ctx, etcdPatience)
	defer enough()
	x.adopt(reading, o, there)
	return nil
}

// ends reports whether a certificate has come to its end, or soon will, as it says then.
func (x *exam) ends(subject, what string, end time.Time) bool {
	switch left := time.Until(end); {
	case left <= 0:
		x.add("discovery", subject, Fail, "", "%s ended on %s: put a new one in its place, no restart is needed", what, end.Local().Format(time.DateTime))
	case left <= renewal:
		x.add("discovery", subject, Warn, "", "%s ends on %s: put a new one in its place, no restart is needed", what, end.Local().Format(time.DateTime))
	default:
		return false
	}
	return true
}

// endpoints: what each says of itself. newest is the revision of the last document that
// any has, there whether any answers.
func (x *exam) endpoints(e *config.Etcd, all []discover.Answer) (newest int64, there bool) {
	documents, grade := int64(0), Fail
	for _, a := range all {
		if a.Err == nil {
			there, grade = true, Warn // l4fwd asks the others
			newest, documents = max(newest, a.Newest), max(documents, a.Documents)
		}
	}
	for _, a := range all {
		said := strings.Join(a.Complaints, "; ")
		command := ""
		if ctl := etcdctl(e, a.Endpoint); strings.Contains(said, "NOSPACE") {
			command = ctl + " defrag && " + ctl + " alarm disarm"
			said += "; it takes no changes: compact its history if nothing else does, then give the space back"
		}
		switch soon := !a.Expires.IsZero() && x.ends(a.Endpoint, "its certificate, or that of who vouches for it,", a.Expires); {
		case a.Err != nil:
			x.add("discovery", a.Endpoint, grade, startEtcd(a.Endpoint, a.Err), "etcd does not answer here: %v", a.Err)
		case said != "":
			x.add("discovery", a.Endpoint, Warn, command, "it answers, and says of itself: %s", said)
		case !soon:
			x.add("discovery", a.Endpoint, Good, "", "etcd %s answers%s", a.Version, until(a.Expires))
		}
	}
	if below := e.Prefix + "/services/"; there && documents == 0 {
		x.add("discovery", below, Warn, etcdctl(e, e.Endpoints...)+" get '' --prefix --keys-only --limit=20",
			"etcd has no document below it; the command says what keys there are, if we may read them")
	}
	return newest, there
}

// until says how long a certificate is good.
func until(end time.Time) string {
	if end.IsZero() {
		return ""
	}
	return ", its certificate is good until " + end.Local().Format(time.DateTime)
}

// startEtcd starts an etcd that does not run on this very host; empty for others.
func startEtcd(endpoint string, err error) string {
	if !strings.Contains(err.Error(), unix.ECONNREFUSED.Error()) {
		return ""
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return ""
	}
	at := net.ParseIP(u.Hostname())
	if u.Hostname() == "localhost" {
		at = net.IPv4(127, 0, 0, 1)
	} else if at == nil {
		return ""
	}
	if r, err := netlink.RouteGet(at); err != nil || len(r) == 0 || r[0].Type != unix.RTN_LOCAL {
		return ""
	}
	return "systemctl start etcd"
}

// followed: whether what etcd has is in force in the l4fwd that runs.
func (x *exam) followed(e *config.Etcd, s *admin.DiscoveryStatus, newest int64) {
	const restart = "systemctl restart l4fwd"
	since := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return " since " + t.Local().Format(time.DateTime)
	}
	switch {
	case s == nil:
		x.add("discovery", "", Warn, restart, "the running l4fwd follows no etcd: discovery takes effect with a restart, which ends its flows")
		return
	case !slices.Equal(s.Endpoints, e.Endpoints) || s.Prefix != e.Prefix:
		x.add("discovery", "", Warn, restart, "the running l4fwd follows %s at %s: another etcd takes effect with a restart, which ends its flows",
			s.Prefix, strings.Join(s.Endpoints, ", "))
		return
	case !s.Connected && s.Recalled:
		x.add("discovery", "", Fail, "", "the running l4fwd has never reached etcd (%s): what was in force in its last run is", s.Error)
	case !s.Connected && s.Revision == 0:
		x.add("discovery", "", Fail, "", "the running l4fwd has never reached etcd (%s): what is in the file alone is in force", s.Error)
	case !s.Connected:
		x.add("discovery", "", Fail, "", "the running l4fwd does not reach etcd%s (%s): revision %d stays in force", since(s.Since), s.Error, s.InForce)
	case s.Refusal != "":
		x.add("discovery", "", Fail, "", "revision %d of etcd is refused%s, revision %d stays in force: %s", s.Revision, since(s.RefusedSince), s.InForce,
			printable(strings.ReplaceAll(s.Refusal, "\n", "; ")))
	case s.Refused > 0:
		x.add("discovery", "", Warn, "", "revision %d of etcd is in force, but for %d documents%s", s.InForce, s.Refused, since(s.RefusedSince))
	case max(newest, s.Revision) > s.InForce:
		x.add("discovery", "", Warn, "", "revision %d of etcd is not in force yet, %d is: look again in a moment", max(newest, s.Revision), s.InForce)
	default:
		x.add("discovery", "", Good, "", "revision %d of etcd is in force, %d services and %d backends", s.InForce, s.Services, s.Backends)
	}
	for _, p := range s.Problems[:min(len(s.Problems), mostRefused)] {
		key, text, _ := strings.Cut(p, ": ")
		x.refused(e, key, text)
	}
	x.more(s.Refused)
}

// refused: a document that is not in force as it is.
func (x *exam) refused(e *config.Etcd, key, text string) {
	command := ""
	switch get := etcdctl(e, e.Endpoints...) + " get " + shellWord(key); {
	case key != printable(key): // there is no way to say which
	case strings.HasSuffix(key, "/"):
		command = get + " --prefix --keys-only"
	default:
		command = get
	}
	x.add("discovery", printable(key), Warn, command, "%s", printable(text))
}

// more: those that are not listed.
func (x *exam) more(refused int) {
	if more := refused - mostRefused; more > 0 {
		x.add("discovery", "", Warn, "", "%d more documents are refused; `l4fwd status` lists a hundred", more)
	}
}

// adopt puts what l4fwd would have found onto the configuration: what etcd has or, where
// that is not there, what was last in force. If none runs it says what a start would find.
func (x *exam) adopt(ctx context.Context, o discover.Options, there bool) {
	say := func(g Grade, format string, args ...any) {
		if x.status == nil {
			x.add("discovery", "", g, "", format, args...)
		}
	}
	m := discover.NewMerger(&o.Etcd)
	set, err := lastInForce(&o.Etcd)
	if err != nil {
		say(Warn, "a start without etcd would not know its services: %v", err)
	} else if set != nil {
		m.Recall(set.Documents)
	}
	if there {
		if set, err = discover.List(ctx, o); err != nil {
			say(Fail, "%v", err)
			return
		}
	} else if set == nil {
		say(Fail, "a start would serve what is in the file alone: etcd is not there, and of an earlier run nothing is known")
		return
	}
	r, err := m.Merge(ctx, x.d.cfg, set, nil)
	if err != nil {
		say(Warn, "what the documents come to cannot be told: %v", err)
		return
	}
	x.d.cfg = withWorkers(r.Config)
	x.spec = plan.Spec(x.d.cfg, nil)
	if grade := Good; x.status == nil {
		what := "etcd"
		if !there {
			grade, what = Warn, "the last run, since etcd is not there"
		}
		for _, p := range r.Problems[:min(len(r.Problems), mostRefused)] {
			x.refused(&o.Etcd, p.Key, p.Text)
		}
		x.more(len(r.Problems))
		say(grade, "a start would serve %d services and %d backends of %s", r.Services, r.Backends, what)
	}
}

// lastInForce is what was in force last, nil if nothing is known of it.
func lastInForce(e *config.Etcd) (*discover.Set, error) {
	if e.StateDir == "" {
		return nil, nil
	}
	set, err := discover.Load(e)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return set, err
}

// etcdctl is the command that asks some endpoints as l4fwd does; it wants a password.
func etcdctl(e *config.Etcd, endpoints ...string) string {
	out := "etcdctl --endpoints=" + shellWord(strings.Join(endpoints, ","))
	for _, f := range []struct{ flag, value string }{{"cacert", e.CA}, {"cert", e.Cert}, {"key", e.Key}, {"user", e.Username}} {
		if f.value != "" {
			out += fmt.Sprintf(" --%s=%s", f.flag, shellWord(f.value))
		}
	}
	return out
}

// shellWord is one word for a shell, whatever is in it.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./_-", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// printable is text of somebody else's on one line: no escape of a terminal's is left, and
// nothing that looks like a line of ours.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) < 0 {
		return s
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}
