// The loop of segments, see plain_amd64.go: included once for each sender and family,
// with CLIENT defined for packets that clients have sent, and V6 for IPv6.
//
// DI is the worker, SI the row. Of one packet:
//
//	R13 its IP header     R8  the queue it is to leave by
//	R14 its flow          R10 its length in bytes, from the IP header on
//	R15 its way           R11 the port of the flow's own end (in the reply, as received)
//	BX  its next hop      R12 the address of that end
//
// What is said about it in plain.go is not said again here. Until the line "all is known"
// nothing is written.

#ifdef V6
#define L4 40
#define PROTO 6
#define TTL 7
#define SRC 8
#define DST 24
#else
#define L4 20
#define PROTO 9
#define TTL 8
#define SRC 12
#define DST 16
#endif

// Of the entry what is its sender's, me, and the other's.
#ifdef CLIENT
#define D 0
#else
#define D 1
#endif
#define ME (const_entryWin+D*const_windowSize)
#define PEER (const_entryWin+(1-D)*const_windowSize)

// FOLD leaves in the low half of r what packet.Fold does of r, below 2^32, and inverts it.
#define FOLD(r, tmp) \
	MOVL r, tmp; \
	ROLL $16, tmp; \
	ADDL tmp, r; \
	SHRL $16, r; \
	XORL $0xffff, r

	MOVQ w+0(FP), DI
	MOVQ rows_base+32(FP), SI
	MOVQ rows_len+40(FP), AX
	ADDQ SI, AX
	MOVQ AX, end-8(SP)
	ADDQ at+56(FP), SI
	MOVQ (Worker_umem+8)(DI), AX
	SUBQ $const_headersLen, AX
	JCS  stop
	MOVQ AX, last-16(SP) // where the headers may begin at most
	MOVQ Worker_routes(DI), AX
	MOVL const_tableGen(AX), AX
	MOVL AX, gen-24(SP)
	JMP  test

	PCALIGN $64
loop:
	// The headers of a row to come: what glance has read of them need not be in L1 any
	// more, since frames lie so that they share few of its sets. Behind the last row, and
	// with what is no place in the UMEM, this does nothing.
	MOVBLZX 4(SI), DX
	ANDL    $(const_BurstSize-1), DX
	MOVQ    (Worker_b+burst_ip)(DI)(DX*8), AX
#ifdef V6
	BTRQ    $63, AX
#endif
	ADDQ    Worker_umem(DI), AX
	PREFETCHT0 (AX)

	MOVBLZX (SI), DX
	ANDL    $(const_BurstSize-1), DX
	MOVQ    (Worker_b+burst_ip)(DI)(DX*8), R13
#ifdef V6
	BTRQ    $63, R13
	JCC     stop
#endif
	LEAQ    -const_vlanLen(R13), AX
	CMPQ    AX, last-16(SP)
	JHI     stop
	ADDQ    Worker_umem(DI), R13
	MOVL    (Worker_b+const_burstFound)(DI)(DX*4), R14
	SHRL    $1, R14
	CMPQ    R14, flows_len+16(FP)
	JAE     stop
	SHLQ    $7, R14
	ADDQ    flows_base+8(FP), R14
	MOVL    const_entryBackend(R14), R15
	CMPQ    R15, (Worker_ways+8)(DI)
	JAE     stop
	SHLQ    $6, R15
	ADDQ    Worker_ways(DI), R15

	// TCP in Full-NAT or DNAT, Steady; and a client has acknowledged data.
	MOVWLZX const_entryProto(R14), AX
	ANDL    $0xfeff, AX
	CMPL    AX, $const_protoTCP
	JNE     stop
	MOVWLZX const_entryState(R14), AX
#ifdef CLIENT
	ANDL    $const_steadyClientMask, AX
	CMPL    AX, $const_steadyClient
	JNE     unacked
acked:
#else
	ANDL    $const_steadyReplyMask, AX
	CMPL    AX, $const_steadyReply
	JNE     stop
#endif

	// The next hop.
#ifdef CLIENT
	MOVWLZX way_id(R15), BX
	MOVL    way_gen(R15), DX
#else
	MOVWLZX const_entryHopID(R14), BX
	MOVL    const_entryHopGen(R14), DX
#endif
	CMPL    DX, gen-24(SP)
	JNE     stop
	CMPQ    BX, (Worker_hops+8)(DI)
	JAE     stop
	CMPB    way_header(R15), $L4
	JNE     stop
	LEAQ    (BX)(BX*2), BX
	SHLQ    $3, BX
	ADDQ    Worker_hops(DI), BX

	// The flow's own end.
	MOVWLZX const_entryLocal(R14), R12
	CMPQ    R12, (Worker_locals+8)(DI)
	JAE     stop
	SHLQ    $4, R12
	ADDQ    Worker_locals(DI), R12
	MOVWLZX const_entryLocalPort(R14), R11
	MOVWLZX const_entryClientPort(R14), AX
	CMPB    const_entryMode(R14), $0
	CMOVQNE R14, R12 // the client's address is what an entry begins with
	CMOVLNE AX, R11

	// Is it the flow's packet?
	MOVL    L4(R13), CX
	BSWAPL  CX
