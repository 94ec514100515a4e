package config

import (
	"fmt"
	"iter"
	"net/netip"
	"os"
	"time"
)

// Config is the whole configuration with all defaults filled in. Nobody
// writes to it after Parse. The yaml tags name the keys.
type Config struct {
	// ManagementInterface is left to the kernel. Default: none.
	ManagementInterface string `yaml:"management_interface"`
	// Interfaces are the data-plane NICs, at least one and at most MaxInterfaces.
	Interfaces []Interface `yaml:"interfaces"`
	// LocalAddresses are the Full-NAT sources in the order of the file.
	LocalAddresses []LocalRange `yaml:"local_addresses"`
	// LocalPorts are the Full-NAT source ports of a local address that has none
	// of its own. Default: 1024-65535.
	LocalPorts PortRange `yaml:"local_port_range"`
	// Services in the order of the file, at least one unless Discovery finds some; behind
	// them those that With has added.
	Services []Service `yaml:"services"`
	// Discovery is where services are found beside the file.
	Discovery Discovery `yaml:"discovery"`

	// Workers is the number of workers. Default: 0, left to the daemon; len(CPUs)
	// where CPUs are given.
	Workers int `yaml:"workers"`
	// CPUs holds the CPU of each worker. Default: none, left to the daemon.
	CPUs []int `yaml:"cpus"`
	// PollMode is what a worker does when idle. Default: adaptive.
	PollMode PollMode `yaml:"poll_mode"`
	// BusyPoll asks for SO_PREFER_BUSY_POLL. Default: false.
	BusyPoll bool `yaml:"busy_poll"`
	// XDPMode is where the XDP program is attached. Default: auto.
	XDPMode XDPMode `yaml:"xdp_mode"`
	// ZeroCopy is whether AF_XDP sockets are bound for zero copy. Default: auto.
	ZeroCopy ZeroCopy `yaml:"zero_copy"`
	// FrameSize is the UMEM chunk size in bytes, 2048 (default) or 4096.
	FrameSize int `yaml:"frame_size"`
	// FramesPerQueue is how many UMEM frames each queue of each NIC adds. Default:
	// 8192.
	FramesPerQueue int `yaml:"frames_per_queue"`
	// RingSize is the number of descriptors of each ring, a power of two. Default:
	// 2048.
	RingSize int `yaml:"ring_size"`
	// MaxFlows is how many flows fit, all workers together. Default: 1048576.
	MaxFlows int `yaml:"max_flows"`

	// DecrementTTL makes l4fwd a hop like a router. Default: true.
	DecrementTTL bool `yaml:"decrement_ttl"`
	// TOAKind is the TCP option kind of TOA. Default: 254.
	TOAKind uint8 `yaml:"toa_kind"`
	// TCPChecks is how much is dropped for its sequence number. Default: normal.
	TCPChecks TCPChecks `yaml:"tcp_checks"`
	// Timeouts are how long a flow may be idle in each state.
	Timeouts Timeouts `yaml:"timeouts"`

	// DrainTimeout is how long backends and services that a reload removes keep their
	// flows; 0, or 100 ms to 30 days. Default: 5 minutes.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// AdminSocket is the path of the unix socket for commands, "" for none. Default:
	// /run/l4fwd/admin.sock.
	AdminSocket string `yaml:"admin_socket"`
	// MetricsListen is where metrics are served by HTTP, the zero value for nowhere,
	// which is the default: a port that anybody on the host can read is for the operator
	// to open.
	MetricsListen netip.AddrPort `yaml:"metrics_listen"`
	// WebListen is where the status page is served by HTTP, by default nowhere for the
	// same reason.
	WebListen netip.AddrPort `yaml:"web_listen"`
	// WebTokenFile is the path of the file with the token that lets the page's buttons
	// work, "" for a page that changes nothing, which is the default.
	WebTokenFile string `yaml:"web_token_file"`
	// WebHosts are names, in lower case, under which browsers find page and metrics beside
	// those that nobody else can give to this host. Default: none.
	WebHosts []string `yaml:"web_hosts"`
	// AdminListen is where commands are taken by HTTPS, by default nowhere. It needs the
	// three files below, PEM but for the token.
	AdminListen    netip.AddrPort `yaml:"admin_listen"`
	AdminTLSCert   string         `yaml:"admin_tls_cert"`
	AdminTLSKey    string         `yaml:"admin_tls_key"`
	AdminTokenFile string         `yaml:"admin_token_file"`

	// LogLevel is the least severe level that is logged. Default: info.
	LogLevel LogLevel `yaml:"log_level"`
	// LogFormat is how log lines are written. Default: console.
	LogFormat LogFormat `yaml:"log_format"`

	// ConnectionLogFile is where the ends of connections are written. Default:
	// /var/log/l4fwd/connections.log.
	ConnectionLogFile string `yaml:"connection_log_file"`
	// ConnectionLogSize is the MiB at which the file is set aside, 0 for never. Default:
	// 100.
	ConnectionLogSize int `yaml:"connection_log_size"`
	// ConnectionLogKeep is how many files set aside there are at most. Default: 4.
	ConnectionLogKeep int `yaml:"connection_log_keep"`

	file string
	at   map[string]position
	part *part // of a Sum; nil: it has all services
}

