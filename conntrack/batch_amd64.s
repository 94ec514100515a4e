//go:build !purego

#include "go_asm.h"
#include "textflag.h"

// func candidates(t *Table, b *Batch, n uint64) (replies uint64)
TEXT ·candidates(SB), NOSPLIT, $0-32
	MOVQ t+0(FP), AX
	MOVQ b+8(FP), DI
	MOVQ n+16(FP), R12
	MOVQ Table_buckets(AX), R8
	MOVQ (Table_buckets+8)(AX), R9
	MOVQ Table_entries(AX), R10
	XORL SI, SI  // row
	XORL R11, R11 // replies
	JMP  test

loop:
	// AX: the home bucket. X0: the tag, 1 for 0, in all lanes.
	MOVL     Batch_Hash(DI)(SI*4), AX
	MOVWLZX  AX, BX
	IMULQ    R9, AX
	SHRQ     $32, AX
	SHLQ     $6, AX
	ADDQ     R8, AX
	CMPL     BX, $1
	ADCL     $0, BX
	MOVL     BX, X0
	PSHUFLW  $0, X0, X0
	PSHUFL   $0, X0, X0

	// Two bits of CX for each tag that agrees, and one more as the end. BX: twice
	// the number of the first, 16 if there is none: then what is read is no slot.
	MOVOU    bucket_tags(AX), X1
	PCMPEQW  X0, X1
	PMOVMSKB X1, CX
	ORL      $0x10000, CX
	TZCNTL   CX, BX // of what is not 0 the same as BSF, which older processors take it for
	MOVL     bucket_slots(AX)(BX*2), DX
	CMPL     BX, $16
	JEQ      elsewhere
known:
	MOVL     DX, Batch_Found(DI)(SI*4)

	// Into both orders, of which one goes on.
	MOVQ     SI, BX
	SUBQ     R11, BX
	MOVB     SI, Batch_order(DI)(BX*1)
	MOVB     SI, (Batch_order+const_BatchSize)(DI)(R11*1)
	MOVL     DX, CX
	ANDL     $1, CX
	ADDQ     CX, R11

	// Cand>>1 is the entry's number: its offset is that times 128.
	SUBQ     CX, DX
	SHLQ     $6, DX
	PREFETCHT0 (R10)(DX*1)
	PREFETCHT0 64(R10)(DX*1)
	INCQ     SI

test:
	CMPQ     SI, R12
	JB       loop
	MOVQ     R11, replies+24(FP)
	RET

	// R13: how many buckets more there are to look into. R15: where the last one ends.
elsewhere:
	MOVL     bucket_reach(AX), R13
	XORL     DX, DX
	MOVQ     R9, R15
	SHLQ     $6, R15
	ADDQ     R8, R15
	JMP      further

following:
	DECL     R13
	ADDQ     $const_BucketLen, AX
	CMPQ     AX, R15
	CMOVQEQ  R8, AX
	MOVOU    bucket_tags(AX), X1
	PCMPEQW  X0, X1
	PMOVMSKB X1, CX
	TESTL    CX, CX
	JEQ      further
	TZCNTL   CX, BX
	MOVL     bucket_slots(AX)(BX*2), DX
	JMP      known

further:
	TESTL    R13, R13
	JNE      following
	JMP      known
