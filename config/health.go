package config

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
)

// HealthCheck is how a service's backends are checked, and what follows.
type HealthCheck struct {
	// Type of check. Default: none, with which the rest means nothing unless
	// Passive.Action is PassiveDown.
	Type CheckType `yaml:"type"`
	// Interval is from the beginning of a check to that of the next. Default: 2s.
	Interval time.Duration `yaml:"interval"`
	// Timeout of a check, no longer than Interval. Default: 1s.
	Timeout time.Duration `yaml:"timeout"`
	// FastInterval is the interval while results speak against the state, no longer
	// than Interval. Default: Interval.
	FastInterval time.Duration `yaml:"fast_interval"`
	// Rise is how many successes in a row bring a backend up. Default: 2.
	Rise int `yaml:"rise"`
	// Fall is how many failures in a row take it down. Default: 3.
	Fall int `yaml:"fall"`
	// OnDown is what becomes of the flows of a backend that went down. Default: keep for
	// TCP, end for UDP.
	OnDown OnDown `yaml:"on_down"`
	// SlowStart is how long a backend that comes up takes to its full weight. Default: 0.
	SlowStart time.Duration `yaml:"slow_start"`
	// PanicThreshold is the percentage of live backends below which all are used.
	// Default: 0, never.
	PanicThreshold int `yaml:"panic_threshold"`
	// Passive is what clients' connections say.
	Passive Passive `yaml:"passive"`
	// Source is where checks come from. Default: none, the host's choice.
	Source netip.Addr `yaml:"source"`
	// Port that is checked. Default: 0, the backend's.
	Port uint16 `yaml:"port"`

	// Method, Path and Host of HTTP. Default: GET, /, and what is checked.
	Method string `yaml:"method"`
	Path   string `yaml:"path"`
	Host   string `yaml:"host"`
	// ExpectStatus is which statuses are good. Default: 200-399.
	ExpectStatus Statuses `yaml:"expect_status"`
	// ExpectBody is a regular expression (RE2) that the body matches. Default: none.
	ExpectBody string `yaml:"expect_body"`
	// ServerName is TLS's. Default: Host.
	ServerName string `yaml:"server_name"`
	// TLSVerify: certificates must be good. Default: false.
	TLSVerify bool `yaml:"tls_verify"`

	// Send is the datagram of UDP, Expect what must be in the first 2048 bytes
	// of the answer. Default: nothing, and none is needed.
	Send   Bytes `yaml:"send"`
	Expect Bytes `yaml:"expect"`

	// DNSName is asked for, of DNSType, and DNSRCode is the good response code. Default:
	// the root's name servers, and noerror.
	DNSName  string   `yaml:"dns_name"`
	DNSType  DNSType  `yaml:"dns_type"`
	DNSRCode DNSRCode `yaml:"dns_rcode"`

	// Command and its arguments, for exec.
	Command []string `yaml:"command"`
}

// CheckType is what a health check does.
type CheckType uint8

// Types of checks.
const (
	CheckNone CheckType = iota + 1
	CheckTCP
	CheckHTTP
	CheckHTTPS
	CheckUDP
	CheckDNS
	CheckPing
	CheckExec
)

// OnDown is what becomes of the flows of a backend that is found down.
type OnDown uint8

// What to do with them.
const (
	OnDownKeep OnDown = iota + 1 // let them go on
	OnDownEnd                    // as OnBackendDown says
)

// DNSType is the type of a DNS question.
type DNSType uint8

// DNSRCode is a DNS response code, plus 1.
type DNSRCode uint8

var (
	checkTypeNames = names{"none", "tcp", "http", "https", "udp", "dns", "ping", "exec"}
	onDownNames    = names{"keep", "end"}
	dnsTypeNames   = names{"a", "ns", "cname", "soa", "ptr", "mx", "txt", "aaaa", "srv"}
	dnsTypeNumbers = []uint16{1, 2, 5, 6, 12, 15, 16, 28, 33} // IANA
	dnsRCodeNames  = names{"noerror", "formerr", "servfail", "nxdomain", "notimp", "refused"}
)