// Interface is one data-plane NIC.
type Interface struct {
	// Name as the kernel has it, 1 to 15 bytes.
	Name string `yaml:"name"`
	// VLANs are those of the NIC that the kernel's own VLAN interfaces do not tell of.
	// Default: none.
	VLANs []VLAN `yaml:"vlans"`
}

// VLAN is an interface of the kernel, of whatever kind, that stands for a VLAN of a
// data-plane NIC: what is routed by it leaves by the NIC, with the VLAN's tag.
type VLAN struct {
	// ID is that of IEEE 802.1Q, 1 to 4094, unique within the NIC.
	ID int `yaml:"id"`
	// Interface as the kernel has it; unique.
	Interface string `yaml:"interface"`
}

// LocalRange is one entry of local_addresses: the addresses First to Last of
// one family, First alone where they are equal.
type LocalRange struct {
	First, Last netip.Addr
	// Ports to use as source, local_port_range if the entry gives none.
	Ports PortRange
	// OwnPorts says that the entry gives its ports, as it must for an address
	// that the host has too.
	OwnPorts bool
}

// PortRange is the ports First to Last, both included, in host order.
type PortRange struct{ First, Last uint16 }

// Service is one VIP, port and protocol, and what becomes of its flows.
type Service struct {
	// Name is unique among the services.
	Name string `yaml:"name"`
	// Address is the VIP and port; unique together with Protocol.
	Address netip.AddrPort `yaml:"address"`
	// Protocol of the service and of its backends.
	Protocol Protocol `yaml:"protocol"`
	// Mode of forwarding.
	Mode Mode `yaml:"mode"`
	// Replies is where the backends' answers go. Default: here.
	Replies Replies `yaml:"replies"`
	// Scheduler chooses the backend of a new flow. Default: wrr.
	Scheduler Scheduler `yaml:"scheduler"`
	// Hash is what a hashed scheduler chooses by. Default: the address for sh, else
	// address and port.
	Hash Hash `yaml:"hash"`
	// HashTableSize is the number of slots of a hashed scheduler's table, a prime. 0 is
	// chosen by the number of backends. Default: 0.
	HashTableSize int `yaml:"hash_table_size"`
	// ClientAddress is how a backend learns the client's address. Default: none.
	ClientAddress ClientAddress `yaml:"client_address"`
	// UOAForm is how UOA goes along with datagrams. Default: separate.
	UOAForm UOAForm `yaml:"uoa_form"`
	// UOADatagrams is with how many of a flow's first datagrams. Default: 3, as in
	// DPVS.
	UOADatagrams int `yaml:"uoa_datagrams"`
	// TOANoRoom is what becomes of a packet that has no room for TOA. Default:
	// send-without.
	TOANoRoom TOANoRoom `yaml:"toa_no_room"`
	// Timestamps is what becomes of the TCP timestamps option. Default: strip for
	// TCP in full-nat, else keep.
	Timestamps Timestamps `yaml:"timestamps"`
	// MSSClamp is the most that SYN and SYN-ACK may announce. Default: off.
	MSSClamp MSSClamp `yaml:"mss_clamp"`
	// Encapsulation is what packets to backends travel in, with Tunnel. Default: none.
	Encapsulation Encapsulation `yaml:"encapsulation"`
	// EncapsulationPort is the UDP port of the backends' tunnels. Default: the usual
	// one, if Encapsulation has one.
	EncapsulationPort uint16 `yaml:"encapsulation_port"`
	// EncapsulationSource is where tunnels' packets come from: an address, or a
	// network of which each flow has an address. Default: none, which stands for the
	// address of the interface by which they leave.
	EncapsulationSource netip.Prefix `yaml:"encapsulation_source"`
	// VNI is the VXLAN network identifier. Default: 0.
	VNI uint32 `yaml:"vni"`
	// VXLANMAC is the MAC address of the backends' VXLAN interfaces.
	VXLANMAC MAC `yaml:"vxlan_mac"`
	// OnePacket gives every datagram of a client a backend of its own. Default:
	// false.
	OnePacket bool `yaml:"one_packet"`
	// NoFlow is what becomes of a TCP segment that belongs to no flow and opens
	// none, in Full-NAT also of a backend's. Default: drop.
	NoFlow NoFlow `yaml:"no_flow"`
	// OnBackendDown is what becomes of a flow whose backend the service has no more.
	// Default: reset for TCP, reschedule for UDP.
	OnBackendDown OnBackendDown `yaml:"on_backend_down"`
	// DrainTimeout is Config.DrainTimeout unless the service has its own.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// ConnectionLog is of which flows the end is logged. Default: of none.
	ConnectionLog OneIn `yaml:"connection_log"`
	// Persistence keeps the clients of a prefix with one backend.
	Persistence Persistence `yaml:"persistence"`
	// QUIC routes by connection ID.
	QUIC QUIC `yaml:"quic"`
	// HealthCheck is how backends are checked.
	HealthCheck HealthCheck `yaml:"health_check"`
	// TOAKind is Config.TOAKind unless the service has its own.
	TOAKind uint8 `yaml:"toa_kind"`
	// TCPChecks is Config.TCPChecks unless the service has its own.
	TCPChecks TCPChecks `yaml:"tcp_checks"`
	// Timeouts are Config.Timeouts save for those the service has its own for.
	Timeouts Timeouts `yaml:"timeouts"`
	// Backends, at least one, all of one family.
	Backends []Backend `yaml:"backends"`
}

