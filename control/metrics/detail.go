package metrics

import (
	"strconv"

	"github.com/l4fwd/l4fwd/dataplane"
	"github.com/l4fwd/l4fwd/dataplane/afxdp"
)

// detail are the families of /metrics/detail.
var detail = concat(serviceDetail, backendDetail, workerDetail, queueDetail)

var serviceDetail = []family{
	{name: "l4fwd_service_flows", kind: gauge, labels: []string{"service"},
		help: "Flows of a service now.",
		emit: func(w *writer, s *Sample) {
			for i := range s.Services {
				w.number(float64(s.active(&s.Services[i])), s.Services[i].Name)
			}
		}},
	{name: "l4fwd_service_ports_exhausted_total", kind: counter, labels: []string{"service"},
		help: "Packets that would have opened a flow, had there been a local port free towards its backend.",
		emit: func(w *writer, s *Sample) {
			for i := range s.Services {
				c := s.serviceCount(s.Services[i].ID)
				w.count(c.PortsExhausted, s.Services[i].Name)
			}
		}},
	{name: "l4fwd_service_quic_datagrams_total", kind: counter, labels: []string{"service", "result"},
		help: "Datagrams that were to open a flow of a service with quic, by what their connection ID says, and those that moved one.",
		emit: func(w *writer, s *Sample) {
			for i := range s.Services {
				if x := &s.Services[i]; x.QUIC {
					c := s.serviceCount(x.ID)
					w.count(c.QUICRouted, x.Name, "routed")
					w.count(c.QUICUnknown, x.Name, "unknown")
					w.count(c.QUICNone, x.Name, "none")
					w.count(c.QUICMoved, x.Name, "moved")
				}
			}
		}},
	{name: "l4fwd_service_handshake_seconds", kind: histogram, labels: []string{"service", "side"},
		help: "TCP handshakes of a service, as l4fwd_handshake_seconds.",
		emit: func(w *writer, s *Sample) {
			for i := range s.Services {
				if x := &s.Services[i]; x.Handshakes {
					h := s.handshakes(x.ID)
					w.times(&h.Server, x.Name, sides[0])
					w.times(&h.Client, x.Name, sides[1])
				}
			}
		}},
}

var backendDetail = []family{
	{name: "l4fwd_backend_up", kind: gauge, labels: []string{"service", "backend"},
		help: "1 unless the backend's health checks fail.",
		emit: func(w *writer, s *Sample) {
			s.eachBackend(func(x *Service, b *Backend) {
				w.count(number(b.State != Down), x.Name, b.Name)
			})
		}},
	{name: "l4fwd_backend_weight", kind: gauge, labels: []string{"service", "backend"},
		help: "The backend's share of new flows, as it is now.",
		emit: func(w *writer, s *Sample) {
			s.eachBackend(func(x *Service, b *Backend) { w.count(uint64(b.Weight), x.Name, b.Name) })
		}},
	{name: "l4fwd_backend_checks_total", kind: counter, labels: []string{"service", "backend", "result"},
		help: "Health checks of a backend by result.",
		emit: func(w *writer, s *Sample) {
			s.eachBackend(func(x *Service, b *Backend) {
				if b.Checks != nil {
					w.count(b.Checks.Passed, x.Name, b.Name, "passed")
					w.count(b.Checks.Failed, x.Name, b.Name, "failed")
				}
			})
		}},
	{name: "l4fwd_backend_check_seconds", kind: gauge, labels: []string{"service", "backend"},
		help: "How long the last health check of a backend took.",
		emit: func(w *writer, s *Sample) {
			s.eachBackend(func(x *Service, b *Backend) {
				if b.Checks != nil {
					w.number(b.Checks.Took.Seconds(), x.Name, b.Name)
				}
			})
		}},
	{name: "l4fwd_backend_suspect", kind: gauge, labels: []string{"service", "backend"},
		help: "1 while clients' connections speak against a backend that is not down.",
		emit: func(w *writer, s *Sample) {
			s.eachBackend(func(x *Service, b *Backend) {
				if b.Judged {
					w.count(number(b.Suspect), x.Name, b.Name)
				}
			})
		}},
	{name: "l4fwd_backend_connections_total", kind: counter, labels: []string{"service", "backend", "worker", "result"},
		help: "What new connections of a backend met with; reset ones are answered, too.",
		emit: func(w *writer, s *Sample) {
			for i := range s.Workers {
				signs, worker := s.Workers[i].Signs, strconv.Itoa(i)
				s.eachBackend(func(x *Service, b *Backend) {
					if !x.Answers {
						return
					}
					var c dataplane.Signs
					if b.ID < len(signs) { // else the worker does not know it yet
						c = signs[b.ID]
					}
					w.count(c.Answered, x.Name, b.Name, worker, "answered")
					w.count(c.Unanswered, x.Name, b.Name, worker, "unanswered")
					w.count(c.Refused, x.Name, b.Name, worker, "refused")
					w.count(c.Reset, x.Name, b.Name, worker, "reset")
				})
			}
		}},
	perBackend("l4fwd_backend_flows", gauge, "Flows of a backend that a worker has now.",
		func(w *writer, c *dataplane.BackendCount, of []string) { w.number(float64(c.Active), of...) }),
	perBackend("l4fwd_backend_flows_opened_total", counter, "Flows that a worker has opened to a backend.",
		func(w *writer, c *dataplane.BackendCount, of []string) { w.count(c.Flows, of...) }),
	perBackend("l4fwd_backend_packets_total", counter, "Packets of a backend's flows, by the way they go.",
		func(w *writer, c *dataplane.BackendCount, of []string) { both(w, &c.Packets, of) }, "direction"),
	perBackend("l4fwd_backend_bytes_total", counter, "Bytes of those packets, IP headers included, as they were received.",
		func(w *writer, c *dataplane.BackendCount, of []string) { both(w, &c.Bytes, of) }, "direction"),
}

