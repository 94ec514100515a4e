package testbed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A ring is made of blocks that the kernel fills with many frames and hands
// over when full, or retireMillis after their first frame. A reader that is
// late loses whole blocks, so many small ones last longer: 64 MiB of these for
// 2.5 s at least.
const (
	blockSize    = 1 << 17
	retireMillis = 5
)

// Offsets within struct tpacket_block_desc and struct tpacket3_hdr
// (linux/if_packet.h); all words are in host byte order. A struct sockaddr_ll
// follows the latter.
const (
	blockFrames   = 12 // num_pkts
	blockFirst    = 16 // offset_to_first_pkt
	frameNext     = 0  // tp_next_offset
	frameSec      = 4
	frameNsec     = 8
	frameSnapLen  = 12 // bytes present
	frameLen      = 16 // bytes on the wire
	frameStatus   = 20
	frameVLANTCI  = 32
	frameVLANTPID = 36 // u16
	frameMAC      = 24 // u16: offset of the Ethernet header
	frameSockaddr = 48
	framePktType  = frameSockaddr + 10
)

// captured is one frame out of the ring. data is valid until the block is given
// back.
type captured struct {
	data    []byte
	wireLen int
	time    time.Time
	pktType uint8 // PACKET_HOST, PACKET_OUTGOING, ...
	// tag is the VLAN tag in network byte order, which the kernel takes off the
	// frame before any packet socket sees it; nil if there was none.
	tag []byte
}

// ring is a packet socket with a mapped receive ring. One goroutine reads it.
type ring struct {
	fd     int
	mem    []byte
	next   int // block read next
	blocks int
}

// openRing captures all frames of a device from now on. The calling thread must
// be in the device's namespace.
func openRing(ifindex int, o SnifferOptions) (*ring, error) {
	// Protocol 0 receives nothing until bind names device and protocol.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	r := &ring{fd: fd, blocks: o.BufferMiB << 20 / blockSize}
	if err := r.setUp(ifindex, o); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *ring) setUp(ifindex int, o SnifferOptions) error {
	if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("TPACKET_V3: %w", err)
	}
	if o.Every > 1 || o.TxQueue > 0 || o.SYNs {
		if err := r.filter(o); err != nil {
			return fmt.Errorf("filter: %w", err)
		}
	}
	if o.Direction == Incoming {
		if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return fmt.Errorf("ignore outgoing: %w", err)
		}
	}
	const frameSize = 1 << 11 // V3 packs frames by their real size; this only has to divide
	req := unix.TpacketReq3{
		Block_size: blockSize, Block_nr: uint32(r.blocks), Frame_size: frameSize,
		Frame_nr: uint32(r.blocks * blockSize / frameSize), Retire_blk_tov: retireMillis,
	}
	if err := unix.SetsockoptTpacketReq3(r.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return fmt.Errorf("ring of %d MiB: %w", r.blocks*blockSize>>20, err)
	}
	var err error
	r.mem, err = unix.Mmap(r.fd, 0, r.blocks*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map ring: %w", err)
	}
	all := binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)
	sa := &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(all), Ifindex: ifindex}
	if err := unix.Bind(r.fd, sa); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

// headBytes is what is left of a frame that is not in the sample: Ethernet and
// VLAN, an IPv6 header and some extension, a TCP header with all its options.
const headBytes = 160

// onlySYNs goes on with the frames that SnifferOptions.SYNs is about. What is neither
// IPv4 nor IPv6 is read as the former, and hardly ever looks like it.
var onlySYNs = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 12, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipTrue: 4},
	bpf.LoadAbsolute{Off: 14 + 9, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_TCP, SkipTrue: 6},
	bpf.LoadAbsolute{Off: 14 + 20 + 13, Size: 1},
	bpf.Jump{Skip: 3},
	bpf.LoadAbsolute{Off: 14 + 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_TCP, SkipTrue: 2},
	bpf.LoadAbsolute{Off: 14 + 40 + 13, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: flagSYN, SkipTrue: 1},
	bpf.RetConstant{Val: 0},
}

// filter makes the kernel capture only what the options choose, and of that keep
// one in Every whole, by chance, and cut the others.
func (r *ring) filter(o SnifferOptions) error {
	var prog []bpf.Instruction
	if o.SYNs {
		prog = append(prog, onlySYNs...)
	}
	if o.TxQueue > 0 {
		prog = append(prog,
			bpf.LoadExtension{Num: bpf.ExtQueue},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(o.TxQueue - 1), SkipTrue: 1},
			bpf.RetConstant{Val: 0})
	}
	if o.Every > 1 {
		prog = append(prog,
			bpf.LoadExtension{Num: bpf.ExtRand},
			bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(o.Every)},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
			bpf.RetConstant{Val: headBytes})
	}
	raw, err := bpf.Assemble(append(prog, bpf.RetConstant{Val: 1 << 18}))
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return unix.SetsockoptSockFprog(r.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// read passes the frames of the next block to fn, if the kernel has handed it
// over, and gives it back. It reports whether there was one.
func (r *ring) read(fn func(captured)) bool {
	block := r.mem[r.next*blockSize:][:blockSize]
	status := statusWord(block)
	if status.Load()&unix.TP_STATUS_USER == 0 {
		return false
	}
	ne := binary.NativeEndian
	at := int(ne.Uint32(block[blockFirst:]))
	for range ne.Uint32(block[blockFrames:]) {
		h := block[at:]
		fn(captured{
			data:    h[ne.Uint16(h[frameMAC:]):][:ne.Uint32(h[frameSnapLen:])],
			wireLen: int(ne.Uint32(h[frameLen:])),
			time:    time.Unix(int64(ne.Uint32(h[frameSec:])), int64(ne.Uint32(h[frameNsec:]))),
			pktType: h[framePktType],
			tag:     vlanTag(h),
		})
		at += int(ne.Uint32(h[frameNext:]))
	}
	status.Store(unix.TP_STATUS_KERNEL)
	r.next = (r.next + 1) % r.blocks
	return true
}

// vlanTag reads the VLAN tag out of a frame's ring header.
func vlanTag(h []byte) []byte {
	ne, be := binary.NativeEndian, binary.BigEndian
	if ne.Uint32(h[frameStatus:])&unix.TP_STATUS_VLAN_VALID == 0 {
		return nil
	}
	tag := be.AppendUint16(nil, ne.Uint16(h[frameVLANTPID:]))
	return be.AppendUint16(tag, uint16(ne.Uint32(h[frameVLANTCI:])))
}

// whole is the frame as it was on the wire. Without a tag it is data itself.
func (f captured) whole() []byte {
	const macs = 12
	if f.tag == nil || len(f.data) < macs {
		return f.data
	}
	return slices.Concat(f.data[:macs], f.tag, f.data[macs:])
}

// wait sleeps until there may be a block, at most for the given time.
func (r *ring) wait(d time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}
	_, err := unix.Poll(fds, int(d.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

// drops returns how many frames found no room since the last call.
func (r *ring) drops() (uint64, error) {
	st, err := unix.GetsockoptTpacketStatsV3(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("packet statistics: %w", err)
	}
	return uint64(st.Drops), nil
}

func (r *ring) close() error {
	var err error
	if r.mem != nil {
		err = unix.Munmap(r.mem)
		r.mem = nil
	}
	return errors.Join(err, unix.Close(r.fd))
}
