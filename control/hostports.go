package control

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/l4fwd/l4fwd/config"
	"github.com/l4fwd/l4fwd/control/plan"
)

// hostPorts is what the kernel and the host's programs do with ports.
type hostPorts struct {
	ephemeral config.PortRange   // ip_local_port_range
	reserved  []config.PortRange // ip_local_reserved_ports: never given out of the former
	bound     []boundPort
}

// boundPort is a socket that waits for somebody.
type boundPort struct {
	proto config.Protocol
	addr  netip.Addr // unspecified: any address, of either family if IPv6
	port  uint16
}

// takes reports whether packets to the address and port reach the socket.
func (b boundPort) takes(a netip.Addr) bool {
	return b.addr == a || b.addr.IsUnspecified() && (b.addr.Is6() || a.Is4())
}

// checkHost refuses what would cut connections of the host: at an address that
// is its own, only what nobody else uses may be taken.
func (d *Daemon) checkHost(context.Context, *undo) error {
	var errs []error
	if _, refused := plan.Rules(d.cfg, d.host); len(refused) > 0 {
		errs = append(errs, refusedLocals(refused))
	}
	ports, own, err := d.hostPorts()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	if err := ports.lent(d.cfg, own); err != nil {
		d.log.Warn("configuration", zap.String("problem", err.Error()))
	}
	return errors.Join(append(errs, ports.conflicts(d.cfg, own)...)...)
}

// refusedLocals is the error of local addresses that Rules refuses.
func refusedLocals(refused []netip.Addr) error {
	return fmt.Errorf("local addresses %v belong to this host: give each a range of ports that nobody else uses, "+
		"as in local_addresses: - {address: %v, ports: 61000-65535}", refused, refused[0])
}

// hostPorts reads what the host does with its ports, and returns its own addresses.
func (d *Daemon) hostPorts() (*hostPorts, map[netip.Addr]bool, error) {
	own := make(map[netip.Addr]bool, len(d.host))
	for _, a := range d.host {
		own[a.WithZone("").Unmap()] = true
	}
	ports, err := readHostPorts("/proc/thread-self/net", "/proc/sys/net/ipv4")
	return &ports, own, err
}

// hostJudge returns what says, on any goroutine, what the host as it is now has against a
// service that it did not have against the configuration in force. On the loop.
func (d *Daemon) hostJudge() (func(*config.Service) error, error) {
	ports, own, err := d.hostPorts()
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool)
	for _, e := range ports.conflicts(d.cfg, own) {
		known[e.Error()] = true
	}
	return func(s *config.Service) error {
		if err := ports.conflict(s, own); err != nil && !known[err.Error()] {
			return err
		}
		return nil
	}, nil
}

// conflict is the port that both a service and the host want.
func (h *hostPorts) conflict(s *config.Service, own map[netip.Addr]bool) error {
	vip := s.Address.Addr()
	if s.Mode == config.SNAT || !own[vip] {
		return nil // nothing is taken of the VIP, or all
	}
	for _, b := range h.bound {
		if b.proto == s.Protocol && b.port == s.Address.Port() && b.takes(vip) {
			return fmt.Errorf("service %s: %v is an address of this host, and a program listens on its %v port %d (%v): "+
				"l4fwd would cut it off; stop it first", s.Name, vip, s.Protocol, b.port, netip.AddrPortFrom(b.addr, b.port))
		}
	}
	return nil
}

// conflicts are the ports of the host's own addresses that both want.
func (h *hostPorts) conflicts(c *config.Config, own map[netip.Addr]bool) (errs []error) {
	for i := range c.Services {
		if err := h.conflict(&c.Services[i], own); err != nil {
			errs = append(errs, err)
		}
	}
	for a, r := range c.Locals() {
		if !own[a] || !r.OwnPorts {
			continue
		}
		if p := h.given(r.Ports); p != 0 {
			errs = append(errs, fmt.Errorf("local address %v is one of this host, and its ports %d-%d are among those the kernel gives its own "+
				"connections (net.ipv4.ip_local_port_range is %d-%d): take others, or set net.ipv4.ip_local_reserved_ports",
				a, r.Ports.First, r.Ports.Last, h.ephemeral.First, h.ephemeral.Last))
		}
		for _, b := range h.bound {
			if b.port >= r.Ports.First && b.port <= r.Ports.Last && b.takes(a) {
				errs = append(errs, fmt.Errorf("local address %v is one of this host, and a program uses its %v port %d, "+
					"which is among %d-%d: take other ports", a, b.proto, b.port, r.Ports.First, r.Ports.Last))
				break
			}
		}
	}
	return errs
}

// mostLent bounds the services that lent names.
const mostLent = 5