// String returns the name used in the configuration.
func (c CheckType) String() string { return checkTypeNames.name(uint8(c)) }

// String returns the name used in the configuration.
func (o OnDown) String() string { return onDownNames.name(uint8(o)) }

// String returns the name used in the configuration.
func (t DNSType) String() string { return dnsTypeNames.name(uint8(t)) }

// Number is IANA's.
func (t DNSType) Number() uint16 { return dnsTypeNumbers[t-1] }

// String returns the name used in the configuration.
func (r DNSRCode) String() string { return dnsRCodeNames.name(uint8(r)) }

// Number is IANA's.
func (r DNSRCode) Number() uint16 { return uint16(r) - 1 }

// Statuses are HTTP statuses, pairs of first and last.
type Statuses [][2]int

// String returns them as the configuration writes them.
func (s Statuses) String() string {
	parts := make([]string, len(s))
	for i, r := range s {
		parts[i] = strconv.Itoa(r[0])
		if r[1] != r[0] {
			parts[i] += "-" + strconv.Itoa(r[1])
		}
	}
	return strings.Join(parts, ",")
}

const (
	wantStatuses = `HTTP statuses such as "200-299,304", within 100-599`
	wantPath     = "a path that begins with /, without spaces"
	wantHost     = "a name or an address, and a port if there is one, without spaces"
	wantMethod   = "a method such as GET, in capital letters"
	wantPattern  = "a regular expression (RE2), or nothing"
	wantBytes    = `text, or bytes such as "hex:00ff2a", at most 1024`
	wantDNSName  = "a domain name such as www.example.org"
	wantCommand  = "a list of texts without control characters, an absolute path first"
	wantOptional = "an address such as 10.0.1.2, or nothing"
	maxBytes     = 1024
)

func parseStatuses(s string) (Statuses, error) {
	var out Statuses
	for item := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(item), "-")
		if !isRange {
			to = from
		}
		first, err := parseDecimal(from, 599)
		last, err2 := parseDecimal(to, 599)
		if err != nil || err2 != nil || first < 100 || last < first {
			return nil, expected(wantStatuses, s, "")
		}
		out = append(out, [2]int{int(first), int(last)})
	}
	return out, nil
}

// oneLine reports that a text has nothing that would end a line or a word of HTTP.
func oneLine(s string) bool {
	return len(s) <= 1024 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

func parsePath(s string) (string, error) {
	if !strings.HasPrefix(s, "/") || !oneLine(s) {
		return "", expected(wantPath, s, "")
	}
	return s, nil
}

func parseHost(s string) (string, error) {
	if !oneLine(s) || strings.ContainsAny(s, "/@") {
		return "", expected(wantHost, s, "")
	}
	return s, nil
}

var methodForm = regexp.MustCompile(`^[A-Z]{1,16}$`)

func parseMethod(s string) (string, error) {
	if !methodForm.MatchString(s) {
		return "", expected(wantMethod, s, "")
	}
	return s, nil
}

// printable reports that YAML can have the text in quotes as Go would write it.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func parsePattern(s string) (string, error) {
	if _, err := regexp.Compile(s); err != nil || !printable(s) || len(s) > 1024 {
		return "", expected(wantPattern, s, "")
	}
	return s, nil
}

// Bytes are what a datagram is made of.
type Bytes []byte

func parseBytes(s string) (Bytes, error) {
	b := Bytes(s)
	if digits, isHex := strings.CutPrefix(s, "hex:"); isHex {
		var err error
		if b, err = hex.DecodeString(digits); err != nil {
			return nil, expected(wantBytes, s, "")
		}
	}
	switch {
	case len(b) > maxBytes:
		return nil, expected(wantBytes, s, "")
	case len(b) == 0:
		return nil, nil
	}
	return b, nil
}

