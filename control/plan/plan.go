package plan

import (
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/l4fwd/l4fwd/balance"
	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/control/pathmtu"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/steer"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// fleetSeed keys the hashed schedulers. It is a constant: machines of one
// fleet with one configuration must choose the same backend for a client.
const fleetSeed = 0x6c34667764 // "l4fwd"

// Backend is how a backend is treated at the moment, given what operators have said
// and health checks found.
type Backend struct {
	Weight uint32
	Down   bool // no new flows, whatever the weight
	End    bool // nor those it has, see dataplane.BackendSpec
	Panic  bool // down say health checks, and used all the same: too few are live
}

// View tells how the backend of a service is treated at the moment. nil stands for
// AsConfigured.
type View func(service string, b *config.Backend) Backend

// AsConfigured is the View of which nobody has said or found anything.
func AsConfigured(_ string, b *config.Backend) Backend { return Backend{Weight: uint32(b.Weight)} }

// Spec is what the data plane is to do, now that backends are as view has them.
func Spec(c *config.Config, view View) dataplane.Spec {
	if view == nil {
		view = AsConfigured
	}
	spec := dataplane.Spec{Seed: fleetSeed, KeepTTL: !c.DecrementTTL, Templates: c.MaxFlows / 4}
	for a := range c.Locals() {
		spec.Locals = append(spec.Locals, packet.AddrFrom(a))
	}
	spec.Services = make([]dataplane.ServiceSpec, 0, len(c.Services))
	for i := range c.Services {
		spec.Services = append(spec.Services, service(&c.Services[i], view))
	}
	return spec
}

// Service is what the data plane is to do for one service alone, as it is configured.
func Service(s *config.Service) dataplane.ServiceSpec { return service(s, AsConfigured) }

func service(s *config.Service, view View) dataplane.ServiceSpec {
	proto := protocol(s.Protocol)
	out := dataplane.ServiceSpec{
		Name:       s.Name,
		VIP:        endpoint(s.Address, proto),
		Mode:       modes[s.Mode],
		Scheduler:  schedulers[s.Scheduler],
		TOA:        s.ClientAddress == config.ClientAddressTOA,
		TOAOnly:    s.TOANoRoom == config.TOANoRoomDrop,
		TOAKind:    s.TOAKind,
		Proxy:      proxies[s.ClientAddress],
		UOA:        uoa(s),
		Timestamps: timestamps[s.Timestamps],
		MSSClamp:   mssClamp(s.MSSClamp),
		ResetStray: s.NoFlow == config.NoFlowReset,
		Timeouts:   Timeouts(&s.Timeouts),
		TCPChecks:  checks[s.TCPChecks],
		OnePacket:  s.OnePacket,
		Judged:     Passive(s) != nil,
		Tunnel:     Tunnel(s),
		ReturnOnly: s.Mode == config.SNAT,

		HashFields:    hashes[s.Hash],
		HashSlots:     s.HashTableSize,
		LogOneIn:      uint32(s.ConnectionLog),
		OnBackendDown: backendDown[s.OnBackendDown],
		Persistence:   persistence(s),
		QUIC:          quic(&s.QUIC),
	}
	if out.UOA != nat.NoUOA {
		out.UOADatagrams = uint8(s.UOADatagrams)
	}
	if s.Mode == config.DNAT && s.Replies == config.RepliesElsewhere {
		out.Mode = conntrack.DNATOneWay
	}
	out.Backends = make([]dataplane.BackendSpec, 0, len(s.Backends))
	for i := range s.Backends {
		b := &s.Backends[i]
		now := view(s.Name, b)
		out.Backends = append(out.Backends, dataplane.BackendSpec{
			Endpoint: endpoint(b.Address, proto), MaxConnections: uint32(b.MaxConnections), ServerID: b.ServerID,
			Weight: now.Weight, Down: now.Down, End: now.End,
		})
	}
	return out
}

func persistence(s *config.Service) dataplane.Persistence {
	p := &s.Persistence
	switch {
	case p.Timeout == 0:
		return dataplane.Persistence{}
	case s.Address.Addr().Is4():
		return dataplane.Persistence{Timeout: ticks(p.Timeout), Prefix: p.Prefix4}
	}
	return dataplane.Persistence{Timeout: ticks(p.Timeout), Prefix: p.Prefix6}
}

func quic(q *config.QUIC) dataplane.QUICSpec {
	if q.Layout == config.QUICNone {
		return dataplane.QUICSpec{}
	}
	out := dataplane.QUICSpec{Layout: quicLayouts[q.Layout], ConfigID: uint8(q.ConfigID), IDLength: uint8(q.IDLength)}
	if q.FormerConfigID >= 0 {
		out.FormerID, out.FormerLength = uint8(q.FormerConfigID), uint8(q.FormerIDLength)
	}
	return out
}

// TunnelEnds are the backends that are met by tunnels, as their packets look. There
// are none for a service whose outer sources are a network's: nobody hears what is sent
// to those.
func TunnelEnds(services iter.Seq[*config.Service]) pathmtu.Ends {
	ends := pathmtu.Ends{}
	for s := range services {
		if s.Mode != config.Tunnel || s.EncapsulationSource.IsValid() && !s.EncapsulationSource.IsSingleIP() {
			continue
		}
		t := Tunnel(s)
		for _, b := range s.Backends {
			a, six := b.Address.Addr(), s.Address.Addr().Is6()
			end := ends[a]
			if l := (pathmtu.Look{Proto: t.Protocol(!six), Port: t.Port, Head: t.Overhead(true) - packet.IPv4MinLen}); !slices.Contains(end.Looks, l) {
				end.Looks = append(end.Looks, l)
			}
			if six {
				end.Least = max(end.Least, pathmtu.Least6+t.Overhead(a.Is4()))
			}
			ends[a] = end
		}
	}
	return ends
}

// PortRanges are the local ports of each local address, in Spec's order.
func PortRanges(c *config.Config) []nat.PortRange {
	var out []nat.PortRange
	for _, r := range c.Locals() {
		out = append(out, nat.PortRange{First: r.Ports.First, Last: r.Ports.Last})
	}
	return out
}

var modes = map[config.Mode]conntrack.Mode{
	config.FullNAT: conntrack.FullNAT,
	config.DNAT:    conntrack.DNAT,
	config.DSRL2:   conntrack.DirectReturn,
	config.Tunnel:  conntrack.DirectReturn,
	config.SNAT:    conntrack.DNAT,
}

var encapsulations = map[config.Encapsulation]nat.Encapsulation{
	config.EncapsulationNone:  nat.NoTunnel,
	config.EncapsulationIPIP:  nat.IPIP,
	config.EncapsulationGRE:   nat.GRE,
	config.EncapsulationGUE:   nat.GUE,
	config.EncapsulationFOU:   nat.FOU,
	config.EncapsulationVXLAN: nat.VXLAN,
}

// Tunnel is how a service's packets reach its backends.
func Tunnel(s *config.Service) nat.Tunnel {
	t := nat.Tunnel{Kind: encapsulations[s.Encapsulation]}
	if t.Kind == nat.NoTunnel {
		return t
	}
	t.Port = s.EncapsulationPort
	if t.Kind == nat.VXLAN {
		t.VNI, t.MAC = s.VNI, s.VXLANMAC
	}
	if p := s.EncapsulationSource; p.IsValid() {
		t.Source, t.Spread = packet.AddrFrom(p.Addr()), uint8(p.Addr().BitLen()-p.Bits())
	}
	return t
}

var proxies = map[config.ClientAddress]nat.ProxyVersion{
	config.ClientAddressProxyV1: nat.ProxyV1,
	config.ClientAddressProxyV2: nat.ProxyV2,
}

// uoa is how the service tells clients' addresses by UOA.
func uoa(s *config.Service) nat.UOAForm {
	if s.ClientAddress != config.ClientAddressUOA {
		return nat.NoUOA
	}
	return uoaForms[s.UOAForm]
}

var uoaForms = map[config.UOAForm]nat.UOAForm{
	config.UOASeparate: nat.UOASeparate,
	config.UOAProtocol: nat.UOAProtocol,
	config.UOAOption:   nat.UOAOption,
}

var timestamps = map[config.Timestamps]nat.TSPolicy{
	config.TimestampsStrip:     nat.TSStrip,
	config.TimestampsKeep:      nat.TSKeep,
	config.TimestampsTranslate: nat.TSTranslate,
}

func mssClamp(m config.MSSClamp) uint16 {
	if m == config.MSSMTU {
		return dataplane.ClampToMTU
	}
	return uint16(m) // 0 is no limit to both
}

var checks = map[config.TCPChecks]conntrack.Checks{
	config.TCPChecksNormal: conntrack.ChecksNormal,
	config.TCPChecksStrict: conntrack.ChecksStrict,
	config.TCPChecksOff:    conntrack.ChecksOff,
}

var schedulers = map[config.Scheduler]balance.Kind{
	config.RR:     balance.RoundRobin,
	config.WRR:    balance.WeightedRoundRobin,
	config.LC:     balance.LeastConn,
	config.WLC:    balance.WeightedLeastConn,
	config.SH:     balance.SourceHash,
	config.Maglev: balance.Maglev,
	config.P2C:    balance.TwoChoices,
}

var hashes = map[config.Hash]balance.Fields{
	config.HashAddress:     balance.ClientAddress,
	config.HashAddressPort: balance.ClientAddress | balance.ClientPort,
}

var backendDown = map[config.OnBackendDown]dataplane.BackendDown{
	config.OnBackendDownReset:      dataplane.BackendDownReset,
	config.OnBackendDownDrop:       dataplane.BackendDownDrop,
	config.OnBackendDownReschedule: dataplane.BackendDownReschedule,
}

var quicLayouts = map[config.QUICLayout]dataplane.QUICLayout{
	config.QUICKatran: dataplane.QUICKatran,
	config.QUICDPVS:   dataplane.QUICDPVS,
	config.QUICLB:     dataplane.QUICLB,
}

// Timeouts converts to ticks, rounding up so that nothing ends early. States
// without a key are those no packet leaves a flow in.
func Timeouts(t *config.Timeouts) conntrack.Timeouts {
	out := conntrack.DefaultTimeouts()
	out[conntrack.SynSent] = ticks(t.TCPSynSent)
	out[conntrack.SynRecv] = ticks(t.TCPSynRecv)
	out[conntrack.Established] = ticks(t.TCPEstablished)
	out[conntrack.FinWait] = ticks(t.TCPFinWait)
	out[conntrack.CloseWait] = ticks(t.TCPCloseWait)
	out[conntrack.LastAck] = ticks(t.TCPLastAck)
	out[conntrack.TimeWait] = ticks(t.TCPTimeWait)
	out[conntrack.Closed] = ticks(t.TCPClose)
	out[conntrack.UDPOneWay] = ticks(t.UDPOneWay)
	out[conntrack.UDPTwoWay] = ticks(t.UDPTwoWay)
	out[conntrack.UDPOnePacket] = ticks(t.UDPOnePacket)
	return out
}

// ticks rounds up.
func ticks(d time.Duration) uint32 {
	const tick = time.Second / conntrack.TicksPerSecond
	return uint32((d + tick - 1) / tick)
}

// Rules are what XDP is to take, given the addresses the host has now. Of a
// VIP that is the host's own only the service's protocol and port are taken,
// so that ssh to it lives; of such a local address, only its ports. One that
// the configuration gives no ports of its own is left to the kernel entirely
// and returned in refused: taking any of its ports would steal connections.
// What is configured of the DHCP client's port is named of others too: without
// that, answers to the host's client would pass.
func Rules(c *config.Config, host []netip.Addr) (r steer.Rules, refused []netip.Addr) {
	r.HostAddrs = host
	own := make(map[netip.Addr]bool, len(host))
	for _, a := range host {
		own[a.WithZone("").Unmap()] = true
	}
	for i := range c.Services {
		s := &c.Services[i]
		proto := protocol(s.Protocol)
		vip, port := s.Address.Addr(), s.Address.Port()
		if s.Mode != config.SNAT { // whose VIP is the other half's
			if !own[vip] {
				r.Addrs = append(r.Addrs, vip)
			}
			if own[vip] || s.Protocol == config.UDP && port == steer.DHCPClient {
				r.Services = append(r.Services, steer.ServiceRule{Addr: vip, Proto: proto, Port: port})
			}
		}
		if s.Mode != config.SNAT && (s.Mode != config.DNAT || s.Replies == config.RepliesElsewhere) {
			continue
		}
		for _, b := range s.Backends {
			r.Backends = append(r.Backends, steer.ServiceRule{Addr: b.Address.Addr(), Proto: proto, Port: b.Address.Port()})
		}
	}
	for a, from := range c.Locals() {
		switch {
		case !own[a]:
			r.Addrs = append(r.Addrs, a)
			if first, last := from.Ports.First, from.Ports.Last; first <= steer.DHCPClient && steer.DHCPClient <= last {
				r.LocalRanges = append(r.LocalRanges, steer.RangeRule{Addr: a, Lo: first, Hi: last})
			}
		case from.OwnPorts:
			r.LocalRanges = append(r.LocalRanges, steer.RangeRule{Addr: a, Lo: from.Ports.First, Hi: from.Ports.Last})
		default:
			refused = append(refused, a)
		}
	}
	slices.SortFunc(r.Addrs, netip.Addr.Compare)
	r.Addrs = slices.Compact(r.Addrs)
	slices.SortFunc(r.Backends, compareRules)
	r.Backends = slices.Compact(r.Backends)
	return r, refused
}

func compareRules(a, b steer.ServiceRule) int {
	if c := netip.AddrPortFrom(a.Addr, a.Port).Compare(netip.AddrPortFrom(b.Addr, b.Port)); c != 0 {
		return c
	}
	return int(a.Proto) - int(b.Proto)
}

func protocol(p config.Protocol) uint8 {
	if p == config.UDP {
		return packet.ProtoUDP
	}
	return packet.ProtoTCP
}

func endpoint(ap netip.AddrPort, proto uint8) conntrack.Endpoint {
	return conntrack.Endpoint{Addr: packet.AddrFrom(ap.Addr()), Port: ap.Port(), Proto: proto}
}

// Endpoint is a backend of a service as the data plane has it.
func Endpoint(s *config.Service, backend netip.AddrPort) conntrack.Endpoint {
	return endpoint(backend, protocol(s.Protocol))
}