// perBackend is a family by backend and worker, and perhaps another label.
func perBackend(name string, k kind, help string, emit func(*writer, *dataplane.BackendCount, []string), more ...string) family {
	labels := append([]string{"service", "backend", "worker"}, more...)
	return family{name: name, kind: k, help: help, labels: labels, emit: func(w *writer, s *Sample) {
		of := make([]string, 3, 4)
		for i := range s.Workers {
			of[2] = strconv.Itoa(i)
			counts := s.Workers[i].Backends
			s.eachBackend(func(x *Service, b *Backend) {
				var c dataplane.BackendCount
				if b.ID < len(counts) { // else the worker does not know it yet
					c = counts[b.ID]
				}
				of[0], of[1] = x.Name, b.Name
				emit(w, &c, of)
			})
		}
	}}
}

// both writes a series for each direction.
func both(w *writer, n *[2]uint64, of []string) {
	for d, name := range directions {
		w.count(n[d], append(of, name)...)
	}
}

var workerDetail = []family{
	perWorker("l4fwd_worker_frames_received_total", counter, "Frames a worker took from receive rings.",
		func(x *Worker) uint64 { return x.Counts.Received }),
	perWorker("l4fwd_worker_frames_sent_total", counter, "Frames a worker gave to transmit rings.",
		func(x *Worker) uint64 { return x.Counts.Sent }),
	perWorker("l4fwd_worker_handed_over_total", counter, "Packets a worker gave to the one that has their flow.",
		func(x *Worker) uint64 { return x.Counts.Verdicts[dataplane.HandedOver] }),
	perWorker("l4fwd_worker_adopted_total", counter, "Packets a worker got from others.",
		func(x *Worker) uint64 { return x.Counts.Adopted }),
	perWorker("l4fwd_worker_bursts_total", counter, "Bursts that a worker received.",
		func(x *Worker) uint64 { return x.Counts.Bursts }),
	perWorker("l4fwd_worker_full_bursts_total", counter, "Such bursts as large as they may be: more is waiting.",
		func(x *Worker) uint64 { return x.Counts.FullBursts }),
	perWorker("l4fwd_worker_flows", gauge, "Flows in a worker's table now.",
		func(x *Worker) uint64 { return uint64(x.Room.Flows) }),
	perWorker("l4fwd_worker_free_frames", gauge, "Frames in a worker's pool now.",
		func(x *Worker) uint64 { return uint64(x.FreeFrames) }),
	perWorker("l4fwd_worker_fragments_waiting", gauge, "Fragments that wait for their datagram's first one.",
		func(x *Worker) uint64 { return uint64(x.FragmentsWaiting) }),
	{name: "l4fwd_worker_stage_seconds_total", kind: counter, labels: []string{"worker", "stage"},
		help: "Time of rounds that had packets by stage, told from one round in a thousand.",
		emit: func(w *writer, s *Sample) {
			for i := range s.Workers {
				for stage, took := range s.Workers[i].Stages {
					w.number(took.Seconds(), strconv.Itoa(i), dataplane.Stage(stage).String())
				}
			}
		}},
	{name: "l4fwd_worker_drops_total", kind: counter, labels: []string{"worker", "reason"},
		help: "Packets that went nowhere, by worker and reason.",
		emit: func(w *writer, s *Sample) {
			for i := range s.Workers {
				for v := range dataplane.NumVerdicts {
					if v.IsDrop() {
						w.count(s.Workers[i].Counts.Verdicts[v], strconv.Itoa(i), v.String())
					}
				}
			}
		}},
}

