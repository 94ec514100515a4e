package config

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// kind is what sort of plain value a key takes in YAML.
type kind uint8

const (
	anyPlain kind = iota // whatever it looks like, its parser decides
	text
	number
	boolean
)

// field describes one key of a mapping that fills a T.
type field[T any] struct {
	key  string
	doc  string // lines of at most 76 characters
	kind kind
	want string // what a value should be, for messages
	// required keys have no default.
	required bool
	// restart: a new value needs a new process.
	restart bool

	// Keys with a plain value: set parses into t, text is the inverse as YAML.
	set  func(t *T, s string) error
	text func(t *T) string
	// Keys with a list or a mapping.
	decode func(d *decoder, path string, n ast.Node, t *T)
}

// plain makes a field with a plain value from the variable it fills.
func plain[T, V any](key string, k kind, want string, at func(*T) *V,
	parse func(string) (V, error), format func(V) string, doc string) field[T] {
	return field[T]{
		key: key, doc: doc, kind: k, want: want,
		set: func(t *T, s string) error {
			v, err := parse(s)
			if err == nil {
				*at(t) = v
			}
			return err
		},
		text: func(t *T) string { return format(*at(t)) },
	}
}

func enum[T any, E interface {
	~uint8
	fmt.Stringer
}](key string, n names, at func(*T) *E, doc string) field[T] {
	return plain(key, anyPlain, n.want(), at,
		func(s string) (E, error) { return parseEnum[E](n, s) }, E.String, doc)
}

func integer[T any](key string, least, most int, at func(*T) *int, doc string) field[T] {
	return plain(key, number, wantInt(least, most), at,
		func(s string) (int, error) { return parseInt(s, least, most) }, strconv.Itoa, doc)
}

func toaKind[T any](at func(*T) *uint8, doc string) field[T] {
	return plain("toa_kind", number, wantTOAKind, at, parseTOAKind,
		func(k uint8) string { return strconv.Itoa(int(k)) }, doc)
}

func timeout(key string, at func(*Timeouts) *time.Duration, doc string) field[Timeouts] {
	return plain(key, anyPlain, wantDuration, at, parseDuration, formatDuration, doc)
}

func (f field[T]) require() field[T]      { f.required = true; return f }
func (f field[T]) needsRestart() field[T] { f.restart = true; return f }

var plainText = regexp.MustCompile(`^[a-z][a-z0-9.-]*$`)

// quote writes a text so that YAML reads it as that text and nothing else.
func quote(s string) string {
	switch s {
	case "true", "false", "null", "yes", "no", "on", "off", "y", "n":
	default:
		if plainText.MatchString(s) {
			return s
		}
	}
	return strconv.Quote(s)
}

func quoteAddrPort(a netip.AddrPort) string { return `"` + a.String() + `"` }

