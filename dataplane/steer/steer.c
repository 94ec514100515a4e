//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The XDP program of l4fwd: for every frame a data NIC receives it decides
// whether l4fwd takes it (redirect to the AF_XDP socket of the queue) or the
// kernel keeps it (XDP_PASS). It never changes a byte. What is taken and why
// is written in doc.go; the Go side (rules.go) fills the maps.
//
// Nothing of the system is included, so that the object depends on these files
// and on the compiler alone, not on the machine it is built on.

#include "abi.h"

// Key of the rules, an endpoint or, without port and protocol, an address. IPv4
// is held IPv4-mapped; family (4 or 6) keeps an IPv6 packet that carries a
// mapped address from matching an IPv4 rule.
struct endpoint {
	u32 addr[4]; // network order
	u16 port;    // network order
	u8 proto;
	u8 family;
};

// What is known of an address or, the last two, of an endpoint.
enum {
	ADDR_OURS = 1,     // a VIP or local address the host does not have: take all but leases
	ADDR_HOST = 2,     // an address of the host
	ADDR_SERVICES = 4, // there are services at it
	ADDR_RANGE = 8,    // TCP and UDP to the ports lo..hi are l4fwd's
	ADDR_TCP = 16,     // DNAT backends at it speak TCP
	ADDR_UDP = 32,     // DNAT backends at it speak UDP
	END_SERVICE = 64,
	END_BACKEND = 128,
};
struct rule {
	u32 flags;
	u16 lo, hi; // host order, inclusive
};

// Which datagram a fragment belongs to (RFC 791, RFC 8200 section 4.5).
struct datagram {
	u32 src[4], dst[4], id;
	u8 proto, family;
	u16 zero;
};

// All rules at one time. A set is written once, put into its slot and never
// changed: an element of a hash map that is replaced or deleted is used again
// at once, under the eyes of a program that has just found it.
struct rule_set {
	NUM(type, MAP_HASH);
	NUM(max_entries, 1);
	NUM(key_size, sizeof(struct endpoint)); // clang leaves the types out here
	NUM(value_size, sizeof(struct rule));
};
struct {
	NUM(type, MAP_ARRAY_OF_MAPS);
	NUM(max_entries, 1);
	TYPE(key, u32);
	struct rule_set *values[];
} rules SEC(".maps");

// Datagrams whose first fragment was taken by port, with the time (ns) until
// which later ones follow. An LRU: a flood forgets fragments, nothing else.
struct {
	NUM(type, MAP_LRU_HASH);
	NUM(max_entries, 1);
	TYPE(key, struct datagram);
	TYPE(value, u64);
} fragments SEC(".maps");

struct {
	NUM(type, MAP_XSK);
	NUM(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, u32);
} sockets SEC(".maps");

// The NIC's MAC in wire order in the low six bytes as mac48() reads them.
struct {
	NUM(type, MAP_ARRAY);
	NUM(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, u64);
} nic_mac SEC(".maps");

// The outcomes, indices of stats. The order is that of Counter in stats.go.
enum {
	PASS_OTHER,
	PASS_FOREIGN_MAC,
	PASS_MALFORMED,
	PASS_FRAGMENT,
	TAKE_ADDRESS, // the first that redirects
	TAKE_SERVICE,
	TAKE_RANGE,
	TAKE_RETURN,
	TAKE_ICMP_ERROR,
	TAKE_NEIGHBOUR,
	DROP_NO_SOCKET,
	OUTCOMES,
};

struct {
	NUM(type, MAP_PERCPU_ARRAY);
	NUM(max_entries, OUTCOMES);
	TYPE(key, u32);
	TYPE(value, u64);
} stats SEC(".maps");

// Limits of what is looked at.
enum {
	MAX_EXT = 8,      // IPv6 extension headers, as in packet.Parse
	MIN_L4 = 8,       // a UDP header; the ports and sequence number of TCP
	MAX_OFF = 0x3fff, // offsets small enough for the verifier to follow
};
#define FRAGMENT_NS (30 * 1000000000ULL) // reassembly time of the kernel

// Where a datagram stands in a fragmented one, and so what L4 is good for.
enum {
	WHOLE,
	FIRST,
	LATER,  // no transport header
	OPAQUE, // extension headers that hide it
};

// What one IP header says.
struct view {
	struct endpoint src, dst; // ports and proto stay 0 until read_ports
	u32 l4; // byte of the frame the transport header starts at
	u32 id;
	u8 proto, shape;
};

#define WALKED(off, next, shape, id) \
	((u64)((off) & 0xffff) | (u64)((next) & 0xff) << 16 | (u64)(shape) << 24 | (u64)(id) << 32)

