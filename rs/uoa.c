//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The programs of `l4fwd rs uoa`. l4fwd_uoa, at XDP, reads UOA in datagrams of
// balancers, takes it out where the kernel would not pass over it, and notes who the
// client is. The others, at the system calls of UDP sockets in a cgroup, put the client
// in place of the balancer into what servers receive, and the balancer in place of the
// client into what they send. What counts as UOA, and from whom, is written in doc.go.

#include "abi.h"
#include "option.h"

// A balancer's flow to a server, ports in network order.
struct flow {
	struct addr peer, local; // local zero: whatever address of the host it is
	u16 peer_port, local_port;
};

// The client of one.
struct client {
	struct addr addr;
	struct addr local; // of the flow; zero: there are several, see note
	u16 port, zero;
	u32 zero2;
	u64 born, seen; // ns: when it became known, and when it was last needed
};

struct {
	NUM(type, MAP_LRU_HASH);
	NUM(max_entries, 1);
	TYPE(key, struct flow);
	TYPE(value, struct client);
} clients SEC(".maps");

// A client as a server in one network namespace and on one port sees it.
struct seen {
	u64 netns;
	struct addr addr;
	u16 port, local_port; // network order
	u32 zero;
};

// Where what is sent to it goes.
struct way {
	struct addr peer;
	u16 port, zero;
	u32 zero2;
	u64 born, seen; // born: the client's
};

struct {
	NUM(type, MAP_LRU_HASH);
	NUM(max_entries, 1);
	TYPE(key, struct seen);
	TYPE(value, struct way);
} ways SEC(".maps");

// For how long a client that is not needed stays known, in ns.
const volatile u64 timeout = 0;

// The outcomes, indices of stats. The order is that of UOACounter in stats.go.
enum {
	PROTOCOL,
	OPTION,
	SEPARATE, // beside one of these
	REFUSED,
	MALFORMED,
	FRAGMENT,
	GIVEN,
	SENT,
	UNSHOWABLE,
	AMBIGUOUS,
	SHARED,
	FAILED,
	OUTCOMES,
	OTHER = OUTCOMES, // not counted
};

#include "maps.h"

INLINE int same(const struct addr *a, const struct addr *b)
{
	return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) | (a->word[3] ^ b->word[3]));
}

