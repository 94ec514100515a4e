// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The socket options by which packages toa and uoa ask toa.c and uoa.c.

#ifndef L4FWD_RS_OPTION_H
#define L4FWD_RS_OPTION_H

#include "abi.h"

enum { LEVEL = 0x6c34, OPT_CLIENT = 1, OPT_CLIENT_OF = 2, PAGE = 4096 };

// not_ours lets a call of another option than ours pass. Of more than a page the kernel
// lets a program see only the first, and refuses the call unless told to keep its own.
INLINE int not_ours(struct bpf_sockopt *ctx, int ours)
{
	if (ctx->level == LEVEL && ctx->optname == ours)
		return 0;
	if (ctx->optlen > PAGE)
		ctx->optlen = 0;
	return 1;
}

#endif
