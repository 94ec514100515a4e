package metrics

import (
	"runtime"
	"runtime/debug"
	"strconv"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
	"github.com/l4fwd/l4fwd/dataplane/steer"
	"github.com/l4fwd/l4fwd/nat"
)

// Values of the labels direction and side.
var (
	directions = [2]string{conntrack.Forward: "to_backends", conntrack.Reply: "to_clients"}
	sides      = [2]string{"backend", "client"}
)

// totals are the families of /metrics.
var totals = concat(trafficTotals, flowTotals, workerTotals, nicTotals, []family{
	{name: "l4fwd_service_backends", kind: gauge, labels: []string{"service", "state"},
		help: "Backends of a service by state: up get new flows, the others get none.",
		emit: func(w *writer, s *Sample) {
			for i := range s.Services {
				var n [numStates]uint64
				for _, b := range s.Services[i].Backends {
					n[min(b.State, numStates-1)]++
				}
				for state, n := range n {
					w.count(n, s.Services[i].Name, stateNames[state])
				}
			}
		}},
	{name: "l4fwd_service_suspect_backends", kind: gauge, labels: []string{"service"},
		help: "Backends of a service that clients' connections speak against and that are not down.",
		emit: func(w *writer, s *Sample) {
			for i := range s.Services {
				n := uint64(0)
				for _, b := range s.Services[i].Backends {
					n += number(b.Suspect)
				}
				w.count(n, s.Services[i].Name)
			}
		}},
	{name: "l4fwd_service_panic_backends", kind: gauge, labels: []string{"service"},
		help: "Backends of a service that are down and get new flows all the same, for too few are live.",
		emit: func(w *writer, s *Sample) {
			for i := range s.Services {
				n := uint64(0)
				for _, b := range s.Services[i].Backends {
					n += number(b.Panic)
				}
				w.count(n, s.Services[i].Name)
			}
		}},
	{name: "l4fwd_config_loaded_time_seconds", kind: gauge,
		help: "When the configuration in force was read, in seconds since 1970.",
		emit: func(w *writer, s *Sample) { w.number(float64(s.Loaded.UnixMilli()) / 1e3) }},
	{name: "l4fwd_config_last_reload_successful", kind: gauge,
		help: "0 if the last reload was refused: the file is not what is in force.",
		emit: func(w *writer, s *Sample) { w.count(number(!s.LastRefused)) }},
	{name: "l4fwd_config_reloads_total", kind: counter, labels: []string{"result"},
		help: "Reloads of the configuration by result.",
		emit: func(w *writer, s *Sample) {
			w.count(s.Reloads, "applied")
			w.count(s.ReloadsRefused, "refused")
		}},
	discovery("l4fwd_discovery_connected", "1 if etcd answers.",
		func(d *Discovery) uint64 { return number(d.Connected) }),
	discovery("l4fwd_discovery_current", "1 if what etcd said last is in force, but for documents that are refused.",
		func(d *Discovery) uint64 { return number(d.Current) }),
	discovery("l4fwd_discovery_refused_documents", "Documents of etcd that are not in force as they are, for they are wrong.",
		func(d *Discovery) uint64 { return uint64(d.Refused) }),
	{name: "l4fwd_wrong_tokens_total", kind: counter, labels: []string{"at"},
		help: "Wrong tokens, sent to the status page's buttons or with commands by network.",
		emit: func(w *writer, s *Sample) {
			w.count(s.WrongTokens.Web, "web")
			w.count(s.WrongTokens.Admin, "admin")
		}},
	{name: "l4fwd_build_info", kind: gauge, labels: []string{"version", "go_version"},
		help: "Which l4fwd this is. Always 1.",
		emit: func(w *writer, _ *Sample) { w.count(1, version(), runtime.Version()) }},
}, processTotals)

func concat(lists ...[]family) (all []family) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