// formatBytes is the inverse of parseBytes.
func formatBytes(b Bytes) string {
	if printable(string(b)) && !bytes.HasPrefix(b, []byte("hex:")) {
		return quote(string(b))
	}
	return strconv.Quote("hex:" + hex.EncodeToString(b))
}

// parseDNSName returns the name with a dot at its end.
func parseDNSName(s string) (string, error) {
	name := strings.TrimSuffix(s, ".")
	if s == "." {
		return s, nil
	}
	bad := func(label string) bool { return label == "" || len(label) > 63 }
	if !oneLine(s) || len(name) > 253 || slices.ContainsFunc(strings.Split(name, "."), bad) {
		return "", expected(wantDNSName, s, "")
	}
	return name + ".", nil
}

func parseOptionalAddr(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := parseAddr(s)
	if err != nil {
		return netip.Addr{}, expected(wantOptional, s, err.Error())
	}
	return a, nil
}

func formatOptionalAddr(a netip.Addr) string {
	if !a.IsValid() {
		return `""`
	}
	return strconv.Quote(a.String())
}

func decodeCommand(d *decoder, path string, n ast.Node, h *HealthCheck) {
	items, ok := d.items(path, n, "texts")
	if !ok {
		return
	}
	h.Command = []string{}
	for i, item := range items {
		sub := fmt.Sprintf("%s[%d]", path, i)
		d.c.at[sub] = nodePosition(item)
		s, ok := d.plainValue(sub, item, anyPlain, "text")
		if ok && (!printable(s) || i == 0 && !strings.HasPrefix(s, "/")) {
			d.fail(sub, "%v", expected(wantCommand, s, ""))
		}
		h.Command = append(h.Command, s)
	}
}