// topFields are the keys of the file, in the order in which they are shown.
var topFields = append([]field[Config]{
	plain("management_interface", text, wantInterface,
		func(c *Config) *string { return &c.ManagementInterface }, parseOptionalInterface, quote,
		"Interface left to the kernel, for ssh. Naming it among the interfaces is an\nerror. Empty: none."),
	field[Config]{key: "interfaces", decode: decodeInterfaces, required: true,
		doc: "Data-plane NICs, at most 16; l4fwd touches no other. One is one-arm, two are\ntwo-arm. No default."}.
		needsRestart(),
	{key: "local_addresses", decode: decodeLocals,
		doc: "Source addresses of Full-NAT, at most 65535 in all. An entry is an address, a\n" +
			"range of one family, or {address: ..., ports: ...} with source ports of its\n" +
			"own, as an address needs that the host has too. Default: none."},
	plain("local_port_range", anyPlain, wantPorts,
		func(c *Config) *PortRange { return &c.LocalPorts }, ParsePortRange, PortRange.String,
		"Source ports of Full-NAT on local addresses that have none of their own."),
	{key: "services", decode: decodeServices, required: true,
		doc: "What is forwarded. Address and protocol together are unique. No default."},
	{key: "discovery", decode: func(d *decoder, path string, n ast.Node, c *Config) {
		decodeMap(d, path, n, discoveryFields, &c.Discovery)
	}, doc: "Where services are found beside this file."},
	integer("workers", 0, 255, func(c *Config) *int { return &c.Workers },
		"Number of workers, each a thread of its own; every NIC needs as many queues.\n"+
			"0: one for each of the cpus, or one.").needsRestart(),
	plain("cpus", anyPlain, wantCPUs, func(c *Config) *[]int { return &c.CPUs }, ParseCPUList,
		func(cpus []int) string { return strconv.Quote(formatCPUList(cpus)) },
		`CPUs to run on, one worker each, such as "2,4-5". Empty: l4fwd's choice.`).needsRestart(),
	enum("poll_mode", pollModeNames, func(c *Config) *PollMode { return &c.PollMode },
		"busy: spin always. adaptive: spin, then sleep in poll(2) when idle.").needsRestart(),
	plain("busy_poll", boolean, "true or false", func(c *Config) *bool { return &c.BusyPoll },
		parseBool, strconv.FormatBool,
		"Ask the kernel for preferred busy polling (SO_PREFER_BUSY_POLL).").needsRestart(),
	enum("xdp_mode", xdpModeNames, func(c *Config) *XDPMode { return &c.XDPMode },
		"auto: native, and generic where the driver has no XDP.").needsRestart(),
	enum("zero_copy", zeroCopyNames, func(c *Config) *ZeroCopy { return &c.ZeroCopy },
		"auto: if all NICs can. on: or fail. off: never.").needsRestart(),
	plain("frame_size", number, "2048 or 4096", func(c *Config) *int { return &c.FrameSize },
		parseFrameSize, strconv.Itoa,
		"Bytes of a packet buffer, 2048 or 4096. The MTU must fit with room to spare.").needsRestart(),
	integer("frames_per_queue", 128, 1<<20, func(c *Config) *int { return &c.FramesPerQueue },
		"Packet buffers for each queue of each NIC, at least twice ring_size.").needsRestart(),
	plain("ring_size", number, wantRingSize, func(c *Config) *int { return &c.RingSize },
		parseRingSize, strconv.Itoa,
		"Descriptors of each ring, a power of two from 64 to 32768.").needsRestart(),
	integer("max_flows", 1024, 1<<28, func(c *Config) *int { return &c.MaxFlows },
		"Flows that fit, all workers together; 172 bytes of memory each.").needsRestart(),
	plain("decrement_ttl", boolean, "true or false", func(c *Config) *bool { return &c.DecrementTTL },
		parseBool, strconv.FormatBool,
		"true: l4fwd is a hop, as a router is. false: it leaves the TTL as it is, and\n"+
			"traceroute does not see it."),
	toaKind(func(c *Config) *uint8 { return &c.TOAKind },
		"TCP option kind of TOA. Options of this kind from clients are always removed."),
	enum("tcp_checks", tcpChecksNames, func(c *Config) *TCPChecks { return &c.TCPChecks },
		"What is dropped for its TCP sequence number. strict: all that lies outside an\n"+
			"open connection's window. normal: RSTs that do. off: nothing."),
	{key: "timeouts", decode: func(d *decoder, path string, n ast.Node, c *Config) {
		decodeMap(d, path, n, timeoutFields, &c.Timeouts)
	}, doc: "How long a flow may be idle, by state, before it is forgotten; 100ms to 720h."},
	plain("drain_timeout", anyPlain, wantPersistence, func(c *Config) *time.Duration { return &c.DrainTimeout },
		parsePersistence, formatDuration,
		"How long the flows of backends and services that a reload has removed go on\n"+
			"before they are ended; 0s ends them at once."),
	plain("admin_socket", anyPlain, wantSocket, func(c *Config) *string { return &c.AdminSocket },
		parseSocket, formatSocket,
		"Unix socket by which commands reach the daemon, its owner's only. off: none.").needsRestart(),
	plain("metrics_listen", anyPlain, wantListen, func(c *Config) *netip.AddrPort { return &c.MetricsListen },
		parseListen, formatListen,
		"Address and port where Prometheus finds /metrics and /metrics/detail, such as\n127.0.0.1:9464. off: nowhere.").needsRestart(),
	plain("web_listen", anyPlain, wantListen, func(c *Config) *netip.AddrPort { return &c.WebListen },
		parseListen, formatListen,
		"Address and port of the status page for browsers, such as 127.0.0.1:9480. off:\nnowhere.").needsRestart(),
	plain("web_token_file", anyPlain, wantFile, func(c *Config) *string { return &c.WebTokenFile },
		parseFile, formatSocket,
		"File with the token that lets the page's buttons work. off: it has none.").needsRestart(),
	plain("web_hosts", anyPlain, wantHosts, func(c *Config) *[]string { return &c.WebHosts },
		parseHosts, func(names []string) string { return strconv.Quote(strings.Join(names, ",")) },
		"Names with dots by which browsers reach page and metrics, such as\n\"lb1.example.org,lb2.example.org\". Addresses and the host's own name need none."),
	plain("admin_listen", anyPlain, wantListen, func(c *Config) *netip.AddrPort { return &c.AdminListen },
		parseListen, formatListen,
		"Address and port where commands are taken by HTTPS, such as 127.0.0.1:9443. It\nneeds certificate, key and token. off: nowhere.").needsRestart(),
	plain("admin_tls_cert", anyPlain, wantFile, func(c *Config) *string { return &c.AdminTLSCert },
		parseFile, formatSocket, "Certificate of admin_listen, and those between it and the root, as PEM.").needsRestart(),
	plain("admin_tls_key", anyPlain, wantFile, func(c *Config) *string { return &c.AdminTLSKey },
		parseFile, formatSocket, "Its key, as PEM.").needsRestart(),
	plain("admin_token_file", anyPlain, wantFile, func(c *Config) *string { return &c.AdminTokenFile },
		parseFile, formatSocket, "File with the token that whoever gives commands has to send.").needsRestart(),
	enum("log_level", logLevelNames, func(c *Config) *LogLevel { return &c.LogLevel },
		"debug, info, warn or error."),
	enum("log_format", logFormatNames, func(c *Config) *LogFormat { return &c.LogFormat },
		"console or json.").needsRestart(),
}, connectionLogFields...)