// walk6 follows IPv6 extension headers from byte off of the frame until the
// transport header and returns where that is, what it is, the shape and the
// fragment's id in one word. An authentication header is not followed: IPsec
// to the host is the kernel's, in IPv4 as in IPv6. Not static: so the verifier checks it by itself,
// once, instead of along every path to every call.
__attribute__((noinline)) u64 walk6(struct xdp_md *ctx, u32 off, u32 next)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 shape = WHOLE;
	u64 id = 0;

	for (int i = 0; i <= MAX_EXT; i++) {
		struct ext *h;
		struct frag6 *f;

		if (next != IP6_HOPOPTS && next != IP6_ROUTING && next != IP6_DSTOPTS &&
		    next != IP6_FRAGMENT)
			return WALKED(off, next, shape, id);
		if (off > MAX_OFF)
			break;
		h = data + off;
		f = data + off;
		if ((void *)(f + 1) > end)
			break;
		if (next == IP6_FRAGMENT) {
			id = f->id;
			if (f->off & NET16(0xfff8))
				return WALKED(off, f->next, LATER, id);
			if (f->off & NET16(1))
				shape = FIRST;
			off += 8;
		} else {
			if (next == IP6_ROUTING && h->left)
				break; // not at its destination yet
			off += (h->len + 1) * 8;
		}
		next = h->next;
	}
	return WALKED(off, next, OPAQUE, 0);
}

// read6 fills v from the IPv6 header at byte off of the frame. It returns how
// many bytes of the datagram there are from v->l4 on, or -1. An embedded one (of
// an ICMP error) is cut short and its length not believed, as routers of all
// ages change it: l4fwd's parser judges what is there.
INLINE int read6(struct view *v, struct xdp_md *ctx, u32 off, int embedded)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ip6 *ip;
	u64 walked;
	u32 len;

	if (off > MAX_OFF)
		return -1;
	ip = data + off;
	if ((void *)(ip + 1) > end)
		return -1;
	len = NET16(ip->len);
	if ((NET32(ip->flow) >> 28) != 6 || (!embedded && (void *)(ip + 1) + len > end))
		return -1;
	__builtin_memcpy(v->src.addr, ip->src, 16);
	__builtin_memcpy(v->dst.addr, ip->dst, 16);
	v->src.family = v->dst.family = 6;
	len += off + sizeof(*ip); // now where the datagram ends in the frame
	walked = walk6(ctx, off + sizeof(*ip), ip->next);
	v->l4 = walked & 0xffff;
	v->proto = walked >> 16;
	v->shape = walked >> 24;
	v->id = walked >> 32;
	if (embedded)
		return MIN_L4;
	return len > v->l4 ? len - v->l4 : 0;
}

// read4 is read6 for IPv4.
INLINE int read4(struct view *v, struct xdp_md *ctx, u32 off, int embedded)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ip4 *ip;
	u32 hl, len;
	u16 frag;

	if (off > MAX_OFF)
		return -1;
	ip = data + off;
	if ((void *)(ip + 1) > end)
		return -1;
	hl = (ip->vihl & 15) * 4;
	len = NET16(ip->len);
	if (ip->vihl >> 4 != 4 || hl < sizeof(*ip))
		return -1;
	if (!embedded && (len < hl || (void *)ip + len > end))
		return -1;
	v->src.addr[2] = v->dst.addr[2] = NET32(0xffff);
	v->src.addr[3] = ip->src;
	v->dst.addr[3] = ip->dst;
	v->src.family = v->dst.family = 4;
	v->proto = ip->proto;
	v->l4 = off + hl;
	v->id = ip->id;
	frag = NET16(ip->frag);
	if (frag & 0x1fff)
		v->shape = LATER;
	else if (frag & 0x2000)
		v->shape = FIRST;
	return embedded ? MIN_L4 : len - hl;
}

// read_ports turns src and dst into endpoints; 0 if there are no ports.
INLINE int read_ports(struct view *v, struct xdp_md *ctx, int left)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ports *p;

	if ((v->proto != IP_TCP && v->proto != IP_UDP) || v->shape >= LATER)
		return 0;
	if (left < MIN_L4 || v->l4 > MAX_OFF)
		return 0;
	p = data + v->l4;
	if ((void *)(p + 1) > end)
		return 0;
	v->src.port = p->src;
	v->dst.port = p->dst;
	v->src.proto = v->dst.proto = v->proto;
	return 1;
}

// flags_of is what the rules in set say of an address or endpoint.
INLINE u32 flags_of(void *set, struct endpoint *e)
{
	struct rule *r = map_lookup(set, e);

	return r ? r->flags : 0;
}

INLINE int in_range(struct rule *r, u16 port)
{
	u16 p = NET16(port);

	return (r->flags & ADDR_RANGE) && p >= r->lo && p <= r->hi;
}

