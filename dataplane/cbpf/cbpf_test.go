package cbpf

import (
	"errors"
	"testing"

	"golang.org/x/net/bpf"
	"pgregory.net/rapid"
)

// operations are opcodes but returns and jumps. golang.org/x/net/bpf knows no negation,
// and takes the length of the frame for X for that for A.
var operations = func() (out []uint16) {
	for op := range known {
		if c := op & classMask; c != classRet && c != classJmp && op != classALU|aluNeg && op != classLdx|modeLen {
			out = append(out, op)
		}
	}
	return out
}()

// drawProgram makes one that New accepts.
func drawProgram(t *rapid.T) []bpf.RawInstruction {
	var code []bpf.RawInstruction
	n := rapid.IntRange(1, 40).Draw(t, "instructions")
	for i := range n {
		after := n - i - 1 // and the return
		in := bpf.RawInstruction{K: rapid.Uint32Range(0, 80).Draw(t, "k")}
		switch {
		case rapid.IntRange(0, 3).Draw(t, "kind") == 0:
			in.Op = rapid.SampledFrom([]uint16{0x15, 0x25, 0x35, 0x45, 0x1d, 0x2d, 0x3d, 0x4d}).Draw(t, "jump")
			in.Jt = uint8(rapid.IntRange(0, after).Draw(t, "yes"))
			in.Jf = uint8(rapid.IntRange(0, after).Draw(t, "no"))
		case rapid.IntRange(0, 9).Draw(t, "kind") == 0:
			in = bpf.RawInstruction{Op: classJmp, K: uint32(rapid.IntRange(0, after).Draw(t, "far"))}
		default:
			in.Op = rapid.SampledFrom(operations).Draw(t, "op")
			switch {
			case in.Op&classMask == classALU && in.Op&srcX == 0 && in.K == 0:
				in.K = 1
			case in.Op&classMask == classALU && in.Op&srcX != 0, in.Op&classMask == classMisc, in.Op == classLd|modeLen:
				in.K = 0
			case in.Op&classMask == classSt, in.Op&classMask == classStx, in.Op == classLd|modeMem, in.Op == classLdx|modeMem:
				in.K %= MemWords
			}
		}
		code = append(code, in)
	}
	last := bpf.RawInstruction{Op: classRet | retA}
	if rapid.Bool().Draw(t, "constant") {
		last = bpf.RawInstruction{Op: classRet | retK, K: 7}
	}
	return append(code, last)
}

// The other interpreter agrees on every program and packet.
func TestTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		code := drawProgram(t)
		p, err := New(code)
		if err != nil {
			t.Fatalf("%v: %v", code, err)
		}
		in, ok := bpf.Disassemble(code)
		if !ok {
			t.Fatalf("the twin cannot read %v", code)
		}
		vm, err := bpf.NewVM(in)
		if err != nil {
			t.Fatalf("%v: %v", in, err)
		}
		packet := rapid.SliceOfN(rapid.Byte(), 0, 90).Draw(t, "packet")
		want, err := vm.Run(packet)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Run(packet, uint32(len(packet))); uint32(want) != got {
			t.Fatalf("%v on %x: %d, twin %d", in, packet, got, uint32(want))
		}
	})
}

func TestRefused(t *testing.T) {
	ret := bpf.RawInstruction{Op: classRet}
	for name, c := range map[string]struct {
		code []bpf.RawInstruction
		want error
	}{
		"unknown":       {[]bpf.RawInstruction{{Op: 0xff}, ret}, errOpcode},
		"no return":     {[]bpf.RawInstruction{{Op: classLd | modeLen}}, errJump},
		"jump beyond":   {[]bpf.RawInstruction{{Op: 0x15, Jt: 1}, ret}, errJump},
		"jump else":     {[]bpf.RawInstruction{{Op: 0x15, Jf: 200}, ret}, errJump},
		"long jump":     {[]bpf.RawInstruction{{Op: classJmp, K: 1 << 31}, ret}, errJump},
		"memory":        {[]bpf.RawInstruction{{Op: classSt, K: MemWords}, ret}, errMemory},
		"loaded memory": {[]bpf.RawInstruction{{Op: classLdx | modeMem, K: 99}, ret}, errMemory},
		"zero":          {[]bpf.RawInstruction{{Op: classALU | aluDiv}, ret}, errZero},
		"zero modulo":   {[]bpf.RawInstruction{{Op: classALU | aluMod}, ret}, errZero},
	} {
		if _, err := New(c.code); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for _, n := range []int{0, MaxInstructions + 1} {
		if _, err := New(make([]bpf.RawInstruction, n)); err == nil {
			t.Errorf("%d instructions are no error", n)
		}
	}
}

// What the twin does not know, or cannot be asked.
func TestRun(t *testing.T) {
	for name, c := range map[string]struct {
		code []bpf.RawInstruction
		size uint32
		want uint32
	}{
		"negation":           {[]bpf.RawInstruction{{Op: classLd, K: 5}, {Op: classALU | aluNeg}, {Op: classRet | retA}}, 3, ^uint32(4)},
		"length as X":        {[]bpf.RawInstruction{{Op: classLdx | modeLen}, {Op: classMisc | miscTXA}, {Op: classRet | retA}}, 1500, 1500},
		"length of the wire": {[]bpf.RawInstruction{{Op: classLd | modeLen}, {Op: classRet | retA}}, 1500, 1500},
		"division by X zero": {[]bpf.RawInstruction{{Op: classALU | aluDiv | srcX}, {Op: classRet, K: 9}}, 3, 0},
		"modulo X zero":      {[]bpf.RawInstruction{{Op: classALU | aluMod | srcX}, {Op: classRet, K: 9}}, 3, 0},
		"far beyond":         {[]bpf.RawInstruction{{Op: classLdx, K: ^uint32(0)}, {Op: classLd | modeInd, K: ^uint32(0)}, {Op: classRet, K: 9}}, 3, 0},
	} {
		p, err := New(c.code)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Run([]byte{1, 2, 3}, c.size); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	p, err := New([]bpf.RawInstruction{{Op: classLdx | sizeB | modeMSH, K: 1}, {Op: classLd | sizeB | modeInd}, {Op: classSt, K: 3}, {Op: classRet | retA}})
	if err != nil {
		t.Fatal(err)
	}
	packet := make([]byte, 60)
	if n := testing.AllocsPerRun(100, func() { p.Run(packet, 60) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
