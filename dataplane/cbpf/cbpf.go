package cbpf

import (
	"errors"
	"fmt"

	"golang.org/x/net/bpf"
)

// MaxInstructions is the longest program, as in the kernel (BPF_MAXINSNS).
const MaxInstructions = 4096

// MemWords is the number of words of scratch memory (BPF_MEMWORDS).
const MemWords = 16

// Program is one that has been checked. It is immutable: any number of threads may run
// it at once.
type Program struct {
	code []bpf.RawInstruction
}

// Parts of an opcode, from linux/bpf_common.h.
const (
	classMask = 0x07
	classLd   = 0x00
	classLdx  = 0x01
	classSt   = 0x02
	classStx  = 0x03
	classALU  = 0x04
	classJmp  = 0x05
	classRet  = 0x06
	classMisc = 0x07

	sizeW = 0x00
	sizeH = 0x08
	sizeB = 0x10

	modeImm = 0x00
	modeAbs = 0x20
	modeInd = 0x40
	modeMem = 0x60
	modeLen = 0x80
	modeMSH = 0xa0

	srcX = 0x08

	aluAdd, aluSub, aluMul, aluDiv = 0x00, 0x10, 0x20, 0x30
	aluOr, aluAnd, aluLsh, aluRsh  = 0x40, 0x50, 0x60, 0x70
	aluNeg, aluMod, aluXor         = 0x80, 0x90, 0xa0

	jmpJA, jmpJEQ, jmpJGT, jmpJGE, jmpJSET = 0x00, 0x10, 0x20, 0x30, 0x40

	retA, retK = 0x10, 0x00
	miscTAX    = 0x00
	miscTXA    = 0x80
)

// known has the opcodes that Run knows.
var known = map[uint16]bool{
	classLd | sizeW | modeAbs: true, classLd | sizeH | modeAbs: true, classLd | sizeB | modeAbs: true,
	classLd | sizeW | modeInd: true, classLd | sizeH | modeInd: true, classLd | sizeB | modeInd: true,
	classLd | modeImm: true, classLd | modeMem: true, classLd | modeLen: true,
	classLdx | modeImm: true, classLdx | modeMem: true, classLdx | modeLen: true, classLdx | sizeB | modeMSH: true,
	classSt: true, classStx: true,
	classALU | aluAdd: true, classALU | aluSub: true, classALU | aluMul: true, classALU | aluDiv: true,
	classALU | aluOr: true, classALU | aluAnd: true, classALU | aluLsh: true, classALU | aluRsh: true,
	classALU | aluMod: true, classALU | aluXor: true, classALU | aluNeg: true,
	classALU | aluAdd | srcX: true, classALU | aluSub | srcX: true, classALU | aluMul | srcX: true, classALU | aluDiv | srcX: true,
	classALU | aluOr | srcX: true, classALU | aluAnd | srcX: true, classALU | aluLsh | srcX: true, classALU | aluRsh | srcX: true,
	classALU | aluMod | srcX: true, classALU | aluXor | srcX: true,
	classJmp | jmpJA: true, classJmp | jmpJEQ: true, classJmp | jmpJGT: true, classJmp | jmpJGE: true, classJmp | jmpJSET: true,
	classJmp | jmpJEQ | srcX: true, classJmp | jmpJGT | srcX: true, classJmp | jmpJGE | srcX: true, classJmp | jmpJSET | srcX: true,
	classRet | retK: true, classRet | retA: true, classMisc | miscTAX: true, classMisc | miscTXA: true,
}

// New checks a program, which it copies: every instruction is known, every jump ends
// within it, and its end is a return.
func New(code []bpf.RawInstruction) (*Program, error) {
	if len(code) == 0 || len(code) > MaxInstructions {
		return nil, fmt.Errorf("cbpf: %d instructions: want 1 to %d", len(code), MaxInstructions)
	}
	for i, in := range code {
		if err := check(in, len(code)-i-1); err != nil {
			return nil, fmt.Errorf("cbpf: instruction %d: %w", i, err)
		}
	}
	return &Program{code: append([]bpf.RawInstruction(nil), code...)}, nil
}

var (
	errOpcode = errors.New("unknown opcode")
	errJump   = errors.New("it goes beyond the program's end")
	errMemory = errors.New("no such word of scratch memory")
	errZero   = errors.New("division by zero")
)