var interfaceFields = []field[Interface]{
	plain("name", text, wantInterface, func(i *Interface) *string { return &i.Name },
		parseInterfaceName, quote, "As the kernel has it. Required.").require(),
	{key: "vlans", decode: decodeVLANs, doc: "interfaces that stand for VLANs of the NIC and are no VLAN interfaces of the\n" +
		"kernel's on it, which are found without. Default: none."},
}

var vlanFields = []field[VLAN]{
	integer("id", 1, 4094, func(v *VLAN) *int { return &v.ID }, "").require(),
	plain("interface", text, wantInterface, func(v *VLAN) *string { return &v.Interface }, parseInterfaceName, quote, "").require(),
}

var localFields = []field[LocalRange]{
	{key: "address", kind: text, want: wantRange, required: true,
		doc: "Address or range. Required.",
		set: func(r *LocalRange, s string) error {
			got, err := parseAddrRange(s)
			r.First, r.Last = got.First, got.Last
			return err
		},
		text: func(r *LocalRange) string { return quote(r.String()) }},
	{key: "ports", kind: anyPlain, want: wantPorts, doc: "Source ports. Default: local_port_range.",
		set: func(r *LocalRange, s string) (err error) {
			r.Ports, err = ParsePortRange(s)
			r.OwnPorts = err == nil
			return err
		},
		text: func(r *LocalRange) string { return r.Ports.String() }},
}

