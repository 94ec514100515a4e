package peers

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// Names of the forwarders, as --only and --skip take them.
const (
	L4fwd   = "l4fwd"
	Bare    = "bare"
	Testpmd = "testpmd"
	Nft     = "nft"
	HAProxy = "haproxy"
	Nginx   = "nginx"
	Routing = "routing"
	// Those whose kernel works on the load's CPU.
	NftHere     = "nft-inline"
	HAProxyHere = "haproxy-inline"
	NginxHere   = "nginx-inline"
)

// traffic is what a forwarder is started for.
type traffic int

const (
	tcp traffic = iota
	udp
	idle // it may sleep
)

// forwarder is one of them at work.
type forwarder interface {
	// start has it forward in the network. What it returns after an error need not
	// be stopped.
	start(ctx context.Context, n *network, t traffic) error
	// stop ends it. Stopping what does not run is harmless.
	stop() error
}

// kind is what there is to know of a forwarder before it is started.
type kind struct {
	name  string
	title string
	does  string // for the reader of the table
	// carries says for which traffic it is measured.
	carries map[traffic]bool
	// resident ones take no CPU while they have nothing to do and stay up over
	// the whole run.
	resident bool
	// nat: the server sees a local address. Else it sees the client's own, and
	// the client addresses the server, or the forwarder looks at no address.
	nat bool
	// candidates are the arrangements to choose from, by traffic. The first is
	// taken where nothing is tried.
	candidates map[traffic][]Arrangement
	tools      []tool
	version    func() string
	setup      func(c CPUs) string // commands and configuration, for the reader
	make       func(o *Options) forwarder
}

// nftables is the kind with how nftables is had and run.
func (k kind) nftables() kind {
	k.tools = []tool{toolNft}
	k.version = func() string { return version("nft", "--version") }
	k.setup = func(CPUs) string { return "sysctl net.ipv4.ip_forward=1; nft -f FILE, and FILE is\n\n" + nftRules }
	k.make = func(*Options) forwarder { return &kernel{nft: true} }
	return k
}

// haproxy is the kind with how HAProxy is had and run.
func (k kind) haproxy() kind {
	k.carries, k.nat, k.resident = map[traffic]bool{tcp: true}, true, true
	k.tools = []tool{toolHAProxy}
	k.version = func() string { return version("haproxy", "-v") }
	k.setup = func(c CPUs) string {
		return fmt.Sprintf("taskset -c %d haproxy -db -f FILE, and FILE is\n\n", c.Forward) + haproxyConfig()
	}
	k.make = func(*Options) forwarder { return &proxy{haproxy: true} }
	return k
}

// nginx is the kind with how nginx's stream module is had and run.
func (k kind) nginx() kind {
	k.carries, k.nat, k.resident = map[traffic]bool{tcp: true}, true, true
	k.tools = []tool{toolStream}
	k.version = func() string { return version("nginx", "-v") }
	k.setup = func(c CPUs) string {
		return fmt.Sprintf("taskset -c %d nginx -c FILE, and FILE is\n\n", c.Forward) + nginxConfig("nginx", "", c.Forward)
	}
	k.make = func(*Options) forwarder { return &proxy{} }
	return k
}

// target is where a client finds a service of a network with such a forwarder.
func (k *kind) target(port uint16) netip.AddrPort {
	if k.nat {
		return netip.AddrPortFrom(vipAddr, port)
	}
	if port == portHTTP {
		port = portHTTPInner
	}
	return netip.AddrPortFrom(serverAddr.Addr(), port)
}

// ownCPU are arrangements in which the forwarder's CPU does all of its work but
// what a driver does: for what works in softirqs or behind sockets.
var ownCPU = []Arrangement{{NearRPS, FarSender}, {NearRPS, FarRPS}}

// shared are those in which who sends does the balancer's work, or its kernel's
// part of it.
var shared = []Arrangement{{NearSender, FarSender}, {NearSender, FarRPS}}

// onRings are arrangements for what spins on AF_XDP rings on a CPU of its own. The
// thread of NAPI on that CPU is left out: it starves, or starves the forwarder.
var onRings = []Arrangement{
	{NearSender, FarSender}, {NearThreadLoad, FarSender}, {NearSender, FarRPS}, {NearThreadLoad, FarRPS},
}

