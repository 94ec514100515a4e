package conntrack

import (
	"slices"
	"testing"
)

// TestAuditTuples: a flow that is in the table by another hash than its tuples', if only by
// bits that no bucket and no tag depends on, is found, and so is a second one of the same tuples.
func TestAuditTuples(tt *testing.T) {
	var evicted Entry
	for name, c := range map[string]struct {
		fh, rh uint32 // added
		twice  bool
	}{"right": {}, "client's": {fh: 1 << 20}, "server's": {rh: 1 << 20}, "twice": {twice: true}} {
		dir, t := testDirectory(), newTest(tt, Options{Flows: 64, Secret: [32]byte{1}, Lazy: true})
		e := numbered(3)
		fwd, rev := e.Tuples(dir)
		for range 1 + b2i(c.twice) {
			if _, st, _ := t.InsertFree(&e, t.Hash(&fwd)+c.fh, t.Hash(&rev)+c.rh, 0, &evicted); st != Inserted {
				tt.Fatal(st)
			}
		}
		if err := t.Audit(); err != nil {
			tt.Error(name, err)
		}
		if err := t.AuditTuples(dir); (err == nil) != (name == "right") {
			tt.Errorf("%s: %v", name, err)
		}
	}
}

// TestOnePacketRefused: a flow of one datagram that finds no room leaves nothing behind.
func TestOnePacketRefused(tt *testing.T) {
	dir, t := testDirectory(), newTest(tt, Options{Flows: 1})
	e := numbered(3)
	r := mustInsert(tt, t, &e, dir, 0)
	t.dropHalfOpen(r) // as if it were answered
	one := numbered(4)
	one.State, one.Proto, one.Service, one.Backend = UDPOnePacket, e.Proto, e.Service, e.Backend
	fwd, rev := tuples(&one, dir)
	var evicted Entry
	before := slices.Clone(t.buckets)
	if _, st, _ := t.Insert(&one, &fwd, rev, dir, 0, &evicted); st != Full {
		tt.Fatal(st)
	}
	if err := t.Audit(); err != nil {
		tt.Error(err)
	}
	for i := range before {
		if before[i] != t.buckets[i] {
			tt.Errorf("bucket %d changed", i)
		}
	}
}
