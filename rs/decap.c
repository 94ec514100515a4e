//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//
// The XDP program of `l4fwd rs decap`: of a frame that carries, in a tunnel to an
// address of the host, a packet for a VIP, it takes the tunnel's headers away and
// passes what is left; every other frame passes as it is. Which tunnels, and what
// of them is looked at, is written in doc.go.

#include "abi.h"

// Key of the VIPs. Family (4 or 6) keeps an IPv6 packet to a mapped address from
// being taken for IPv4.
struct vip {
	struct addr addr;
	u32 family;
};

struct {
	NUM(type, MAP_HASH);
	NUM(max_entries, 1);
	TYPE(key, struct vip);
	TYPE(value, u8);
} vips SEC(".maps");

// The addresses of the host, at which tunnels end.
struct {
	NUM(type, MAP_HASH);
	NUM(map_flags, MAP_NO_PREALLOC);
	NUM(max_entries, 1);
	TYPE(key, struct addr);
	TYPE(value, u8);
} hosts SEC(".maps");

// UDP ports, in network order; 0 = none.
const volatile u16 gue_port = 0, fou_port = 0;

// The outcomes, indices of stats. The order is that of DecapCounter in stats.go.
enum {
	BY_IPIP,
	BY_GRE,
	BY_GUE,
	BY_FOU,
	REFUSED,
	FRAGMENT,
	UNSUPPORTED,
	MALFORMED,
	DROP_ECN,
	FAILED,
	MARKED, // beside one of the first four
	OUTCOMES,
	OTHER = OUTCOMES, // not counted
};

#include "maps.h"

enum {
	IP_IPIP = 4,
	IP_IPV6 = 41,
	IP_GRE = 47,
	MAX_OFF = 0x1ff, // the inner header begins no later; for the verifier too
	ECN = 3,	 // RFC 3168 section 5: the mask, and CE
	ECT1 = 1,
	ECT0 = 2,
	ANY = 0, // either version, by the first four bits
};

struct udp {
	u16 src, dst, len, sum;
};
struct gre {
	u16 flags, proto;
};
struct gue {
	u8 head, proto;
	u16 flags;
};

// A packet on its way out of its tunnel.
struct tunnel {
	struct addr src, dst; // of the outer header
	u32 l3;               // byte of the frame the outer header begins at
	u32 off;              // that which is to be looked at next
	u32 end;              // the first behind the outer datagram
	u8 proto;             // what is at off
	u8 ecn;               // of the outer header
	u8 fragment;          // WHOLE, FIRST or LATER, which has no UDP header
};
enum { WHOLE, FIRST, LATER };

// outer4 and outer6 read the header at l3. They return 0 if it is none.
INLINE int outer4(struct tunnel *t, void *data, void *end)
{
	struct ip4 *ip = data + t->l3;
	u32 head, len;

	if ((void *)(ip + 1) > end)
		return 0;
	head = (ip->vihl & 15) * 4;
	len = NET16(ip->len);
	if (ip->vihl >> 4 != 4 || head < sizeof(*ip) || len < head)
		return 0;
	t->src = mapped(ip->src);
	t->dst = mapped(ip->dst);
	t->off = t->l3 + head;
	t->end = t->l3 + len;
	t->proto = ip->proto;
	t->ecn = ip->tos & ECN;
	if (ip->frag & NET16(0x3fff))
		t->fragment = ip->frag & NET16(0x1fff) ? LATER : FIRST;
	return 1;
}

INLINE int outer6(struct tunnel *t, void *data, void *end)
{
	struct ip6 *ip = data + t->l3;
	struct ext *x;

	if ((void *)(ip + 1) > end || (NET32(ip->flow) >> 28) != 6)
		return 0;
	__builtin_memcpy(&t->src, ip->src, sizeof(t->src));
	__builtin_memcpy(&t->dst, ip->dst, sizeof(t->dst));
	t->off = t->l3 + sizeof(*ip);
	t->end = t->off + NET16(ip->len);
	t->proto = ip->next;
	t->ecn = NET32(ip->flow) >> 20 & ECN;
	x = data + t->off;
	if ((void *)(x + 1) > end)
		return 1;
	// Linux puts a tunnel encapsulation limit there (RFC 2473 section 4.1.1).
	if (t->proto == IP6_DSTOPTS) {
		t->proto = x->next;
		t->off += (x->len + 1) * 8;
	} else if (t->proto == IP6_FRAGMENT) {
		t->proto = x->next;
		t->fragment = *(u16 *)&x->type & NET16(0xfff8) ? LATER : FIRST; // the offset
		t->off += sizeof(struct frag6);
	}
	return 1;
}