// Persistence is for how long after their last new flow, and for which clients
// together, the choice of a backend holds.
type Persistence struct {
	// Timeout is 0 for no persistence, else 100 ms to 30 days. Default: 0.
	Timeout time.Duration `yaml:"timeout"`
	// Prefix4 is the length in bits of an IPv4 client's prefix. Default: 32.
	Prefix4 int `yaml:"prefix4"`
	// Prefix6 is the same for IPv6. Default: 64.
	Prefix6 int `yaml:"prefix6"`
}

// QUIC is where QUIC connection IDs say which backend a connection is of.
type QUIC struct {
	// Layout of connection IDs. Default: none.
	Layout QUICLayout `yaml:"layout"`
	// ConfigID is what the first three bits of an ID are, 0 to 6; layout quic-lb only.
	// Default: 0.
	ConfigID int `yaml:"config_id"`
	// IDLength is the bytes of a server id, 1 to 8; layout quic-lb only. Default: 4.
	IDLength int `yaml:"server_id_length"`
	// FormerConfigID is the configuration that IDs may still be of, another one than
	// ConfigID; layout quic-lb only. Default: -1, none.
	FormerConfigID int `yaml:"former_config_id"`
	// FormerIDLength is its IDLength. Default: 4.
	FormerIDLength int `yaml:"former_server_id_length"`
}

// MSSClamp is a bound on the maximum segment size in bytes, or one of the two
// values below.
type MSSClamp uint16

// The values that are no numbers of bytes.
const (
	MSSOff MSSClamp = 0 // no bound
	MSSMTU MSSClamp = 1 // what the MTUs of the next hops leave room for
)

// Backend is one real server of a service.
type Backend struct {
	// Address and port, unique within the service.
	Address netip.AddrPort `yaml:"address"`
	// Weight is the share of new flows, 0 to 65535; 0 takes none. Default: 1.
	Weight uint16 `yaml:"weight"`
	// MaxConnections is the most flows it may have at a time. Default: 0, no limit.
	MaxConnections int `yaml:"max_connections"`
	// ServerID names it in QUIC connection IDs, unique within the service, where the
	// layout is katran or quic-lb. Default: 0, none.
	ServerID uint64 `yaml:"server_id"`
	// Backup is used only when no other backend is live. Default: false.
	Backup bool `yaml:"backup"`
}

// Timeouts are how long a flow may be idle in each of conntrack's states
// before it is forgotten; 100 ms to 30 days.
type Timeouts struct {
	TCPSynSent     time.Duration `yaml:"tcp_syn_sent"`
	TCPSynRecv     time.Duration `yaml:"tcp_syn_recv"`
	TCPEstablished time.Duration `yaml:"tcp_established"`
	TCPFinWait     time.Duration `yaml:"tcp_fin_wait"`
	TCPCloseWait   time.Duration `yaml:"tcp_close_wait"`
	TCPLastAck     time.Duration `yaml:"tcp_last_ack"`
	TCPTimeWait    time.Duration `yaml:"tcp_time_wait"`
	TCPClose       time.Duration `yaml:"tcp_close"`
	UDPOneWay      time.Duration `yaml:"udp_one_way"`
	UDPTwoWay      time.Duration `yaml:"udp_two_way"`
	UDPOnePacket   time.Duration `yaml:"udp_one_packet"`
}

