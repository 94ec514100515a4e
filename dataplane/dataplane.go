package dataplane

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet/rss"
)

// Options of New.
type Options struct {
	Workers   int
	UMEM      []byte // all frames; every worker begins with an equal share
	FrameSize int    // bytes, a power of two
	Flows     int    // flow table capacity, over all workers
	// Secret keys flow hashes, owners, ports and sequence numbers. Random in
	// the daemon, fixed for a reproducible replay.
	Secret [32]byte
	// ISNSecret keys sequence numbers and timestamps towards servers; zero: made
	// from Secret. With that of an earlier process, and ISNEpoch, nanoseconds
	// added to the workers' clock, they go on where that process left off.
	ISNSecret [16]byte
	ISNEpoch  int64
	// LocalPorts are the Full-NAT source ports by local address id, that is, in
	// the order of the first Spec's Locals; zero or missing is
	// nat.DefaultPortRange.
	LocalPorts []nat.PortRange
	// Spread is how all NICs alike spread packets over the workers' queues, nil
	// if that is not known or not alike. Frozen: when the NICs are set up anew,
	// flows keep their owners and packets are handed over.
	Spread *rss.Spread
	// Unpopulated leaves the flow table's memory to be faulted in by use:
	// quick to start, slower to run.
	Unpopulated bool

	refused refused // all workers', of a Trial; nil: to each its own
}

// Dataplane is a set of workers over one UMEM.
type Dataplane struct {
	Workers []*Worker
	mesh    *mesh
	umem    []byte
	frame   uint64
	opt     Options // of New
}

// New makes the workers, each with its table and its frames. They receive
// nothing before Attach, and have neither services nor routes before Publish
// and PublishRoutes.
func New(o Options) (*Dataplane, error) {
	if o.Workers < 1 || o.Workers > 255 {
		return nil, fmt.Errorf("dataplane: %d workers: want 1 to 255", o.Workers)
	}
	if o.FrameSize > maxFrameSize {
		return nil, fmt.Errorf("dataplane: frames of %d bytes: want at most %d", o.FrameSize, maxFrameSize)
	}
	frames := uint64(len(o.UMEM)) / uint64(o.FrameSize) / uint64(o.Workers)
	if frames < BurstSize {
		return nil, fmt.Errorf("dataplane: %d frames a worker: want at least %d", frames, BurstSize)
	}
	span := frames * uint64(o.FrameSize)
	dp := &Dataplane{
		mesh: newMesh(o.Workers, frames, uint64(o.FrameSize)),
		umem: o.UMEM, frame: uint64(o.FrameSize), opt: o,
	}
	for id := range o.Workers {
		w, err := newWorker(dp, id, o, span)
		if err != nil {
			return nil, errors.Join(err, dp.Close())
		}
		dp.Workers = append(dp.Workers, w)
	}
	nothing, err := NewRegistry(o.Workers).Build(Spec{})
	if err != nil {
		return nil, errors.Join(err, dp.Close())
	}
	for _, w := range dp.Workers {
		w.peers = dp.Workers
		w.nextSnap.Store(nothing)
		w.refresh()
	}
	return dp, nil
}

func newWorker(dp *Dataplane, id int, o Options, span uint64) (*Worker, error) {
	table, err := conntrack.New(conntrack.Options{
		Flows: max(1, o.Flows/o.Workers), Secret: tableSecret(o.Secret), Lazy: o.Unpopulated,
	})
	if err != nil {
		return nil, fmt.Errorf("worker %d: %w", id, err)
	}
	portKey, ownerKey := derive(o.Secret, 'p', id), derive(o.Secret, 'o', 0)
	wakeFD, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("worker %d: eventfd: %w", id, err), table.Close())
	}
	idKey := derive(o.Secret, 'd', 0)
	frags, err := newFragments(derive(o.Secret, 'f', 0), o.Workers, o.Flows/o.Workers, int(span)/o.FrameSize)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("worker %d: %w", id, err), table.Close())
	}
	w := &Worker{
		id: id, umem: o.UMEM, frameSize: uint64(o.FrameSize), mesh: dp.mesh, table: table,
		frags:        frags,
		owners:       newOwnership(ownerKey[:], o.Workers, o.Spread),
		isn:          newISN(o),
		errors:       nat.NewBucket(errorsPerSecond, refusalBurst),
		resets:       nat.NewBucket(resetsPerSecond, refusalBurst),
		serverResets: nat.NewBucket(resetsPerSecond, refusalBurst),
		tooBigs:      nat.NewBucket(errorsPerSecond, refusalBurst),
		farewells:    nat.NewBucket(farewellsPerSecond, farewellBurst),
		ipID:         binary.LittleEndian.Uint32(idKey[:])&^0xffff | uint32(id),
		refused:      o.refused,
		ports: nat.NewPorts(nat.PortOptions{
			Worker: id, Workers: o.Workers, Seed: binary.LittleEndian.Uint64(portKey[:]), Ranges: o.LocalPorts, Spread: o.Spread,
		}),
		pool: newPool(uint64(id)*span, uint64(id+1)*span, uint64(o.FrameSize), len(o.UMEM)/o.FrameSize),
	}
	if w.refused == nil {
		w.refused = make(refused, refusedLines)
	}
	w.wakeFD, w.events = wakeFD, newEvents()
	for i := range w.egress {
		w.egress[i] = -1
	}
	w.outbox, w.repayments = dp.mesh.packets[id], dp.mesh.repayments[id]
	w.owed = make([]int, o.Workers)
	for from := range o.Workers {
		if from != id {
			w.inbox = append(w.inbox, dp.mesh.packets[from][id])
			w.repaid = append(w.repaid, dp.mesh.repayments[from][id])
		}
	}
	w.nextRoutes.Store(route.New(0, []route.Hop{{}}, nil))
	return w, nil
}

