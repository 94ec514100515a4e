package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The parsers here take the text of a value and return an error that says what
// was expected and what was found. What is in want is also said when the value
// is no plain value at all.

const (
	wantAddrPort  = "address:port such as 192.0.2.10:80 or [2001:db8::10]:80"
	wantRange     = "an address or a range such as 10.0.1.10-10.0.1.13"
	wantPorts     = "ports such as 20000-29999, within 1-65535"
	wantCPUs      = "CPU numbers such as 2,4-5, within 0-8191, each once"
	wantDuration  = "a duration such as 30s or 2h4m, from 100ms to 720h"
	wantInterface = "an interface name of 1 to 15 characters"
	wantName      = "a name of at most 63 letters, digits, dots, hyphens and underscores, the first a letter or digit"
	wantRingSize  = "a power of two from 64 to 32768"
	wantMSSClamp  = "off, mtu or a whole number from 536 to 65495"
	wantListen    = "off or address:port such as 127.0.0.1:9464 or [::]:9464"
	wantSocket    = "off or a path from / on of at most 90 bytes"
	wantFile      = "off or a path from / on"
	wantHosts     = "at most 64 host names without ports, with commas between them"
	wantTOAKind   = "a TCP option kind from 2 to 255 that nobody else uses, such as 254"
)

// maxCPU is the highest CPU number of a kernel built for as many as x86 can
// have (NR_CPUS 8192).
const maxCPU = 8191

// Bounds of a timeout: more than one tick, and a month.
const (
	minTimeout = 100 * time.Millisecond
	maxTimeout = 720 * time.Hour
)

// ParseCPUList parses CPU numbers and ranges of them with commas between them,
// such as 2,4-5, into the numbers in the order given. The empty string is no
// CPUs.
func ParseCPUList(s string) ([]int, error) {
	if s == "" {
		return nil, nil
	}
	var out []int
	seen := map[int]bool{}
	for item := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(item), "-")
		if !isRange {
			to = from
		}
		first, err := parseDecimal(from, maxCPU)
		last, err2 := parseDecimal(to, maxCPU)
		if err != nil || err2 != nil {
			return nil, expected(wantCPUs, s, "")
		}
		if last < first {
			return nil, expected(wantCPUs, s, fmt.Sprintf("%d-%d runs backwards", first, last))
		}
		for cpu := int(first); cpu <= int(last); cpu++ {
			if seen[cpu] {
				return nil, expected(wantCPUs, s, fmt.Sprintf("CPU %d is there twice", cpu))
			}
			seen[cpu] = true
			out = append(out, cpu)
		}
	}
	return out, nil
}

