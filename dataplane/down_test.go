package dataplane

import (
	"fmt"
	"testing"
	"time"

	"github.com/l4fwd/l4fwd/packet"
)

// changed is spec with the backends at an address as change makes them.
func changed(t *testing.T, spec Spec, backend string, change func(*BackendSpec)) Spec {
	t.Helper()
	n := 0
	for i := range spec.Services {
		s := &spec.Services[i]
		for j := range s.Backends {
			if b := &s.Backends[j]; b.Endpoint == endpoint(backend, s.VIP.Proto) {
				change(b)
				n++
			}
		}
	}
	if n == 0 {
		t.Fatalf("nobody has %s", backend)
	}
	return spec
}

// TestBackendDownGoesOn: a backend that is down keeps its flows and gets no more, be
// it that a client begins anew on one's port.
func TestBackendDownGoesOn(t *testing.T) {
	down := func(b *BackendSpec) { b.Down, b.Weight = true, 7 }
	for _, vip := range orphanVIPs {
		t.Run(vip, func(t *testing.T) {
			r, publish := orphanRig(t, BackendDownReset)
			c := r.open(0, "198.51.100.7:40000", vip)
			publish(changed(t, orphanSpec(BackendDownReset), c.backend, down))
			r.now += int64(time.Second)
			c.fromClient(seg{ack: true, seq: 1001, ackNum: 9001, payload: 10})
			c.fromServer(seg{ack: true, seq: 9001, ackNum: c.isn + 11, payload: 10})
			for i := range 8 {
				if got := serverOf(r, fmt.Sprintf("198.51.100.8:%d", 1000+i), vip); got == c.backend {
					t.Fatal("a new flow to a backend that is down")
				}
			}
		})
	}
}

// TestBackendEnds: the flows of a backend with End are as those of one that is gone,
// and it comes back as any.
func TestBackendEnds(t *testing.T) {
	end := func(b *BackendSpec) { b.End = true }
	for _, vip := range orphanVIPs {
		t.Run(vip, func(t *testing.T) {
			r, publish := orphanRig(t, BackendDownDrop)
			c := r.open(0, "198.51.100.7:40000", vip)
			publish(changed(t, orphanSpec(BackendDownDrop), c.backend, end))
			data := seg{src: c.client, dst: vip, ack: true, seq: 1001, ackNum: 9001, payload: 10}
			r.refused(0, 0, DropBackendGone, build(t, data))
			r.refused(0, 1, DropBackendGone, build(t, seg{src: c.backend, dst: c.local, ack: true, seq: 9001, ackNum: c.isn + 1, payload: 10}))
			for i := range 8 {
				if got := serverOf(r, fmt.Sprintf("198.51.100.8:%d", 1000+i), vip); got == c.backend {
					t.Fatal("a new flow to a backend whose flows end")
				}
			}
			publish(orphanSpec(BackendDownDrop))
			r.one(0, 0, 1, build(t, data))
		})
	}
}

// TestBackendDownByName: who is down gets no new flow by a connection ID or a template
// either, but keeps those it has.
func TestBackendDownByName(t *testing.T) {
	for name, vip := range quicVIPs {
		t.Run(name, func(t *testing.T) {
			r, publish := quicRig(t, 1)
			if id, _ := r.server(0, quicClient(vip, 0), vip, quicShort(2)); id != 2 {
				t.Fatalf("server %d for a connection of server 2", id)
			}
			publish(func(s *ServiceSpec) { s.Backends[1].Down = true })
			for n := range 8 {
				if id, _ := r.server(0, quicClient(vip, 10+n), vip, quicShort(2)); id == 2 {
					t.Fatal("a connection ID led to a server that is down")
				}
			}
			if id, _ := r.server(0, quicClient(vip, 0), vip, quicShort(2)); id != 2 {
				t.Errorf("a flow went from server 2 to %d", id)
			}
		})
	}
	t.Run("persistence", func(t *testing.T) {
		r, publish := orphanRig(t, BackendDownReset)
		const vip = "192.0.2.10:80"
		sticky := func() Spec {
			spec := orphanSpec(BackendDownReset)
			spec.Templates = 1024
			spec.Services[0].Persistence = Persistence{Timeout: 1 << 20, Prefix: 24}
			return spec
		}
		publish(sticky())
		first := serverOf(r, "198.51.100.7:1000", vip)
		publish(changed(t, sticky(), first, func(b *BackendSpec) { b.Down = b.Endpoint.Proto == packet.ProtoTCP }))
		if got := serverOf(r, "198.51.100.7:1001", vip); got == first {
			t.Error("persistence led to a backend that is down")
		}
	})
}

// TestDrainOldConnection: one that is an hour old when its backend is drained lives on for
// another, while new ones go elsewhere, and ends as any.
func TestDrainOldConnection(t *testing.T) {
	for _, vip := range orphanVIPs {
		t.Run(vip, func(t *testing.T) {
			r, publish := orphanRig(t, BackendDownReset)
			c := r.open(0, "198.51.100.7:40000", vip)
			sent := uint32(0)
			hour := func() {
				t.Helper()
				for range 60 {
					r.pass(time.Minute)
					c.fromClient(seg{ack: true, seq: 1001 + sent, ackNum: 9001 + sent, payload: 10})
					c.fromServer(seg{ack: true, seq: 9001 + sent, ackNum: c.isn + 11 + sent, payload: 10})
					sent += 10
				}
			}
			hour()
			publish(changed(t, orphanSpec(BackendDownReset), c.backend, func(b *BackendSpec) { b.Weight = 0 }))
			hour()
			for i := range 8 {
				if got := serverOf(r, fmt.Sprintf("198.51.100.8:%d", 1000+i), vip); got == c.backend {
					t.Fatal("a new flow to a drained backend")
				}
			}
			c.fromClient(seg{ack: true, fin: true, seq: 1001 + sent, ackNum: 9001 + sent})
			c.fromServer(seg{ack: true, fin: true, seq: 9001 + sent, ackNum: c.isn + 2 + sent})
			c.fromClient(seg{ack: true, seq: 1002 + sent, ackNum: 9002 + sent})
			r.pass(5 * time.Minute)
			if n := r.dp.Workers[0].Flows(); n != 0 {
				t.Errorf("%d flows left", n)
			}
		})
	}
}
