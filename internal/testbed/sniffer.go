package testbed

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

// Direction selects frames by the way they travel through a device.
type Direction int

// The directions.
const (
	Both Direction = iota
	Incoming
	Outgoing
)

// SnifferOptions say what to look at. The zero value checks every frame.
type SnifferOptions struct {
	Direction Direction
	TOAKind   uint8 // 0 = DefaultTOAKind
	// Every n > 1 verifies one in n frames, by chance, and those of at most 160
	// bytes; of the others only the headers are looked at. 0 = all. Bulk
	// transfers on a busy machine need it.
	Every     int
	Limit     uint64 // stop after so many frames; 0 = never
	BufferMiB int    // 0 = 64
	// TxQueue n > 0 captures only frames that leave by transmit queue n-1. What
	// comes in is taken for queue 0.
	TxQueue int
	// SYNs captures only segments of TCP with SYN set, behind IP headers without options or
	// extensions: of a bulk transfer nothing that costs time.
	SYNs bool
	// Watch is called for every frame, whole unless sampled, by one goroutine
	// that captures nothing meanwhile; the bytes are its only during the call.
	// nil = nobody.
	Watch func(data []byte, outgoing bool)
	// Pcap receives the frames as a pcap file; nil = nobody. It is written by
	// another goroutine until Stop.
	Pcap io.Writer
}

// Violation is a frame that is not as it must be.
type Violation struct {
	Time   time.Time
	Reason string
	Frame  string // hex
}

// String is reason and frame.
func (v Violation) String() string { return v.Reason + ": " + v.Frame }

// keepViolations bounds the violations remembered with their frames.
const keepViolations = 20

// Report is what a sniffer has seen.
type Report struct {
	Frames, Bytes uint64
	Dropped       uint64 // frames that found no room in the buffer: never looked at
	Checked       uint64 // frames whose checksums were verified
	Limited       bool   // the limit was reached
	ARP           uint64
	V4, V6        uint64
	TCP, UDP      uint64
	ICMP          uint64 // both families
	Fragments     uint64
	Tagged        uint64 // had a VLAN tag
	SYNs, Resets  uint64
	TOA           uint64 // segments with a TOA option
	TOAOnSYN      uint64 // of them, with SYN set
	Bad           uint64 // frames in violation, of which the first are in Violations
	Violations    []Violation
}

// TOAKey is a direction of a TCP connection on the sniffed device.
type TOAKey struct{ Src, Dst netip.AddrPort }

// Sniffer captures frames of one device, decodes each with gopacket and judges
// it. It is safe for concurrent use. Stop it.
type Sniffer struct {
	o    SnifferOptions
	ring *ring
	pcap *pcapgo.Writer
	quit atomic.Bool
	done chan struct{}

	mu    sync.Mutex
	r     Report
	err   error
	addrs map[netip.Addr]uint64
	toa   map[TOAKey][]netip.AddrPort
	news  chan struct{} // closed and replaced when toa grows
	upTo  time.Time     // what the kernel had handed over by then has been looked at
}

// Sniff begins to capture on a device of the namespace, in promiscuous fashion
// (frames for other hosts that reach the device are seen too).
func (ns *Namespace) Sniff(device string, o SnifferOptions) (*Sniffer, error) {
	if o.TOAKind == 0 {
		o.TOAKind = DefaultTOAKind
	}
	o.Every = max(o.Every, 1)
	if o.BufferMiB <= 0 {
		o.BufferMiB = 64
	}
	s := &Sniffer{o: o, done: make(chan struct{}), news: make(chan struct{}),
		addrs: make(map[netip.Addr]uint64), toa: make(map[TOAKey][]netip.AddrPort)}
	if o.Pcap != nil {
		s.pcap = pcapgo.NewWriter(o.Pcap)
		if err := s.pcap.WriteFileHeader(1<<16, layers.LinkTypeEthernet); err != nil {
			return nil, fmt.Errorf("sniff %s: %w", device, err)
		}
	}
	link, err := ns.nl.LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("sniff %s in %s: %w", device, ns.role, err)
	}
	err = ns.Do(func() (err error) {
		s.ring, err = openRing(link.Attrs().Index, o)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sniff %s in %s: %w", device, ns.role, err)
	}
	go s.run()
	return s, nil
}

