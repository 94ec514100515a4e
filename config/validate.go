package config

import (
	"fmt"
	"net/netip"
)

// maxBackends bounds the backends of one service; balance has 16-bit indices.
const maxBackends = 65535

// MaxInterfaces bounds the data-plane NICs: dataplane has no room for more.
const MaxInterfaces = 16

// validator holds what is compared across the whole configuration. Values that
// decoding could not make sense of are zero here and are passed over: they
// have their problem already.
type validator struct {
	c    *Config
	errs Errors
	// told are the paths of values that decoding has complained of.
	told map[string]bool
	// locals maps each local address to its entry.
	locals map[netip.Addr]int
	// vips maps each VIP to the first service that has it.
	vips map[netip.Addr]int
	// answers maps each backend of mode snat to the service it answers for.
	answers map[endpoint]int
	// local4 and local6 tell whether there is a local address of the family, or
	// an entry that may have been meant as one.
	local4, local6 bool
	// more is how many backends a service, by its path, has beside those that are here, and
	// tables how large the hash tables are that are not: what a Sum leaves out.
	more   map[string]int
	tables int
	// Of tunnelSource: what each source holds, or "", the addresses that may be in one, and
	// the local ones.
	held       map[netip.Prefix]string
	inUse      spans
	localSpans spans
}

// validate returns everything that is wrong with c apart from the values
// themselves, of which told is.
func (c *Config) validate(told Errors) Errors {
	v := &validator{c: c, told: map[string]bool{}, locals: map[netip.Addr]int{}, vips: map[netip.Addr]int{}, answers: map[endpoint]int{}}
	for _, p := range told {
		v.told[p.Path] = true
	}
	v.interfaces()
	v.resources()
	v.localAddresses()
	v.together()
	v.secrets()
	v.discovery()
	return v.errs
}

// together checks services, and what they have to do with each other and the rest.
func (v *validator) together() {
	v.services()
	for i := range v.c.Services {
		v.backends(i)
		v.tunnelSource(i)
	}
	v.hashTables()
	v.listeners()
}

func (v *validator) fail(path, format string, args ...any) {
	v.errs = append(v.errs, v.c.Problem(path, format, args...))
}

// given reports whether the file or a flag has the key.
func (c *Config) given(path string) bool {
	_, ok := c.position(path)
	return ok
}

func (v *validator) interfaces() {
	c := v.c
	if len(c.Interfaces) == 0 && (c.Interfaces != nil || !c.given("interfaces")) {
		v.fail("interfaces", "at least one data-plane interface is needed")
	}
	if n := len(c.Interfaces); n > MaxInterfaces {
		v.fail(fmt.Sprintf("interfaces[%d]", MaxInterfaces), "%d interfaces; expected at most %d", n, MaxInterfaces)
	}
	first := map[string]int{}
	for i, nic := range c.Interfaces {
		path := fmt.Sprintf("interfaces[%d].name", i)
		j, again := first[nic.Name]
		switch {
		case nic.Name == "":
			continue
		case again:
			v.fail(path, "interface %s is already interfaces[%d]", nic.Name, j)
		case nic.Name == c.ManagementInterface:
			v.fail(path, "%s is the management interface, which is left to the kernel", nic.Name)
		case nic.Name == "lo":
			v.fail(path, "the loopback interface is the kernel's")
		}
		if !again {
			first[nic.Name] = i
		}
	}
	v.vlans(first)
}

