package admin

import (
	"context"
	"net/http"
	"net/netip"

	"github.com/l4fwd/l4fwd/control/why"
)

// WhyPath is where it is asked by POST what would become of packets.
const WhyPath = "/v1/why"

// MaxWhy bounds the packets of one request.
const MaxWhy = 64

// WhyRequest asks what would become of a packet, or of each of some frames.
type WhyRequest struct {
	Packet *WhyPacket `json:"packet,omitempty"`
	Frames [][]byte   `json:"frames,omitempty"` // Ethernet and all, as a NIC receives them; MaxWhy at most
	// Interface is the name of the one they come by, "" for that by which the way to
	// the packet's source leads.
	Interface string `json:"interface,omitempty"`
}

// WhyPacket is a packet as people say it.
type WhyPacket struct {
	Protocol    string         `json:"protocol"` // tcp or udp
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	Flags       string         `json:"flags,omitempty"` // of TCP, with commas; "" is syn
	Seq         uint32         `json:"seq,omitempty"`
	Ack         uint32         `json:"ack,omitempty"`
	Payload     int            `json:"payload,omitempty"` // bytes
	TTL         uint8          `json:"ttl,omitempty"`     // 0 is 64
}

// Why is what would become of one packet.
type Why struct {
	Packet    string `json:"packet"`              // in words
	Interface string `json:"interface,omitempty"` // it comes by
	XDP       WhyXDP `json:"xdp"`
	// Verdict is as in the statistics; "" where the packet is the kernel's, or waits.
	Verdict string `json:"verdict,omitempty"`
	Dropped bool   `json:"dropped"`
	// Means, Cause and Do are what drops.md says of why it is dropped.
	Means string `json:"means,omitempty"`
	Cause string `json:"cause,omitempty"`
	Do    string `json:"do,omitempty"`

	Service string     `json:"service,omitempty"`
	Worker  *int       `json:"worker,omitempty"` // who decides
	Flow    *Flow      `json:"flow,omitempty"`   // the packet's, as it is
	Reply   bool       `json:"reply,omitempty"`  // it is the server's of that flow
	Opens   *Flow      `json:"opens,omitempty"`  // a flow that it opens
	Choice  *WhyChoice `json:"choice,omitempty"` // of a backend
	Sent    []WhySent  `json:"sent"`
	Hop     *WhyHop    `json:"next_hop,omitempty"`
	// Unanswered says why nothing is known, "" almost always. One packet of a capture that
	// no NIC of l4fwd's could receive does not keep the others from their answers.
	Unanswered string `json:"unanswered,omitempty"`
	// Notes are what else is to be known, and what the answer does not know.
	Notes []string `json:"notes,omitempty"`
}

// WhyXDP is what the XDP program does with it.
type WhyXDP struct {
	Taken   bool   `json:"taken"`   // else it is the kernel's
	Outcome string `json:"outcome"` // as in the statistics
	Rule    string `json:"rule"`    // by which, in words
}

// WhyChoice is how the backend of a new flow is chosen.
type WhyChoice struct {
	Backend netip.AddrPort `json:"backend"`
	Reason  string         `json:"reason"`
	// Fixed is whether another packet just before would not change the choice.
	Fixed    bool         `json:"fixed"`
	Backends []WhyBackend `json:"backends"`
}

// WhyBackend is one that may be chosen, or why it may not.
type WhyBackend struct {
	Address netip.AddrPort `json:"address"`
	State   BackendState   `json:"state"`
	Reason  string         `json:"reason,omitempty"` // of health checks, or who has ordered it
	Weight  uint32         `json:"weight"`
	Share   float64        `json:"share"` // of new flows, 0 to 1, by weight
	Active  int64          `json:"active"`
	Max     uint32         `json:"max_connections,omitempty"`
}

// WhySent is a frame that is sent.
type WhySent struct {
	Interface string       `json:"interface"`
	Packet    string       `json:"packet"`        // in words
	Own       bool         `json:"own,omitempty"` // an answer, not the packet itself
	Changes   []why.Change `json:"changes,omitempty"`
	To        string       `json:"to"` // MAC address
	Frame     []byte       `json:"frame"`
}

// WhyHop is where the packet goes, or would.
type WhyHop struct {
	To        netip.Addr  `json:"to"`    // whom the way leads to
	State     string      `json:"state"` // resolved, or why it is no way
	Interface string      `json:"interface,omitempty"`
	Gateway   *netip.Addr `json:"gateway,omitempty"` // nil where it is a neighbour
	MTU       int         `json:"mtu,omitempty"`
}

// Why asks what would become of packets; nothing does.
func (c *Client) Why(ctx context.Context, q WhyRequest) ([]Why, error) {
	return call[[]Why](ctx, c, http.MethodPost, WhyPath, q)
}
