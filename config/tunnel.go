package config

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

const (
	wantSource = "an address or a network such as 172.16.0.0/16, or nothing"
	wantMAC    = "a MAC address of one interface such as 02:6c:34:66:77:64"
)

// Encapsulation is what packets travel in to a backend beyond routers.
type Encapsulation uint8

// Encapsulations.
const (
	EncapsulationNone  Encapsulation = iota + 1
	EncapsulationIPIP                // IP in IP
	EncapsulationGRE                 // without options
	EncapsulationGUE                 // UDP with a header of 4 bytes
	EncapsulationFOU                 // UDP and nothing else
	EncapsulationVXLAN               // Ethernet in UDP
)

// port is the usual UDP port, 0 if there is none.
func (e Encapsulation) port() uint16 {
	switch e {
	case EncapsulationGUE:
		return 6080 // IANA
	case EncapsulationVXLAN:
		return 4789 // RFC 7348
	}
	return 0
}

// String returns the name used in the configuration.
func (e Encapsulation) String() string { return encapsulationNames.name(uint8(e)) }

// MAC is an Ethernet address.
type MAC [6]byte

// maxVNI is what 24 bits hold (RFC 7348 section 5).
const maxVNI = 1<<24 - 1

func parseVNI(s string) (uint32, error) {
	n, err := parseInt(s, 0, maxVNI)
	return uint32(n), err
}

// parseSource parses what tunnels' packets come from. Nothing is no prefix at all.
func parseSource(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	if !strings.Contains(s, "/") {
		a, err := parseAddr(s)
		if err == nil {
			err = unfit(a)
		}
		if err != nil {
			return netip.Prefix{}, expected(wantSource, s, err.Error())
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || p.Addr().Is4In6():
		return netip.Prefix{}, expected(wantSource, s, "")
	case p.Masked() != p:
		return netip.Prefix{}, expected(wantSource, s, fmt.Sprintf("did you mean %v?", p.Masked()))
	case p.Bits() == 0:
		return netip.Prefix{}, expected(wantSource, s, "")
	}
	for _, n := range unfitNetworks {
		if p.Overlaps(n.Prefix) {
			return netip.Prefix{}, expected(wantSource, s, fmt.Sprintf("it holds %s addresses (%v)", n.what, n.Prefix))
		}
	}
	return p, nil
}

// unfitNetworks are those whose addresses unfit refuses, one by one.
var unfitNetworks = []struct {
	netip.Prefix
	what string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("::/127"), "unspecified and loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// formatSource is the inverse of parseSource.
func formatSource(p netip.Prefix) string {
	switch {
	case !p.IsValid():
		return `""`
	case p.IsSingleIP():
		return quote(p.Addr().String())
	}
	return quote(p.String())
}

func parseMAC(s string) (MAC, error) {
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 || m[0]&1 != 0 || MAC(m) == (MAC{}) {
		return MAC{}, expected(wantMAC, s, "")
	}
	return MAC(m), nil
}

// String is the usual text form.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// tunnel checks what a service says of the way to backends beyond routers.
func (v *validator) tunnel(path string, s Service) {
	if s.Encapsulation == 0 {
		return
	}
	none := s.Encapsulation == EncapsulationNone
	switch {
	case s.Mode == Tunnel && none:
		v.fail(path+".encapsulation", "tunnel needs one of %s", strings.Join(encapsulationNames[1:], ", "))
	case s.Mode != Tunnel && s.Mode != 0 && !none:
		v.fail(path+".encapsulation", "%v is for mode: tunnel", s.Encapsulation)
	}
	switch {
	case s.Encapsulation < EncapsulationGUE && s.EncapsulationPort != 0:
		v.fail(path+".encapsulation_port", "encapsulation %v has no port", s.Encapsulation)
	case s.Encapsulation == EncapsulationFOU && s.EncapsulationPort == 0:
		v.fail(path+".encapsulation_port", "fou has no usual port; expected a whole number from 1 to 65535")
	}
	if s.Encapsulation != EncapsulationVXLAN {
		if s.VNI != 0 {
			v.fail(path+".vni", "a network identifier is for encapsulation: vxlan")
		}
		if s.VXLANMAC != defaultService().VXLANMAC {
			v.fail(path+".vxlan_mac", "a MAC address is for encapsulation: vxlan")
		}
	}
	if !s.EncapsulationSource.IsValid() {
		return
	}
	source := s.EncapsulationSource
	if none {
		v.fail(path+".encapsulation_source", "a source is for mode: tunnel")
	}
	for j, b := range s.Backends {
		if a := b.Address.Addr(); a.IsValid() && a.Is4() != source.Addr().Is4() {
			v.fail(path+".encapsulation_source", "%v is no source for %s, which has an %s address", source, v.c.calledBackend(path, j), family(a))
			return
		}
	}
}