// vlans checks which interfaces stand for VLANs; nics are the data-plane NICs by name.
func (v *validator) vlans(nics map[string]int) {
	stands := map[string]string{}
	for i, nic := range v.c.Interfaces {
		ids := map[int]int{}
		for j, vlan := range nic.VLANs {
			path := fmt.Sprintf("interfaces[%d].vlans[%d]", i, j)
			if k, again := ids[vlan.ID]; again && vlan.ID != 0 {
				v.fail(path+".id", "VLAN %d is already vlans[%d]", vlan.ID, k)
			}
			ids[vlan.ID] = j
			at := path + ".interface"
			k, data := nics[vlan.Interface]
			other, again := stands[vlan.Interface]
			switch {
			case vlan.Interface == "":
				continue
			case data:
				v.fail(at, "%s is a data-plane NIC itself (interfaces[%d])", vlan.Interface, k)
			case again:
				v.fail(at, "%s stands for another VLAN already (%s)", vlan.Interface, other)
			case vlan.Interface == v.c.ManagementInterface:
				v.fail(at, "%s is the management interface, which is left to the kernel", vlan.Interface)
			case vlan.Interface == "lo":
				v.fail(at, "the loopback interface is the kernel's")
			}
			stands[vlan.Interface] = path
		}
	}
}

func (v *validator) resources() {
	c := v.c
	if n := len(c.CPUs); n > 0 && c.Workers != n {
		v.fail("workers", "%d workers for %d cpus; give one of the two, or as many workers as cpus", c.Workers, n)
	}
	if c.FramesPerQueue < 2*c.RingSize {
		at := "frames_per_queue"
		if !c.given(at) {
			at = "ring_size"
		}
		v.fail(at, "frames_per_queue must be at least twice ring_size, %d; it is %d", 2*c.RingSize, c.FramesPerQueue)
	}
	if n := c.LocalPorts.Len(); n < c.Workers {
		v.fail("local_port_range", "fewer ports (%d) than workers (%d)", n, c.Workers)
	}
	for i, r := range c.LocalAddresses {
		if r.OwnPorts && r.Ports.Len() < c.Workers {
			v.fail(fmt.Sprintf("local_addresses[%d].ports", i), "fewer ports (%d) than workers (%d)",
				r.Ports.Len(), c.Workers)
		}
	}
}

func (v *validator) localAddresses() {
	if v.c.LocalAddresses == nil && v.c.given("local_addresses") {
		v.local4, v.local6 = true, true
	}
	total := 0
	for i, r := range v.c.LocalAddresses {
		path := fmt.Sprintf("local_addresses[%d]", i)
		if !r.First.IsValid() || !r.Last.IsValid() {
			v.local4, v.local6 = true, true
			continue
		}
		if r.First.Is4() {
			v.local4 = true
		} else {
			v.local6 = true
		}
		if total += r.Len(); total > maxLocalAddresses {
			v.fail(path, "more than %d local addresses in all", maxLocalAddresses)
			return
		}
		told := map[int]bool{}
		for a := r.First; a.IsValid() && !r.Last.Less(a); a = a.Next() {
			j, again := v.locals[a]
			if !again {
				v.locals[a] = i
			} else if !told[j] {
				told[j] = true
				v.fail(path, "%v is already in local_addresses[%d]", a, j)
			}
		}
	}
}

func (v *validator) services() {
	c := v.c
	if len(c.Services) == 0 && !c.Discovery.Etcd.On() && (c.Services != nil || !c.given("services")) {
		v.fail("services", "at least one service is needed")
	}
	byName, byAddress := map[string]int{}, map[endpoint]int{}
	for i, s := range c.Services {
		path := c.place(i)
		if j, again := byName[s.Name]; again && s.Name != "" {
			v.fail(path+".name", "the name %s is already that of %s", s.Name, c.called(j))
		} else {
			byName[s.Name] = i
		}
		v.clientAddress(path, s)
		v.halves(path, s)
		if s.OnePacket && s.Protocol == TCP {
			v.fail(path+".one_packet", "one_packet is for udp; a TCP connection stays with its backend")
		}
		v.tcpOptions(path, s)
		v.tunnel(path, s)
		v.scheduler(path, s)
		v.quic(path, s)
		v.healthCheck(path, s)
		if !s.Address.IsValid() {
			continue
		}
		e := endpoint{s.Address, s.Protocol, s.Mode == SNAT}
		if j, again := byAddress[e]; again && s.Protocol != 0 {
			v.fail(path+".address", "%v %v is already %s", s.Address, s.Protocol, c.called(j))
		} else {
			byAddress[e] = i
		}
		vip := s.Address.Addr()
		if _, again := v.vips[vip]; !again {
			v.vips[vip] = i
		}
		if j, ok := v.locals[vip]; ok {
			v.fail(path+".address", "the VIP %v is also a local address (local_addresses[%d])", vip, j)
		}
	}
}