// inside finds out what is in the tunnel: on success the outcome if all goes well,
// with off at the inner header and proto what that must be.
INLINE u32 inside(struct tunnel *t, void *data, void *end)
{
	void *at = data + (t->off & MAX_OFF);

	if (t->proto == IP_IPIP || t->proto == IP_IPV6)
		return t->fragment ? FRAGMENT : BY_IPIP;
	if (t->proto == IP_GRE) {
		struct gre *g = at;

		if (t->fragment)
			return FRAGMENT;
		if ((void *)(g + 1) > end)
			return MALFORMED;
		// Keys, checksums and sequence numbers are of tunnels that others keep.
		if (g->flags)
			return UNSUPPORTED;
		t->proto = g->proto == NET16(ETH_IPV4) ? IP_IPIP : IP_IPV6;
		if (g->proto != NET16(ETH_IPV4) && g->proto != NET16(ETH_IPV6))
			return UNSUPPORTED;
		t->off += sizeof(*g);
		return BY_GRE;
	}
	if (t->proto == IP_UDP) {
		struct udp *u = at;
		struct gue *g = at + sizeof(*u);

		if (t->fragment == LATER || (void *)(u + 1) > end || !u->dst || (u->dst != gue_port && u->dst != fou_port))
			return OTHER;
		if (t->fragment)
			return FRAGMENT;
		t->off += sizeof(*u);
		t->proto = ANY;
		if (u->dst == fou_port)
			return BY_FOU;
		if ((void *)(g + 1) > end)
			return MALFORMED;
		// Variant 1 is the bare packet: version 4 and 6 both begin with it.
		if (g->head >> 6 == 1)
			return BY_GUE;
		// Control messages, flags that change what follows, other protocols.
		if (g->head & 0xe0 || g->flags || (g->proto != IP_IPIP && g->proto != IP_IPV6))
			return UNSUPPORTED;
		t->proto = g->proto;
		t->off += sizeof(*g) + (g->head & 31) * 4;
		return BY_GUE;
	}
	return OTHER;
}

// inner4 and inner6 look at the header at off: whether the packet is whole and for
// a VIP. They return ok if it is.
INLINE u32 inner4(struct tunnel *t, void *data, void *end, u32 ok)
{
	struct ip4 *ip = data + (t->off & MAX_OFF);
	struct vip vip = {.family = 4};
	u32 head, len;

	if ((void *)(ip + 1) > end)
		return MALFORMED;
	head = (ip->vihl & 15) * 4;
	len = NET16(ip->len);
	if (ip->vihl >> 4 != 4 || head < sizeof(*ip) || len < head || t->off + len > t->end)
		return MALFORMED;
	vip.addr = mapped(ip->dst);
	return map_lookup(&vips, &vip) ? ok : OTHER;
}

INLINE u32 inner6(struct tunnel *t, void *data, void *end, u32 ok)
{
	struct ip6 *ip = data + (t->off & MAX_OFF);
	struct vip vip = {.family = 6};

	if ((void *)(ip + 1) > end || NET32(ip->flow) >> 28 != 6 ||
	    t->off + sizeof(*ip) + NET16(ip->len) > t->end)
		return MALFORMED;
	__builtin_memcpy(&vip.addr, ip->dst, sizeof(vip.addr));
	return map_lookup(&vips, &vip) ? ok : OTHER;
}

// congested is the ECN field of a packet that had one and whose tunnel had the
// other (RFC 6040 section 4.2); ILLEGAL if it must be dropped.
enum { ILLEGAL = ECN + 1 };
INLINE u32 congested(u32 inner, u32 outer)
{
	if (outer == ECN)
		return inner ? ECN : ILLEGAL;
	return inner == ECT0 && outer == ECT1 ? ECT1 : inner;
}