// Defaults returns a Config with every default and nothing that has none: no
// interfaces, no local addresses, no services. It is the one place where
// defaults stand; ShowDefaults prints them.
func Defaults() *Config {
	return &Config{
		LocalPorts:     PortRange{1024, 65535},
		PollMode:       PollAdaptive,
		XDPMode:        XDPAuto,
		ZeroCopy:       ZeroCopyAuto,
		FrameSize:      2048,
		FramesPerQueue: 8192,
		RingSize:       2048,
		MaxFlows:       1 << 20,
		DecrementTTL:   true,
		TOAKind:        254,
		TCPChecks:      TCPChecksNormal,
		Timeouts: Timeouts{
			TCPSynSent:     10 * time.Second,
			TCPSynRecv:     30 * time.Second,
			TCPEstablished: 2*time.Hour + 4*time.Minute, // RFC 5382 REQ-5
			TCPFinWait:     4 * time.Minute,             // RFC 5382 REQ-5, transitory
			TCPCloseWait:   4 * time.Minute,
			TCPLastAck:     30 * time.Second,
			TCPTimeWait:    10 * time.Second,
			TCPClose:       10 * time.Second,
			UDPOneWay:      2 * time.Minute, // RFC 4787 REQ-5, the least
			UDPTwoWay:      5 * time.Minute, // RFC 4787 REQ-5, recommended
			UDPOnePacket:   10 * time.Second,
		},
		DrainTimeout: 5 * time.Minute,
		AdminSocket:  "/run/l4fwd/admin.sock",
		Discovery:    defaultDiscovery(),
		LogLevel:     LogInfo,
		LogFormat:    LogConsole,

		ConnectionLogFile: "/var/log/l4fwd/connections.log",
		ConnectionLogSize: 100,
		ConnectionLogKeep: 4,
	}
}

// defaultService holds the defaults of a service. What is zero here is either
// required or taken from the global keys when all of the file is read.
func defaultService() Service {
	return Service{
		Replies: RepliesHere, Scheduler: WRR, ClientAddress: ClientAddressNone, TOANoRoom: TOANoRoomSend, NoFlow: NoFlowDrop,
		UOAForm: UOASeparate, UOADatagrams: 3,
		Encapsulation: EncapsulationNone,
		VXLANMAC:      MAC{0x02, 'l', '4', 'f', 'w', 'd'}, // locally administered
		Persistence:   Persistence{Prefix4: 32, Prefix6: 64},
		DrainTimeout:  -1, // to be taken from the global one, since 0 is a value
		QUIC:          QUIC{Layout: QUICNone, IDLength: 4, FormerConfigID: -1, FormerIDLength: 4},
		HealthCheck:   defaultHealthCheck(),
	}
}

// defaultBackend holds the defaults of a backend.
func defaultBackend() Backend { return Backend{Weight: 1} }

// Override is a value from the command line, which beats the file.
type Override struct {
	// Flag as the user wrote it, such as --xdp-mode, for messages.
	Flag string
	// Key is a top-level key with a plain value, or interfaces.
	Key string
	// Value as it would stand in the file; for interfaces, names with commas
	// between them.
	Value string
}

// Load reads and parses a file, see Parse. An error that is not Errors is that
// of reading.
func Load(path string, overrides ...Override) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return Parse(path, data, overrides...)
}

// Reload is Load of a file that was loaded before, by who cannot wait: anything but a
// regular file is an error. To open a pipe a second time may wait for a writer for ever.
func Reload(path string, overrides ...Override) (*Config, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("configuration: %s is no regular file, and cannot be read again", path)
	}
	return Load(path, overrides...)
}

// Parse parses and validates a configuration; name is the file's, for
// messages. The error is of type Errors and holds all problems found, in the
// order of the file; behind bad YAML syntax nothing more is found. Of workers and cpus, an override of one alone also
// replaces what the file says of the other.
func Parse(name string, data []byte, overrides ...Override) (*Config, error) {
	d := newDecoder(name)
	if c, ok := d.config(data); ok {
		d.override(c, overrides)
		d.inherit(c)
		d.errs = append(d.errs, c.validate(d.errs)...)
	}
	if len(d.errs) > 0 {
		d.errs.sort()
		return nil, d.errs
	}
	return d.c, nil
}

// Locals returns every single local address with the range it is from, in the
// order of the file.
func (c *Config) Locals() iter.Seq2[netip.Addr, LocalRange] {
	return func(yield func(netip.Addr, LocalRange) bool) {
		for _, r := range c.LocalAddresses {
			for a := r.First; a.IsValid() && !r.Last.Less(a); a = a.Next() {
				if !yield(a, r) {
					return
				}
			}
		}
	}
}

// File is the name that Parse was given.
func (c *Config) File() string { return c.file }
