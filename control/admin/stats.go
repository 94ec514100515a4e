package admin

import (
	"net/netip"
	"time"

	"github.com/l4fwd/l4fwd/control/health"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
)

// Stats is what the forwarder has done since it started, for people and
// programs.
type Stats struct {
	Flows            int               `json:"flows"`             // in the table now
	Opened           uint64            `json:"opened"`            // flows
	Expired          uint64            `json:"expired"`           // flows that idled out
	Evicted          uint64            `json:"evicted"`           // half-open flows that made room
	TemplatesEvicted uint64            `json:"templates_evicted"` // templates of persistence that made room
	Refusals         uint64            `json:"refusals"`          // ICMP errors and RSTs of our own
	Split            uint64            `json:"split"`             // packets that left in fragments of our making
	Verdicts         map[string]uint64 `json:"verdicts"`          // packets by outcome, drops by reason; zero ones left out
	Dropped          uint64            `json:"dropped"`           // all drops together
	Services         []ServiceStats    `json:"services"`
	Workers          []WorkerStats     `json:"workers"`
	Links            []LinkStats       `json:"interfaces"`
	TOA              map[string]uint64 `json:"toa"` // packets of new flows by what came of the option
	UOA              map[string]uint64 `json:"uoa"` // first datagrams of flows, the same
	// ConnectionLog is nil where no service has had one since the start.
	ConnectionLog *ConnectionLogStats `json:"connection_log,omitempty"`
}

// ConnectionLogStats counts flows that have ended and were to be logged.
type ConnectionLogStats struct {
	Written uint64 `json:"written"`
	Lost    uint64 `json:"lost"` // there was no room, or no way to write them
}

// ServiceStats counts by service.
type ServiceStats struct {
	Name string `json:"name"`
	// PortsExhausted are packets that would have opened a flow, had there been a
	// local port free towards its backend.
	PortsExhausted uint64         `json:"ports_exhausted"`
	QUIC           *QUICStats     `json:"quic,omitempty"` // of services that route by connection ID
	Backends       []BackendStats `json:"backends"`
}

// QUICStats counts by what connection IDs say. The first three add up to the datagrams
// that were to open a flow.
type QUICStats struct {
	Routed  uint64 `json:"routed"`  // a backend
	Unknown uint64 `json:"unknown"` // what no backend is called
	None    uint64 `json:"none"`    // nothing: a new connection's first, or none of the layout
	Moved   uint64 `json:"moved"`   // datagrams of a flow to another backend, which ended it
}

// BackendStats counts one real server.
type BackendStats struct {
	Address netip.AddrPort `json:"address"`
	Flows   uint64         `json:"flows"`  // opened
	Active  int64          `json:"active"` // open now
	// Health is what checks have found, nil where nobody checks.
	Health *BackendHealth `json:"health,omitempty"`
	// By direction, as received: to the backend, from the backend. Bytes are of
	// IP packets.
	PacketsTo   uint64 `json:"packets_to"`
	PacketsFrom uint64 `json:"packets_from"`
	BytesTo     uint64 `json:"bytes_to"`
	BytesFrom   uint64 `json:"bytes_from"`
}

// BackendHealth is what checks, and clients' connections, have found of one real server.
type BackendHealth struct {
	State   health.State `json:"state"`   // unknown, up or down
	Since   time.Time    `json:"since"`   // when it came into the state
	Reason  string       `json:"reason"`  // what the last check found; "" before the first
	Percent int          `json:"percent"` // of its weight that it has come to
	Took    float64      `json:"took"`    // by the last check, seconds
	Checks  uint64       `json:"checks"`  // that have ended
	Failed  uint64       `json:"failed"`  // of these
	// Unchecked is why this host could not make the latest check; "" if it could.
	Unchecked string `json:"unchecked,omitempty"`
	// Suspect is why it is, for what clients' connections meet with; nil if it is not.
	Suspect *health.Suspicion `json:"suspect,omitempty"`
}

// WorkerStats counts one worker.
type WorkerStats struct {
	Received   uint64 `json:"received"`
	Sent       uint64 `json:"sent"`
	HandedOver uint64 `json:"handed_over"`
	Adopted    uint64 `json:"adopted"`
	Flows      int    `json:"flows"`
	FreeFrames int    `json:"free_frames"`
	Waiting    int    `json:"fragments_waiting"`
	// Looks at all rings, those that found packets, and how long these lasted: of a
	// worker's time the part that is in use, since one that polls always takes its core.
	Rounds      uint64  `json:"rounds"`
	BusyRounds  uint64  `json:"busy_rounds"`
	BusySeconds float64 `json:"busy_seconds"`
}

// LinkStats counts one NIC, since it came into service for the last time.
type LinkStats struct {
	Name   string            `json:"name"`
	Up     bool              `json:"up"`
	XDP    map[string]uint64 `json:"xdp"`    // what the program decided
	Queues []afxdp.Stats     `json:"queues"` // rings and XDP_STATISTICS
}
