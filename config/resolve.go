package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// override applies what the command line says, which beats the file.
func (d *decoder) override(c *Config, overrides []Override) {
	given := func(key string) bool {
		return slices.ContainsFunc(overrides, func(o Override) bool { return o.Key == key })
	}
	if given("cpus") && !given("workers") {
		c.Workers = 0
	}
	if given("workers") && !given("cpus") {
		c.CPUs = nil
	}
	for _, o := range overrides {
		here := position{flag: o.Flag}
		c.at[o.Key] = here
		if o.Key == "interfaces" {
			d.overrideInterfaces(c, o, here)
			continue
		}
		f := find(topFields, o.Key)
		if f == nil || f.set == nil {
			d.fail(o.Key, "no flag can set the key %s", o.Key)
			continue
		}
		if err := f.set(c, o.Value); err != nil {
			d.fail(o.Key, "%v", err)
		}
	}
}

func (d *decoder) overrideInterfaces(c *Config, o Override, here position) {
	c.Interfaces = nil
	for i, name := range strings.Split(o.Value, ",") {
		path := fmt.Sprintf("interfaces[%d]", i)
		c.at[path], c.at[path+".name"] = here, here
		var nic Interface
		if err := interfaceFields[0].set(&nic, strings.TrimSpace(name)); err != nil {
			d.fail(path, "%v", err)
		}
		c.Interfaces = append(c.Interfaces, nic)
	}
}

// inherit fills in what the global keys say for the services and local
// addresses that say nothing themselves.
func (d *decoder) inherit(c *Config) {
	if c.Workers == 0 {
		c.Workers = len(c.CPUs)
	}
	for i := range c.LocalAddresses {
		if r := &c.LocalAddresses[i]; !r.OwnPorts {
			r.Ports = c.LocalPorts
		}
	}
	for i := range c.Services {
		c.Services[i].inherit(c)
	}
}

// inherit fills in what a service does not say.
func (s *Service) inherit(c *Config) {
	if s.TOAKind == 0 {
		s.TOAKind = c.TOAKind
	}
	if s.Timestamps == 0 {
		s.Timestamps = TimestampsKeep
		// Behind one local address a real server sees many clients' clocks as
		// one, and would drop segments as too old (RFC 7323 section 5).
		if s.Protocol == TCP && s.Mode == FullNAT {
			s.Timestamps = TimestampsStrip
		}
	}
	if s.EncapsulationPort == 0 {
		s.EncapsulationPort = s.Encapsulation.port()
	}
	if s.Hash == 0 {
		s.Hash = HashAddressPort
		if s.Scheduler == SH {
			s.Hash = HashAddress
		}
	}
	if s.OnBackendDown == 0 {
		s.OnBackendDown = OnBackendDownReset
		if s.Protocol == UDP {
			s.OnBackendDown = OnBackendDownReschedule
		}
	}
	s.HealthCheck.inherit(s.Protocol)
	s.HealthCheck.Passive.inherit(s)
	if s.DrainTimeout < 0 {
		s.DrainTimeout = c.DrainTimeout
	}
	if s.TCPChecks == 0 {
		s.TCPChecks = c.TCPChecks
	}
	own, global := s.Timeouts.all(), c.Timeouts.all()
	for j := range own {
		if *own[j] == 0 {
			*own[j] = *global[j]
		}
	}
}

// all returns the timeouts in the order of timeoutFields.
func (t *Timeouts) all() []*time.Duration {
	return []*time.Duration{
		&t.TCPSynSent, &t.TCPSynRecv, &t.TCPEstablished, &t.TCPFinWait, &t.TCPCloseWait,
		&t.TCPLastAck, &t.TCPTimeWait, &t.TCPClose, &t.UDPOneWay, &t.UDPTwoWay, &t.UDPOnePacket,
	}
}