#ifdef CLIENT
#define SRCADDR 0(R14)
#define DSTADDR 16(R15)
#define SRCADDRLO 8(R14)
#define DSTADDRLO 24(R15)
	CMPW    CX, (way_port+2)(R15)
	JNE     stop
	SHRL    $16, CX
	CMPW    CX, AX
	JNE     stop
#else
#define SRCADDR 0(R15)
#define DSTADDR 0(R12)
#define SRCADDRLO 8(R15)
#define DSTADDRLO 8(R12)
	CMPW    CX, R11
	JNE     stop
	SHRL    $16, CX
	CMPW    CX, way_port(R15)
	JNE     stop
#endif
#ifdef V6
	MOVQ    SRC(R13), AX
	BSWAPQ  AX
	CMPQ    AX, SRCADDR
	JNE     stop
	MOVQ    (SRC+8)(R13), AX
	BSWAPQ  AX
	CMPQ    AX, SRCADDRLO
	JNE     stop
	MOVQ    DST(R13), AX
	BSWAPQ  AX
	CMPQ    AX, DSTADDR
	JNE     stop
	MOVQ    (DST+8)(R13), AX
	BSWAPQ  AX
	CMPQ    AX, DSTADDRLO
	JNE     stop
	MOVWLZX 4(R13), R10
	ROLW    $8, R10
	ADDL    $L4, R10
#else
	MOVL    SRC(R13), AX
	BSWAPL  AX
	CMPL    AX, SRCADDRLO
	JNE     stop
	MOVL    DST(R13), AX
	BSWAPL  AX
	CMPL    AX, DSTADDRLO
	JNE     stop
	MOVWLZX 2(R13), R10
	ROLW    $8, R10
#endif
	CMPB    PROTO(R13), $const_protoTCP
	JNE     stop

	// May it leave?
	CMPB    TTL(R13), $1
	JLS     stop
	MOVWLZX const_hopMTU(BX), AX
	CMPL    R10, AX
	JHI     stop
	CMPB    const_hopState(BX), $const_hopResolved
	JNE     stop
	MOVWLZX const_hopPort(BX), AX
	ANDL    $(const_MaxNICs-1), AX
	MOVQ    Worker_out(DI)(AX*8), R8
	TESTQ   R8, R8
	JEQ     stop
	CMPQ    queue_n(R8), $const_queueLen
	JAE     stop

	// plainSegment. CX: bytes of data.
	MOVWLZX (L4+12)(R13), AX
	ROLW    $8, AX
	MOVL    AX, DX
	SHRL    $12, DX
	SHLL    $2, DX
	LEAL    -L4(R10), CX
	SUBL    DX, CX
	JMI     stop
	ANDL    $const_segmentLooked, AX
	CMPL    AX, $const_segmentBare
	JEQ     simple
	CMPL    AX, $const_segmentStamped
	JNE     stop
	CMPL    (L4+20)(R13), $const_timestamps
	JNE     stop

simple:
	// CanPutOff.
	MOVL    Worker_tick(DI), AX
	ADDL    way_timeout(R15), AX
	SUBL    const_entryExpires(R14), AX
	JMI     stop

	// Follows. CX: the end of its data. AX: what it acknowledges.
	MOVL    (L4+4)(R13), AX
	BSWAPL  AX
	CMPL    AX, (ME+const_windowEnd)(R14)
	JNE     stop
	ADDL    AX, CX
	MOVL    (L4+8)(R13), AX
	BSWAPL  AX
#ifndef CLIENT
	SUBL    const_entrySeqDelta(R14), AX
#endif
	MOVL    (PEER+const_windowEnd)(R14), R9
	SUBL    (PEER+const_windowAcked)(R14), R9
	CMPL    R9, $const_mostFlight
	JHI     stop
	MOVL    AX, DX
	SUBL    (PEER+const_windowAcked)(R14), DX
	CMPL    DX, R9
	JHI     stop
#ifdef CLIENT
	CMPB    way_toa(R15), $0
	JNE     told
untold:
#endif

	// All is known: the flow.
	MOVL    CX, (ME+const_windowEnd)(R14)
	MOVL    AX, (PEER+const_windowAcked)(R14)
#ifdef CLIENT
	TESTB   $const_ackedFlag, const_entryFlags(R14)
	JEQ     note
