#include "textflag.h"

// func ticks() uint64
TEXT ·ticks(SB), NOSPLIT, $0-8
	ISB  $15
	MRS  CNTVCT_EL0, R0
	MOVD R0, ret+0(FP)
	RET

// func prefetch(base *byte, offset *uint64, n uint64)
TEXT ·prefetch(SB), NOSPLIT, $0-24
	MOVD base+0(FP), R0
	MOVD offset+8(FP), R1
	MOVD n+16(FP), R2
	CBZ  R2, done

loop:
	MOVD.P 8(R1), R3
	ADD  R0, R3, R3
	PRFM (R3), PLDL1KEEP
	SUBS $1, R2, R2
	BNE  loop

done:
	RET
