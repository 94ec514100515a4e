// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What toa.c, decap.c and uoa.c need of the kernel's BPF interface beyond what the
// steering program does: facts of include/uapi/linux/bpf.h.

#ifndef L4FWD_RS_ABI_H
#define L4FWD_RS_ABI_H

#include "../dataplane/steer/abi.h"

typedef int s32;
typedef long long s64;

enum {
	MAP_LPM_TRIE = 11,
	MAP_SK_STORAGE = 24,
	MAP_NO_PREALLOC = 1,
	FAMILY_IPV4 = 2,
	FAMILY_IPV6 = 10,
};

static void *(*const sk_storage_get)(void *map, void *sk, const void *value, u64 flags) = (void *)107;
static long (*const sock_ops_flags_set)(void *ctx, int flags) = (void *)59;
static long (*const xdp_adjust_head)(void *ctx, int delta) = (void *)44;
static void *(*const skc_to_mptcp_sock)(void *sk) = (void *)196; // Linux 5.19
static u64 (*const netns_cookie)(void *ctx) = (void *)122;
enum { SK_STORAGE_CREATE = 1 };

struct bpf_sock_ops {
	u32 op, args[4], family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4];
	u32 remote_port, local_port, is_fullsock, snd_cwnd, srtt_us, cb_flags, state;
	u32 rtt_min, snd_ssthresh, rcv_nxt, snd_nxt, snd_una, mss_cache, ecn_flags;
	u32 rate_delivered, rate_interval_us, packets_out, retrans_out, total_retrans;
	u32 segs_in, data_segs_in, segs_out, data_segs_out, lost_out, sacked_out, txhash;
	u64 bytes_received, bytes_acked;
	void *sk __attribute__((aligned(8)));
	void *skb_data __attribute__((aligned(8))); // the TCP header
	void *skb_data_end __attribute__((aligned(8)));
};
enum { PASSIVE_ESTABLISHED = 5, PARSE_HDR_OPT = 13 }; // op
enum { PARSE_UNKNOWN_HDR_OPT = 1 << 5 };              // cb_flags

struct bpf_sock {
	u32 bound_dev_if, family, type, protocol, mark, priority, src_ip4, src_ip6[4];
	u32 src_port; // host order
	u16 dst_port, zero;
	u32 dst_ip4, dst_ip6[4], state;
};

struct bpf_sock_addr {
	u32 user_family, user_ip4, user_ip6[4], user_port, family, type, protocol;
	u32 msg_src_ip4, msg_src_ip6[4];
	void *sk __attribute__((aligned(8)));
};

struct bpf_sockopt {
	void *sk __attribute__((aligned(8)));
	void *optval __attribute__((aligned(8)));
	void *optval_end __attribute__((aligned(8)));
	s32 level, optname, optlen, retval;
};

// An address as the maps of all programs hold it: in network order, IPv4 mapped
// into IPv6 (RFC 4291 section 2.5.5.2).
struct addr {
	u32 word[4];
};

INLINE struct addr mapped(u32 ip4)
{
	struct addr a = {{0, 0, NET32(0xffff), ip4}};

	return a;
}

#endif
