//go:build !purego

package dataplane

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/l4fwd/l4fwd/conntrack"
	"github.com/l4fwd/l4fwd/dataplane/route"
	"github.com/l4fwd/l4fwd/nat"
	"github.com/l4fwd/l4fwd/packet"
)

// segments is plain for the commonest packets it knows: TCP in order, with TOA where that is
// of IPv4 and has room. It stops at the first other one, having changed nothing of it, and
// returns where that is; plain may know it.
//
// It is in assembly because it is what a packet costs most, and the compiler makes 328
// instructions of it, a good part of them moves to the stack and back; here it is 190.
// Whatever it does plain does too, see TestSegmentsTwin.
func segments[S sender, F family](w *Worker, rows []uint8, at int) (next int) {
	flows := w.table.Entries()
	switch d, v6 := conntrack.Dir(len(*new(S))), len(*new(F)) == packet.IPv6Len; {
	case d == conntrack.Forward && v6:
		return clientSegments6(w, flows, rows, at)
	case d == conntrack.Forward:
		return clientSegments4(w, flows, rows, at)
	case v6:
		return serverSegments6(w, flows, rows, at)
	default:
		return serverSegments4(w, flows, rows, at)
	}
}

// glances takes rows [from, to) of the burst, which are to be places k and up of look, as
// long as glance knows them and they bear no VLAN tag: all that parse does with them then.
// Of buckets, the table's or none, it asks for those where they are at home. It returns the
// first row that it has not taken.
func (w *Worker) glances(buckets [][conntrack.BucketLen]byte, from, to, k int) (next int) {
	if uint(to) > BurstSize || uint(k+to-from) > BurstSize {
		return from
	}
	return glanceRows(w, w.table.Keys(), buckets, from, to, k)
}

//go:noescape
func glanceRows(w *Worker, keys *[6]uint64, buckets [][conntrack.BucketLen]byte, from, to, k int) (next int)

//go:noescape
func clientSegments4(w *Worker, flows []conntrack.Entry, rows []uint8, at int) (next int)

//go:noescape
func clientSegments6(w *Worker, flows []conntrack.Entry, rows []uint8, at int) (next int)

//go:noescape
func serverSegments4(w *Worker, flows []conntrack.Entry, rows []uint8, at int) (next int)

//go:noescape
func serverSegments6(w *Worker, flows []conntrack.Entry, rows []uint8, at int) (next int)

// What the assembly has to know of other packages. It is told by the compiler, in
// go_asm.h, as of this package's types and constants.
//
//nolint:unused // see above
const (
	burstPacket = unsafe.Offsetof(burst{}.look) + unsafe.Offsetof(conntrack.Batch{}.Packet)
	burstHash   = unsafe.Offsetof(burst{}.look) + unsafe.Offsetof(conntrack.Batch{}.Hash)
	burstFound  = unsafe.Offsetof(burst{}.look) + unsafe.Offsetof(conntrack.Batch{}.Found)

	entryClientPort = unsafe.Offsetof(conntrack.Entry{}.ClientPort)
	entryLocalPort  = unsafe.Offsetof(conntrack.Entry{}.LocalPort)
	entryBackend    = unsafe.Offsetof(conntrack.Entry{}.Backend)
	entryLocal      = unsafe.Offsetof(conntrack.Entry{}.Local)
	entryProto      = unsafe.Offsetof(conntrack.Entry{}.Proto)
	entryMode       = unsafe.Offsetof(conntrack.Entry{}.Mode)
	entrySeqDelta   = unsafe.Offsetof(conntrack.Entry{}.SeqDelta)
	entryState      = unsafe.Offsetof(conntrack.Entry{}.State)
	entryFlags      = unsafe.Offsetof(conntrack.Entry{}.Flags)
	entryAddrSum    = unsafe.Offsetof(conntrack.Entry{}.AddrSum)
	entryPortSum    = unsafe.Offsetof(conntrack.Entry{}.PortSum)
	entryHopID      = unsafe.Offsetof(conntrack.Entry{}.HopID)
	entryHopGen     = unsafe.Offsetof(conntrack.Entry{}.HopGen)
	entryExpires    = unsafe.Offsetof(conntrack.Entry{}.Expires)
	entryServerNext = unsafe.Offsetof(conntrack.Entry{}.ServerNext)
	entryWin        = unsafe.Offsetof(conntrack.Entry{}.Win)
	entryWScale     = unsafe.Offsetof(conntrack.Entry{}.WScale)
	entryPackets    = unsafe.Offsetof(conntrack.Entry{}.Packets)
	entryBytes      = unsafe.Offsetof(conntrack.Entry{}.Bytes)

	windowSize   = unsafe.Sizeof(conntrack.Window{})
	windowEnd    = unsafe.Offsetof(conntrack.Window{}.End)
	windowAcked  = unsafe.Offsetof(conntrack.Window{}.Acked)
	windowMaxWin = unsafe.Offsetof(conntrack.Window{}.MaxWin)

	countPackets = unsafe.Offsetof(BackendCount{}.Packets)
	countBytes   = unsafe.Offsetof(BackendCount{}.Bytes)

	tableGen     = unsafe.Offsetof(route.Table{}.Gen)
	hopPort      = unsafe.Offsetof(route.Hop{}.Port)
	hopMTU       = unsafe.Offsetof(route.Hop{}.MTU)
	hopHeaderLen = unsafe.Offsetof(route.Hop{}.HeaderLen)
	hopState     = unsafe.Offsetof(route.Hop{}.State)
	hopHeader    = unsafe.Offsetof(route.Hop{}.Header)
	hopResolved  = route.Resolved
	vlanLen      = route.VLANLen
	ethLen       = packet.EthLen

	headersLen = unsafe.Sizeof(plainHeaders{})
	queueLen   = 2 * BurstSize

	fullNAT     = conntrack.FullNAT
	toaLen      = nat.PlainTOALen
	toaInserted = nat.TOAInserted

	protoTCP = packet.ProtoTCP
	protoUDP = packet.ProtoUDP
	ttlStep  = nat.TTLStep

	// The word of state and flags of e.Steady, and who has acknowledged data.
	ackedFlag        = conntrack.ServerAcked
	scaledFlag       = conntrack.WindowScaled
	steadyReply      = int(conntrack.Established) | int(conntrack.HasServerISN)<<8
	steadyReplyMask  = 0xff | int(conntrack.HasServerISN|conntrack.HalfOpen)<<8
	steadyClient     = steadyReply | int(conntrack.ServerAcked)<<8
	steadyClientMask = steadyReplyMask | int(conntrack.ServerAcked)<<8
	mostFlight       = conntrack.MostFlight

	// What plainSegment compares the options' first word with, in the order of memory.
	timestamps = nat.PlainTimestamps>>24 | nat.PlainTimestamps>>8&0xff00 | nat.PlainTimestamps&0xff00<<8 | nat.PlainTimestamps&0xff<<24
)

// The assembly takes these for granted.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(conntrack.Entry{})-128]
	_ = [1]struct{}{}[conntrack.BucketLen-64]
	_ = [1]struct{}{}[unsafe.Sizeof(way{})-64]
	_ = [1]struct{}{}[unsafe.Sizeof(route.Hop{})-24]
	_ = [1]struct{}{}[unsafe.Sizeof(packet.Addr{})-16]
	_ = [1]struct{}{}[unsafe.Sizeof(unix.XDPDesc{})-16]
	_ = [1]struct{}{}[unsafe.Offsetof(conntrack.Entry{}.Client)]
	_ = [1]struct{}{}[entryMode-entryProto-1]
	_ = [1]struct{}{}[entryFlags-entryState-1]
)