// newISN makes a worker's sequence numbers. All workers have one secret: a tuple
// may be another worker's after a restart with more of them.
func newISN(o Options) *nat.ISN {
	secret := o.ISNSecret
	if secret == ([16]byte{}) {
		key := derive(o.Secret, 'i', 0)
		secret = [16]byte(key[:])
	}
	return nat.NewISN(secret, o.ISNEpoch)
}

// derive makes one purpose's and one worker's key out of the secret.
func derive(secret [32]byte, purpose byte, worker int) [32]byte {
	return sha256.Sum256(append(secret[:], purpose, byte(worker)))
}

// tableSecret keys all workers' tables: a packet is handed over with its hash.
func tableSecret(secret [32]byte) [32]byte { return derive(secret, 't', 0) }

// Publish swaps in a snapshot; every worker takes it over before its next
// burst. The snapshot belongs to the workers from here on.
func (dp *Dataplane) Publish(s *Snapshot) {
	for _, w := range dp.Workers {
		w.nextSnap.Store(s)
		w.wakeUp()
	}
}

// PublishRoutes swaps in next hops.
func (dp *Dataplane) PublishRoutes(r *route.Table) {
	for _, w := range dp.Workers {
		w.nextRoutes.Store(r)
	}
}

// Do runs f on every worker in turn, see Worker.Do.
func (dp *Dataplane) Do(ctx context.Context, f func(*Worker)) error {
	for _, w := range dp.Workers {
		if err := w.Do(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// Backing says what memory the first worker's flow table got; the others asked
// for the same.
func (dp *Dataplane) Backing() string { return dp.Workers[0].table.Backing() }

// TableBytes is the memory of all workers' flow tables.
func (dp *Dataplane) TableBytes() (n uint64) {
	for _, w := range dp.Workers {
		n += w.table.Size()
	}
	return n
}

// Close frees what the workers hold. They must have stopped.
func (dp *Dataplane) Close() error {
	var errs []error
	for _, w := range dp.Workers {
		errs = append(errs, w.table.Close(), unix.Close(w.wakeFD))
	}
	return errors.Join(errs...)
}

// Audit accounts for every frame once all workers have stopped: how many are
// in pools, rings between workers, waiting fragments, and held by ports. An error
// names a frame that is in two places or in none, or what is wrong with a flow
// table, see conntrack.Table.Audit.
func (dp *Dataplane) Audit() error {
	where := make([]string, uint64(len(dp.umem))/dp.frame)
	var errs []error
	put := func(addr uint64, place string) {
		n := addr / dp.frame
		if where[n] != "" {
			errs = append(errs, fmt.Errorf("frame %d is in %s and in %s", n, where[n], place))
		}
		where[n] = place
	}
	var v [1]uint64
	for _, w := range dp.Workers {
		for _, a := range w.pool.free {
			put(a, fmt.Sprintf("pool %d", w.id))
		}
		for _, r := range w.repaid {
			for r.pop(v[:]) == 1 {
				put(v[0], fmt.Sprintf("the way back to %d", w.id))
			}
		}
		for _, r := range w.inbox {
			for r.pop(v[:]) == 1 {
				d, _ := unpackDesc(v[0])
				put(d.Addr, fmt.Sprintf("the inbox of %d", w.id))
			}
		}
		for _, v := range w.frags.table.Frames(nil) {
			d, _ := unpackDesc(v)
			put(d.Addr, fmt.Sprintf("the fragments of %d", w.id))
		}
		for i := range w.queues {
			q := &w.queues[i]
			for _, a := range q.Held(nil) {
				put(a, fmt.Sprintf("port %d of worker %d", q.nic, w.id))
			}
			for _, d := range q.out[:q.n] {
				put(d.Addr, "an egress batch")
			}
		}
	}
	for n := range uint64(len(dp.Workers)) * dp.mesh.frames {
		if where[n] == "" {
			errs = append(errs, fmt.Errorf("frame %d is nowhere", n))
		}
	}
	for _, w := range dp.Workers {
		err := w.table.Audit()
		if w.snap != nil {
			err = errors.Join(err, w.table.AuditTuples(&w.snap.Directory))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("worker %d: %w", w.id, err))
		}
	}
	if len(errs) > 8 {
		errs = append(errs[:8], fmt.Errorf("and %d more", len(errs)-8))
	}
	return errors.Join(errs...)
}