noted:
#endif
	MOVWLZX (L4+14)(R13), AX
	ROLW    $8, AX
	MOVBLZX (const_entryWScale+D)(R14), CX
	XORL    DX, DX
	TESTB   $const_scaledFlag, const_entryFlags(R14)
	CMOVLEQ DX, CX
	SHLL    CX, AX
	CMPL    AX, (ME+const_windowMaxWin)(R14)
	JHI     widen
widened:
	MOVL    Worker_tick(DI), AX
	ADDL    way_timeout(R15), AX
	MOVL    AX, const_entryExpires(R14)
	INCL    (const_entryPackets+4*D)(R14)
	ADDQ    R10, (const_entryBytes+8*D)(R14)
	MOVQ    way_count(R15), AX
	INCQ    (const_countPackets+8*D)(AX)
	ADDQ    R10, (const_countBytes+8*D)(AX)

	// PlainTCP.
#ifdef CLIENT
	MOVL    (L4+4)(R13), AX
	BSWAPL  AX
	MOVL    AX, CX
	ADDL    const_entrySeqDelta(R14), AX
	MOVL    AX, DX
	BSWAPL  DX
	MOVL    DX, (L4+4)(R13)
	MOVL    R11, R9
	SHLL    $16, R9
	MOVWLZX way_port(R15), DX
#else
	MOVL    (L4+8)(R13), AX
	BSWAPL  AX
	MOVL    AX, CX
	SUBL    const_entrySeqDelta(R14), AX
	MOVL    AX, DX
	BSWAPL  DX
	MOVL    DX, (L4+8)(R13)
	MOVWLZX (way_port+2)(R15), R9
	SHLL    $16, R9
	MOVWLZX const_entryClientPort(R14), DX
#endif
	ORL     DX, R9
	BSWAPL  R9
	MOVL    R9, L4(R13)
	NOTL    CX
	MOVWLZX const_entryPortSum(R14), DX
	MOVWLZX (L4+16)(R13), R9
	ROLW    $8, R9
#ifdef CLIENT
	XORL    $0xffff, R9
#else
	XORL    $0xffff, DX
	XORL    $0xffff, R9
#endif
	ADDL    DX, R9
	ADDL    CX, AX
	ADCL    R9, AX
	ADCL    $0, AX
	FOLD(AX, CX)
	ROLW    $8, AX
	MOVW    AX, (L4+16)(R13)

	// PlainIPv6 or PlainIPv4.
	DECB    TTL(R13)
#ifdef CLIENT
#define NEWSRC 0(R12)
#define NEWDST 0(R15)
#define NEWSRCLO 8(R12)
#define NEWDSTLO 8(R15)
#else
#define NEWSRC 16(R15)
#define NEWDST 0(R14)
#define NEWSRCLO 24(R15)
#define NEWDSTLO 8(R14)
#endif
#ifdef V6
	MOVQ    NEWSRC, AX
	BSWAPQ  AX
	MOVQ    AX, SRC(R13)
	MOVQ    NEWSRCLO, CX
	BSWAPQ  CX
	MOVQ    CX, (SRC+8)(R13)
	MOVQ    NEWDST, AX
	BSWAPQ  AX
	MOVQ    AX, DST(R13)
	MOVQ    NEWDSTLO, CX
	BSWAPQ  CX
	MOVQ    CX, (DST+8)(R13)
#define ETHERTYPE $0xdd86
#else
	MOVWLZX const_entryAddrSum(R14), AX
#ifndef CLIENT
	XORL    $0xffff, AX
#endif
	MOVWLZX 10(R13), CX
	ROLW    $8, CX
	XORL    $0xffff, CX
	LEAL    const_ttlStep(AX)(CX*1), AX
	FOLD(AX, CX)
	ROLW    $8, AX
	MOVW    AX, 10(R13)
	MOVL    NEWSRCLO, AX
	BSWAPL  AX
	MOVL    AX, SRC(R13)
	MOVL    NEWDSTLO, CX
	BSWAPL  CX
	MOVL    CX, DST(R13)
#define ETHERTYPE $0x0008
#endif

	// PutBefore, and out.
	MOVQ    R13, DX
	SUBQ    Worker_umem(DI), DX
	MOVBLZX const_hopHeaderLen(BX), CX
	SUBQ    CX, DX
	LEAQ    (R10)(CX*1), R11
	MOVQ    const_hopHeader(BX), AX
	CMPL    CX, $const_vlanLen
	JEQ     tagged
	MOVQ    AX, -14(R13)
	MOVL    (const_hopHeader+8)(BX), AX
	MOVL    AX, -6(R13)
untagged:
	MOVW    ETHERTYPE, -2(R13)
	CMPQ    R11, $const_minFrame
	JB      pad
