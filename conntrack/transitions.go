package conntrack

// event is what a segment means to the state machine, after its sequence
// numbers were found to fit.
type event uint8

const (
	evSYN    event = iota // the client's SYN that begins the connection, the first time or again
	evNewSYN              // a SYN of the client that begins another connection
	evSYNACK              // SYN-ACK that fits the SYN
	evACK                 // any other segment with ACK
	evFIN                 // segment with FIN
	evDone                // segment after which both FINs are acknowledged
	evRST                 // RST of exactly the sequence number expected next
	numEvents
)

// oneWay is the third view in transitions, after the two directions: the
// client's segments where the server's take another way.
const oneWay = 2

// reopen in place of a state: the segment begins a new connection.
const reopen State = 0xff

// transitions is the state machine: the state after an event in a view. States
// that a view never comes to stay as they are.
//
// A SYN moves nothing before the connection is over: where it is a surprise
// the server answers it with a challenge ACK, the client answers that with a
// RST, which is exact, and its next SYN reopens. One-way, where the challenge
// is not seen, the SYN's connection is remembered beside the one there is, see
// trackOneWay; the state is that of the livelier one.
var transitions = [3][numEvents][NumStates]State{
	Forward: {
		// after:  None, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket
		evSYN:    {SynSent, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, reopen, reopen, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evNewSYN: {SynSent, reopen, SynRecv, Established, FinWait, CloseWait, LastAck, reopen, reopen, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evSYNACK: {None, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evACK:    {None, SynSent, Established, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evFIN:    {None, SynSent, FinWait, FinWait, FinWait, LastAck, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evDone:   {None, SynSent, SynRecv, Established, FinWait, CloseWait, TimeWait, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evRST:    {Closed, Closed, Closed, Closed, Closed, Closed, Closed, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
	},
	Reply: {
		evSYN:    {None, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evNewSYN: {None, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evSYNACK: {None, SynRecv, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evACK:    {None, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evFIN:    {None, SynSent, CloseWait, CloseWait, LastAck, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evDone:   {None, SynSent, SynRecv, Established, FinWait, CloseWait, TimeWait, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evRST:    {Closed, Closed, Closed, Closed, Closed, Closed, Closed, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
	},
	oneWay: {
		evSYN:    {SynSent, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evNewSYN: {SynSent, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, reopen, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evSYNACK: {None, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evACK:    {None, Established, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evFIN:    {None, FinWait, SynRecv, FinWait, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evDone:   {None, SynSent, SynRecv, Established, FinWait, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
		evRST:    {None, Closed, SynRecv, Closed, Closed, CloseWait, LastAck, TimeWait, Closed, UDPOneWay, UDPTwoWay, UDPOnePacket},
	},
}
