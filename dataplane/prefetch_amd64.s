#include "textflag.h"

// PREFETCHW does nothing where a processor does not know it (CPUID 0x80000001, ECX
// bit 8): those decode it as a NOP.

// func prefetchPacked(base *byte, packed *uint64, n uint64)
TEXT ·prefetchPacked(SB), NOSPLIT, $0-24
	MOVQ base+0(FP), DI
	MOVQ packed+8(FP), SI
	MOVQ n+16(FP), CX
	TESTQ CX, CX
	JZ   done

loop:
	MOVQ (SI), AX
	SHLQ $24, AX
	SHRQ $24, AX
	BYTE $0x0F; BYTE $0x0D; BYTE $0x0C; BYTE $0x07 // PREFETCHW (DI)(AX*1), which the assembler has no name for
	ADDQ $8, SI
	DECQ CX
	JNZ  loop

done:
	RET