padded:
	MOVQ    queue_n(R8), CX
	MOVQ    CX, AX
	SHLQ    $4, AX
	MOVQ    DX, queue_out(R8)(AX*1)
	MOVQ    R11, (queue_out+8)(R8)(AX*1)
	MOVB    DONE, queue_done(R8)(CX*1)
	INCQ    CX
	MOVQ    CX, queue_n(R8)
	INCQ    SI

test:
	CMPQ    SI, end-8(SP)
	JB      loop

stop:
	SUBQ    rows_base+32(FP), SI
	MOVQ    SI, next+64(FP)
	RET

#ifdef CLIENT
unacked:
	ANDL    $const_steadyReplyMask, AX
	CMPL    AX, $const_steadyReply
	JNE     stop
	JMP     acked

told: // TOADue, after NoteServerAcked
	CMPB    const_entryMode(R14), $const_fullNAT
	JNE     untold
	MOVL    const_entryServerNext(R14), DX
	SUBL    AX, DX
	JEQ     insert
	JMI     untold
	TESTB   $const_ackedFlag, const_entryFlags(R14)
	JNE     untold
insert:
#ifdef V6
	JMP     stop
#else
	LEAL    const_toaLen(R10), DX
	MOVWLZX const_hopMTU(BX), R9
	CMPL    DX, R9
	JHI     stop
	LEAQ    -const_vlanLen(R13), DX
	SUBQ    Worker_umem(DI), DX
	MOVQ    Worker_frameSize(DI), R9
	DECQ    R9
	ANDQ    R9, DX
	CMPQ    DX, $const_toaLen
	JB      stop

	// All is known, here too: the flow, which counts the packet as received.
	MOVL    CX, (ME+const_windowEnd)(R14)
	MOVL    AX, (PEER+const_windowAcked)(R14)
	SUBQ    $const_toaLen, (const_entryBytes+8*D)(R14)
	MOVQ    way_count(R15), AX
	SUBQ    $const_toaLen, (const_countBytes+8*D)(AX)
	INCQ    (Worker_count+Counts_TOA+8*const_toaInserted)(DI)

	// PlainTOA. A sum of words may be made with the bytes of all of them swapped. The
	// server's address and both ports are written below.
	MOVQ    (R13), AX
	MOVQ    8(R13), CX
	MOVQ    AX, -8(R13)
	MOVQ    CX, (R13)
	MOVQ    24(R13), AX
	MOVQ    32(R13), CX
	MOVQ    AX, 16(R13)
	MOVQ    CX, 24(R13)
	SUBQ    $const_toaLen, R13
	ADDL    $const_toaLen, R10
	MOVL    R10, AX
	ROLW    $8, AX
	MOVW    AX, 2(R13)
	MOVWLZX 10(R13), AX
	XORL    $0xffff, AX
	ADDL    $(const_toaLen<<8), AX
	FOLD(AX, DX)
	MOVW    AX, 10(R13)
	MOVBLZX way_kind(R15), AX
	ORL     $(const_toaLen<<8), AX
	MOVWLZX const_entryClientPort(R14), DX
	ROLW    $8, DX
	SHLL    $16, DX
	ORL     DX, AX
	MOVL    8(R14), DX
	BSWAPL  DX
	MOVL    AX, (L4+20)(R13)
	MOVL    DX, (L4+24)(R13)
	ADDB    $(const_toaLen/4<<4), (L4+12)(R13)
	MOVWLZX (L4+16)(R13), CX
	XORL    $0xffff, CX
	ADDL    $(const_toaLen<<8+const_toaLen/4<<4), CX
	ADDL    DX, AX
	ADCL    CX, AX
	ADCL    $0, AX
	FOLD(AX, DX)
	MOVW    AX, (L4+16)(R13)
	JMP     noted
#endif

note: // NoteServerAcked
	MOVL    const_entryServerNext(R14), CX
	SUBL    AX, CX
	JPL     noted
	ORB     $const_ackedFlag, const_entryFlags(R14)
	JMP     noted
#endif

widen:
	MOVL    AX, (ME+const_windowMaxWin)(R14)
	JMP     widened

tagged:
	MOVQ    AX, -18(R13)
	MOVQ    (const_hopHeader+8)(BX), AX
	MOVQ    AX, -10(R13)
	JMP     untagged

pad:
	XORPS   X0, X0
	MOVOU   X0, (R13)(R10*1)
	MOVW    $0, 16(R13)(R10*1)
	MOVL    $const_minFrame, R11
	JMP     padded

#undef D
#undef ME
#undef PEER
#undef L4
#undef PROTO
#undef TTL
#undef SRC
#undef DST
#undef FOLD
#undef SRCADDR
#undef DSTADDR
#undef SRCADDRLO
#undef DSTADDRLO
#undef NEWSRC
#undef NEWDST
#undef NEWSRCLO
#undef NEWDSTLO
#undef ETHERTYPE
