//go:build !purego

#include "textflag.h"

// func prefetchBuckets(base *bucket, h *uint32, n, nb uint64)
TEXT ·prefetchBuckets(SB), NOSPLIT, $0-32
	MOVQ base+0(FP), DI
	MOVQ h+8(FP), SI
	MOVQ n+16(FP), CX
	MOVQ nb+24(FP), R8
	TESTQ CX, CX
	JZ   done

loop:
	MOVL  (SI), AX
	IMULQ R8, AX
	SHRQ  $32, AX
	SHLQ  $6, AX
	PREFETCHT0 (DI)(AX*1)
	ADDQ  $4, SI
	DECQ  CX
	JNZ   loop

done:
	RET

// func prefetchEntries(base *Entry, c *Cand, n uint64)
TEXT ·prefetchEntries(SB), NOSPLIT, $0-24
	MOVQ base+0(FP), DI
	MOVQ c+8(FP), SI
	MOVQ n+16(FP), CX
	TESTQ CX, CX
	JZ   done

loop:
	MOVL  (SI), AX
	SHRQ  $1, AX
	SHLQ  $7, AX
	PREFETCHT0 (DI)(AX*1)
	PREFETCHT0 64(DI)(AX*1)
	ADDQ  $4, SI
	DECQ  CX
	JNZ   loop

done:
	RET