// formatCPUList is the inverse of ParseCPUList.
func formatCPUList(cpus []int) string {
	var parts []string
	for i := 0; i < len(cpus); {
		j := i
		for j+1 < len(cpus) && cpus[j+1] == cpus[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, strconv.Itoa(cpus[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", cpus[i], cpus[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

var errDecimal = errors.New("not a decimal number within bounds")

// parseDecimal parses digits only: no sign, no base, no leading zero that
// somebody might take for octal.
func parseDecimal(s string, most uint64) (uint64, error) {
	if s == "" || len(s) > 1 && s[0] == '0' || strings.Trim(s, "0123456789") != "" {
		return 0, errDecimal
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > most {
		return 0, errDecimal
	}
	return n, nil
}

func wantInt(least, most int) string {
	return fmt.Sprintf("a whole number from %d to %d", least, most)
}

func parseInt(s string, least, most int) (int, error) {
	// 1_000_000 is a number in YAML and easier to read.
	n, err := parseDecimal(strings.ReplaceAll(s, "_", ""), uint64(most))
	if err != nil || int(n) < least {
		return 0, expected(wantInt(least, most), s, "")
	}
	return int(n), nil
}

func parseFrameSize(s string) (int, error) {
	n, err := parseDecimal(s, 4096)
	if err != nil || n != 2048 && n != 4096 {
		return 0, expected("2048 or 4096", s, "")
	}
	return int(n), nil
}

func parseRingSize(s string) (int, error) {
	n, err := parseDecimal(s, 32768)
	if err != nil || n < 64 || n&(n-1) != 0 {
		return 0, expected(wantRingSize, s, "")
	}
	return int(n), nil
}

func parseWeight(s string) (uint16, error) {
	n, err := parseInt(s, 0, 65535)
	return uint16(n), err
}

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, expected("true or false", s, "")
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < minTimeout || d > maxTimeout {
		return 0, expected(wantDuration, s, "")
	}
	return d, nil
}

// formatDuration writes 2h4m instead of 2h4m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if t := strings.TrimSuffix(s, "m0s"); t != s {
		s = t + "m"
	}
	if t := strings.TrimSuffix(s, "h0m"); t != s {
		s = t + "h"
	}
	return s
}

// ParsePortRange parses first-last, or a single port.
func ParsePortRange(s string) (PortRange, error) {
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	first, err := parseDecimal(from, 65535)
	last, err2 := parseDecimal(to, 65535)
	if err != nil || err2 != nil || first == 0 {
		return PortRange{}, expected(wantPorts, s, "")
	}
	if last < first {
		return PortRange{}, expected(wantPorts, s, "it runs backwards")
	}
	return PortRange{uint16(first), uint16(last)}, nil
}

// String returns first-last.
func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

// Len returns how many ports there are.
func (r PortRange) Len() int { return int(r.Last) - int(r.First) + 1 }

func parseInterfaceName(s string) (string, error) {
	// The kernel's rule (net/core/dev.c, dev_valid_name) on printable ASCII.
	bad := func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' }
	if s == "" || len(s) > 15 || s == "." || s == ".." || strings.ContainsFunc(s, bad) {
		return "", expected(wantInterface, s, "")
	}
	return s, nil
}

// maxSocketPath leaves room for what admin.Listen adds, of the 107 bytes that unix(7)
// allows.
const maxSocketPath = 90

// parseSocket reads the path of a unix socket, off as none.
func parseSocket(s string) (string, error) {
	if s == "off" {
		return "", nil
	}
	if len(s) > maxSocketPath || !strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/") || strings.ContainsRune(s, 0) {
		return "", expected(wantSocket, s, "")
	}
	return s, nil
}

// parseFile reads the path of a file, off as none.
func parseFile(s string) (string, error) {
	if s == "off" {
		return "", nil
	}
	if !strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/") || strings.ContainsRune(s, 0) {
		return "", expected(wantFile, s, "")
	}
	return s, nil
}

// parseHosts reads host names, the empty string as none.
func parseHosts(s string) (out []string, err error) {
	const most, longest = 64, 253 // RFC 1035 section 2.3.4, without the last dot
	if s == "" {
		return nil, nil
	}
	for name := range strings.SplitSeq(s, ",") {
		name = strings.ToLower(strings.TrimSpace(name))
		bad := func(r rune) bool { return !alphanumeric(r) && !strings.ContainsRune("._-", r) }
		if name == "" || len(name) > longest || strings.ContainsFunc(name, bad) || strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".") {
			return nil, expected(wantHosts, s, "")
		}
		out = append(out, name)
	}
	if len(out) > most {
		return nil, expected(wantHosts, s, "")
	}
	return out, nil
}

func formatSocket(s string) string {
	if s == "" {
		return "off"
	}
	return strconv.Quote(s)
}

