package admin

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// ServiceInfo is a service as it is now.
type ServiceInfo struct {
	Name      string         `json:"name"`
	Address   netip.AddrPort `json:"address"`
	Protocol  string         `json:"protocol"`
	Mode      string         `json:"mode"`
	Scheduler string         `json:"scheduler,omitempty"`
	Backends  int            `json:"backends"` // of the configuration
	Taking    int            `json:"taking"`   // of these, that take new flows
	Flows     uint64         `json:"flows"`    // opened
	Active    int64          `json:"active"`   // open now
	// Panic is whether backends that are down take new flows, for too few are live; see
	// config.HealthCheck.PanicThreshold.
	Panic bool `json:"panic,omitempty"`
	// Until is when the flows of a service that a reload has removed are ended.
	Until *time.Time `json:"until,omitempty"`
}

// BackendState is why a backend takes new flows, or none.
type BackendState string

// The states.
const (
	BackendUp       BackendState = "up"
	BackendDown     BackendState = "down"     // say health checks
	BackendStandby  BackendState = "standby"  // a backup that is not needed
	BackendDrained  BackendState = "drained"  // weight 0: those it has go on
	BackendDisabled BackendState = "disabled" // by command: those it had have been ended
	BackendLeaving  BackendState = "leaving"  // a reload has removed it: those it has go on
	BackendGone     BackendState = "gone"     // the same, and they are ended
)

// BackendInfo is a backend of a service as it is now.
type BackendInfo struct {
	Service    string         `json:"service"`
	Address    netip.AddrPort `json:"address"`
	State      BackendState   `json:"state"`
	Weight     uint32         `json:"weight"`          // in force
	Configured uint32         `json:"configured"`      // weight
	Panic      bool           `json:"panic,omitempty"` // down, and takes new flows; as ServiceInfo has it
	// Ordered is what was said at run time, nil if nothing was.
	Ordered *Ordered       `json:"ordered,omitempty"`
	Until   *time.Time     `json:"until,omitempty"` // as ServiceInfo has it
	Health  *BackendHealth `json:"health,omitempty"`
	Flows   uint64         `json:"flows"`  // opened
	Active  int64          `json:"active"` // open now
	// To the backend and from it, as received.
	BytesTo   uint64 `json:"bytes_to"`
	BytesFrom uint64 `json:"bytes_from"`
}

// Suspect reports whether clients' connections speak against a backend that is in use all
// the same.
func (b *BackendInfo) Suspect() bool {
	return b.State == BackendUp && b.Health != nil && b.Health.Suspect != nil
}

// Action is what to do with a backend.
type Action string

// The actions.
const (
	Drain   Action = "drain"   // no new flows, those it has go on
	Enable  Action = "enable"  // as the configuration says again
	Disable Action = "disable" // no new flows, and those it has are ended
	Weigh   Action = "weight"  // another weight than configured
)

// Order tells the daemon how to treat a backend from now on, over reloads, until another
// order for it comes.
type Order struct {
	Action Action `json:"action"`
	// Backend is ADDRESS:PORT, of all services that have it, or SERVICE/ADDRESS:PORT.
	Backend string `json:"backend"`
	Weight  uint32 `json:"weight,omitempty"` // 0 to 65535, for Weigh
}

// Ordered is an order in force.
type Ordered struct {
	Action Action    `json:"action"`
	Weight uint32    `json:"weight,omitempty"`
	Since  time.Time `json:"since"`
}

// Services lists the services, and those that leave.
func (c *Client) Services(ctx context.Context) ([]ServiceInfo, error) {
	return call[[]ServiceInfo](ctx, c, http.MethodGet, "/v1/services", nil)
}

// Backends lists the backends of a service, "" of all.
func (c *Client) Backends(ctx context.Context, service string) ([]BackendInfo, error) {
	return call[[]BackendInfo](ctx, c, http.MethodGet, "/v1/backends?service="+url.QueryEscape(service), nil)
}

// Order gives an order, and returns the backends that it is for as they are then.
func (c *Client) Order(ctx context.Context, o Order) ([]BackendInfo, error) {
	return call[[]BackendInfo](ctx, c, http.MethodPost, "/v1/order", o)
}