var serviceFields = []field[Service]{
	plain("name", text, wantName, func(s *Service) *string { return &s.Name },
		parseServiceName, quote, "Unique. Required.").require(),
	plain("address", text, wantAddrPort, func(s *Service) *netip.AddrPort { return &s.Address },
		parseAddrPort, quoteAddrPort, `VIP:port, "[2001:db8::10]:80" for IPv6. Required.`).require(),
	enum("protocol", protocolNames, func(s *Service) *Protocol { return &s.Protocol },
		"tcp or udp. Required.").require(),
	enum("mode", modeNames, func(s *Service) *Mode { return &s.Mode },
		"full-nat: backends see a local address. dnat: they see the client, and must\n"+
			"send replies through l4fwd. dsr-l2: neighbours that have the VIP get packets as\n"+
			"they are, and answer past l4fwd. tunnel: the same for backends beyond routers.\n"+
			"snat: nothing but the answers of a dnat elsewhere. Required.").require(),
	enum("encapsulation", encapsulationNames, func(s *Service) *Encapsulation { return &s.Encapsulation },
		"What packets travel in to the backends (tunnel)."),
	plain("encapsulation_port", number, wantInt(0, 65535), func(s *Service) *uint16 { return &s.EncapsulationPort },
		parseWeight, func(p uint16) string { return strconv.Itoa(int(p)) },
		"UDP port of the backends' tunnels (gue, fou, vxlan). 0: the usual one, 6080 of\n"+
			"gue or 4789 of vxlan."),
	plain("encapsulation_source", text, wantSource, func(s *Service) *netip.Prefix { return &s.EncapsulationSource },
		parseSource, formatSource,
		"Where tunnels' packets come from: an address, or a network of which each flow\n"+
			"has an address. Empty: the address of the interface by which they leave."),
	plain("vni", number, wantInt(0, maxVNI), func(s *Service) *uint32 { return &s.VNI }, parseVNI,
		func(v uint32) string { return strconv.Itoa(int(v)) },
		"Network identifier (vxlan)."),
	plain("vxlan_mac", text, wantMAC, func(s *Service) *MAC { return &s.VXLANMAC }, parseMAC,
		func(m MAC) string { return strconv.Quote(m.String()) },
		"MAC address of the backends' VXLAN interfaces, one for all (vxlan)."),
	enum("replies", repliesNames, func(s *Service) *Replies { return &s.Replies },
		"Where backends send their answers (dnat). here: through this l4fwd. elsewhere: to\n"+
			"a service of mode snat, on whatever machine."),
	enum("scheduler", schedulerNames, func(s *Service) *Scheduler { return &s.Scheduler },
		"rr: in turn. wrr: in turn by weight. lc: fewest flows. wlc: fewest flows for\n"+
			"its weight. sh: by client address. maglev: by client address and port, with few\n"+
			"changes when backends come and go. p2c: the better by wlc of two drawn."),
	enum("hash", hashNames, func(s *Service) *Hash { return &s.Hash },
		"What sh and maglev choose by: address or address-port. Default: address for sh,\n"+
			"address-port for maglev."),
	plain("hash_table_size", number, wantTableSize, func(s *Service) *int { return &s.HashTableSize },
		parseTableSize, strconv.Itoa,
		"Slots of the table of sh and maglev, two bytes each: a prime from 251 to\n"+
			"8388617, more for more even shares. 0: 65537, more from 656 backends on."),
	enum("client_address", clientAddressNames, func(s *Service) *ClientAddress { return &s.ClientAddress },
		"How backends learn the client's address (full-nat). toa: by a TCP option.\n"+
			"proxy-v1, proxy-v2: by a PROXY protocol header, which they must expect, in\n"+
			"the first datagram of a udp flow. uoa: by DPVS's option for udp. For udp\n"+
			"proxy-v2 and uoa alone."),
	enum("uoa_form", uoaFormNames, func(s *Service) *UOAForm { return &s.UOAForm },
		"How UOA goes along (uoa). separate: in an empty datagram ahead of the client's, so\n"+
			"that backends which know nothing of it lose nothing. protocol: in the client's,\n"+
			"behind a header of IP protocol 248. option: in the client's, as an IPv4 option."),
	integer("uoa_datagrams", 1, 255, func(s *Service) *int { return &s.UOADatagrams },
		"With how many of a flow's first datagrams it goes (uoa)."),
	enum("toa_no_room", toaNoRoomNames, func(s *Service) *TOANoRoom { return &s.TOANoRoom },
		"What becomes of a packet that should bear TOA and has no room for it.\n"+
			"send-without: it goes on. drop: it does not."),
	enum("timestamps", timestampsNames, func(s *Service) *Timestamps { return &s.Timestamps },
		"TCP timestamps. strip: not used. keep: as the client has them. translate: all\n"+
			"clients' on one clock (full-nat). Default: strip in full-nat, keep in dnat."),
	plain("mss_clamp", anyPlain, wantMSSClamp, func(s *Service) *MSSClamp { return &s.MSSClamp },
		parseMSSClamp, MSSClamp.String,
		"The most that a SYN or SYN-ACK may announce as MSS. mtu: what the MTUs of both\n"+
			"next hops allow. A number: so many bytes. off: no limit."),
	plain("one_packet", boolean, "true or false", func(s *Service) *bool { return &s.OnePacket },
		parseBool, strconv.FormatBool,
		"Every datagram of a client gets a backend of its own, for queries such as\n"+
			"DNS's (udp)."),
	enum("no_flow", noFlowNames, func(s *Service) *NoFlow { return &s.NoFlow },
		"What becomes of a TCP segment that belongs to no flow and opens none, also one\n"+
			"of a full-nat backend. drop: it vanishes. reset: its sender gets a RST."),
	enum("on_backend_down", onBackendDownNames, func(s *Service) *OnBackendDown { return &s.OnBackendDown },
		"What becomes of a flow whose backend the service has no more, with its next\n"+
			"packet. reset: both ends get a RST. drop: nothing goes on. reschedule: it is\n"+
			"forgotten; a datagram goes to another backend. Default: reset for tcp,\n"+
			"reschedule for udp."),
	plain("drain_timeout", anyPlain, wantPersistence, func(s *Service) *time.Duration { return &s.DrainTimeout },
		parsePersistence, formatDuration, "Default: the global drain_timeout."),
	plain("connection_log", anyPlain, wantOneIn, func(s *Service) *OneIn { return &s.ConnectionLog },
		parseOneIn, OneIn.String,
		"Which connections are logged when they end. off: none. full: all. 1/N: one in N,\n"+
			"the same on every machine."),
	{key: "persistence", decode: func(d *decoder, path string, n ast.Node, s *Service) {
		decodeMap(d, path, n, persistenceFields, &s.Persistence)
	}, doc: "Clients of a prefix stay with one backend until no new flow of theirs has come\n" +
		"for the timeout; 0s is no persistence. Prefix lengths of IPv4 and IPv6 clients."},
	{key: "quic", decode: func(d *decoder, path string, n ast.Node, s *Service) {
		decodeMap(d, path, n, quicFields, &s.QUIC)
	}, doc: "Where QUIC connection IDs say which backend a connection is of (udp), so that it\n" +
		"stays there when its client moves: katran, dpvs or quic-lb; the rest is for\n" +
		"quic-lb."},
	{key: "health_check", decode: func(d *decoder, path string, n ast.Node, s *Service) {
		decodeMap(d, path, n, healthFields, &s.HealthCheck)
	}, doc: "How backends are checked; those found down get no new flows. Keys with types in\n" +
		"parentheses are for these."},
	toaKind(func(s *Service) *uint8 { return &s.TOAKind }, "Default: the global toa_kind."),
	enum("tcp_checks", tcpChecksNames, func(s *Service) *TCPChecks { return &s.TCPChecks },
		"Default: the global tcp_checks."),
	{key: "timeouts", decode: func(d *decoder, path string, n ast.Node, s *Service) {
		decodeMap(d, path, n, timeoutFields, &s.Timeouts)
	}, doc: "Any of the global timeouts; those not given are the global ones."},
	{key: "backends", decode: decodeBackends, required: true,
		doc: "Real servers, at least one, all of one family. Required."},
}