// drain is how long a stopped sniffer goes on reading: the kernel hands over a
// block that is not full only after its retire time.
const drain = 4 * retireMillis * time.Millisecond

func (s *Sniffer) run() {
	defer close(s.done)
	c := newChecker(s.o.TOAKind)
	see := func(f captured) { s.see(c, f) }
	var last time.Time // no reading beyond it
	for {
		begun := time.Now()
		if s.ring.read(see) {
			if s.limited() {
				break
			}
			continue
		}
		s.caughtUp(begun)
		if s.quit.Load() {
			if last.IsZero() {
				last = time.Now().Add(drain)
			} else if time.Now().After(last) {
				break
			}
		}
		if err := errors.Join(s.countDrops(), s.ring.wait(drain/2)); err != nil {
			s.fail(err)
			break
		}
	}
	s.fail(errors.Join(s.countDrops(), s.ring.close()))
}

// caughtUp notes that nothing of before t waits in the buffer.
func (s *Sniffer) caughtUp(t time.Time) {
	s.mu.Lock()
	s.upTo = t
	s.mu.Unlock()
}

// countDrops adds what was dropped lately to the report. It is called whenever
// there is nothing to read, so that a report taken in a quiet moment is right
// about it before Stop.
func (s *Sniffer) countDrops() error {
	n, err := s.ring.drops()
	s.mu.Lock()
	s.r.Dropped += n
	s.mu.Unlock()
	return err
}

func (s *Sniffer) limited() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.Limited
}

func (s *Sniffer) fail(err error) {
	s.mu.Lock()
	s.err = errors.Join(s.err, err)
	s.mu.Unlock()
}

// see looks at one frame.
func (s *Sniffer) see(c *checker, f captured) {
	out := f.pktType == unix.PACKET_OUTGOING
	if s.o.Direction == Incoming && out || s.o.Direction == Outgoing && !out {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.upTo = f.time // or at least of the last one, where there is always another
	if s.r.Limited {
		return
	}
	sums := len(f.data) == f.wireLen
	if f.tag != nil {
		f.data = f.whole()
		f.wireLen += len(f.tag)
		s.r.Tagged++
	}
	if s.r.Frames++; s.r.Frames == s.o.Limit {
		s.r.Limited = true
	}
	s.r.Bytes += uint64(f.wireLen)
	if sums {
		s.r.Checked++
	}
	if s.pcap != nil {
		ci := gopacket.CaptureInfo{Timestamp: f.time, CaptureLength: len(f.data), Length: f.wireLen}
		s.err = errors.Join(s.err, s.pcap.WritePacket(ci, f.data))
	}
	if s.o.Watch != nil {
		s.o.Watch(f.data, out)
	}
	p, err := c.check(f.data, sums)
	if err != nil {
		s.violation(f, err)
	}
	s.count(p)
	// Broadcasts, multicasts and flooded frames of others tell nothing about
	// what this host was sent.
	if f.pktType == unix.PACKET_HOST || out {
		s.note(p)
	}
	s.noteTOA(f, p)
}

func (s *Sniffer) violation(f captured, err error) {
	s.r.Bad++
	if len(s.r.Violations) < keepViolations {
		s.r.Violations = append(s.r.Violations, Violation{f.time, err.Error(), hex.EncodeToString(f.data)})
	}
}

func (s *Sniffer) count(p frame) {
	switch {
	case p.arp:
		s.r.ARP++
	case p.family == V4:
		s.r.V4++
	case p.family == V6:
		s.r.V6++
	}
	if p.fragment {
		s.r.Fragments++
		return
	}
	if p.family == 0 {
		return
	}
	switch layers.IPProtocol(p.proto) {
	case layers.IPProtocolTCP:
		s.r.TCP++
		if p.flags&flagSYN != 0 {
			s.r.SYNs++
		}
		if p.flags&flagRST != 0 {
			s.r.Resets++
		}
	case layers.IPProtocolUDP:
		s.r.UDP++
	case layers.IPProtocolICMPv4, layers.IPProtocolICMPv6:
		s.r.ICMP++
	}
}

// note remembers the addresses of a packet, those in an ICMP error included.
// ARP does not count, and ND only by the addresses of its own packets.
func (s *Sniffer) note(p frame) {
	if p.family == 0 {
		return
	}
	for _, a := range [...]netip.Addr{p.src.Addr(), p.dst.Addr(), p.inner[0], p.inner[1]} {
		if a.IsValid() {
			s.addrs[a]++
		}
	}
}

func (s *Sniffer) noteTOA(f captured, p frame) {
	if len(p.toa) == 0 {
		return
	}
	s.r.TOA++
	if p.flags&flagSYN != 0 {
		s.r.TOAOnSYN++
	}
	if len(p.toa) > 1 {
		s.violation(f, fmt.Errorf("%d TOA options in one segment", len(p.toa)))
	}
	key := TOAKey{p.src, p.dst}
	for _, a := range p.toa {
		if !a.IsValid() {
			s.violation(f, errors.New("TOA option of a length that fits no family"))
			continue
		}
		if !slices.Contains(s.toa[key], a) {
			s.toa[key] = append(s.toa[key], a)
			close(s.news)
			s.news = make(chan struct{})
		}
	}
}

// Report is what has been seen so far. Frames of the last few milliseconds may
// be missing until Stop.
func (s *Sniffer) Report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.r
	r.Violations = slices.Clone(r.Violations)
	return r
}

