package config

import (
	"fmt"
	"strings"
)

// Protocol of a service.
type Protocol uint8

// Protocols.
const (
	TCP Protocol = iota + 1
	UDP
)

// Mode of forwarding.
type Mode uint8

// Modes.
const (
	// FullNAT rewrites both ends: backends see a local address.
	FullNAT Mode = iota + 1
	// DNAT rewrites the destination: backends see the client and must route
	// replies through l4fwd.
	DNAT
	// DSRL2 changes nothing but the Ethernet header: backends have the VIP, too, and
	// answer the client themselves.
	DSRL2
	// Tunnel is DSRL2 for backends beyond routers: packets travel in another one.
	Tunnel
	// SNAT is the other half of a DNAT whose Replies are RepliesElsewhere: only the
	// backends' answers come here.
	SNAT
)

// Replies is where a DNAT service's backends send their answers.
type Replies uint8

// Where answers go.
const (
	RepliesHere      Replies = iota + 1 // to this l4fwd, which rewrites them by their flow
	RepliesElsewhere                    // to a service of mode snat, on another machine or on this one
)

// Scheduler chooses the backend of a new flow.
type Scheduler uint8

// Schedulers.
const (
	RR     Scheduler = iota + 1 // in turn
	WRR                         // in turn by weight
	LC                          // fewest flows
	WLC                         // fewest flows for its weight
	SH                          // by client address
	Maglev                      // by client address and port, consistent
	P2C                         // fewer flows for its weight, of two drawn
)

// Hashed reports whether the scheduler chooses by the client's address, and port.
func (s Scheduler) Hashed() bool { return s == SH || s == Maglev }

// Hash is what the hashed schedulers choose by.
type Hash uint8

// Fields to choose by.
const (
	HashAddress     Hash = iota + 1 // the client's address
	HashAddressPort                 // its address and port
)

// OnBackendDown is what becomes of a flow whose backend is gone.
type OnBackendDown uint8

// What to do with it.
const (
	OnBackendDownReset      OnBackendDown = iota + 1 // tell both ends
	OnBackendDownDrop                                // say nothing, the backend may come back
	OnBackendDownReschedule                          // forget it, the client may begin anew
)

// QUICLayout is where in a QUIC connection ID a server says who it is.
type QUICLayout uint8

// Layouts.
const (
	QUICNone   QUICLayout = iota + 1 // nothing is looked at
	QUICKatran                       // katran's versions 1 to 3
	QUICDPVS                         // DPVS's, with the server's address and port
	QUICLB                           // draft-ietf-quic-load-balancers, in plaintext
)

// ClientAddress is how a backend learns the client's address in Full-NAT.
type ClientAddress uint8

// Ways to tell the client's address.
const (
	ClientAddressNone    ClientAddress = iota + 1
	ClientAddressTOA                   // a TCP option, see Config.TOAKind
	ClientAddressProxyV1               // a PROXY protocol header before the first byte, as text
	ClientAddressProxyV2               // the same, binary
	ClientAddressUOA                   // DPVS's option, for UDP, see UOAForm
)

// UOAForm is how UOA goes along with a client's datagram.
type UOAForm uint8

// Forms of UOA.
const (
	UOASeparate UOAForm = iota + 1 // in an empty datagram just ahead, of IP protocol 248
	UOAProtocol                    // in the datagram, by IP protocol 248
	UOAOption                      // in the datagram, by an IPv4 option
)

// TOANoRoom is what becomes of a client's packet that should bear TOA and has no
// room for it.
type TOANoRoom uint8

// What to do with it.
const (
	TOANoRoomSend TOANoRoom = iota + 1 // send it without
	TOANoRoomDrop                      // send nothing that does not say who the client is
)

// Timestamps is what becomes of the TCP timestamps option.
type Timestamps uint8

// What to do with it.
const (
	TimestampsStrip     Timestamps = iota + 1 // erase it from SYNs, so that nobody uses it
	TimestampsKeep                            // leave it alone
	TimestampsTranslate                       // move every client's onto one clock
)

// NoFlow is what becomes of a TCP segment that belongs to no flow and opens none.
type NoFlow uint8

// What to do with it.
const (
	NoFlowDrop  NoFlow = iota + 1 // say nothing: a peer l4fwd that knows the flow may be about to take over
	NoFlowReset                   // tell its sender at once
)

// TCPChecks is how much is dropped for its TCP sequence number.
type TCPChecks uint8

// The levels.
const (
	TCPChecksStrict TCPChecks = iota + 1 // what lies outside an open connection's window
	TCPChecksNormal                      // RSTs that do
	TCPChecksOff                         // nothing
)

// XDPMode is where the XDP program is attached.
type XDPMode uint8

// XDP modes.
const (
	XDPAuto    XDPMode = iota + 1 // native, else generic
	XDPNative                     // in the driver
	XDPGeneric                    // in the kernel's receive path
)

// ZeroCopy is how AF_XDP sockets are bound.
type ZeroCopy uint8