// endpoint is an address as one of the two halves of a DNAT, or the whole, has it.
type endpoint struct {
	addr    netip.AddrPort
	proto   Protocol
	answers bool
}

// flowKeys are the keys of a service that concern flows and their choice of a backend,
// which mode snat does not have.
var flowKeys = []string{
	"scheduler", "client_address", "uoa_form", "uoa_datagrams", "toa_no_room", "timestamps", "one_packet", "no_flow", "toa_kind", "tcp_checks", "timeouts",
	"hash", "hash_table_size", "on_backend_down", "persistence", "health_check", "connection_log",
}

// halves checks what a service of mode snat, which keeps no flows, and one with
// replies elsewhere can have.
func (v *validator) halves(path string, s Service) {
	if s.Replies == RepliesElsewhere && s.Mode != DNAT && s.Mode != 0 {
		v.fail(path+".replies", "elsewhere is for dnat; in %v it is settled where replies go", s.Mode)
	}
	if s.Mode != SNAT {
		return
	}
	for _, key := range flowKeys {
		if v.c.given(path + "." + key) {
			v.fail(path+"."+key, "snat keeps no flows and chooses no backends: it cannot have %s", key)
		}
	}
	for j, b := range s.Backends {
		if b.MaxConnections != 0 {
			v.fail(fmt.Sprintf("%s.backends[%d].max_connections", path, j), "snat keeps no flows to count")
		}
		if b.Backup {
			v.fail(fmt.Sprintf("%s.backends[%d].backup", path, j), "snat chooses no backends")
		}
	}
}

func (v *validator) clientAddress(path string, s Service) {
	if s.ClientAddress != ClientAddressUOA && s.ClientAddress != 0 {
		d := defaultService()
		if s.UOAForm != d.UOAForm {
			v.fail(path+".uoa_form", "%v is for client_address: uoa", s.UOAForm)
		}
		if s.UOADatagrams != d.UOADatagrams {
			v.fail(path+".uoa_datagrams", "it is for client_address: uoa")
		}
	}
	if s.ClientAddress <= ClientAddressNone {
		return
	}
	if s.ClientAddress == ClientAddressUOA && s.UOAForm == UOAOption && s.Address.Addr().Is6() {
		v.fail(path+".uoa_form", "option is an option of IPv4; clients of IPv6 need protocol or separate")
	}
	switch {
	case s.Protocol == TCP && s.ClientAddress == ClientAddressUOA:
		v.fail(path+".client_address", "uoa is for UDP; a tcp service cannot have it")
	case s.Protocol == UDP && s.ClientAddress != ClientAddressProxyV2 && s.ClientAddress != ClientAddressUOA:
		v.fail(path+".client_address", "%v is for TCP; a udp service cannot have it", s.ClientAddress)
	case s.Mode == DNAT || s.Mode.Direct():
		v.fail(path+".client_address", "%v is for full-nat; in %v the backend sees the client's address", s.ClientAddress, s.Mode)
	}
}

// tcpOptions checks what a service asks for that is a matter of TCP.
func (v *validator) tcpOptions(path string, s Service) {
	if s.TOANoRoom == TOANoRoomDrop && s.ClientAddress != ClientAddressTOA && s.ClientAddress != 0 {
		v.fail(path+".toa_no_room", "drop is for client_address: toa")
	}
	switch {
	case s.Protocol == UDP && s.Timestamps != TimestampsKeep:
		v.fail(path+".timestamps", "%v is for TCP; a udp service cannot have it", s.Timestamps)
	case s.Mode == DNAT && s.Timestamps == TimestampsTranslate:
		v.fail(path+".timestamps", "translate is for full-nat; in dnat every client keeps its address, and its clock")
	case s.Mode.Direct() && s.Timestamps != TimestampsKeep:
		v.fail(path+".timestamps", "%v is not for %v, where every client keeps its address, and its clock", s.Timestamps, s.Mode)
	}
	if s.Protocol == UDP && s.NoFlow == NoFlowReset {
		v.fail(path+".no_flow", "reset is for TCP; a udp service cannot have it")
	}
	if s.Protocol == UDP && s.TCPChecks != v.c.TCPChecks {
		v.fail(path+".tcp_checks", "sequence numbers are TCP's; a udp service cannot have it")
	}
	if s.Protocol == UDP && s.MSSClamp != MSSOff {
		v.fail(path+".mss_clamp", "the MSS is TCP's; a udp service cannot have it")
	}
}