func formatCommand(h *HealthCheck) string {
	parts := make([]string, len(h.Command))
	for i, s := range h.Command {
		parts[i] = strconv.Quote(s)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

func duration(key string, at func(*HealthCheck) *time.Duration, doc string) field[HealthCheck] {
	return plain(key, anyPlain, wantDuration, at, parseDuration, formatDuration, doc)
}

// word is a key with a text.
func word(key, want string, at func(*HealthCheck) *string, parse func(string) (string, error), doc string) field[HealthCheck] {
	return plain(key, text, want, at, parse, strconv.Quote, doc)
}

var healthFields = []field[HealthCheck]{
	enum("type", checkTypeNames, func(h *HealthCheck) *CheckType { return &h.Type },
		"tcp: connects. http, https: asks. udp: sends. dns: asks for a name. ping: ICMP\necho. exec: runs a command. none: backends are taken to be up."),
	duration("interval", func(h *HealthCheck) *time.Duration { return &h.Interval }, "From the beginning of a check to that of the next."),
	duration("timeout", func(h *HealthCheck) *time.Duration { return &h.Timeout }, "Of a check, no longer than the interval."),
	duration("fast_interval", func(h *HealthCheck) *time.Duration { return &h.FastInterval },
		"While results speak against the state. Default: the interval."),
	integer("rise", 1, 100, func(h *HealthCheck) *int { return &h.Rise }, "Successes in a row that bring a backend up."),
	integer("fall", 1, 100, func(h *HealthCheck) *int { return &h.Fall }, "Failures in a row that take it down."),
	enum("on_down", onDownNames, func(h *HealthCheck) *OnDown { return &h.OnDown },
		"Flows of a backend that went down. keep: they go on. end: as on_backend_down\nsays. Default: keep for tcp, end for udp."),
	plain("slow_start", anyPlain, wantPersistence, func(h *HealthCheck) *time.Duration { return &h.SlowStart },
		parsePersistence, formatDuration, "How long a backend that comes up takes to its full weight, in ten steps."),
	integer("panic_threshold", 0, 100, func(h *HealthCheck) *int { return &h.PanicThreshold },
		"Percentage of live backends below which all are used. 0: never."),
	passiveField,
	plain("source", text, wantOptional, func(h *HealthCheck) *netip.Addr { return &h.Source }, parseOptionalAddr, formatOptionalAddr,
		"An address of the host that checks come from. Empty: the kernel's choice."),
	plain("port", number, wantInt(0, 65535), func(h *HealthCheck) *uint16 { return &h.Port }, parseWeight,
		func(p uint16) string { return strconv.Itoa(int(p)) }, "What is checked. 0: the backend's port."),
	word("method", wantMethod, func(h *HealthCheck) *string { return &h.Method }, parseMethod, "Of the request (http, https)."),
	word("path", wantPath, func(h *HealthCheck) *string { return &h.Path }, parsePath, "What is asked for, with its query (http, https)."),
	word("host", wantHost, func(h *HealthCheck) *string { return &h.Host }, parseHost, "The Host field. Empty: what is checked (http, https)."),
	plain("expect_status", anyPlain, wantStatuses, func(h *HealthCheck) *Statuses { return &h.ExpectStatus }, parseStatuses,
		func(s Statuses) string { return strconv.Quote(s.String()) }, "Good statuses (http, https)."),
	word("expect_body", wantPattern, func(h *HealthCheck) *string { return &h.ExpectBody }, parsePattern,
		"What the first 64 KiB of the body must match (http, https). Empty: anything."),
	word("server_name", wantHost, func(h *HealthCheck) *string { return &h.ServerName }, parseHost,
		"The name sent, and verified (https). Empty: the host."),
	plain("tls_verify", boolean, "true or false", func(h *HealthCheck) *bool { return &h.TLSVerify }, parseBool, strconv.FormatBool,
		"true: the certificate must be good (https)."),
	plain("send", text, wantBytes, func(h *HealthCheck) *Bytes { return &h.Send }, parseBytes, formatBytes, `The datagram (udp), text or "hex:..."`+"."),
	plain("expect", text, wantBytes, func(h *HealthCheck) *Bytes { return &h.Expect }, parseBytes, formatBytes,
		"What must be in the first 2048 bytes of the answer (udp). Empty: none is needed, only\nno ICMP error."),
	word("dns_name", wantDNSName, func(h *HealthCheck) *string { return &h.DNSName }, parseDNSName, "What is asked for (dns)."),
	enum("dns_type", dnsTypeNames, func(h *HealthCheck) *DNSType { return &h.DNSType }, "The type of the question (dns)."),
	enum("dns_rcode", dnsRCodeNames, func(h *HealthCheck) *DNSRCode { return &h.DNSRCode }, "The response code that is good (dns)."),
	{key: "command", decode: decodeCommand, text: formatCommand, doc: "Command and arguments, no shell (exec)."},
}

// defaultHealthCheck is what keepalived's and HAProxy's users are used to, with
// HAProxy's figures.
func defaultHealthCheck() HealthCheck {
	return HealthCheck{
		Type: CheckNone, Interval: 2 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
		Method: "GET", Path: "/", ExpectStatus: Statuses{{200, 399}},
		DNSName: ".", DNSType: 2, DNSRCode: 1, Passive: defaultPassive(),
	}
}

// inherit fills in what follows from other keys.
func (h *HealthCheck) inherit(p Protocol) {
	if h.FastInterval == 0 {
		h.FastInterval = h.Interval
	}
	if h.OnDown == 0 {
		h.OnDown = OnDownKeep
		if p == UDP {
			h.OnDown = OnDownEnd
		}
	}
}

// checksWith are the types of check that a key is for, those not named here are for all.
var checksWith = map[string][]CheckType{
	"method":        {CheckHTTP, CheckHTTPS},
	"path":          {CheckHTTP, CheckHTTPS},
	"host":          {CheckHTTP, CheckHTTPS},
	"expect_status": {CheckHTTP, CheckHTTPS},
	"expect_body":   {CheckHTTP, CheckHTTPS},
	"server_name":   {CheckHTTPS},
	"tls_verify":    {CheckHTTPS},
	"send":          {CheckUDP},
	"expect":        {CheckUDP},
	"dns_name":      {CheckDNS},
	"dns_type":      {CheckDNS},
	"dns_rcode":     {CheckDNS},
	"command":       {CheckExec},
	"port":          {CheckTCP, CheckHTTP, CheckHTTPS, CheckUDP, CheckDNS, CheckExec},
	"source":        {CheckTCP, CheckHTTP, CheckHTTPS, CheckUDP, CheckDNS, CheckPing},
}

// unprobed are the keys that mean something where nothing but passive finds backends
// down.
var unprobed = []string{"on_down", "slow_start", "panic_threshold"}

// Finds reports whether anything may find backends down.
func (h *HealthCheck) Finds() bool { return h.Type > CheckNone || h.Passive.Action == PassiveDown }

// means reports that a key means something for the type.
func (h *HealthCheck) means(key string) bool {
	switch {
	case key == "type", key == passiveField.key:
		return true
	case h.Type == CheckNone:
		return h.Finds() && slices.Contains(unprobed, key)
	}
	types, some := checksWith[key]
	return !some || slices.Contains(types, h.Type)
}

// healthCheck checks how a service's backends are.
func (v *validator) healthCheck(path string, s Service) {
	h := &s.HealthCheck
	if h.Type == 0 {
		return
	}
	plain := defaultHealthCheck()
	plain.inherit(s.Protocol)
	plain.FastInterval, plain.Passive = h.Interval, h.Passive
	v.passive(path, &s)
	for _, f := range healthFields {
		switch {
		case h.means(f.key) || f.text(h) == f.text(&plain):
		case h.Type == CheckNone:
			v.fail(path+".health_check", "%s means nothing without a type", f.key)
			return
		default:
			v.fail(path+".health_check."+f.key, "it is for checks of the type %s, not %v", joinTypes(checksWith[f.key]), h.Type)
		}
	}
	if h.Timeout > h.Interval {
		v.fail(path+".health_check.timeout", "%v is longer than the interval, %v", h.Timeout, h.Interval)
	}
	if h.FastInterval > h.Interval {
		v.fail(path+".health_check.fast_interval", "%v is longer than the interval, %v", h.FastInterval, h.Interval)
	}
	if h.Type == CheckExec && len(h.Command) == 0 {
		v.fail(path+".health_check", "exec needs a command")
	}
	if h.Method == "HEAD" && h.ExpectBody != "" {
		v.fail(path+".health_check.expect_body", "an answer to HEAD has no body")
	}
	var probed netip.Addr
	switch {
	case s.Mode.Direct():
		probed = s.Address.Addr()
	case len(s.Backends) > 0: // the service of a document may have none yet
		probed = s.Backends[0].Address.Addr()
	}
	if h.Source.IsValid() && probed.IsValid() && h.Source.Is4() != probed.Is4() {
		v.fail(path+".health_check.source", "%v cannot reach %v, which is checked", h.Source, probed)
	}
}

func joinTypes(types []CheckType) string {
	parts := make([]string, len(types))
	for i, t := range types {
		parts[i] = t.String()
	}
	return strings.Join(parts, ", ")
}

// healthCheck writes the keys that mean something.
func (w *writer) healthCheck(s *Service, key string) {
	if !s.HealthCheck.Finds() && !w.comments {
		w.line(2, "%s: {type: none}", key)
		return
	}
	w.line(2, "%s:", key)
	for _, f := range healthFields {
		if w.comments || s.HealthCheck.means(f.key) {
			w.doc(3, f.doc)
			w.line(3, "%s: %s", f.key, f.text(&s.HealthCheck))
		}
	}
}
