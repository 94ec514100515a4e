// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What steer.c needs of the kernel's BPF interface and of wire formats: facts,
// written down here instead of included from whatever headers a machine has.

#ifndef L4FWD_ABI_H
#define L4FWD_ABI_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NET16(x) ((u16)__builtin_bswap16(x))
#define NET32(x) ((u32)__builtin_bswap32(x))
#else
#define NET16(x) ((u16)(x))
#define NET32(x) ((u32)(x))
#endif

// Kernel ABI (include/uapi/linux/bpf.h): context, actions, helpers, map types.
struct xdp_md {
	u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};
enum { XDP_DROP = 1, XDP_PASS = 2, XDP_REDIRECT = 4 };
enum {
	MAP_HASH = 1,
	MAP_ARRAY = 2,
	MAP_PERCPU_ARRAY = 6,
	MAP_LRU_HASH = 9,
	MAP_ARRAY_OF_MAPS = 12,
	MAP_XSK = 17,
};

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*const ktime_ns)(void) = (void *)5;
static long (*const redirect_map)(void *map, u64 key, u64 flags) = (void *)51;

// A map is described to the loader by types: an integer is the length of an
// array, a type is what a pointer points at.
#define NUM(name, n) int(*name)[n]
#define TYPE(name, t) t *name

// Wire formats, all fields in network order.
enum {
	ETH_IPV4 = 0x0800,
	ETH_ARP = 0x0806,
	ETH_VLAN = 0x8100,
	ETH_IPV6 = 0x86dd,
	ETH_QINQ = 0x88a8,
	IP_ICMP = 1,
	IP_TCP = 6,
	IP_UDP = 17,
	IP_ICMPV6 = 58,
	IP6_HOPOPTS = 0,
	IP6_ROUTING = 43,
	IP6_FRAGMENT = 44,
	IP6_DSTOPTS = 60,
	ICMP_LEN = 8,
	DHCP_SERVER = 67,
	DHCP_CLIENT = 68,
};

struct eth {
	u8 dst[6], src[6];
	u16 type;
};
struct vlan {
	u16 tci, type;
};
struct arp {
	u16 hrd, pro;
	u8 hln, pln;
	u16 op;
	u8 sha[6], spa[4], tha[6], tpa[4];
};
struct ip4 {
	u8 vihl, tos;
	u16 len, id, frag;
	u8 ttl, proto;
	u16 sum;
	u32 src, dst;
};
struct ip6 {
	u32 flow;
	u16 len;
	u8 next, hops;
	u32 src[4], dst[4];
};
struct ext {
	u8 next, len, type, left;
};
struct frag6 {
	u8 next, zero;
	u16 off;
	u32 id;
};
struct ports {
	u16 src, dst;
};
struct icmp {
	u8 type, code;
	u16 sum;
	u32 rest, target[4]; // target: neighbour solicitation only
};

#endif
