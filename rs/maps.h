// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The maps that toa.c, decap.c and uoa.c have alike. OUTCOMES, how many counters there
// are, has to be known before.

#ifndef L4FWD_RS_MAPS_H
#define L4FWD_RS_MAPS_H

#include "abi.h"

// Key of the senders.
struct prefix {
	u32 bits;
	struct addr addr;
};

// The senders that are believed.
struct {
	NUM(type, MAP_LPM_TRIE);
	NUM(map_flags, MAP_NO_PREALLOC);
	NUM(max_entries, 1);
	TYPE(key, struct prefix);
	TYPE(value, u8);
} sources SEC(".maps");

// What became of what was seen, by outcome.
struct {
	NUM(type, MAP_PERCPU_ARRAY);
	NUM(max_entries, OUTCOMES);
	TYPE(key, u32);
	TYPE(value, u64);
} stats SEC(".maps");

INLINE void count(u32 what)
{
	u64 *n = map_lookup(&stats, &what);

	if (n)
		++*n;
}

#endif