var backendFields = []field[Backend]{
	plain("address", text, wantAddrPort, func(b *Backend) *netip.AddrPort { return &b.Address },
		parseAddrPort, quoteAddrPort, "address:port, quoted within braces. Required.").require(),
	plain("weight", number, wantInt(0, 65535), func(b *Backend) *uint16 { return &b.Weight }, parseWeight,
		func(w uint16) string { return strconv.Itoa(int(w)) },
		"Share of new flows, 0 to 65535. 0: no new flows, those there are go on."),
	integer("max_connections", 0, maxMaxConnections, func(b *Backend) *int { return &b.MaxConnections },
		"The most flows at a time, over all workers. 0: no limit."),
	plain("server_id", number, wantServerID, func(b *Backend) *uint64 { return &b.ServerID }, parseServerID,
		func(id uint64) string { return strconv.FormatUint(id, 10) },
		"Its name in connection IDs (quic: katran or quic-lb). 0: none."),
	plain("backup", boolean, "true or false", func(b *Backend) *bool { return &b.Backup }, parseBool, strconv.FormatBool,
		"true: used only when no other backend is live (health_check)."),
}

var quicFields = []field[QUIC]{
	enum("layout", quicLayoutNames, func(q *QUIC) *QUICLayout { return &q.Layout }, ""),
	integer("config_id", 0, 6, func(q *QUIC) *int { return &q.ConfigID }, ""),
	integer("server_id_length", 1, 8, func(q *QUIC) *int { return &q.IDLength }, ""),
	plain("former_config_id", anyPlain, wantConfigID, func(q *QUIC) *int { return &q.FormerConfigID }, parseConfigID, formatConfigID, ""),
	integer("former_server_id_length", 1, 8, func(q *QUIC) *int { return &q.FormerIDLength }, ""),
}