// mark4 and mark6 bring the tunnel's ECN field into the packet at off.
INLINE u32 mark4(struct tunnel *t, void *data, void *end, u32 ok)
{
	struct ip4 *ip = data + (t->off & MAX_OFF);
	u32 was, is, sum;

	if ((void *)(ip + 1) > end)
		return MALFORMED;
	was = ip->tos & ECN;
	is = congested(was, t->ecn);
	if (is == ILLEGAL)
		return DROP_ECN;
	if (is == was)
		return ok;
	// RFC 1624 equation 3; the field is in the low bits of a 16-bit word.
	sum = (u16)~NET16(ip->sum) + (u16)~was + is;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->sum = NET16((u16)~sum);
	ip->tos = (ip->tos & ~ECN) | is;
	count(MARKED);
	return ok;
}

INLINE u32 mark6(struct tunnel *t, void *data, void *end, u32 ok)
{
	struct ip6 *ip = data + (t->off & MAX_OFF);
	u32 flow, was, is;

	if ((void *)(ip + 1) > end)
		return MALFORMED;
	flow = NET32(ip->flow);
	was = flow >> 20 & ECN;
	is = congested(was, t->ecn);
	if (is == ILLEGAL)
		return DROP_ECN;
	if (is == was)
		return ok;
	ip->flow = NET32((flow & ~((u32)ECN << 20)) | is << 20);
	count(MARKED);
	return ok;
}

// strip takes all between the Ethernet header, of l3 bytes, and off away.
INLINE u32 strip(struct xdp_md *ctx, u32 l3, u32 off, u16 type, u32 ok)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u8 saved[sizeof(struct eth) + sizeof(struct vlan)];

	if (data + sizeof(saved) > end)
		return MALFORMED;
	__builtin_memcpy(saved, data, sizeof(saved));
	if (xdp_adjust_head(ctx, off - l3))
		return FAILED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + sizeof(saved) > end)
		return FAILED;
	if (l3 == sizeof(struct eth)) {
		__builtin_memcpy(data, saved, sizeof(struct eth));
		*(u16 *)(data + sizeof(struct eth) - sizeof(type)) = type;
	} else {
		__builtin_memcpy(data, saved, sizeof(saved));
		*(u16 *)(data + sizeof(saved) - sizeof(type)) = type;
	}
	return ok;
}

INLINE u32 unwrap(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct tunnel t = {.l3 = sizeof(struct eth)};
	struct prefix source = {.bits = 128};
	struct eth *eth = data;
	u32 ok, found;
	u8 *first;
	u16 type;
	int four;

	if ((void *)(eth + 1) > end)
		return OTHER;
	type = eth->type;
	if (type == NET16(ETH_VLAN)) {
		struct vlan *tag = data + t.l3;

		if ((void *)(tag + 1) > end)
			return OTHER;
		type = tag->type;
		t.l3 += sizeof(*tag);
	}
	if (type == NET16(ETH_IPV4)) {
		if (!outer4(&t, data, end))
			return OTHER;
	} else if (type != NET16(ETH_IPV6) || !outer6(&t, data, end)) {
		return OTHER;
	}
	if (t.off > MAX_OFF)
		return OTHER;
	ok = inside(&t, data, end);
	if (ok == OTHER || !map_lookup(&hosts, &t.dst))
		return OTHER;
	if (ok > BY_FOU)
		return ok;
	if (t.off > MAX_OFF || t.end > end - data)
		return MALFORMED;
	first = data + (t.off & MAX_OFF);
	if (first + 1 > (u8 *)end)
		return MALFORMED;
	if (t.proto == ANY)
		t.proto = *first >> 4 == 4 ? IP_IPIP : IP_IPV6;
	four = t.proto == IP_IPIP;
	found = four ? inner4(&t, data, end, ok) : inner6(&t, data, end, ok);
	if (found != ok)
		return found;
	source.addr = t.src;
	if (!map_lookup(&sources, &source))
		return REFUSED;
	found = four ? mark4(&t, data, end, ok) : mark6(&t, data, end, ok);
	if (found != ok)
		return found;
	return strip(ctx, t.l3, t.off, four ? NET16(ETH_IPV4) : NET16(ETH_IPV6), ok);
}

SEC("xdp")
int l4fwd_decap(struct xdp_md *ctx)
{
	u32 verdict = unwrap(ctx);

	if (verdict < OUTCOMES)
		count(verdict);
	return verdict == DROP_ECN ? XDP_DROP : XDP_PASS;
}

char license_text[] SEC("license") = "Dual BSD/GPL";