// queueCount is one of a queue's counters, by the label that tells it from others.
type queueCount struct {
	name string
	of   func(*afxdp.Stats) uint64
}

var queueDetail = []family{
	perQueue("l4fwd_nic_queue_frames_total", "Frames that went through a queue's rings.", "ring", []queueCount{
		{"rx", func(q *afxdp.Stats) uint64 { return q.Received }},
		{"fill", func(q *afxdp.Stats) uint64 { return q.Filled }},
		{"tx", func(q *afxdp.Stats) uint64 { return q.Transmitted }},
		{"completion", func(q *afxdp.Stats) uint64 { return q.Reclaimed }},
	}),
	perQueue("l4fwd_nic_queue_syscalls_total", "System calls that woke the driver, to send or to receive.", "call", []queueCount{
		{"sendto", func(q *afxdp.Stats) uint64 { return q.Sends }},
		{"recvfrom", func(q *afxdp.Stats) uint64 { return q.Wakeups }},
	}),
	perQueue("l4fwd_nic_queue_trouble_total", "What those calls answered, and descriptors found bad.", "what", []queueCount{
		{"again", func(q *afxdp.Stats) uint64 { return q.Again }},
		{"busy", func(q *afxdp.Stats) uint64 { return q.Busy }},
		{"no_buffers", func(q *afxdp.Stats) uint64 { return q.NoBuffers }},
		{"interrupted", func(q *afxdp.Stats) uint64 { return q.Interrupted }},
		{"failed", func(q *afxdp.Stats) uint64 { return q.Failed }},
		{"rx_refused", func(q *afxdp.Stats) uint64 { return q.RxRefused }},
		{"fill_refused", func(q *afxdp.Stats) uint64 { return q.FillRefused }},
		{"tx_refused", func(q *afxdp.Stats) uint64 { return q.TxRefused }},
		{"doubled", func(q *afxdp.Stats) uint64 { return q.Doubled }},
		{"fill_ring_empty", func(q *afxdp.Stats) uint64 { return q.Kernel.RxFillRingEmptyDescs }},
	}),
}

// perQueue is a family by NIC and queue and one more label.
func perQueue(name, help, label string, counts []queueCount) family {
	return family{name: name, kind: counter, help: help, labels: []string{"nic", "queue", label}, emit: func(w *writer, s *Sample) {
		for i := range s.NICs {
			for q := range s.NICs[i].Queues {
				for _, c := range counts {
					w.count(c.of(&s.NICs[i].Queues[q]), s.NICs[i].Name, strconv.Itoa(q), c.name)
				}
			}
		}
	}}
}

// active is how many flows all workers have of a service's backends. Of what else they
// count there is no sum for a service: it would fall when a backend goes, which looks as
// if the counter began anew. Prometheus can add up rates.
func (s *Sample) active(x *Service) (n int64) {
	for _, b := range x.Backends {
		for w := range s.Workers {
			if counts := s.Workers[w].Backends; b.ID < len(counts) {
				n += counts[b.ID].Active
			}
		}
	}
	return n
}

func (s *Sample) eachBackend(f func(*Service, *Backend)) {
	for i := range s.Services {
		for j := range s.Services[i].Backends {
			f(&s.Services[i], &s.Services[i].Backends[j])
		}
	}
}

// serviceCount is what all workers have counted of service id.
func (s *Sample) serviceCount(id int) (c dataplane.ServiceCount) {
	for i := range s.Workers {
		if counts := s.Workers[i].Services; id < len(counts) {
			c.Add(&counts[id])
		}
	}
	return c
}

// handshakes is what all workers have timed of service id.
func (s *Sample) handshakes(id int) (h dataplane.Handshakes) {
	for i := range s.Workers {
		if times := s.Workers[i].Handshakes; id < len(times) {
			h.Add(&times[id])
		}
	}
	return h
}