INLINE void name_datagram(struct datagram *d, struct view *v)
{
	__builtin_memset(d, 0, sizeof(*d));
	__builtin_memcpy(d->src, v->src.addr, 16);
	__builtin_memcpy(d->dst, v->dst.addr, 16);
	d->id = v->id;
	d->proto = v->proto;
	d->family = v->dst.family;
}

// returning says whether a fragment comes from the address of a DNAT backend
// with its protocol and is not for the host. All fragments of a datagram must go
// one way, and only one of them has ports.
INLINE int returning(void *set, struct rule *to, struct view *v)
{
	u32 want = v->proto == IP_TCP ? ADDR_TCP : v->proto == IP_UDP ? ADDR_UDP : 0;
	struct endpoint from = v->src;

	from.port = 0;
	from.proto = 0;
	return !(to->flags & ADDR_HOST) && (flags_of(set, &from) & want);
}

// later_fragment decides on a fragment without ports. To an address of the
// host it follows its first fragment; from a DNAT backend its address says
// enough.
INLINE u32 later_fragment(void *set, struct rule *to, struct view *v)
{
	struct datagram d;
	u64 *until;

	if (returning(set, to, v))
		return TAKE_RETURN;
	if (!(to->flags & (ADDR_SERVICES | ADDR_RANGE)))
		return PASS_OTHER;
	name_datagram(&d, v);
	until = map_lookup(&fragments, &d);
	if (!until || ktime_ns() > *until)
		return PASS_FRAGMENT;
	return to->flags & ADDR_SERVICES ? TAKE_SERVICE : TAKE_RANGE;
}

// by_port decides on a datagram with ports.
INLINE u32 by_port(void *set, struct rule *to, struct view *v)
{
	u32 verdict = PASS_OTHER;

	if ((to->flags & ADDR_SERVICES) && (flags_of(set, &v->dst) & END_SERVICE))
		verdict = TAKE_SERVICE;
	else if (in_range(to, v->dst.port))
		verdict = TAKE_RANGE;
	else if (!(to->flags & ADDR_HOST) && (flags_of(set, &v->src) & END_BACKEND))
		return TAKE_RETURN;
	else if (v->shape == FIRST && returning(set, to, v))
		return TAKE_RETURN;
	if (verdict != PASS_OTHER && v->shape == FIRST) {
		struct datagram d;
		u64 until = ktime_ns() + FRAGMENT_NS;

		name_datagram(&d, v);
		map_update(&fragments, &d, &until, 0);
	}
	return verdict;
}

INLINE int same_addr(struct endpoint *a, struct endpoint *b)
{
	return a->addr[0] == b->addr[0] && a->addr[1] == b->addr[1] && a->addr[2] == b->addr[2] &&
	       a->addr[3] == b->addr[3];
}

// icmp_error decides on an error message by the packet it quotes: one that
// l4fwd sent from a service or a local port, or sent on to a DNAT backend.
INLINE u32 icmp_error(void *set, struct rule *to, struct view *v, struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct view in = {};
	u8 *type;
	int left;

	if (v->l4 > MAX_OFF)
		return PASS_OTHER;
	type = data + v->l4;
	if ((void *)(type + ICMP_LEN) > end)
		return PASS_OTHER;
	if (v->dst.family == 4) {
		if (*type != 3 && *type != 4 && *type != 11 && *type != 12)
			return PASS_OTHER;
		left = read4(&in, ctx, v->l4 + ICMP_LEN, 1);
	} else {
		if (*type < 1 || *type > 4)
			return PASS_OTHER;
		left = read6(&in, ctx, v->l4 + ICMP_LEN, 1);
	}
	if (left < 0 || !read_ports(&in, ctx, left))
		return PASS_OTHER;
	if (same_addr(&in.src, &v->dst)) {
		if ((to->flags & ADDR_SERVICES) && (flags_of(set, &in.src) & END_SERVICE))
			return TAKE_ICMP_ERROR;
		if (in_range(to, in.src.port))
			return TAKE_ICMP_ERROR;
	}
	if (!(to->flags & ADDR_HOST) && (flags_of(set, &in.dst) & END_BACKEND))
		return TAKE_ICMP_ERROR;
	return PASS_OTHER;
}

// solicits reports whether v is a neighbour solicitation for one of ours.
INLINE int solicits(void *set, struct view *v, struct xdp_md *ctx, int left)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct endpoint target = {};
	struct icmp *icmp;

	if (v->proto != IP_ICMPV6 || v->shape != WHOLE || v->dst.family != 6)
		return 0;
	if (left < (int)sizeof(*icmp) || v->l4 > MAX_OFF)
		return 0;
	icmp = data + v->l4;
	if ((void *)(icmp + 1) > end || icmp->type != 135)
		return 0;
	target.family = 6;
	__builtin_memcpy(target.addr, icmp->target, 16);
	return flags_of(set, &target) & ADDR_OURS;
}

