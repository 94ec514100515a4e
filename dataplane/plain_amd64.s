//go:build !purego

#include "go_asm.h"
#include "textflag.h"

// func serverSegments4(w *Worker, flows []conntrack.Entry, rows []uint8, at int) (next int)
TEXT ·serverSegments4(SB), NOSPLIT, $24-72
#define DONE $const_Replied
#include "plain_amd64.h"

// func serverSegments6(w *Worker, flows []conntrack.Entry, rows []uint8, at int) (next int)
TEXT ·serverSegments6(SB), NOSPLIT, $24-72
#define V6
#include "plain_amd64.h"
#undef DONE
#undef V6

// func clientSegments4(w *Worker, flows []conntrack.Entry, rows []uint8, at int) (next int)
TEXT ·clientSegments4(SB), NOSPLIT, $24-72
#define CLIENT
#define DONE $const_Forwarded
#include "plain_amd64.h"

// func clientSegments6(w *Worker, flows []conntrack.Entry, rows []uint8, at int) (next int)
TEXT ·clientSegments6(SB), NOSPLIT, $24-72
#define V6
#include "plain_amd64.h"