INLINE int is_zero(const struct addr *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

INLINE int is4(const struct addr *a)
{
	return !(a->word[0] | a->word[1]) && a->word[2] == NET32(0xffff);
}

// fresh reports whether what was last seen at a time is not forgotten yet. Another
// CPU's clock may be a little ahead.
INLINE int fresh(u64 seen, u64 now)
{
	return (s64)(now - seen) < (s64)timeout;
}

// UOA: the option's type and lengths; the protocol, its header, and the longest with
// what may stand behind the option.
enum { OPT_UOA = 31, UOA4 = 8, UOA6 = 20, IP_OPP = 248, OPP_LEN = 4, OPP_MAX = 64, END_LEN = 4 };
enum { IP4_LEN = 20, IP4_MAX = 60, UDP_LEN = 8 };

// A datagram with UOA.
struct datagram {
	struct flow flow;
	struct client client;
	u32 l3;	    // byte of the frame its IP header begins at
	u32 head;   // length of that
	u32 opp;    // length of the header of protocol 248, 0 without
	u32 four;   // it is IPv4
	u32 apart;  // the balancer has made it, for UOA alone
};

// read_uoa reads the option at o. room is how much there is of options.
INLINE int read_uoa(struct datagram *d, u8 *o, void *end, u32 room)
{
	u32 size, ip4;
	u8 *rest;

	if (o + UOA4 > (u8 *)end || o[0] != OPT_UOA)
		return 0;
	size = o[1];
	if (size == UOA4) {
		__builtin_memcpy(&ip4, o + 4, sizeof(ip4));
		d->client.addr = mapped(ip4);
	} else if (size == UOA6 && o + UOA6 <= (u8 *)end) {
		__builtin_memcpy(&d->client.addr, o + 4, sizeof(d->client.addr));
	} else {
		return 0;
	}
	__builtin_memcpy(&d->client.port, o + 2, sizeof(d->client.port));
	rest = o + (size == UOA4 ? UOA4 : UOA6);
	if (room == size + END_LEN && rest + END_LEN <= (u8 *)end)
		d->apart = !(rest[0] | rest[1] | rest[2] | rest[3]);
	return room >= size;
}

// read_udp reads the ports of the UDP header at off.
INLINE int read_udp(struct datagram *d, u32 off, void *data, void *end)
{
	struct {
		u16 src, dst, len, sum;
	} *u = data + (off & 0xff);

	if ((void *)(u + 1) > end)
		return 0;
	d->flow.peer_port = u->src;
	d->flow.local_port = u->dst;
	d->apart = d->apart && NET16(u->len) == UDP_LEN;
	return 1;
}

// read_opp reads the header of protocol 248 behind the IP header.
INLINE u32 read_opp(struct datagram *d, void *data, void *end)
{
	struct {
		u8 version, proto;
		u16 len;
	} *h = data + d->l3 + d->head;
	u32 len;

	if ((void *)(h + 1) > end)
		return MALFORMED;
	len = NET16(h->len);
	if (h->proto != IP_UDP || len < OPP_LEN || len > OPP_MAX || len & 3)
		return MALFORMED;
	if (!read_uoa(d, (u8 *)(h + 1), end, len - OPP_LEN) || h->version >> 4 != (is4(&d->client.addr) ? 1 : 2))
		return MALFORMED;
	d->opp = len;
	return read_udp(d, d->l3 + d->head + len, data, end) ? PROTOCOL : MALFORMED;
}

INLINE u32 read4(struct datagram *d, void *data, void *end)
{
	struct ip4 *ip = data + d->l3;
	u8 *first;

	if ((void *)(ip + 1) > end || ip->vihl >> 4 != 4)
		return OTHER;
	d->four = 1;
	d->head = (ip->vihl & 15) * 4;
	d->flow.peer = mapped(ip->src);
	d->flow.local = mapped(ip->dst);
	if (d->head < IP4_LEN || (ip->proto != IP_OPP && (ip->proto != IP_UDP || d->head == IP4_LEN)))
		return OTHER;
	if (ip->frag & NET16(0x3fff))
		return ip->proto == IP_OPP ? FRAGMENT : OTHER;
	if (ip->proto == IP_OPP)
		return read_opp(d, data, end);
	// Balancers put it before the client's own options.
	first = (u8 *)(ip + 1);
	if (first + 1 > (u8 *)end || *first != OPT_UOA)
		return OTHER;
	if (!read_uoa(d, first, end, d->head - IP4_LEN) || !read_udp(d, d->l3 + d->head, data, end))
		return MALFORMED;
	return OPTION;
}

INLINE u32 read6(struct datagram *d, void *data, void *end)
{
	struct ip6 *ip = data + d->l3;

	if ((void *)(ip + 1) > end || NET32(ip->flow) >> 28 != 6 || ip->next != IP_OPP)
		return OTHER;
	d->head = sizeof(*ip);
	__builtin_memcpy(&d->flow.peer, ip->src, sizeof(d->flow.peer));
	__builtin_memcpy(&d->flow.local, ip->dst, sizeof(d->flow.local));
	return read_opp(d, data, end);
}

// keep keeps a client. It was born with its first datagram.
INLINE int keep(struct flow *f, struct client *c, u64 now, struct client *old)
{
	c->born = c->seen = now;
	if (old && fresh(old->seen, now) && old->port == c->port && same(&old->addr, &c->addr))
		c->born = old->born;
	return !map_update(&clients, f, c, 0);
}

// note notes the client of a datagram, for sockets bound to its address, and for those
// bound to none. A balancer may use one address and port towards two addresses of this
// host, for two clients: a socket bound to none would not know which.
INLINE int note(struct datagram *d, u64 now)
{
	struct flow any = d->flow;
	struct client *old;

	d->client.local = d->flow.local;
	if (!keep(&d->flow, &d->client, now, map_lookup(&clients, &d->flow)))
		return 0;
	__builtin_memset(&any.local, 0, sizeof(any.local));
	old = map_lookup(&clients, &any);
	if (old && fresh(old->seen, now) && !same(&old->local, &d->client.local))
		__builtin_memset(&d->client.local, 0, sizeof(d->client.local));
	return keep(&any, &d->client, now, old);
}

// strip takes the header of protocol 248 away.
INLINE int strip(struct xdp_md *ctx, struct datagram *d)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 ip[IP4_MAX / 4], words = d->head / 4, n = d->opp, l3 = d->l3;
	u8 link[sizeof(struct eth) + sizeof(struct vlan)];

	// Changes nothing, but the verifier has forgotten by now how little it is.
	asm volatile("%0 &= 31" : "+r"(l3));
	if (data + sizeof(link) > end)
		return 0;
	__builtin_memcpy(link, data, sizeof(link));
#pragma unroll
	for (int i = 0; i < IP4_MAX / 4; i++) {
		u32 *w = data + l3 + i * 4;

		ip[i] = 0;
		if (i < words) {
			if ((void *)(w + 1) > end)
				return 0;
			ip[i] = *w;
		}
	}
	if (d->four) {
		struct ip4 *h = (void *)ip;
		u32 was = NET16(h->len);
		// RFC 1624 equation 3, for the length and, in the low half of its word, the
		// protocol.
		u32 sum = (u16)~NET16(h->sum) + (u16)~was + (was - n) + (u16)~IP_OPP + IP_UDP;

		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		h->sum = NET16((u16)~sum);
		h->len = NET16((u16)(was - n));
		h->proto = IP_UDP;
	} else {
		struct ip6 *h = (void *)ip;

		h->len = NET16((u16)(NET16(h->len) - n));
		h->next = IP_UDP;
	}
	if (xdp_adjust_head(ctx, n))
		return 0;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + sizeof(link) > end)
		return 0;
	if (l3 == sizeof(struct eth))
		__builtin_memcpy(data, link, sizeof(struct eth));
	else
		__builtin_memcpy(data, link, sizeof(link));
