package dataplane

import "fmt"

// Attach gives the worker a port on a NIC: it receives from it, and sends by
// the first one it has on that NIC. mac is the NIC's, in network order. The
// port's fill ring is filled from the worker's pool. Before Run, or inside Do.
func (w *Worker) Attach(nic uint8, mac [6]byte, p Port) error {
	if nic >= MaxNICs {
		return fmt.Errorf("worker %d: NIC %d: at most %d", w.id, nic, MaxNICs)
	}
	if w.egress[nic] < 0 {
		w.egress[nic] = int16(len(w.queues))
	}
	w.queues = append(w.queues, queue{Port: p, nic: nic, mac: mac})
	w.linkPorts()
	for w.refill(&w.queues[len(w.queues)-1]) == BurstSize {
	}
	return nil
}

// Detach takes all ports on a NIC away and returns them. Frames still queued
// for them are dropped. The caller closes each port and then gives the frames
// it held back with Adopt. Before Run, after it, or inside Do.
func (w *Worker) Detach(nic uint8) []Port {
	var out []Port
	kept := w.queues[:0:0]
	for i := range w.queues {
		q := &w.queues[i]
		if q.nic != nic {
			kept = append(kept, *q)
			continue
		}
		w.dropQueued(q, 0, DropPortDown)
		out = append(out, q.Port)
	}
	w.queues = kept
	for i := range w.egress {
		w.egress[i] = -1
	}
	for i := len(kept) - 1; i >= 0; i-- {
		w.egress[kept[i].nic] = int16(i)
	}
	w.linkPorts()
	return out
}

// linkPorts finds out what out is, after a change to egress, queues or one's down.
func (w *Worker) linkPorts() {
	for nic := range w.out {
		w.out[nic] = w.queueOf(uint8(nic))
	}
}

// Adopt takes back frames that a closed port held. Inside Do, or after Run.
func (w *Worker) Adopt(frames []uint64) {
	for _, a := range frames {
		w.release(a)
	}
}

// ID is the worker's number, from 0.
func (w *Worker) ID() int { return w.id }
