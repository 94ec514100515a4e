//go:build !purego

#include "textflag.h"

// func prefetchBuckets(base *bucket, h *uint32, n, nb uint64)
TEXT ·prefetchBuckets(SB), NOSPLIT, $0-32
	MOVD base+0(FP), R0
	MOVD h+8(FP), R1
	MOVD n+16(FP), R2
	MOVD nb+24(FP), R3
	CBZ  R2, done

loop:
	MOVWU.P 4(R1), R4
	MUL  R3, R4, R4
	LSR  $32, R4, R4
	LSL  $6, R4, R4
	ADD  R0, R4, R4
	PRFM (R4), PLDL1KEEP
	SUBS $1, R2, R2
	BNE  loop

done:
	RET

// func prefetchEntries(base *Entry, c *Cand, n uint64)
TEXT ·prefetchEntries(SB), NOSPLIT, $0-24
	MOVD base+0(FP), R0
	MOVD c+8(FP), R1
	MOVD n+16(FP), R2
	CBZ  R2, done

loop:
	MOVWU.P 4(R1), R4
	LSR  $1, R4, R4
	LSL  $7, R4, R4
	ADD  R0, R4, R4
	PRFM (R4), PLDL1KEEP
	PRFM 64(R4), PLDL1KEEP
	SUBS $1, R2, R2
	BNE  loop

done:
	RET