// check looks at one instruction, which after others follow.
func check(in bpf.RawInstruction, after int) error {
	if !known[in.Op] {
		return fmt.Errorf("%w %#x", errOpcode, in.Op)
	}
	far := -1 // instructions ahead, from the next
	switch in.Op & classMask {
	case classRet:
	case classJmp:
		if far = int(max(in.Jt, in.Jf)); in.Op == classJmp|jmpJA {
			far = int(min(in.K, MaxInstructions))
		}
	default:
		far = 0
	}
	if far >= after {
		return errJump
	}
	switch in.Op {
	case classLd | modeMem, classLdx | modeMem, classSt, classStx:
		if in.K >= MemWords {
			return errMemory
		}
	case classALU | aluDiv, classALU | aluMod:
		if in.K == 0 {
			return errZero
		}
	}
	return nil
}

// Run is what the program returns for a frame of which b is what is there: how many
// bytes of it are wanted, 0 for none. size is how long the frame is. What looks beyond
// b's end, or divides by zero, wants nothing.
func (p *Program) Run(b []byte, size uint32) uint32 {
	var a, x uint32
	var mem [MemWords]uint32
	code := p.code
	for pc := 0; uint(pc) < uint(len(code)); pc++ {
		in := &code[pc]
		switch in.Op {
		case classLd | sizeW | modeAbs, classLd | sizeH | modeAbs, classLd | sizeB | modeAbs,
			classLd | sizeW | modeInd, classLd | sizeH | modeInd, classLd | sizeB | modeInd:
			at := uint64(in.K)
			if in.Op&modeInd != 0 {
				at += uint64(x)
			}
			v, ok := load(b, at, in.Op)
			if !ok {
				return 0
			}
			a = v
		case classJmp | jmpJEQ:
			pc += jump(in, a == in.K)
		case classJmp | jmpJGT:
			pc += jump(in, a > in.K)
		case classJmp | jmpJGE:
			pc += jump(in, a >= in.K)
		case classJmp | jmpJSET:
			pc += jump(in, a&in.K != 0)
		case classJmp | jmpJA:
			pc += int(in.K)
		case classJmp | jmpJEQ | srcX:
			pc += jump(in, a == x)
		case classJmp | jmpJGT | srcX:
			pc += jump(in, a > x)
		case classJmp | jmpJGE | srcX:
			pc += jump(in, a >= x)
		case classJmp | jmpJSET | srcX:
			pc += jump(in, a&x != 0)
		case classRet | retK:
			return in.K
		case classRet | retA:
			return a
		case classLdx | sizeB | modeMSH:
			if uint64(in.K) >= uint64(len(b)) {
				return 0
			}
			x = 4 * uint32(b[in.K]&0xf)
		case classLd | modeImm:
			a = in.K
		case classLd | modeMem:
			a = mem[in.K%MemWords]
		case classLd | modeLen:
			a = size
		case classLdx | modeImm:
			x = in.K
		case classLdx | modeMem:
			x = mem[in.K%MemWords]
		case classLdx | modeLen:
			x = size
		case classSt:
			mem[in.K%MemWords] = a
		case classStx:
			mem[in.K%MemWords] = x
		case classMisc | miscTAX:
			x = a
		case classMisc | miscTXA:
			a = x
		default:
			v := in.K
			if in.Op&srcX != 0 {
				v = x
			}
			var ok bool
			if a, ok = arithmetic(in.Op, a, v); !ok {
				return 0
			}
		}
	}
	return 0
}

// jump is how many instructions are passed over.
func jump(in *bpf.RawInstruction, yes bool) int {
	if yes {
		return int(in.Jt)
	}
	return int(in.Jf)
}

// load reads op's number of bytes, in network order, at at.
func load(b []byte, at uint64, op uint16) (uint32, bool) {
	n := uint64(len(b))
	switch op & (sizeH | sizeB) {
	case sizeB:
		if at >= n {
			return 0, false
		}
		return uint32(b[at]), true
	case sizeH:
		if at+2 > n {
			return 0, false
		}
		return uint32(b[at])<<8 | uint32(b[at+1]), true
	}
	if at+4 > n {
		return 0, false
	}
	return uint32(b[at])<<24 | uint32(b[at+1])<<16 | uint32(b[at+2])<<8 | uint32(b[at+3]), true
}

// arithmetic is a op v; false for a division by zero. A shift by 32 or more leaves
// nothing.
func arithmetic(op uint16, a, v uint32) (uint32, bool) {
	switch op &^ srcX &^ classMask {
	case aluAdd:
		return a + v, true
	case aluSub:
		return a - v, true
	case aluMul:
		return a * v, true
	case aluDiv:
		if v == 0 {
			return 0, false
		}
		return a / v, true
	case aluMod:
		if v == 0 {
			return 0, false
		}
		return a % v, true
	case aluOr:
		return a | v, true
	case aluAnd:
		return a & v, true
	case aluXor:
		return a ^ v, true
	case aluLsh:
		return a << v, true
	case aluRsh:
		return a >> v, true
	}
	return -a, true // aluNeg
}
