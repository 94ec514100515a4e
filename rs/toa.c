//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// What `l4fwd rs toa` attaches to a cgroup. l4fwd_toa_ops reads the TOA option of
// connections that a balancer has made, l4fwd_toa_peer4 and l4fwd_toa_peer6 put
// the client into the answers of accept and getpeername, l4fwd_toa_opt gives it to
// who asks by getsockopt. What counts as one, and from whom, is written in doc.go.

#include "abi.h"
#include "option.h"

// The client of a connection, kept with its socket.
struct client {
	struct addr addr;
	u16 port; // network order
	u16 zero;
};

struct {
	NUM(type, MAP_SK_STORAGE);
	NUM(map_flags, MAP_NO_PREALLOC);
	TYPE(key, s32);
	TYPE(value, struct client);
} clients SEC(".maps");

// Which option kinds are TOA, by kind.
const volatile u8 kinds[256] = {};

// Whether the kernel has skc_to_mptcp_sock; if not, no call of it is left.
const volatile u8 mptcp = 0;

// The outcomes, indices of stats. The order is that of TOACounter in stats.go.
enum {
	HANDSHAKE,
	LATE,
	WITHOUT,
	MALFORMED,
	REFUSED,
	GIVEN,
	UNSHOWABLE,
	FAILED,
	OUTCOMES,
};

#include "maps.h"

// TCP: byte of the acknowledgement number, of the flags and which is SYN, of the
// options, their end, and the two options of one byte.
enum { ACK_AT = 8, FLAGS_AT = 13, SYN = 2, OPTIONS_AT = 20, OPTIONS_END = 60, OPT_END = 0, OPT_NOP = 1 };
// Lengths of TOA: kind, length, port, address.
enum { TOA4 = 8, TOA6 = 20 };

enum { NONE, FOUND, BAD };

// read_toa reads the option at o, whose kind is one of TOA.
INLINE int read_toa(u8 *o, u8 *end, struct client *out)
{
	if (o[1] == TOA4 && o + TOA4 <= end) {
		u32 ip4;

		__builtin_memcpy(&ip4, o + 4, sizeof(ip4));
		out->addr = mapped(ip4);
	} else if (o[1] == TOA6 && o + TOA6 <= end) {
		__builtin_memcpy(&out->addr, o + 4, sizeof(out->addr));
	} else {
		return BAD;
	}
	__builtin_memcpy(&out->port, o + 2, sizeof(out->port));
	return FOUND;
}

// find_toa reads the first option of a TOA kind.
INLINE int find_toa(u8 *data, u8 *end, struct client *out)
{
	u32 off = OPTIONS_AT;

	for (int i = 0; i < OPTIONS_END - OPTIONS_AT; i++) {
		u8 *o = data + off;
		u32 wanted, step = 1;

		if (o + 1 > end || *o == OPT_END)
			break;
		wanted = kinds[*o];
		if (*o != OPT_NOP) {
			if (o + 2 > end || o[1] < 2)
				break;
			step = o[1];
			if (wanted)
				return read_toa(o, end, out);
		}
		// Always 0, since kinds are 0 or 1, and the mask changes nothing. But
		// the verifier knows neither, so that all ways to the next option are
		// one to it; else it walks each of millions.
		off += step + (wanted >> 1);
		if (off >= OPTIONS_END)
			break;
		asm volatile("%0 &= 63" : "+r"(off));
	}
	return NONE;
}

// from_balancer reports whether the peer may say who its client is.
INLINE int from_balancer(struct bpf_sock_ops *ctx)
{
	// Of IPv4 on an IPv6 socket it is the mapped address.
	struct prefix p = {.bits = 128, .addr = {{ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2], ctx->remote_ip6[3]}}};
	u32 ip4 = ctx->remote_ip4;

	// Else the compiler reads one or the other by a computed address, which the
	// verifier does not allow of a context.
	asm volatile("" : "+r"(ip4));
	if (ctx->family == FAMILY_IPV4)
		p.addr = mapped(ip4);
	return map_lookup(&sources, &p) != 0;
}

// on_syn reports whether a connection comes of a SYN with data (RFC 7413). No balancer
// puts its option there, and some let the client's pass.
INLINE int on_syn(struct bpf_sock_ops *ctx)
{
	u8 *data = ctx->skb_data, *end = ctx->skb_data_end;

	return data + OPTIONS_AT <= end && data[FLAGS_AT] & SYN;
}

