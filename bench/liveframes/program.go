package liveframes

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// The program's memory: one element of an array, which only the generator's
// thread writes. Offsets of its 64-bit words.
const (
	stateRandom = 0  // of the linear congruential generator
	stateSent   = 8  // frames redirected
	stateDue    = 16 // when the next frame may go: 1/256 ns of ktime
	stateLen    = 24
)

// A linear congruential generator modulo 2^64, of which the upper 32 bits are
// used: multiplier and increment are those of Knuth's MMIX.
const (
	lcgMultiplier = 6364136223846793005
	lcgIncrement  = 1442695040888963407
)

// dueShift makes a rate's interval precise: 1/256 ns.
const dueShift = 8

// mayLag is how far a paced generator may be behind and still catch up.
const mayLag = 100 * time.Microsecond

// XDP's verdicts (include/uapi/linux/bpf.h).
const (
	xdpAborted = 0
	xdpDrop    = 1
	xdpPass    = 2
)

// Registers that keep their values over calls.
const (
	rData  = asm.R6
	rState = asm.R7
	rSrc   = asm.R8 // source address as it stands in the packet
	rPort  = asm.R9 // source port, likewise
)

// newProgram loads the program that makes the frames and redirects them to an
// interface of the namespace it runs in, and its memory. pps 0 is no limit.
func newProgram(f *Frames, ifindex, pps int) (p *ebpf.Program, state *ebpf.Map, err error) {
	state, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "live_state", Type: ebpf.Array, KeySize: 4, ValueSize: stateLen, MaxEntries: 1,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("map: %w", err)
	}
	var code asm.Instructions
	code = append(code, begin(state.FD())...)
	if pps > 0 {
		code = append(code, pace(pps)...)
	}
	code = append(code, draw(f)...)
	code = append(code, write(f)...)
	code = append(code, leave(ifindex)...)
	p, err = ebpf.NewProgram(&ebpf.ProgramSpec{Name: "live_frames", Type: ebpf.XDP, Instructions: code, License: "Dual BSD/GPL"})
	if err != nil {
		_ = state.Close()
		return nil, nil, fmt.Errorf("program: %w", err)
	}
	return p, state, nil
}

// begin finds the frame and the program's memory.
func begin(state int) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(rData, asm.R1, 0, asm.Word), // xdp_md.data
		asm.LoadMem(asm.R2, asm.R1, 4, asm.Word),
		asm.Mov.Reg(asm.R3, rData),
		asm.Add.Imm(asm.R3, FrameLen),
		asm.JGT.Reg(asm.R3, asm.R2, "abort"),
		asm.LoadMapValue(rState, state, 0),
	}
}

// pace drops the frame if it is not due. It does so in the program, not between
// calls, so that packets come evenly instead of in heaps.
func pace(pps int) asm.Instructions {
	interval := (int64(time.Second)<<dueShift + int64(pps)/2) / int64(pps)
	return asm.Instructions{
		asm.FnKtimeGetNs.Call(),
		asm.LSh.Imm(asm.R0, dueShift),
		asm.LoadMem(asm.R1, rState, stateDue, asm.DWord),
		asm.JGE.Reg(asm.R0, asm.R1, "on time"),
		asm.Mov.Imm(asm.R0, xdpDrop),
		asm.Return(),
		// What is far behind does not catch up: it would be a heap again.
		asm.Mov.Reg(asm.R2, asm.R0).WithSymbol("on time"),
		asm.Sub.Reg(asm.R2, asm.R1),
		asm.LoadImm(asm.R3, int64(mayLag)<<dueShift, asm.DWord),
		asm.JLE.Reg(asm.R2, asm.R3, "due"),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.LoadImm(asm.R2, interval, asm.DWord).WithSymbol("due"),
		asm.Add.Reg(asm.R1, asm.R2),
		asm.StoreMem(rState, stateDue, asm.R1, asm.DWord),
	}
}