// Stop reads what is still in the buffer, ends the capture and returns the
// final report. The error tells of the capture itself, not of what it saw.
func (s *Sniffer) Stop() (Report, error) {
	s.quit.Store(true)
	<-s.done
	s.mu.Lock()
	err := s.err
	s.mu.Unlock()
	return s.Report(), err
}

// Addresses are the source and destination addresses of all IP packets sent by
// or to this host, and of those embedded in ICMP errors, with their number.
func (s *Sniffer) Addresses() map[netip.Addr]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.addrs)
}

// Saw reports whether an address is among Addresses.
func (s *Sniffer) Saw(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addrs[a.Unmap()] > 0
}

// TOA is what every connection's segments have carried in TOA options: one
// client each, unless an address and port were used again or somebody forged.
func (s *Sniffer) TOA() map[TOAKey][]netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[TOAKey][]netip.AddrPort, len(s.toa))
	for k, v := range s.toa {
		out[k] = slices.Clone(v)
	}
	return out
}

// handover is how much later than asked the kernel may hand over a frame.
const handover = 20 * retireMillis * time.Millisecond

// Client is the client that the latest new TOA option from peer to local named.
// A connection may be accepted before the capture hands over its segments, so
// Client gives up only when what was handed over in the next moments has been looked
// at, however late a busy machine lets the sniffer do that. It fits
// ServerOptions.ClientOf.
func (s *Sniffer) Client(peer, local netip.AddrPort) (netip.AddrPort, bool) {
	asked := time.Now()
	tick := time.NewTicker(retireMillis * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		found, news, upTo := s.toa[TOAKey{peer, local}], s.news, s.upTo
		s.mu.Unlock()
		if n := len(found); n > 0 {
			return found[n-1], true
		}
		if upTo.Sub(asked) > handover {
			return netip.AddrPort{}, false
		}
		select {
		case <-news:
		case <-tick.C:
		case <-s.done:
			return netip.AddrPort{}, false
		}
	}
}

// CatchUp waits until every frame that has passed before the call has been looked at,
// however late a busy machine lets the sniffer do that.
func (s *Sniffer) CatchUp() {
	asked := time.Now()
	tick := time.NewTicker(retireMillis * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		upTo := s.upTo
		s.mu.Unlock()
		if upTo.Sub(asked) > handover {
			return
		}
		select {
		case <-tick.C:
		case <-s.done:
			return
		}
	}
}