var trafficTotals = []family{
	{name: "l4fwd_packets_total", kind: counter, labels: []string{"direction"},
		help: "Packets of flows, by the way they go.",
		emit: func(w *writer, s *Sample) {
			all := s.backends()
			for d, name := range directions {
				w.count(all.Packets[d], name)
			}
		}},
	{name: "l4fwd_bytes_total", kind: counter, labels: []string{"direction"},
		help: "Bytes of those packets, IP headers included, as they were received.",
		emit: func(w *writer, s *Sample) {
			all := s.backends()
			for d, name := range directions {
				w.count(all.Bytes[d], name)
			}
		}},
	{name: "l4fwd_outcomes_total", kind: counter, labels: []string{"outcome"},
		help: "Packets that were not dropped, by what became of them.",
		emit: func(w *writer, s *Sample) { verdicts(w, s, false) }},
	{name: "l4fwd_drops_total", kind: counter, labels: []string{"reason"},
		help: "Packets that went nowhere, by reason (docs/drops.md).",
		emit: func(w *writer, s *Sample) { verdicts(w, s, true) }},
	total("l4fwd_frames_received_total", "Frames taken from receive rings.",
		func(c *dataplane.Counts) uint64 { return c.Received }),
	total("l4fwd_frames_sent_total", "Frames given to transmit rings.",
		func(c *dataplane.Counts) uint64 { return c.Sent }),
	total("l4fwd_refusals_total", "ICMP errors and TCP resets sent of l4fwd's own accord.",
		func(c *dataplane.Counts) uint64 { return c.Refusals }),
	total("l4fwd_fragmented_packets_total", "Packets that left in fragments of l4fwd's making.",
		func(c *dataplane.Counts) uint64 { return c.Split }),
	{name: "l4fwd_toa_total", kind: counter, labels: []string{"result"},
		help: "Packets that should bear the client's address as TOA, by what came of it.",
		emit: func(w *writer, s *Sample) {
			c := s.counts()
			for r, n := range c.TOA {
				w.count(n, nat.TOAResult(r).String())
			}
		}},
	{name: "l4fwd_uoa_total", kind: counter, labels: []string{"result"},
		help: "Datagrams that should bear the client's address as UOA, by what came of it.",
		emit: func(w *writer, s *Sample) {
			c := s.counts()
			for r, n := range c.UOA {
				w.count(n, nat.UOAResult(r).String())
			}
		}},
}

var flowTotals = []family{
	sum("l4fwd_flows", "Flows in the tables now.", func(w *Worker) int { return w.Room.Flows }),
	sum("l4fwd_flows_limit", "Flows that there is room for.", func(w *Worker) int { return w.Room.MaxFlows }),
	sum("l4fwd_half_open_flows", "Flows that have not proved yet that both ends exist.",
		func(w *Worker) int { return w.Room.HalfOpen }),
	sum("l4fwd_half_open_flows_limit", "Such flows that there may be at a time.",
		func(w *Worker) int { return w.Room.MaxHalfOpen }),
	total("l4fwd_flows_opened_total", "Flows opened.",
		func(c *dataplane.Counts) uint64 { return c.Opened }),
	total("l4fwd_flows_reopened_total", "Flows begun afresh by a new SYN of their client.",
		func(c *dataplane.Counts) uint64 { return c.Reopened }),
	total("l4fwd_flows_expired_total", "Flows that have been silent for too long.",
		func(c *dataplane.Counts) uint64 { return c.Expired }),
	total("l4fwd_flows_evicted_total", "Half-open flows that made room for newer ones.",
		func(c *dataplane.Counts) uint64 { return c.Evicted }),
	total("l4fwd_templates_evicted_total", "Prefixes of clients whose persistence was forgotten for want of room.",
		func(c *dataplane.Counts) uint64 { return c.TemplatesEvicted }),
	{name: "l4fwd_connection_log_total", kind: counter, labels: []string{"result"},
		help: "Flows that have ended and were to be logged: written, or lost, for there was no room or no way to write them.",
		emit: func(w *writer, s *Sample) {
			c := s.counts()
			w.count(s.ConnectionsLogged, "written")
			w.count(s.ConnectionsLost+c.FlowLogLost, "lost")
		}},
	{name: "l4fwd_handshake_seconds", kind: histogram, labels: []string{"side"},
		help: "TCP handshakes, from the first SYN to the backend's SYN-ACK and from the first SYN-ACK to the client's ACK.",
		emit: func(w *writer, s *Sample) {
			var all dataplane.Handshakes
			for i := range s.Workers {
				all.Add(&s.Workers[i].AllHandshakes)
			}
			w.times(&all.Server, sides[0])
			w.times(&all.Client, sides[1])
		}},
}

var workerTotals = []family{
	{name: "l4fwd_workers", kind: gauge, help: "Workers.",
		emit: func(w *writer, s *Sample) { w.count(uint64(len(s.Workers))) }},
	{name: "l4fwd_worker_busy_seconds_total", kind: counter, labels: []string{"worker"},
		help: "Time a worker spent in rounds that had packets. Its rate is the share of the worker that is in use.",
		emit: func(w *writer, s *Sample) {
			for i := range s.Workers {
				w.number(float64(s.Workers[i].Counts.BusyNanos)/1e9, strconv.Itoa(i))
			}
		}},
	perWorker("l4fwd_worker_rounds_total", counter, "Times a worker looked at all its rings.",
		func(x *Worker) uint64 { return x.Counts.Rounds }),
	perWorker("l4fwd_worker_busy_rounds_total", counter, "Such rounds in which there were packets.",
		func(x *Worker) uint64 { return x.Counts.BusyRounds }),
	total("l4fwd_worker_events_lost_total", "Words of workers to the control plane that found no room.",
		func(c *dataplane.Counts) uint64 { return c.LostEvents }),
}