// in_time reports whether a segment of an open connection may still name its
// client: no data has come from it, and it has not acknowledged any. Until then a
// balancer's option goes before those that the client has made up.
INLINE int in_time(struct bpf_sock_ops *ctx)
{
	u8 *data = ctx->skb_data, *end = ctx->skb_data_end;
	u32 ack;

	if (data + OPTIONS_AT > end)
		return 0;
	__builtin_memcpy(&ack, data + ACK_AT, sizeof(ack));
	return ctx->bytes_received == 0 && ctx->bytes_acked == 0 && NET32(ack) == ctx->snd_una;
}

// keep keeps the client with the socket, unless one is known, and with the MPTCP socket
// that it is a part of: that is what servers accept then.
INLINE int keep(void *sk, struct client *c)
{
	void *whole;

	if (!sk_storage_get(&clients, sk, c, SK_STORAGE_CREATE))
		return 0;
	if (mptcp) {
		whole = skc_to_mptcp_sock(sk);
		if (whole && !sk_storage_get(&clients, whole, c, SK_STORAGE_CREATE))
			return 0;
	}
	return 1;
}

SEC("sockops")
int l4fwd_toa_ops(struct bpf_sock_ops *ctx)
{
	u32 op = ctx->op;
	struct client found = {};
	int what, trusted;
	void *sk;

	if (op != PASSIVE_ESTABLISHED && op != PARSE_HDR_OPT)
		return 1;
	if (op == PARSE_HDR_OPT && !in_time(ctx))
		return 1;
	what = on_syn(ctx) ? NONE : find_toa(ctx->skb_data, ctx->skb_data_end, &found);
	if (what == NONE && op == PARSE_HDR_OPT)
		return 1;
	trusted = from_balancer(ctx);
	if (!trusted) {
		if (what != NONE)
			count(REFUSED);
		return 1;
	}
	if (what != FOUND) {
		count(what == BAD ? MALFORMED : WITHOUT);
		// It may come with the first data. Others' flags stay.
		if (op == PASSIVE_ESTABLISHED)
			sock_ops_flags_set(ctx, ctx->cb_flags | PARSE_UNKNOWN_HDR_OPT);
		return 1;
	}
	sk = ctx->sk;
	if (!sk)
		return 1;
	// A flag of another program brings those here too that are known.
	if (op == PARSE_HDR_OPT && sk_storage_get(&clients, sk, 0, 0))
		return 1;
	if (!keep(sk, &found))
		count(FAILED);
	else
		count(op == PASSIVE_ESTABLISHED ? HANDSHAKE : LATE);
	return 1;
}

SEC("cgroup/getpeername4")
int l4fwd_toa_peer4(struct bpf_sock_addr *ctx)
{
	struct client *c;

	if (!ctx->sk)
		return 1;
	c = sk_storage_get(&clients, ctx->sk, 0, 0);
	if (!c)
		return 1;
	// struct sockaddr_in has no place for an IPv6 client.
	if (c->addr.word[0] || c->addr.word[1] || c->addr.word[2] != NET32(0xffff)) {
		count(UNSHOWABLE);
		return 1;
	}
	ctx->user_ip4 = c->addr.word[3];
	ctx->user_port = c->port;
	count(GIVEN);
	return 1;
}

SEC("cgroup/getpeername6")
int l4fwd_toa_peer6(struct bpf_sock_addr *ctx)
{
	struct client *c;

	if (!ctx->sk)
		return 1;
	c = sk_storage_get(&clients, ctx->sk, 0, 0);
	if (!c)
		return 1;
	ctx->user_ip6[0] = c->addr.word[0];
	ctx->user_ip6[1] = c->addr.word[1];
	ctx->user_ip6[2] = c->addr.word[2];
	ctx->user_ip6[3] = c->addr.word[3];
	ctx->user_port = c->port;
	count(GIVEN);
	return 1;
}

// What package toa asks for, and the answer: a struct sockaddr_in6, IPv4 mapped;
// family 0 if the client is not known.
struct answer {
	u16 family, port;
	u32 flow;
	struct addr addr;
	u32 scope;
};

SEC("cgroup/getsockopt")
int l4fwd_toa_opt(struct bpf_sockopt *ctx)
{
	struct answer *a = ctx->optval;
	struct client *c;

	if (not_ours(ctx, OPT_CLIENT) || (void *)(a + 1) > ctx->optval_end)
		return 1;
	__builtin_memset(a, 0, sizeof(*a));
	c = ctx->sk ? sk_storage_get(&clients, ctx->sk, 0, 0) : 0;
	if (c) {
		a->family = FAMILY_IPV6;
		a->port = c->port;
		a->addr = c->addr;
	}
	ctx->optlen = sizeof(*a);
	asm volatile("" ::: "memory"); // not both in one store
	ctx->retval = 0;
	return 1;
}

char license_text[] SEC("license") = "Dual BSD/GPL";