#pragma unroll
	for (int i = 0; i < IP4_MAX / 4; i++) {
		u32 *w = data + l3 + i * 4;

		if (i < words) {
			if ((void *)(w + 1) > end)
				return 0;
			*w = ip[i];
		}
	}
	return 1;
}

SEC("xdp")
int l4fwd_uoa(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct datagram d = {.l3 = sizeof(struct eth)};
	struct prefix source = {.bits = 128};
	struct eth *eth = data;
	u32 what = OTHER;
	u16 type;

	if ((void *)(eth + 1) > end)
		return XDP_PASS;
	type = eth->type;
	if (type == NET16(ETH_VLAN)) {
		struct vlan *tag = data + sizeof(*eth);

		if ((void *)(tag + 1) > end)
			return XDP_PASS;
		type = tag->type;
		d.l3 += sizeof(*tag);
	}
	if (type == NET16(ETH_IPV4))
		what = read4(&d, data, end);
	else if (type == NET16(ETH_IPV6))
		what = read6(&d, data, end);
	if (what == OTHER)
		return XDP_PASS;
	source.addr = d.flow.peer;
	if (!map_lookup(&sources, &source))
		what = REFUSED;
	if (what > OPTION) {
		count(what);
		return XDP_PASS;
	}
	if (!note(&d, ktime_ns()))
		count(FAILED);
	count(what);
	if (d.apart) {
		count(SEPARATE);
		return XDP_DROP;
	}
	if (what == PROTOCOL && !strip(ctx, &d)) {
		count(FAILED);
		return XDP_DROP; // it may be half done
	}
	return XDP_PASS;
}

// ask is what the programs at system calls know of one.
struct ask {
	struct addr addr; // of the call
	u16 port;
	u16 local_port; // of the socket, network order
	struct addr local;
};

// from_socket reads a UDP socket's own address. It returns 0 for other sockets, and for
// those without a port.
INLINE int from_socket(struct bpf_sock *sk, struct ask *a)
{
	u32 ip4;

	if (!sk || sk->protocol != IP_UDP || !sk->src_port)
		return 0;
	a->local_port = NET16((u16)sk->src_port);
	if (sk->family == FAMILY_IPV4) {
		ip4 = sk->src_ip4;
		if (ip4)
			a->local = mapped(ip4);
		return 1;
	}
	a->local.word[0] = sk->src_ip6[0];
	a->local.word[1] = sk->src_ip6[1];
	a->local.word[2] = sk->src_ip6[2];
	a->local.word[3] = sk->src_ip6[3];
	return 1;
}

// client_of finds the client of a datagram from a.
INLINE struct client *client_of(struct ask *a, u64 now)
{
	struct flow f = {.peer = a->addr, .local = a->local, .peer_port = a->port, .local_port = a->local_port};
	struct client *c = map_lookup(&clients, &f);

	if (!c || !fresh(c->seen, now))
		return 0;
	if (is_zero(&c->local)) {
		count(AMBIGUOUS);
		return 0;
	}
	c->seen = now;
	return c;
}