// leases reports whether v is for the kernel's DHCP client, who may be getting back the
// address that the host has lost: a server answers to the very address it offers (RFC
// 2131 section 4.1). A service or local port of that number comes first. DHCPv6 goes by
// link-local addresses.
INLINE int leases(void *set, struct rule *to, struct view *v, struct xdp_md *ctx, int left)
{
	if (v->proto != IP_UDP || v->shape != WHOLE || !read_ports(v, ctx, left))
		return 0;
	if (v->src.port != NET16(DHCP_SERVER) || v->dst.port != NET16(DHCP_CLIENT))
		return 0;
	if ((to->flags & ADDR_SERVICES) && (flags_of(set, &v->dst) & END_SERVICE))
		return 0;
	return !in_range(to, v->dst.port);
}

// ip decides on an IP packet; mine says that the frame was sent to this NIC's
// own MAC and not to a group.
INLINE u32 ip(void *set, struct xdp_md *ctx, u32 l3, int v4, int mine)
{
	struct rule to = {}, *found;
	struct view v = {};
	int left;

	left = v4 ? read4(&v, ctx, l3, 0) : read6(&v, ctx, l3, 0);
	if (left < 0)
		return PASS_MALFORMED;
	if (mine) {
		found = map_lookup(set, &v.dst);
		if (found)
			to = *found;
		if (to.flags & ADDR_OURS)
			return v4 && leases(set, &to, &v, ctx, left) ? PASS_OTHER : TAKE_ADDRESS;
	}
	if (solicits(set, &v, ctx, left))
		return TAKE_NEIGHBOUR;
	if (!mine)
		return PASS_OTHER;
	if (v.shape == LATER)
		return later_fragment(set, &to, &v);
	if (read_ports(&v, ctx, left))
		return by_port(set, &to, &v);
	if (v.shape == WHOLE && left >= ICMP_LEN && v.proto == (v4 ? IP_ICMP : IP_ICMPV6))
		return icmp_error(set, &to, &v, ctx);
	return PASS_OTHER;
}

// arp takes requests for our addresses, probes and announcements among them.
INLINE u32 arp(void *set, void *l3, void *end)
{
	struct endpoint target = {};
	struct arp *a = l3;

	if ((void *)(a + 1) > end)
		return PASS_MALFORMED;
	if (a->hrd != NET16(1) || a->pro != NET16(ETH_IPV4) || a->hln != 6 || a->pln != 4 ||
	    a->op != NET16(1))
		return PASS_OTHER;
	target.family = 4;
	target.addr[2] = NET32(0xffff);
	__builtin_memcpy(&target.addr[3], a->tpa, 4);
	return flags_of(set, &target) & ADDR_OURS ? TAKE_NEIGHBOUR : PASS_OTHER;
}

// mac48 reads six bytes as two words, the way MAC addresses are compared.
INLINE u64 mac48(u8 *m)
{
	return *(u32 *)m | (u64)*(u16 *)(m + 4) << 32;
}

INLINE u32 decide(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct eth *eth = data;
	u32 zero = 0, l3 = sizeof(*eth);
	void *set;
	u64 *mac;
	u16 type;
	int mine;

	if ((void *)(eth + 1) > end)
		return PASS_MALFORMED;
	mac = map_lookup(&nic_mac, &zero);
	mine = mac && mac48(eth->dst) == *mac;
	if (!mine && !(eth->dst[0] & 1))
		return PASS_FOREIGN_MAC;
	type = eth->type;
	if (type == NET16(ETH_VLAN) || type == NET16(ETH_QINQ)) {
		struct vlan *tag = data + l3;

		if ((void *)(tag + 1) > end)
			return PASS_MALFORMED;
		type = tag->type;
		l3 += sizeof(*tag);
	}
	set = map_lookup(&rules, &zero);
	if (!set)
		return PASS_OTHER;
	if (type == NET16(ETH_IPV4))
		return ip(set, ctx, l3, 1, mine);
	if (type == NET16(ETH_IPV6))
		return ip(set, ctx, l3, 0, mine);
	if (type == NET16(ETH_ARP))
		return arp(set, data + l3, end);
	return PASS_OTHER;
}

SEC("xdp")
int l4fwd_steer(struct xdp_md *ctx)
{
	u32 verdict = decide(ctx);
	int action = XDP_PASS;
	u64 *count;

	if (verdict >= TAKE_ADDRESS) {
		// Without a socket it is dropped: the kernel would reset what is ours.
		action = redirect_map(&sockets, ctx->rx_queue_index, XDP_DROP);
		if (action != XDP_REDIRECT)
			verdict = DROP_NO_SOCKET;
	}
	count = map_lookup(&stats, &verdict);
	if (count)
		++*count;
	return action;
}

char license_text[] SEC("license") = "Dual BSD/GPL";
