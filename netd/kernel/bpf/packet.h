/* Reading a packet: every offset is checked by bpf_skb_load_bytes, every loop has a bound. */
#ifndef WEFT_PACKET_H
#define WEFT_PACKET_H

#define AI static __attribute__((always_inline)) inline
#define NI static __attribute__((noinline))

#define EXTENSION_HEADERS 6
#define FRAGMENT_NONE 0
#define FRAGMENT_FIRST 1
#define FRAGMENT_LATER 2
#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

/* What the judgement looks at. Ports as in struct flow_key. */
struct packet {
	struct addr src, dst;
	__u32 l4; /* offset from skb->data */
	__u32 fragment_id;
	__u16 sport, dport;
	__u8 proto, icmp_type, tcp_flags, hop_limit;
	__u8 fragment, extended;
};

AI int same(const struct addr *a, const struct addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

AI int is_multicast(const struct addr *a)
{
	return (a->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

AI int is_link_local(const struct addr *a)
{
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

AI int is_gateway(const struct addr *a)
{
	return a->w[0] == bpf_htonl(0xfe800000) && a->w[1] == 0 && a->w[2] == 0 && a->w[3] == bpf_htonl(1);
}

/* ff02::1:ff00:1, where fe80::1 is asked for */
AI int is_gateway_group(const struct addr *a)
{
	return a->w[0] == bpf_htonl(0xff020000) && a->w[1] == 0 && a->w[2] == bpf_htonl(1) &&
	       a->w[3] == bpf_htonl(0xff000001);
}

AI int is_icmp_error(const struct packet *p)
{
	return p->proto == IPPROTO_ICMPV6 && p->icmp_type < 128;
}

AI int parse_l4(struct __sk_buff *skb, struct packet *p)
{
	__u8 h[14];

	if (p->proto == IPPROTO_TCP) {
		/* a header split over fragments would hide the ports, or the flags, of what follows */
		if (bpf_skb_load_bytes(skb, p->l4, h, 14))
			return p->fragment ? DROP_FRAGMENT : DROP_TRUNCATED;
		__u32 length = (h[12] >> 4) * 4;
		if (length < 20 || p->l4 + length > skb->len)
			return p->fragment ? DROP_FRAGMENT : DROP_TRUNCATED;
		p->sport = *(__u16 *)h;
		p->dport = *(__u16 *)(h + 2);
		p->tcp_flags = h[13];
	} else if (p->proto == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(skb, p->l4, h, 8))
			return p->fragment ? DROP_FRAGMENT : DROP_TRUNCATED;
		p->sport = *(__u16 *)h;
		p->dport = *(__u16 *)(h + 2);
	} else if (p->proto == IPPROTO_ICMPV6) {
		if (bpf_skb_load_bytes(skb, p->l4, h, 8))
			return p->fragment ? DROP_FRAGMENT : DROP_TRUNCATED;
		p->icmp_type = h[0];
		if (h[0] == 128)
			p->sport = *(__u16 *)(h + 4);
		if (h[0] == 129)
			p->dport = *(__u16 *)(h + 4);
	}
	return 0;
}

/* Fills p; 0, or the reason to drop. */
AI int parse6(struct __sk_buff *skb, __u32 offset, struct packet *p)
{
	struct ipv6hdr ip;
	__u8 next;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof ip) || ip.version != 6)
		return DROP_TRUNCATED;
	__builtin_memcpy(&p->src, &ip.saddr, 16);
	__builtin_memcpy(&p->dst, &ip.daddr, 16);
	p->hop_limit = ip.hop_limit;
	if (offset + sizeof ip + bpf_ntohs(ip.payload_len) > skb->len)
		return DROP_TRUNCATED;
	next = ip.nexthdr;
	offset += sizeof ip;
#pragma unroll
	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		__u8 h[8];
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			break;
		p->extended = 1;
		if (bpf_skb_load_bytes(skb, offset, h, 8))
			return DROP_TRUNCATED;
		if (next == IPPROTO_FRAGMENT) {
			__u16 where = bpf_ntohs(*(__u16 *)(h + 2));
			if (p->fragment)
				return DROP_EXTENSION_HEADER;
			p->fragment_id = *(__u32 *)(h + 4);
			p->fragment = where & 0xfff8 ? FRAGMENT_LATER : FRAGMENT_FIRST;
			next = h[0];
			offset += 8;
			if (p->fragment == FRAGMENT_LATER) {
				p->proto = next;
				p->l4 = offset;
				return 0;
			}
		} else {
			next = h[0];
			offset += 8 + h[1] * 8;
		}
	}
	if (next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS || next == IPPROTO_FRAGMENT || next == IPPROTO_ROUTING)
		return DROP_EXTENSION_HEADER;
	p->proto = next;
	p->l4 = offset;
	return parse_l4(skb, p);
}

#endif