// shown is client_of for a client that can be shown in place of a.
INLINE struct client *shown(struct ask *a, u64 now)
{
	struct client *c = client_of(a, now);

	if (c && is4(&c->addr) != is4(&a->addr)) {
		// An IPv6 client by way of IPv4. To show it would leave no way to answer:
		// no program may make an IPv6 destination an IPv4 one.
		count(UNSHOWABLE);
		return 0;
	}
	return c;
}

INLINE struct seen seen_as(struct bpf_sock_addr *ctx, struct addr *addr, u16 port, u16 local_port)
{
	struct seen s = {.netns = netns_cookie(ctx), .addr = *addr, .port = port, .local_port = local_port};

	return s;
}

// claim makes a's flow the way to its client. A client that has come by another since
// is answered there: then the datagram stays the balancer's, whom its answer reaches.
INLINE int claim(struct bpf_sock_addr *ctx, struct ask *a, struct client *c, u64 now)
{
	struct seen s = seen_as(ctx, &c->addr, c->port, a->local_port);
	struct way w = {.peer = a->addr, .port = a->port, .born = c->born, .seen = now};
	struct way *old = map_lookup(&ways, &s);

	if (old && old->port == a->port && same(&old->peer, &a->addr)) {
		old->born = c->born;
		old->seen = now;
		return 1;
	}
	if (old && fresh(old->seen, now) && old->born > c->born) {
		count(SHARED);
		return 0;
	}
	if (map_update(&ways, &s, &w, 0)) {
		count(FAILED);
		return 0;
	}
	return 1;
}

// way_to finds where what is sent to a goes.
INLINE struct way *way_to(struct bpf_sock_addr *ctx, struct ask *a)
{
	struct seen s = seen_as(ctx, &a->addr, a->port, a->local_port);
	struct way *w = map_lookup(&ways, &s);
	u64 now = ktime_ns();

	if (!w || !fresh(w->seen, now))
		return 0;
	w->seen = now;
	return w;
}

INLINE void ask4(struct bpf_sock_addr *ctx, struct ask *a)
{
	a->addr = mapped(ctx->user_ip4);
	a->port = (u16)ctx->user_port;
}

INLINE void ask6(struct bpf_sock_addr *ctx, struct ask *a)
{
	a->addr.word[0] = ctx->user_ip6[0];
	a->addr.word[1] = ctx->user_ip6[1];
	a->addr.word[2] = ctx->user_ip6[2];
	a->addr.word[3] = ctx->user_ip6[3];
	a->port = (u16)ctx->user_port;
}

INLINE void answer4(struct bpf_sock_addr *ctx, struct addr *addr, u16 port, u32 what)
{
	ctx->user_ip4 = addr->word[3];
	ctx->user_port = port;
	count(what);
}

INLINE void answer6(struct bpf_sock_addr *ctx, struct addr *addr, u16 port, u32 what)
{
	ctx->user_ip6[0] = addr->word[0];
	ctx->user_ip6[1] = addr->word[1];
	ctx->user_ip6[2] = addr->word[2];
	ctx->user_ip6[3] = addr->word[3];
	ctx->user_port = port;
	count(what);
}

SEC("cgroup/recvmsg4")
int l4fwd_uoa_recv4(struct bpf_sock_addr *ctx)
{
	u64 now = ktime_ns();
	struct ask a = {};
	struct client *c;

	ask4(ctx, &a);
	if (!from_socket(ctx->sk, &a))
		return 1;
	c = shown(&a, now);
	if (c && claim(ctx, &a, c, now))
		answer4(ctx, &c->addr, c->port, GIVEN);
	return 1;
}

SEC("cgroup/recvmsg6")
int l4fwd_uoa_recv6(struct bpf_sock_addr *ctx)
{
	u64 now = ktime_ns();
	struct ask a = {};
	struct client *c;

	ask6(ctx, &a);
	if (!from_socket(ctx->sk, &a))
		return 1;
	c = shown(&a, now);
	if (c && claim(ctx, &a, c, now))
		answer6(ctx, &c->addr, c->port, GIVEN);
	return 1;
}

