package health

import (
	"fmt"
	"net/netip"
	"regexp"
	"time"
)

// Kind is what a check does.
type Kind uint8

// Kinds.
const (
	// Observed backends are not probed: they are up unless TakeDown says otherwise. Of
	// Check only SlowStart means something then.
	Observed Kind = iota
	TCP           // connects
	HTTP          // asks and looks at status and body, HTTP/1.1
	HTTPS         // the same within TLS
	UDP           // sends, and may expect an answer
	DNS           // asks for a name and looks at the response code
	Ping          // ICMP echo
	Exec          // runs a command
)

var kindNames = [...]string{"observed", "tcp", "http", "https", "udp", "dns", "ping", "exec"}

// String is the kind's name in the configuration.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Check is how backends of a service are checked. Nobody writes to it once an
// Engine has it.
type Check struct {
	Kind Kind
	// Interval is from the beginning of one check to that of the next at most,
	// FastInterval the same while results speak against the state; both positive.
	Interval, FastInterval time.Duration
	// Timeout is how long a check may take, positive.
	Timeout time.Duration
	// Rise is how many successes in a row bring a backend up, Fall how many
	// failures take it down; at least 1.
	Rise, Fall int
	// SlowStart is how long a backend that comes up takes to its full weight.
	SlowStart time.Duration
	// Source is where probes come from; the kernel chooses if it is zero.
	Source netip.Addr

	HTTP HTTPCheck // HTTP, HTTPS
	TLS  TLSCheck  // HTTPS
	UDP  UDPCheck
	DNS  DNSCheck
	Exec []string // the command and its arguments, no shell
}

// HTTPCheck is what is asked for and what is a good answer.
type HTTPCheck struct {
	Method, Path string
	// Host is the Host field; empty for address and port of what is probed.
	Host string
	// Statuses that are good, pairs of first and last.
	Statuses [][2]int
	// Body must match in the first 64 KiB of the body, if it is not nil.
	Body *regexp.Regexp
}

// TLSCheck is how much of a certificate is believed.
type TLSCheck struct {
	// Name is sent (SNI) and, with Verify, compared; empty: HTTPCheck.Host without
	// its port, and without that nothing is sent.
	Name string
	// Verify takes only certificates that the machine's authorities vouch for.
	Verify bool
}

// UDPCheck is a datagram and what must be in the answer.
type UDPCheck struct {
	Send   []byte
	Expect []byte // in its first 2048 bytes; nil: none is needed, only no ICMP error
}

// DNSCheck is a question.
type DNSCheck struct {
	Name  string // absolute, with the dot at its end
	Type  uint16 // IANA's number
	RCode uint16 // the response code that is good
	TCP   bool   // asked over TCP
}

// Key names a backend.
type Key struct {
	Service string
	Backend netip.AddrPort
}

// Target is a backend with how it is checked.
type Target struct {
	Key
	// Address is what is probed: the backend with the port of the check, or, by a
	// Path, the VIP with it.
	Address netip.AddrPort
	Check   *Check
	// Path is how probes get there, nil for the kernel's routes.
	Path Path
}

// Path leads probes past the kernel's routes, as packets of the service travel to
// the one backend it is made for. Methods may be called by many goroutines.
type Path interface {
	// Prepare is given the socket of each probe before it is bound or connected.
	// The network is tcp4, udp6, ip4:icmp and so on; echo is the identifier of ICMP
	// echo requests. It may bind the socket.
	Prepare(network string, fd int, echo uint16) error
}