// lent are the services at the host's own addresses whose ports the kernel gives to its
// own connections too, with what mends it; nil if there are none. They work, so that it is
// no reason to refuse them.
func (h *hostPorts) lent(c *config.Config, own map[netip.Addr]bool) error {
	var names []string
	reserved := slices.Clone(h.reserved) // which the command replaces
	for i := range c.Services {
		s := &c.Services[i]
		port := config.PortRange{First: s.Address.Port(), Last: s.Address.Port()}
		if s.Mode != config.SNAT && own[s.Address.Addr()] && h.given(port) != 0 {
			names = append(names, s.Name)
			reserved = append(reserved, port)
		}
	}
	if len(names) == 0 {
		return nil
	}
	if more := len(names) - mostLent; more > 0 {
		names = append(names[:mostLent], fmt.Sprintf("%d more", more))
	}
	return fmt.Errorf("services at addresses of this host have ports that the kernel gives to its own connections, too "+
		"(net.ipv4.ip_local_port_range is %d-%d): %s; l4fwd takes what comes back on such a connection, which then hangs; "+
		"reserve the ports with: sysctl -w net.ipv4.ip_local_reserved_ports=%s",
		h.ephemeral.First, h.ephemeral.Last, strings.Join(names, ", "), formatReserved(reserved))
}

// given is the first port of r that the kernel may give to a connection, 0 if
// there is none.
func (h *hostPorts) given(r config.PortRange) uint16 {
next:
	for p := int(max(r.First, h.ephemeral.First)); p <= int(min(r.Last, h.ephemeral.Last)); p++ {
		for _, s := range h.reserved {
			if p >= int(s.First) && p <= int(s.Last) {
				continue next
			}
		}
		return uint16(p)
	}
	return 0
}

// readHostPorts reads the files of the calling thread's network namespace.
func readHostPorts(net, sys string) (h hostPorts, err error) {
	b, err := os.ReadFile(sys + "/ip_local_port_range")
	if err != nil {
		return h, fmt.Errorf("ports of the kernel's own connections: %w", err)
	}
	if _, err := fmt.Sscan(string(b), &h.ephemeral.First, &h.ephemeral.Last); err != nil {
		return h, fmt.Errorf("ip_local_port_range %q: %w", b, err)
	}
	if b, err := os.ReadFile(sys + "/ip_local_reserved_ports"); err == nil {
		h.reserved = parseReserved(string(b))
	}
	for _, file := range []struct {
		name  string
		proto config.Protocol
	}{{"tcp", config.TCP}, {"tcp6", config.TCP}, {"udp", config.UDP}, {"udp6", config.UDP}} {
		bound, err := readBound(net+"/"+file.name, file.proto)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // no IPv6
			return h, fmt.Errorf("listening ports: %w", err)
		}
		h.bound = append(h.bound, bound...)
	}
	return h, nil
}

// parseReserved reads a list such as "8080,9000-9010".
func parseReserved(s string) (out []config.PortRange) {
	for item := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		from, to, found := strings.Cut(item, "-")
		if !found {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err1 == nil && err2 == nil {
			out = append(out, config.PortRange{First: uint16(first), Last: uint16(last)})
		}
	}
	return out
}

// formatReserved writes such a list, as the kernel would.
func formatReserved(ports []config.PortRange) string {
	slices.SortFunc(ports, func(a, b config.PortRange) int { return cmp.Compare(a.First, b.First) })
	var items []string
	for i := 0; i < len(ports); {
		r := ports[i]
		for i++; i < len(ports) && int(ports[i].First) <= int(r.Last)+1; i++ {
			r.Last = max(r.Last, ports[i].Last)
		}
		item := strconv.Itoa(int(r.First))
		if r.Last > r.First {
			item = r.String()
		}
		items = append(items, item)
	}
	return strings.Join(items, ",")
}

// readBound reads /proc/net/tcp and its like (proc_pid_net(5)): the listening
// TCP sockets, all UDP sockets.
func readBound(path string, proto config.Protocol) (out []boundPort, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	lines := bufio.NewScanner(f)
	lines.Scan() // the heading
	const listening = "0A"
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || proto == config.TCP && fields[3] != listening {
			continue
		}
		if a, ok := parseProcAddr(fields[1]); ok {
			out = append(out, boundPort{proto, a.Addr(), a.Port()})
		}
	}
	return out, lines.Err()
}

// parseProcAddr reads "0100007F:0016": the address as 32-bit words of the
// machine's own byte order, in hexadecimal, and the port.
func parseProcAddr(s string) (netip.AddrPort, bool) {
	words, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(words)
	p, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), ok
}