var nicTotals = []family{
	{name: "l4fwd_nic_up", kind: gauge, labels: []string{"nic"},
		help: "1 if the NIC is in service and has carrier.",
		emit: func(w *writer, s *Sample) {
			for i := range s.NICs {
				w.count(number(s.NICs[i].Up), s.NICs[i].Name)
			}
		}},
	{name: "l4fwd_nic_xdp_packets_total", kind: counter, labels: []string{"nic", "decision"},
		help: "Packets by what the XDP program decided.",
		emit: func(w *writer, s *Sample) {
			for i := range s.NICs {
				for c, n := range s.NICs[i].XDP {
					w.count(n, s.NICs[i].Name, steer.Counter(c).String())
				}
			}
		}},
	{name: "l4fwd_nic_lost_packets_total", kind: counter, labels: []string{"nic", "reason"},
		help: "Packets that the kernel lost before or behind the rings.",
		emit: func(w *writer, s *Sample) {
			for i := range s.NICs {
				var lost [len(losses)]uint64
				for q := range s.NICs[i].Queues {
					for k := range losses {
						lost[k] += losses[k].of(&s.NICs[i].Queues[q].Kernel)
					}
				}
				for k := range losses {
					w.count(lost[k], s.NICs[i].Name, losses[k].name)
				}
			}
		}},
}

// losses are those of XDP_STATISTICS that cost a packet.
var losses = [...]struct {
	name string
	of   func(*afxdp.KernelStats) uint64
}{
	{"no_frame", func(k *afxdp.KernelStats) uint64 { return k.RxDropped }},
	{"rx_ring_full", func(k *afxdp.KernelStats) uint64 { return k.RxRingFull }},
	{"rx_descriptor", func(k *afxdp.KernelStats) uint64 { return k.RxInvalidDescs }},
	{"tx_descriptor", func(k *afxdp.KernelStats) uint64 { return k.TxInvalidDescs }},
}

// number is 1 for true.
func number(v bool) uint64 {
	if v {
		return 1
	}
	return 0
}

// total is a family of one series that all workers count.
func total(name, help string, of func(*dataplane.Counts) uint64) family {
	return family{name: name, kind: counter, help: help, emit: func(w *writer, s *Sample) {
		c := s.counts()
		w.count(of(&c))
	}}
}

// discovery is a gauge of one series, which is there if discovery is on.
func discovery(name, help string, of func(*Discovery) uint64) family {
	return family{name: name, kind: gauge, help: help, emit: func(w *writer, s *Sample) {
		if s.Discovery != nil {
			w.count(of(s.Discovery))
		}
	}}
}

// sum is a gauge of one series to which all workers add.
func sum(name, help string, of func(*Worker) int) family {
	return family{name: name, kind: gauge, help: help, emit: func(w *writer, s *Sample) {
		n := 0
		for i := range s.Workers {
			n += of(&s.Workers[i])
		}
		w.number(float64(n))
	}}
}

// perWorker is a family of one series for each worker.
func perWorker(name string, k kind, help string, of func(*Worker) uint64) family {
	return family{name: name, kind: k, help: help, labels: []string{"worker"}, emit: func(w *writer, s *Sample) {
		for i := range s.Workers {
			w.count(of(&s.Workers[i]), strconv.Itoa(i))
		}
	}}
}

// verdicts writes drops, or all else.
func verdicts(w *writer, s *Sample, drops bool) {
	c := s.counts()
	for v := range dataplane.NumVerdicts {
		if v.IsDrop() == drops {
			w.count(c.Verdicts[v], v.String())
		}
	}
}

// counts is what all workers have counted.
func (s *Sample) counts() (c dataplane.Counts) {
	for i := range s.Workers {
		c.Add(&s.Workers[i].Counts)
	}
	return c
}

// backends is what all workers have counted of all backends there ever were.
func (s *Sample) backends() (c dataplane.BackendCount) {
	for i := range s.Workers {
		c.Add(&s.Workers[i].Former)
		for j := range s.Workers[i].Backends {
			c.Add(&s.Workers[i].Backends[j])
		}
	}
	return c
}

// version is the module's, as the binary says.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