// draw chooses the flow and leaves its address and port as they stand in a
// packet, seen as numbers of this machine.
func draw(f *Frames) asm.Instructions {
	code := asm.Instructions{
		asm.LoadMem(asm.R1, rState, stateRandom, asm.DWord),
		asm.LoadImm(asm.R2, lcgMultiplier, asm.DWord),
		asm.Mul.Reg(asm.R1, asm.R2),
		asm.LoadImm(asm.R2, lcgIncrement, asm.DWord),
		asm.Add.Reg(asm.R1, asm.R2),
		asm.StoreMem(rState, stateRandom, asm.R1, asm.DWord),
		asm.RSh.Imm(asm.R1, 32),
		asm.Mul.Imm(asm.R1, int32(f.Flows)),
		asm.RSh.Imm(asm.R1, 32), // flow, evenly from 0 to Flows-1
		asm.LoadImm(rSrc, int64(f.first()), asm.DWord),
		asm.Mov.Reg(rPort, asm.R1),
	}
	if f.Flows > portsOfAddress {
		code = append(code,
			asm.Mod.Imm(rPort, portsOfAddress),
			asm.Div.Imm(asm.R1, portsOfAddress),
			asm.Add.Reg(rSrc, asm.R1),
		)
	}
	return append(code,
		asm.Add.Imm(rPort, FirstPort),
		asm.HostTo(asm.BE, rSrc, asm.Word),
		asm.HostTo(asm.BE, rPort, asm.Half),
	)
}

// write writes the whole frame.
func write(f *Frames) (code asm.Instructions) {
	t := f.template()
	i := 0
	for ; i+8 <= FrameLen; i += 8 {
		code = append(code,
			asm.LoadImm(asm.R2, int64(binary.NativeEndian.Uint64(t[i:])), asm.DWord),
			asm.StoreMem(rData, int16(i), asm.R2, asm.DWord))
	}
	code = append(code,
		asm.LoadImm(asm.R2, int64(binary.NativeEndian.Uint32(t[i:])), asm.DWord),
		asm.StoreMem(rData, int16(i), asm.R2, asm.Word),
		asm.StoreMem(rData, offSrc, rSrc, asm.Word),
		asm.StoreMem(rData, offPort, rPort, asm.Half),
		// R4: what the source address adds to both checksums.
		asm.Mov.Reg(asm.R4, rSrc),
		asm.RSh.Imm(asm.R4, 16),
		asm.And.Imm(rSrc, 0xffff),
		asm.Add.Reg(asm.R4, rSrc),
		asm.Mov.Reg(asm.R2, asm.R4),
		asm.Add.Imm(asm.R2, int32(ipBase(&t))),
	)
	code = append(code, fold()...)
	code = append(code,
		asm.StoreMem(rData, offIPSum, asm.R2, asm.Half),
		asm.Mov.Reg(asm.R2, asm.R4),
		asm.Add.Reg(asm.R2, rPort),
		asm.Add.Imm(asm.R2, int32(udpBase(&t))),
	)
	code = append(code, fold()...)
	return append(code,
		asm.JNE.Imm(asm.R2, 0, "sum"),
		asm.Mov.Imm(asm.R2, 0xffff), // 0 would say that there is none (RFC 768)
		asm.StoreMem(rData, offSum, asm.R2, asm.Half).WithSymbol("sum"),
	)
}

// fold makes a checksum of the sum in R2.
func fold() (code asm.Instructions) {
	for range 2 {
		code = append(code,
			asm.Mov.Reg(asm.R3, asm.R2),
			asm.RSh.Imm(asm.R3, 16),
			asm.And.Imm(asm.R2, 0xffff),
			asm.Add.Reg(asm.R2, asm.R3))
	}
	return append(code, asm.Xor.Imm(asm.R2, 0xffff))
}

// leave sends the frame out, and is where a frame ends that is too short.
func leave(ifindex int) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R1, rState, stateSent, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(rState, stateSent, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R1, int32(ifindex)),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRedirect.Call(),
		asm.Return(),
		asm.Mov.Imm(asm.R0, xdpAborted).WithSymbol("abort"),
		asm.Return(),
	}
}
