package conntrack

import (
	"unsafe"

	"github.com/l4fwd/l4fwd/packet"
)

// Dir is the direction a packet travels within its flow.
type Dir uint8

// Directions index the two-element arrays of Entry.
const (
	Forward Dir = 0 // client to VIP, on to the real server
	Reply   Dir = 1 // real server back to the client
)

// Mode is how the flow is rewritten; conntrack needs it only to know which
// tuple the reply direction has.
type Mode uint8

// Modes of forwarding.
const (
	FullNAT      Mode = iota // reply: backend → local address, local port
	DNAT                     // reply: backend → client
	DirectReturn             // the reply never passes here; only the forward tuple is linked
	DNATOneWay               // DNAT, but the reply is somebody else's to rewrite; else as DirectReturn
)

// OneWay reports whether only the client's packets of a flow come by.
func (m Mode) OneWay() bool { return m >= DirectReturn }

// Ref names an entry of one table. 0 is never a flow.
type Ref uint32

// Entry is one flow, two cache lines, the half every packet reads first. It
// holds no pointer: the table lives off-heap and may be mapped by a successor
// process. Whoever owns the table owns every entry; nobody else reads one,
// save for tools that accept torn values.
//
// The field order is the layout, see TestEntryLayout.
type Entry struct {
	Client     packet.Addr
	ClientPort uint16
	LocalPort  uint16 // Full-NAT source port; 0 in DNAT
	Service    uint32 // id in Directory.Services
	Backend    uint32 // id in Directory.Backends
	Local      uint16 // id in Directory.Locals; Full-NAT only
	Proto      uint8
	Mode       Mode
	SeqDelta   uint32 // added to client sequence numbers, subtracted from the server's acknowledgements
	State      State
	Flags      Flags
	AddrSum    uint16 // RFC 1624 difference of the addresses, forward; see nat.Prepare
	PortSum    uint16 // the same for addresses and ports together
	HopID      uint16 // next hop towards the client, valid while HopGen is the routes' generation
	HopGen     uint32
	Expires    uint32 // tick at which the flow is idle for too long
	wheelNext  uint32
	wheelPrev  uint32
	ServerNext uint32 // the server's ISN+1 as the client must acknowledge it; see HasServerISN and trackOnePacket

	fwdHash, revHash uint32
	Win              [2]Window
	WScale           [2]uint8 // window shift each side announced, packet.NoScale until then or without
	wheelSlot        uint16   // timer wheel slot the entry is linked in, plus one; 0 not linked
	Created          uint32   // tick
	Packets          [2]uint32
	Bytes            [2]uint64 // IP bytes as received; of the reply see ReplyBytes
}

// Hash is that of the client's tuple, keyed: for choices that nobody outside is to
// foresee, and that stay the flow's.
func (e *Entry) Hash() uint32 { return e.fwdHash }

// Window is what one side has sent and been allowed, in the sequence space of
// the side that sent it as l4fwd received it (before translation).
type Window struct {
	End    uint32 // highest sequence number sent, plus one
	Acked  uint32 // highest acknowledgement of it; its ISN+1 until there is one
	MaxWin uint32 // largest window this side has announced, scaled
}

// Flags of an Entry.
type Flags uint8

// Flag bits.
const (
	HasServerISN   Flags = 1 << iota // SYN-ACK seen, ServerNext is valid; see noteSYNACK for ServerAcked alone
	ServerAcked                      // the client acknowledged server data: TOA is no longer sent
	HalfOpen                         // counted in the half-open budget
	WindowScaled                     // both SYN and SYN-ACK carried the window scale option
	V6Client                         // the client side is IPv6
	V6Server                         // the server side is IPv6
	clientFinAcked                   // the server acknowledged the client's FIN
	serverFinAcked                   // the client acknowledged the server's FIN
)

// replyOnly, of a UDP flow, which needs none of TCP's flags: its client's tuple
// leads to a later flow, see UDPOnePacket.
const replyOnly = clientFinAcked

// resetByServer, in the state Closed, where no FIN counts any more.
const resetByServer = serverFinAcked

// ResetBy is whose RST has closed e: Reply is the server's. Only of one in the state
// Closed.
func (e *Entry) ResetBy() Dir {
	if e.Flags&resetByServer != 0 {
		return Reply
	}
	return Forward
}

var _ [128 - unsafe.Sizeof(Entry{})]byte
var _ [unsafe.Sizeof(Entry{}) - 128]byte

// Endpoint is an address, port (host order) and protocol behind an id.
type Endpoint struct {
	Addr  packet.Addr
	Port  uint16
	Proto uint8
}

// Directory resolves the ids an Entry holds. It is immutable; a new one may
// only add ids or give meaning to ids no live flow holds.
type Directory struct {
	Services []Endpoint    // VIP, port, protocol by service id
	Backends []Endpoint    // real server, port, protocol by backend id
	Locals   []packet.Addr // by local address id
}