// What a connected socket's peer is called.
SEC("cgroup/getpeername4")
int l4fwd_uoa_peer4(struct bpf_sock_addr *ctx)
{
	struct ask a = {};
	struct client *c;

	ask4(ctx, &a);
	if (!from_socket(ctx->sk, &a))
		return 1;
	c = shown(&a, ktime_ns());
	if (c)
		answer4(ctx, &c->addr, c->port, GIVEN);
	return 1;
}

SEC("cgroup/getpeername6")
int l4fwd_uoa_peer6(struct bpf_sock_addr *ctx)
{
	struct ask a = {};
	struct client *c;

	ask6(ctx, &a);
	if (!from_socket(ctx->sk, &a))
		return 1;
	c = shown(&a, ktime_ns());
	if (c)
		answer6(ctx, &c->addr, c->port, GIVEN);
	return 1;
}

// send4 and send6 lead a datagram, or a socket to be connected, to the balancer.
INLINE int send4(struct bpf_sock_addr *ctx)
{
	struct ask a = {};
	struct way *w;

	ask4(ctx, &a);
	if (!from_socket(ctx->sk, &a))
		return 1;
	w = way_to(ctx, &a);
	if (w)
		answer4(ctx, &w->peer, w->port, SENT);
	return 1;
}

INLINE int send6(struct bpf_sock_addr *ctx)
{
	struct ask a = {};
	struct way *w;

	ask6(ctx, &a);
	if (!from_socket(ctx->sk, &a))
		return 1;
	w = way_to(ctx, &a);
	if (w)
		answer6(ctx, &w->peer, w->port, SENT);
	return 1;
}

SEC("cgroup/sendmsg4")
int l4fwd_uoa_send4(struct bpf_sock_addr *ctx)
{
	return send4(ctx);
}

SEC("cgroup/sendmsg6")
int l4fwd_uoa_send6(struct bpf_sock_addr *ctx)
{
	return send6(ctx);
}

// What package uoa asks, by setsockopt, and the answer, by getsockopt: a struct
// sockaddr_in6, IPv4 mapped, family 0 if the client is not known, and the question's
// number, since several threads may ask about one socket.
struct question {
	struct addr addr; // whom a datagram came from; IPv4 mapped
	u16 port, zero;	  // network order
	u32 number;
};
struct answer {
	u16 family, port;
	u32 flow;
	struct addr addr;
	u32 scope, number;
};

struct {
	NUM(type, MAP_SK_STORAGE);
	NUM(map_flags, MAP_NO_PREALLOC);
	TYPE(key, s32);
	TYPE(value, struct answer);
} answers SEC(".maps");

SEC("cgroup/setsockopt")
int l4fwd_uoa_ask(struct bpf_sockopt *ctx)
{
	struct question *q = ctx->optval;
	struct answer is = {};
	struct ask a = {};
	struct client *c;

	if (not_ours(ctx, OPT_CLIENT_OF) || (void *)(q + 1) > ctx->optval_end || !ctx->sk)
		return 1;
	a.addr = q->addr;
	a.port = q->port;
	is.number = q->number;
	if (!from_socket(ctx->sk, &a))
		return 1;
	c = client_of(&a, ktime_ns());
	if (c) {
		is.family = FAMILY_IPV6;
		is.port = c->port;
		is.addr = c->addr;
	}
	// Memory that is there already keeps the last answer.
	struct answer *kept = sk_storage_get(&answers, ctx->sk, 0, SK_STORAGE_CREATE);

	if (!kept)
		return 1;
	*kept = is;
	ctx->optlen = -1; // the kernel need not know
	return 1;
}

SEC("cgroup/getsockopt")
int l4fwd_uoa_tell(struct bpf_sockopt *ctx)
{
	struct answer *a = ctx->optval, *kept;

	if (not_ours(ctx, OPT_CLIENT_OF) || (void *)(a + 1) > ctx->optval_end || !ctx->sk)
		return 1;
	kept = sk_storage_get(&answers, ctx->sk, 0, 0);
	if (!kept)
		return 1;
	*a = *kept;
	ctx->optlen = sizeof(*a);
	asm volatile("" ::: "memory"); // not both in one store
	ctx->retval = 0;
	return 1;
}

SEC("cgroup/connect4")
int l4fwd_uoa_conn4(struct bpf_sock_addr *ctx)
{
	return send4(ctx);
}

SEC("cgroup/connect6")
int l4fwd_uoa_conn6(struct bpf_sock_addr *ctx)
{
	return send6(ctx);
}

char license_text[] SEC("license") = "Dual BSD/GPL";