// parseListen reads where to listen, off as nowhere.
func parseListen(s string) (netip.AddrPort, error) {
	if s == "off" {
		return netip.AddrPort{}, nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 || a.Addr().Zone() != "" || a.Addr().Is4In6() || a.Addr().IsMulticast() {
		return netip.AddrPort{}, expected(wantListen, s, "")
	}
	return a, nil
}

func formatListen(a netip.AddrPort) string {
	if !a.IsValid() {
		return "off"
	}
	return quoteAddrPort(a)
}

func parseOptionalInterface(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	return parseInterfaceName(s)
}

func parseServiceName(s string) (string, error) {
	bad := func(r rune) bool { return !alphanumeric(r) && !strings.ContainsRune("._-", r) }
	if s == "" || len(s) > 63 || !alphanumeric(rune(s[0])) || strings.ContainsFunc(s, bad) {
		return "", expected(wantName, s, "")
	}
	return s, nil
}

func alphanumeric(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}

// takenKinds are TCP option kinds in common use (IANA): l4fwd strips the TOA
// kind from every client packet, which must not hit one of these.
var takenKinds = []int{2, 3, 4, 5, 8, 19, 28, 29, 30, 34, 69}

func parseTOAKind(s string) (uint8, error) {
	n, err := parseDecimal(s, 255)
	if err != nil || n < 2 {
		return 0, expected(wantTOAKind, s, "")
	}
	if slices.Contains(takenKinds, int(n)) {
		return 0, expected(wantTOAKind, s, fmt.Sprintf("kind %d has a meaning in TCP", n))
	}
	return uint8(n), nil
}

const (
	minTableSize      = 251
	maxTableSize      = 8388617
	wantTableSize     = "0 or a prime from 251 to 8388617"
	maxMaxConnections = 1 << 30
	wantPersistence   = "0s or " + wantDuration
	wantConfigID      = "none or a whole number from 0 to 6"
	wantServerID      = "a whole number of 64 bits, in hexadecimal after 0x"
)

func parsePersistence(s string) (time.Duration, error) {
	if s == "0s" {
		return 0, nil
	}
	d, err := parseDuration(s)
	if err != nil {
		return 0, expected(wantPersistence, s, "")
	}
	return d, nil
}

// parseServerID takes hexadecimal digits too, in which the bytes show.
func parseServerID(s string) (uint64, error) {
	s = strings.ReplaceAll(s, "_", "")
	if digits, hex := strings.CutPrefix(s, "0x"); hex {
		if n, err := strconv.ParseUint(digits, 16, 64); err == nil {
			return n, nil
		}
	} else if n, err := parseDecimal(s, math.MaxUint64); err == nil {
		return n, nil
	}
	return 0, expected(wantServerID, s, "")
}

// parseConfigID is -1 for none.
func parseConfigID(s string) (int, error) {
	if s == "none" {
		return -1, nil
	}
	n, err := parseInt(s, 0, 6)
	if err != nil {
		return 0, expected(wantConfigID, s, didYouMean(s, names{"none"}))
	}
	return n, nil
}

func formatConfigID(n int) string {
	if n < 0 {
		return "none"
	}
	return strconv.Itoa(n)
}

func parseTableSize(s string) (int, error) {
	n, err := parseInt(s, 0, maxTableSize)
	if err != nil || n != 0 && n < minTableSize {
		return 0, expected(wantTableSize, s, "")
	}
	if n != 0 && !prime(n) {
		for !prime(n) { // maxTableSize is one
			n++
		}
		return 0, expected(wantTableSize, s, fmt.Sprintf("the next is %d", n))
	}
	return n, nil
}

func prime(n int) bool {
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}

// parseMSSClamp takes no number below 536, IPv4's segment size without the option:
// no link needs less.
func parseMSSClamp(s string) (MSSClamp, error) {
	switch s {
	case "off":
		return MSSOff, nil
	case "mtu":
		return MSSMTU, nil
	}
	n, err := parseInt(s, 536, 65495)
	if err != nil {
		return 0, expected(wantMSSClamp, s, didYouMean(s, names{"off", "mtu"}))
	}
	return MSSClamp(n), nil
}

// String returns the value as the configuration writes it.
func (m MSSClamp) String() string {
	switch m {
	case MSSOff:
		return "off"
	case MSSMTU:
		return "mtu"
	}
	return strconv.Itoa(int(m))
}
