//go:build !purego

#include "go_asm.h"
#include "textflag.h"

// func glanceRows(w *Worker, keys *[6]uint64, buckets [][64]byte, from, to, k int) (next int)
//
// SI is the row of the burst, R9 the place in look, R15 the frame, BX where it is in the
// UMEM and CX how long it is. What is said about it in glance.go is not said again here.
TEXT ·glanceRows(SB), NOSPLIT, $0-72
	MOVQ    w+0(FP), DI
	MOVQ    keys+8(FP), R12
	MOVQ    from+40(FP), SI
	MOVQ    to+48(FP), R8
	MOVQ    k+56(FP), R9
	MOVQ    Worker_umem(DI), R10
	MOVQ    (Worker_umem+8)(DI), R11
	SUBQ    $const_headersLen, R11 // where the headers may begin at most
	JCS     done
	MOVQ    $const_moreOrOffset, R13
	JMP     test

	PCALIGN $64
loop:
	MOVQ    SI, AX
	SHLQ    $4, AX
	MOVQ    (Worker_b+burst_desc)(DI)(AX*1), BX
	MOVL    (Worker_b+burst_desc+8)(DI)(AX*1), CX
	LEAQ    -(const_vlanLen-const_ethLen)(BX), DX
	CMPQ    DX, R11
	JHI     done
	LEAQ    (R10)(BX*1), R15
	ADDQ    $const_ethLen, BX

	// A frame to come. Behind the last descriptor is other memory of the burst's: any
	// address may be prefetched.
	MOVQ    (Worker_b+burst_desc+4*16)(DI)(AX*1), DX
	PREFETCHT0 (R10)(DX*1)

	// EtherType, version and, of IPv4, header length.
	MOVL    (const_ethLen-2)(R15), AX
	MOVL    AX, DX
	ANDL    $0xffffff, AX
	CMPL    AX, $0x450008
	JNE     six

	// Total length, fragment, protocol.
	MOVQ    (const_ethLen+2)(R15), AX
	TESTQ   R13, AX
	JNE     done
	MOVWLZX AX, DX
	ROLW    $8, DX
	CMPL    DX, $(20+8)
	JCS     done
	ADDL    $const_ethLen, DX
	CMPL    DX, CX
	JHI     done
	SHRQ    $56, AX
	CMPL    AX, $const_protoUDP
	JEQ     hash4
	CMPL    AX, $const_protoTCP
	JNE     done
	TESTB   $const_deciding, (const_ethLen+20+13)(R15)
	JNE     done

hash4: // Table.Hash4
	MOVQ    (const_ethLen+12)(R15), DX
	BSWAPQ  DX
	MOVL    (const_ethLen+20)(R15), CX
	BSWAPL  CX
	ROLL    $16, CX
	SHLQ    $32, AX
	ORQ     CX, AX
	XORQ    0(R12), DX
	XORQ    8(R12), AX
	MULQ    DX

last:
	XORQ    DX, AX
	XORQ    16(R12), AX
	MULQ    24(R12)
	XORQ    DX, AX
	MOVQ    AX, DX
	SHRQ    $32, DX
	XORL    DX, AX
	MOVL    AX, (Worker_b+const_burstHash)(DI)(R9*4)
	MOVB    SI, (Worker_b+const_burstPacket)(DI)(R9*1)
	MOVQ    BX, (Worker_b+burst_ip)(DI)(R9*8)
	INCQ    R9
	INCQ    SI

	// The home bucket; where there are none, what is where they begin.
	IMULQ   buckets_len+24(FP), AX
	SHRQ    $32, AX
	SHLQ    $6, AX
	ADDQ    buckets_base+16(FP), AX
	PREFETCHT0 (AX)

test:
	CMPQ    SI, R8
	JLT     loop

done:
	MOVQ    SI, next+64(FP)
	RET

six:
	ANDL    $0xf0ffff, DX
	CMPL    DX, $0x60dd86
	JNE     done

	// Payload length, protocol.
	MOVL    (const_ethLen+4)(R15), AX
	MOVWLZX AX, DX
	ROLW    $8, DX
	CMPL    DX, $8
	JCS     done
	ADDL    $(const_ethLen+40), DX
	CMPL    DX, CX
	JHI     done
	SHRL    $16, AX
	MOVBLZX AX, AX
	CMPL    AX, $const_protoUDP
	JEQ     hash6
	CMPL    AX, $const_protoTCP
	JNE     done
	TESTB   $const_deciding, (const_ethLen+40+13)(R15)
	JNE     done

hash6: // Table.Hash6: all its products but the last
	BTSQ    $63, BX
	MOVL    (const_ethLen+40)(R15), CX
	BSWAPL  CX
	ROLL    $16, CX
	SHLQ    $32, AX
	ORQ     AX, CX
	MOVQ    $0xffff00000000, R14 // of an IPv4 address as one of IPv6
	MOVQ    (const_ethLen+8)(R15), AX
	BSWAPQ  AX
	XORQ    0(R12), AX
	MOVQ    (const_ethLen+16)(R15), DX
	BSWAPQ  DX
	XORQ    R14, DX
	XORQ    8(R12), DX
	MULQ    DX
	XORQ    DX, AX
	XORQ    AX, CX
	XORQ    32(R12), CX
	MOVQ    (const_ethLen+24)(R15), AX
	BSWAPQ  AX
	XORQ    16(R12), AX
	MOVQ    (const_ethLen+32)(R15), DX
	BSWAPQ  DX
	XORQ    R14, DX
	XORQ    24(R12), DX
	MULQ    DX
	XORQ    DX, AX
	XORQ    40(R12), AX
	MULQ    CX
	JMP     last
