package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/l4fwd/l4fwd/internal/testbed"
)

// wire is what an ear has to know of a frame without VLAN tag and IP options.
type wire struct {
	src, dst netip.AddrPort
	flags    byte // TCP
}

// Bits of wire.flags.
const (
	flagSYN = 0x02
	flagACK = 0x10
)

// tcpOf reads a frame's TCP ends; false if it is something else.
func tcpOf(frame []byte) (w wire, ok bool) {
	const eth = 14
	if len(frame) < eth+40 {
		return w, false
	}
	ip := frame[eth:]
	var src, dst netip.Addr
	var l4 []byte
	switch kind := binary.BigEndian.Uint16(frame[12:]); {
	case kind == 0x0800 && ip[9] == 6:
		src, _ = netip.AddrFromSlice(ip[12:16])
		dst, _ = netip.AddrFromSlice(ip[16:20])
		l4 = ip[20:]
	case kind == 0x86dd && ip[6] == 6 && len(ip) >= 60:
		src, _ = netip.AddrFromSlice(ip[8:24])
		dst, _ = netip.AddrFromSlice(ip[24:40])
		l4 = ip[40:]
	default:
		return w, false
	}
	port := binary.BigEndian.Uint16
	return wire{netip.AddrPortFrom(src, port(l4)), netip.AddrPortFrom(dst, port(l4[2:])), l4[13]}, true
}

// synLog notes by which queues each client's SYNs left, and how many.
type synLog struct {
	mu     sync.Mutex
	queues map[netip.AddrPort]int // bit q set: by queue q
	sent   int
}

func (l *synLog) watch(queue int) func([]byte, bool) {
	return func(frame []byte, _ bool) {
		w, ok := tcpOf(frame)
		if !ok || w.flags&(flagSYN|flagACK) != flagSYN {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.queues[w.src] |= 1 << queue
		l.sent++
	}
}

// moved are the clients whose SYNs left by more than one queue, of all.
func (l *synLog) moved() (moved, all, sent int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range l.queues {
		if q == 3 {
			moved++
		}
	}
	return moved, len(l.queues), l.sent
}

// attachServers joins the real servers to the switch or takes them off it,
// without their noticing.
func (r *rig) attachServers(on bool) {
	r.t.Helper()
	nl := r.Switch.Netlink()
	br, err := nl.LinkByName("br0")
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range r.servers {
		port, err := nl.LinkByName(fmt.Sprintf("rs%d", i+1))
		if err != nil {
			r.t.Fatal(err)
		}
		if on {
			err = nl.LinkSetMaster(port, br.(*netlink.Bridge))
		} else {
			err = nl.LinkSetNoMaster(port)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// TestSYNChangesQueue: a kernel with net.core.txrehash rolls another transmit
// queue for a SYN it sends again, so it reaches another worker than the first
// did. Nobody answers the first SYNs here. Each connection must come to be,
// and be one flow with one backend.
func TestSYNChangesQueue(t *testing.T) {
	type row struct {
		mode string
		f    testbed.Family
	}
	rows := []row{{fullNAT, testbed.V4}, {dnat, testbed.V6}}
	if !testing.Short() {
		rows = append(rows, row{fullNAT, testbed.V6}, row{dnat, testbed.V4})
	}
	for _, c := range rows {
		t.Run(c.mode+"/"+c.f.String(), func(t *testing.T) { synChangesQueue(t, c.mode, c.f) })
	}
}

func synChangesQueue(t *testing.T, mode string, f testbed.Family) {
	const conns = 64
	r := network(t, testbed.TopologyOptions{Queues: 2, StaticNeighbours: true}, testbed.SnifferOptions{})
	if v, err := r.Client.ReadSysctl("net.core.txrehash"); err != nil || v != "1" {
		t.Fatalf("txrehash is %s, %v", v, err)
	}
	log := &synLog{queues: make(map[netip.AddrPort]int)}
	for q := range 2 {
		sniff(t, r.Client, "c0", testbed.SnifferOptions{Direction: testbed.Outgoing, TxQueue: q + 1, Watch: log.watch(q)})
	}
	d := r.start(scene{workers: 2, mode: mode})
	r.attachServers(false)
	type outcome struct {
		conns *testbed.Conns
		err   error
	}
	results := make(chan outcome, conns)
	for range conns {
		go func() {
			c, err := r.Client.OpenConns(t.Context(), r.vip(f, 0, testbed.PortHash), 1)
			results <- outcome{c, err}
		}()
	}
	await(t, "every SYN to be sent again, many by another queue", func() error {
		if moved, all, sent := log.moved(); all < conns || sent < 2*conns || moved < conns/8 {
			return fmt.Errorf("%d clients sent %d SYNs, %d moved", all, sent, moved)
		}
		return nil
	})
	r.attachServers(true)
	for range conns {
		o := <-results
		if o.err != nil {
			t.Error(o.err)
			continue
		}
		t.Cleanup(func() { _ = o.conns.Close() })
		if t.Failed() {
			continue // each of the others might take as long to fail
		}
		if err := o.conns.Exchange(1000, 1000, limit); err != nil {
			t.Error(err)
		}
	}
	moved, _, sent := log.moved()
	// The workers are asked one after the other: wait for a moment of rest.
	s := d.until("all packets handed over to be adopted", func(s stats) bool {
		var handed, adopted uint64
		for _, w := range s.Workers {
			handed += w.HandedOver
			adopted += w.Adopted
		}
		return handed > 0 && handed == adopted
	})
	t.Logf("%d SYNs of %d connections, %d changed queue; workers %+v; drops %v", sent, conns, moved, s.Workers, s.drops(stats{}))
	r.checkSingle(s, f, conns)
	d.stop()
}

// checkSingle: n connections are n flows, no more, and no server was asked
// twice.
func (r *rig) checkSingle(s stats, f testbed.Family, n int) {
	r.t.Helper()
	if s.Opened != uint64(n) || s.Flows != n {
		r.t.Errorf("%d flows opened, %d in the table, for %d connections", s.Opened, s.Flows, n)
	}
	var opened uint64
	var active int64
	for _, svc := range s.Services {
		for _, b := range svc.Backends {
			opened += b.Flows
			active += b.Active
		}
	}
	if opened != uint64(n) || active != int64(n) {
		r.t.Errorf("backends count %d flows, %d active, for %d connections", opened, active, n)
	}
	var served uint64
	for _, srv := range r.servers {
		served += srv.Counts().Transfers
	}
	if served != uint64(n) {
		r.t.Errorf("%s: real servers served %d transfers for %d connections", f, served, n)
	}
	noResets(r.t, r.client, r.behind[0], r.behind[1])
}
