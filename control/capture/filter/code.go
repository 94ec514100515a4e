package filter

import (
	"errors"

	"golang.org/x/net/bpf"
)

// Opcodes, from linux/bpf_common.h.
const (
	opLdAbs  = 0x20
	opLdInd  = 0x40
	opLdImm  = 0x00
	opLdLen  = 0x80
	opLdxMSH = 0xb1
	opLdxMem = 0x61
	opSt     = 0x02
	opTAX    = 0x07
	opJA     = 0x05
	opRet    = 0x06

	opAdd = 0x04
	opSub = 0x14
	opMul = 0x24
	opDiv = 0x34
	opOr  = 0x44
	opAnd = 0x54
	opLsh = 0x64
	opRsh = 0x74
	opMod = 0x94
	opXor = 0xa4

	srcX = 0x08
)

var sizes = [5]uint16{1: 0x10, 2: 0x08, 4: 0x00}

// jump is the opcode of a conditional jump.
type jump uint16

const (
	jumpEq  jump = 0x15
	jumpGt  jump = 0x25
	jumpGe  jump = 0x35
	jumpSet jump = 0x45
)

// label is a place that code goes on at.
type label int

// instruction is one whose jumps are not laid out yet.
type instruction struct {
	op      uint16
	k       uint32
	jumps   bool
	yes, no label // of a conditional jump; yes of opJA
	// A conditional jump reaches 255 instructions. One that does not reach its label
	// reaches an opJA behind it, which does.
	farYes, farNo bool
}

// coder collects a program.
type coder struct {
	code   []instruction
	places []int // by label: the instruction it stands before
	depth  int   // words of scratch memory in use
	err    error
}

var (
	errDeep = errors.New("arithmetic is nested too deep")
	errLong = errors.New("the filter is too long")
)

const memWords = 16 // BPF_MEMWORDS

func (c *coder) label() label {
	c.places = append(c.places, -1)
	return label(len(c.places) - 1)
}

func (c *coder) place(l label) { c.places[l] = len(c.code) }

func (c *coder) op(op uint16, k uint32) { c.code = append(c.code, instruction{op: op, k: k}) }

func (c *coder) branch(op jump, k uint32, yes, no label) {
	c.code = append(c.code, instruction{op: uint16(op), k: k, jumps: true, yes: yes, no: no})
}

func (c *coder) jumpTo(l label) {
	c.code = append(c.code, instruction{op: opJA, jumps: true, yes: l})
}

// push takes a word of scratch memory until pop.
func (c *coder) push() uint32 {
	if c.depth++; c.depth > memWords {
		c.err = errDeep
	}
	return uint32(c.depth-1) % memWords
}

func (c *coder) pop()              { c.depth-- }
func (c *coder) store(slot uint32) { c.op(opSt, slot) }
func (c *coder) loadX(slot uint32) { c.op(opLdxMem, slot) }

// layout resolves the labels.
func (c *coder) layout() ([]bpf.RawInstruction, error) {
	if c.err != nil {
		return nil, c.err
	}
	at := make([]int, len(c.code)+1) // of each instruction in the program
	for moved := true; moved; {
		n := 0
		for i := range c.code {
			at[i] = n
			n++
			if c.code[i].farYes {
				n++
			}
			if c.code[i].farNo {
				n++
			}
		}
		at[len(c.code)] = n
		moved = false
		for i := range c.code {
			moved = c.stretch(i, at) || moved
		}
	}
	var out []bpf.RawInstruction
	for i := range c.code {
		out = c.put(out, i, at)
	}
	if len(out) > 4096 { // BPF_MAXINSNS
		return nil, errLong
	}
	return out, nil
}

// stretch gives conditional jump i an opJA for each label that it does not reach, and
// reports whether it has got one. Room for those it may still get is left.
func (c *coder) stretch(i int, at []int) bool {
	in := &c.code[i]
	if !in.jumps || in.op == opJA {
		return false
	}
	before := *in
	in.farYes = in.farYes || at[c.places[in.yes]]-at[i]-1 > 255
	in.farNo = in.farNo || at[c.places[in.no]]-at[i]-1 > 255
	return *in != before
}

// put appends instruction i.
func (c *coder) put(out []bpf.RawInstruction, i int, at []int) []bpf.RawInstruction {
	in := &c.code[i]
	raw := bpf.RawInstruction{Op: in.op, K: in.k}
	switch {
	case !in.jumps:
		return append(out, raw)
	case in.op == opJA:
		raw.K = uint32(at[c.places[in.yes]] - at[i] - 1)
		return append(out, raw)
	}
	yes, no := at[c.places[in.yes]]-at[i]-1, at[c.places[in.no]]-at[i]-1
	var far []bpf.RawInstruction
	if in.farYes {
		far = append(far, bpf.RawInstruction{Op: opJA, K: uint32(yes - 1)})
		yes = 0
	}
	if in.farNo {
		k := len(far)
		far = append(far, bpf.RawInstruction{Op: opJA, K: uint32(no - 1 - k)})
		no = k
	}
	raw.Jt, raw.Jf = uint8(yes), uint8(no)
	return append(append(out, raw), far...)
}