// Zero-copy choices.
const (
	ZeroCopyAuto ZeroCopy = iota + 1 // if all NICs can
	ZeroCopyOn                       // or fail
	ZeroCopyOff
)

// PollMode is what a worker does when it finds nothing to do.
type PollMode uint8

// Poll modes.
const (
	PollBusy     PollMode = iota + 1 // spin always
	PollAdaptive                     // spin, then sleep in poll(2)
)

// LogLevel is the least severe level that is logged.
type LogLevel uint8

// Log levels.
const (
	LogDebug LogLevel = iota + 1
	LogInfo
	LogWarn
	LogError
)

// LogFormat is how log lines are written.
type LogFormat uint8

// Log formats.
const (
	LogConsole LogFormat = iota + 1
	LogJSON
)

// names lists the values of an enum as the configuration writes them; the
// first stands for 1. Zero is no value, so that a field nobody set shows.
type names []string

var (
	protocolNames      = names{"tcp", "udp"}
	modeNames          = names{"full-nat", "dnat", "dsr-l2", "tunnel", "snat"}
	encapsulationNames = names{"none", "ipip", "gre", "gue", "fou", "vxlan"}
	repliesNames       = names{"here", "elsewhere"}
	schedulerNames     = names{"rr", "wrr", "lc", "wlc", "sh", "maglev", "p2c"}
	hashNames          = names{"address", "address-port"}
	onBackendDownNames = names{"reset", "drop", "reschedule"}
	quicLayoutNames    = names{"none", "katran", "dpvs", "quic-lb"}
	clientAddressNames = names{"none", "toa", "proxy-v1", "proxy-v2", "uoa"}
	uoaFormNames       = names{"separate", "protocol", "option"}
	toaNoRoomNames     = names{"send-without", "drop"}
	timestampsNames    = names{"strip", "keep", "translate"}
	noFlowNames        = names{"drop", "reset"}
	tcpChecksNames     = names{"strict", "normal", "off"}
	xdpModeNames       = names{"auto", "native", "generic"}
	zeroCopyNames      = names{"auto", "on", "off"}
	pollModeNames      = names{"busy", "adaptive"}
	logLevelNames      = names{"debug", "info", "warn", "error"}
	logFormatNames     = names{"console", "json"}
)

func (n names) name(v uint8) string {
	if v == 0 || int(v) > len(n) {
		return fmt.Sprintf("invalid(%d)", v)
	}
	return n[v-1]
}

// want says what is expected.
func (n names) want() string { return "one of " + strings.Join(n, ", ") }

func parseEnum[E ~uint8](n names, s string) (E, error) {
	for i, name := range n {
		if s == name {
			return E(i + 1), nil
		}
	}
	return 0, expected(n.want(), s, didYouMean(s, n))
}

// String returns the name used in the configuration.
func (p Protocol) String() string { return protocolNames.name(uint8(p)) }

// Direct reports whether backends answer clients past l4fwd.
func (m Mode) Direct() bool { return m == DSRL2 || m == Tunnel }

// String returns the name used in the configuration.
func (r Replies) String() string { return repliesNames.name(uint8(r)) }

// String returns the name used in the configuration.
func (m Mode) String() string { return modeNames.name(uint8(m)) }

// String returns the name used in the configuration.
func (s Scheduler) String() string { return schedulerNames.name(uint8(s)) }

// String returns the name used in the configuration.
func (h Hash) String() string { return hashNames.name(uint8(h)) }

// String returns the name used in the configuration.
func (o OnBackendDown) String() string { return onBackendDownNames.name(uint8(o)) }

// String returns the name used in the configuration.
func (q QUICLayout) String() string { return quicLayoutNames.name(uint8(q)) }

// String returns the name used in the configuration.
func (c ClientAddress) String() string { return clientAddressNames.name(uint8(c)) }

// String returns the name used in the configuration.
func (f UOAForm) String() string { return uoaFormNames.name(uint8(f)) }

// String returns the name used in the configuration.
func (n TOANoRoom) String() string { return toaNoRoomNames.name(uint8(n)) }

// String returns the name used in the configuration.
func (t Timestamps) String() string { return timestampsNames.name(uint8(t)) }

// String returns the name used in the configuration.
func (n NoFlow) String() string { return noFlowNames.name(uint8(n)) }

// String returns the name used in the configuration.
func (c TCPChecks) String() string { return tcpChecksNames.name(uint8(c)) }

// String returns the name used in the configuration.
func (x XDPMode) String() string { return xdpModeNames.name(uint8(x)) }

// String returns the name used in the configuration.
func (z ZeroCopy) String() string { return zeroCopyNames.name(uint8(z)) }

// String returns the name used in the configuration.
func (p PollMode) String() string { return pollModeNames.name(uint8(p)) }

// String returns the name used in the configuration.
func (l LogLevel) String() string { return logLevelNames.name(uint8(l)) }

// String returns the name used in the configuration.
func (l LogFormat) String() string { return logFormatNames.name(uint8(l)) }
