package metrics

import (
	"time"

	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
	"github.com/l4fwd/l4fwd/dataplane/steer"
)

// Sample is what a page is made of. Whoever gives it away does not touch it any more.
type Sample struct {
	Workers  []Worker
	Services []Service // those of the configuration
	NICs     []NIC
	Started  time.Time // the daemon
	Loaded   time.Time // the configuration in force
	// Reloads since the start, and those that were refused; the last one may have been.
	Reloads, ReloadsRefused uint64
	LastRefused             bool
	WrongTokens             WrongTokens
	// Flows that have ended and were to be logged; those of Counts.FlowLogLost are none of
	// either.
	ConnectionsLogged, ConnectionsLost uint64
	Discovery                          *Discovery // nil without
}

// Discovery is how services are found beside the configuration file.
type Discovery struct {
	Connected bool
	Current   bool // what was heard last is in force, but for Refused
	Refused   int  // documents
}

// WrongTokens is how many have come, by what for.
type WrongTokens struct{ Web, Admin uint64 }

// Worker is what one worker has counted. The lists are by the data plane's ids.
type Worker struct {
	Counts           dataplane.Counts
	Room             dataplane.Room
	FreeFrames       int
	FragmentsWaiting int
	Stages           [dataplane.NumStages]time.Duration // of rounds with packets, by samples
	Backends         []dataplane.BackendCount
	Services         []dataplane.ServiceCount
	Signs            []dataplane.Signs      // of backends
	Handshakes       []dataplane.Handshakes // of services that have none, zero
	// What lists forget when services and backends go, so that totals never fall.
	Former        dataplane.BackendCount // not in Backends any more
	AllHandshakes dataplane.Handshakes   // those in Handshakes, too
}

// Service is one service by the names of the configuration.
type Service struct {
	Name       string
	ID         int  // in the data plane
	QUIC       bool // it routes by connection ID
	Handshakes bool // they come by
	Answers    bool // of its backends come by
	Backends   []Backend
}

// Backend is one real server of a service.
type Backend struct {
	Name   string // address:port
	ID     int    // in the data plane
	Weight uint32
	State  State
	Checks *Checks // nil where nobody checks
	// Judged is whether anything may find it down, Suspect whether clients' connections
	// speak against it, Panic whether it is down and gets new flows all the same.
	Judged, Suspect, Panic bool
}

// Checks is what health checks of a backend have come to.
type Checks struct {
	Passed, Failed uint64
	Took           time.Duration // the last one
}

// State is what a backend is there for.
type State uint8

// The states.
const (
	Up       State = iota // gets new flows
	Standby               // gets none while others are up
	Draining              // gets none, by its weight or an operator's word
	Down                  // its health checks fail
	numStates
)

var stateNames = [numStates]string{"up", "standby", "draining", "down"}

// String is the state as a label.
func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return "invalid"
}

// NIC is one data-plane NIC. Out of service it has no queues, and its counts are zero.
type NIC struct {
	Name   string
	Up     bool
	XDP    steer.Stats
	Queues []afxdp.Stats
}