// scheduler checks what a service asks of its scheduler.
func (v *validator) scheduler(path string, s Service) {
	if s.Mode == SNAT {
		return // it has none, as halves says
	}
	if !s.Scheduler.Hashed() && s.Scheduler != 0 {
		if s.Hash == HashAddress {
			v.fail(path+".hash", "%v chooses by no hash; sh and maglev do", s.Scheduler)
		}
		if s.HashTableSize != 0 {
			v.fail(path+".hash_table_size", "%v has no hash table; sh and maglev have", s.Scheduler)
		}
	}
	if n, all := s.HashTableSize, len(s.Backends)+v.more[path]; n != 0 && n < all {
		v.fail(path+".hash_table_size", "%d slots for %d backends; expected one for each at least, better 100", n, all)
	}
	if s.OnePacket && s.Persistence.Timeout != 0 {
		v.fail(path+".persistence", "one_packet gives every datagram a backend of its own; persistence keeps a client with one")
	}
	if s.Protocol == UDP && s.OnBackendDown == OnBackendDownReset {
		v.fail(path+".on_backend_down", "reset is for TCP; a udp service cannot have it")
	}
}

// maxTables bounds the memory of all hash tables together.
const maxTables = 1 << 30

// tableBytes is the memory of a service's hash table with so many backends, at least half
// of it where the size is not given.
func tableBytes(s *Service, backends int) int {
	n := s.HashTableSize
	if n == 0 {
		n = min(max(65537, 100*backends), maxTableSize)
	}
	return 2 * n
}

// hashTables checks that they are not too much together.
func (v *validator) hashTables() {
	total, first := 0, -1
	for i := range v.c.Services {
		if s := &v.c.Services[i]; s.Scheduler.Hashed() {
			if total += tableBytes(s, len(s.Backends)); first < 0 {
				first = i
			}
		}
	}
	total += v.tables
	if total > maxTables {
		v.fail(v.c.place(first)+".scheduler",
			"the hash tables of sh and maglev take %d MiB in all services; expected at most %d MiB: give the services a smaller hash_table_size",
			(total+1<<20-1)>>20, maxTables>>20)
	}
}

// backends checks the backends of one service, and the families of its VIP,
// backends and the local addresses.
func (v *validator) backends(i int) {
	s := v.c.Services[i]
	base := v.c.place(i)
	if s.Backends != nil && len(s.Backends) == 0 {
		v.fail(base+".backends", "at least one backend is needed; weight 0 keeps one without new flows")
	}
	if n := len(s.Backends) + v.more[base]; n > maxBackends {
		v.fail(base+".backends", "%d backends; expected at most %d", n, maxBackends)
	}
	first := map[netip.AddrPort]int{}
	lead, mixed := -1, false
	for j, b := range s.Backends {
		if !b.Address.IsValid() {
			continue
		}
		path := fmt.Sprintf("%s.backends[%d].address", base, j)
		a := b.Address.Addr()
		if k, again := first[b.Address]; again {
			v.fail(path, "%v is already %s", b.Address, v.c.calledBackend(base, k))
		} else {
			first[b.Address] = j
		}
		if s.Mode == SNAT {
			e := endpoint{b.Address, s.Protocol, true}
			if k, again := v.answers[e]; again && k != i {
				v.fail(path, "%v %v answers for %s already", b.Address, s.Protocol, v.c.called(k))
			} else {
				v.answers[e] = i
			}
		}
		if k, ok := v.vips[a]; ok {
			v.fail(path, "%v is the VIP of %s", a, v.c.called(k))
		}
		if k, ok := v.locals[a]; ok {
			v.fail(path, "%v is also a local address (local_addresses[%d])", a, k)
		}
		if s.Mode.Direct() && s.Address.IsValid() && b.Address.Port() != s.Address.Port() {
			v.fail(path, "%v changes no port: expected port %d, that of the service's address", s.Mode, s.Address.Port())
		}
		if lead < 0 {
			lead = j
		} else if got, want := family(a), family(s.Backends[lead].Address.Addr()); got != want && !mixed {
			mixed = true
			v.fail(path, "an %s backend among %s ones (%s)", got, want, v.c.calledBackend(base, lead))
		}
	}
	if lead >= 0 && !mixed {
		v.families(s, base, fmt.Sprintf("%s.backends[%d].address", base, lead), s.Backends[lead].Address.Addr())
	}
}