// ringsUDP leaves out those with RPS to the load's CPU, where the generator never
// rests: from one start to the next the same forwarder does 0.7 or 1.2 Mpps in them, so
// that who comes out best is a matter of luck. Preferred busy polling is no choice:
// since Linux 6.14 a socket finds the NAPI to run only where the driver links its
// queues to it, and veth does not.
var ringsUDP = onRings[:2]

// ownUDP are arrangements like ownCPU for datagrams, which come by NAPI.
var ownUDP = []Arrangement{{NearThreadForward, FarSender}, {NearThreadForward, FarRPS}, {NearRPS, FarRPS}}

// kinds are all forwarders, in the order of the table.
func kinds() []kind {
	return []kind{{
		name: L4fwd, title: "l4fwd", does: "Full-NAT, a flow table, checks of TCP sequence numbers",
		carries: map[traffic]bool{tcp: true, udp: true, idle: true}, nat: true,
		candidates: map[traffic][]Arrangement{tcp: onRings, udp: ringsUDP, idle: onRings[:1]},
		version:    ownVersion,
		setup: func(c CPUs) string {
			return "l4fwd run -c FILE, and FILE is\n\n" + l4fwdConfig(c.Forward, "busy")
		},
		make: func(o *Options) forwarder { return &l4fwd{executable: o.Executable} },
	}, {
		name: Testpmd, title: "DPDK testpmd", does: "mac mode over net_af_xdp: no NAT, no state",
		carries:    map[traffic]bool{udp: true},
		candidates: map[traffic][]Arrangement{udp: ringsUDP},
		tools:      []tool{toolTestpmd, toolPMD},
		version:    testpmdVersion,
		setup: func(c CPUs) string {
			return "dpdk-testpmd " + strings.Join(testpmdArgs(c, "CLIENT", "SERVER"), " ")
		},
		make: func(*Options) forwarder { return &testpmd{} },
	}, {
		name: Bare, title: "bare loop", does: "the smallest loop over l4fwd's rings, MAC addresses only: the ceiling of copy mode",
		carries:    map[traffic]bool{tcp: true, udp: true},
		candidates: map[traffic][]Arrangement{tcp: onRings, udp: ringsUDP},
		version:    ownVersion,
		setup:      func(CPUs) string { return "a thread of bench peers itself: package bench/rings, StartBare" },
		make:       func(*Options) forwarder { return &bareLoop{} },
	}, kind{
		name: Nft, title: "nftables", does: "DNAT and SNAT with conntrack, in the kernel",
		carries: map[traffic]bool{tcp: true, udp: true, idle: true}, nat: true, resident: true,
		candidates: map[traffic][]Arrangement{tcp: ownCPU, udp: ownUDP, idle: ownCPU[:1]},
	}.nftables(), kind{
		name: NftHere, title: "nftables inline", does: "the same without a CPU of its own: whoever sends does the work",
		carries: map[traffic]bool{tcp: true, udp: true}, nat: true, resident: true,
		candidates: map[traffic][]Arrangement{tcp: shared, udp: shared[:1]},
	}.nftables(), kind{
		name: HAProxy, title: "HAProxy", does: "mode tcp, one thread: a proxy, two connections for each",
		candidates: map[traffic][]Arrangement{tcp: ownCPU},
	}.haproxy(), kind{
		name: HAProxyHere, title: "HAProxy inline", does: "the same, but whoever sends does its kernel's part of receiving, TCP included",
		candidates: map[traffic][]Arrangement{tcp: shared[:1]},
	}.haproxy(), kind{
		name: Nginx, title: "nginx stream", does: "stream module, one worker: a proxy, two connections for each",
		candidates: map[traffic][]Arrangement{tcp: ownCPU},
	}.nginx(), kind{
		name: NginxHere, title: "nginx stream inline", does: "the same, but whoever sends does its kernel's part of receiving, TCP included",
		candidates: map[traffic][]Arrangement{tcp: shared[:1]},
	}.nginx(), {
		name: Routing, title: "routing", does: "the kernel's routing, no balancer: the reference",
		carries: map[traffic]bool{tcp: true, udp: true}, resident: true,
		candidates: map[traffic][]Arrangement{tcp: ownCPU, udp: ownUDP},
		version:    func() string { return "the kernel's" },
		setup:      func(CPUs) string { return "sysctl net.ipv4.ip_forward=1" },
		make:       func(*Options) forwarder { return &kernel{} },
	}}
}