var persistenceFields = []field[Persistence]{
	plain("timeout", anyPlain, wantPersistence, func(p *Persistence) *time.Duration { return &p.Timeout },
		parsePersistence, formatDuration, ""),
	integer("prefix4", 1, 32, func(p *Persistence) *int { return &p.Prefix4 }, ""),
	integer("prefix6", 1, 128, func(p *Persistence) *int { return &p.Prefix6 }, ""),
}

var timeoutFields = []field[Timeouts]{
	timeout("tcp_syn_sent", func(t *Timeouts) *time.Duration { return &t.TCPSynSent }, "SYN seen"),
	timeout("tcp_syn_recv", func(t *Timeouts) *time.Duration { return &t.TCPSynRecv }, "SYN-ACK seen"),
	timeout("tcp_established", func(t *Timeouts) *time.Duration { return &t.TCPEstablished }, "handshake complete"),
	timeout("tcp_fin_wait", func(t *Timeouts) *time.Duration { return &t.TCPFinWait }, "client has closed"),
	timeout("tcp_close_wait", func(t *Timeouts) *time.Duration { return &t.TCPCloseWait }, "backend has closed"),
	timeout("tcp_last_ack", func(t *Timeouts) *time.Duration { return &t.TCPLastAck }, "both have closed"),
	timeout("tcp_time_wait", func(t *Timeouts) *time.Duration { return &t.TCPTimeWait }, "and both were acknowledged"),
	timeout("tcp_close", func(t *Timeouts) *time.Duration { return &t.TCPClose }, "reset"),
	timeout("udp_one_way", func(t *Timeouts) *time.Duration { return &t.UDPOneWay }, "no reply yet"),
	timeout("udp_two_way", func(t *Timeouts) *time.Duration { return &t.UDPTwoWay }, "replies seen"),
	timeout("udp_one_packet", func(t *Timeouts) *time.Duration { return &t.UDPOnePacket }, "a datagram, one_packet"),
}