// families checks a service whose backends are all of backend's family.
func (v *validator) families(s Service, base, path string, backend netip.Addr) {
	if s.Address.IsValid() {
		vip := s.Address.Addr()
		switch {
		case vip.Is4() == backend.Is4():
		case s.Mode == DNAT || s.Mode == DSRL2 || s.Mode == SNAT:
			v.fail(path, "%v keeps the family: an %s VIP cannot have %s backends", s.Mode, family(vip), family(backend))
		case s.Mode == FullNAT && vip.Is4():
			v.fail(path, "an IPv4 VIP cannot have IPv6 backends")
		}
	}
	if s.Mode == FullNAT && (backend.Is4() && !v.local4 || backend.Is6() && !v.local6) {
		v.fail(base+".mode", "full-nat to %s backends needs an %s address in local_addresses",
			family(backend), family(backend))
	}
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// Warnings returns what is legal but probably not meant.
func (c *Config) Warnings() []Problem {
	var out []Problem
	warn := func(path, message string) { out = append(out, c.Problem(path, "%s", message)) }
	if c.WebTokenFile != "" && c.WebTokenFile == c.AdminTokenFile {
		warn("web_token_file", "whoever may press the page's buttons may give every command: it is admin_token_file")
	}
	if c.WebTokenFile != "" && c.WebListen.IsValid() && !c.WebListen.Addr().IsLoopback() {
		warn("web_listen", "a browser sends the token of web_token_file as it is, for everybody on the way to read: listen on 127.0.0.1, behind ssh or a proxy with TLS")
	}
	for i, s := range c.Services {
		path := fmt.Sprintf("services[%d]", i)
		live, alike := 0, true
		var weight uint16
		for _, b := range s.Backends {
			if b.Weight == 0 {
				continue
			}
			alike = alike && (live == 0 || b.Weight == weight)
			live, weight = live+1, b.Weight
		}
		if live == 0 {
			warn(path+".backends", "all weights are 0: the service takes no new flows")
		}
		if s.Timestamps == TimestampsKeep && s.Protocol == TCP && s.Mode == FullNAT {
			warn(path+".timestamps", "keep in full-nat: a backend takes the clients behind one local address for one host, and drops segments whose timestamps seem old; strip or translate")
		}
		if s.OnePacket && s.Scheduler.Hashed() {
			warn(path+".one_packet", fmt.Sprintf("%v sends all datagrams of a client's port to one backend; rr and wrr do not", s.Scheduler))
		}
		if (s.Scheduler == RR || s.Scheduler == LC) && !alike {
			warn(path+".scheduler", fmt.Sprintf("%v does not look at weights; w%v does", s.Scheduler, s.Scheduler))
		}
		if (s.Scheduler == RR || s.Scheduler == LC) && s.HealthCheck.SlowStart != 0 {
			warn(path+".health_check.slow_start", fmt.Sprintf("%v does not look at weights, so a backend that comes up has its whole share at once; w%v does", s.Scheduler, s.Scheduler))
		}
	}
	return out
}
