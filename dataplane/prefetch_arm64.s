#include "textflag.h"

// func prefetchPacked(base *byte, packed *uint64, n uint64)
TEXT ·prefetchPacked(SB), NOSPLIT, $0-24
	MOVD base+0(FP), R0
	MOVD packed+8(FP), R1
	MOVD n+16(FP), R2
	CBZ  R2, done

loop:
	MOVD.P 8(R1), R3
	UBFX $0, R3, $40, R3
	ADD  R0, R3, R3
	PRFM (R3), PSTL1KEEP
	SUBS $1, R2, R2
	BNE  loop

done:
	RET
