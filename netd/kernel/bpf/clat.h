/* CLAT (RFC 6877) on the host's end of a link: the stateless rewrite of RFC 7915 for unfragmented TCP, UDP and echo.
 * Super-packets pass whole: gso_size stays, so the MSS of the IPv6 side (smaller by 28 than IPv4's MTU) must be the one
 * that was negotiated, which the MTU of the IPv4 route inside sees to. A partial checksum holds the sum of the
 * pseudo-header only: BPF_F_PSEUDO_HDR updates it with the right polarity. */
#ifndef WEFT_CLAT_H
#define WEFT_CLAT_H

#define CLAT_WORKSPACE bpf_htonl(0xc0000001) /* 192.0.0.1 */
#define CLAT_GATEWAY bpf_htonl(0xc0000002)   /* 192.0.0.2 */

AI __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

struct pseudo_header {
	__u32 addresses[8];
	__u32 length;
	__u32 next;
};

AI __u32 checksum_at(__u8 proto)
{
	return proto == IPPROTO_TCP ? 16 : proto == IPPROTO_UDP ? 6 : 2;
}

AI int set_ethertype(struct __sk_buff *skb, __u16 ethertype)
{
	return bpf_skb_store_bytes(skb, 12, &ethertype, 2, 0);
}

AI int patch_icmp(struct __sk_buff *skb, __u32 l4, __u8 from, __u8 to, __s64 pseudo)
{
	if (bpf_l4_csum_replace(skb, l4 + 2, 0, pseudo, 0))
		return DROP_REWRITE;
	if (bpf_l4_csum_replace(skb, l4 + 2, bpf_htons(from << 8), bpf_htons(to << 8), 2))
		return DROP_REWRITE;
	return bpf_skb_store_bytes(skb, l4, &to, 1, 0) ? DROP_REWRITE : 0;
}

/* 4 -> 6 (RFC 7915 4); type is the ICMP type where proto is ICMP. */
AI int clat_4to6(struct __sk_buff *skb, const struct iphdr *ip4, __u8 type, const struct addr *src,
		 const struct addr *dst)
{
	struct ipv6hdr ip6 = {};
	__u32 length = bpf_ntohs(ip4->tot_len) - sizeof *ip4;
	__u32 old[2] = {ip4->saddr, ip4->daddr};
	__u32 l4 = ETH_HLEN + sizeof ip6;
	__u8 proto = ip4->protocol;
	__s64 sum;

	ip6.version = 6;
	ip6.priority = ip4->tos >> 4;
	ip6.flow_lbl[0] = ip4->tos << 4;
	ip6.payload_len = bpf_htons(length);
	ip6.nexthdr = proto == IPPROTO_ICMP ? IPPROTO_ICMPV6 : proto;
	ip6.hop_limit = ip4->ttl - 1;
	__builtin_memcpy(&ip6.saddr, src, 16);
	__builtin_memcpy(&ip6.daddr, dst, 16);
	if (proto == IPPROTO_ICMP) {
		struct pseudo_header ph = {.length = bpf_htonl(length), .next = bpf_htonl(IPPROTO_ICMPV6)};
		__builtin_memcpy(ph.addresses, &ip6.saddr, 32);
		sum = bpf_csum_diff(0, 0, (__be32 *)&ph, sizeof ph, 0);
	} else {
		sum = bpf_csum_diff(old, sizeof old, (__be32 *)&ip6.saddr, 32, 0);
	}
	if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IPV6), 0))
		return DROP_REWRITE;
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip6, sizeof ip6, 0) || set_ethertype(skb, bpf_htons(ETH_P_IPV6)))
		return DROP_REWRITE;
	if (proto == IPPROTO_ICMP)
		return patch_icmp(skb, l4, type, type == 8 ? 128 : 129, sum);
	if (bpf_l4_csum_replace(skb, l4 + checksum_at(proto), 0, sum,
				BPF_F_PSEUDO_HDR | (proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0)))
		return DROP_REWRITE;
	return 0;
}

/* 6 -> 4 (RFC 7915 5). */
AI int clat_6to4(struct __sk_buff *skb, const struct ipv6hdr *ip6, __u8 type, __u32 src, __u32 dst)
{
	__u32 length = bpf_ntohs(ip6->payload_len);
	__u32 new[2] = {src, dst};
	__u32 l4 = ETH_HLEN + sizeof(struct iphdr);
	struct iphdr ip4 = {};
	__u8 next = ip6->nexthdr;
	__u16 *words = (__u16 *)&ip4;
	__u64 header = 0;
	__s64 sum;

	if (length > 65515)
		return DROP_TOO_BIG;
	ip4.version = 4;
	ip4.ihl = 5;
	ip4.tos = ip6->priority << 4 | ip6->flow_lbl[0] >> 4;
	ip4.tot_len = bpf_htons(length + sizeof ip4);
	ip4.frag_off = length + sizeof ip4 > 1260 ? bpf_htons(0x4000) : 0;
	ip4.ttl = ip6->hop_limit - 1;
	ip4.protocol = next == IPPROTO_ICMPV6 ? IPPROTO_ICMP : next;
	ip4.saddr = src;
	ip4.daddr = dst;
#pragma unroll
	for (int i = 0; i < 10; i++)
		header += words[i];
	ip4.check = ~fold(header);
	if (next == IPPROTO_ICMPV6) {
		struct pseudo_header ph = {.length = bpf_htonl(length), .next = bpf_htonl(IPPROTO_ICMPV6)};
		__builtin_memcpy(ph.addresses, &ip6->saddr, 32);
		sum = bpf_csum_diff((__be32 *)&ph, sizeof ph, 0, 0, 0);
	} else {
		sum = bpf_csum_diff((__be32 *)&ip6->saddr, 32, new, sizeof new, 0);
	}
	if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IP), 0))
		return DROP_REWRITE;
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip4, sizeof ip4, 0) || set_ethertype(skb, bpf_htons(ETH_P_IP)))
		return DROP_REWRITE;
	if (next == IPPROTO_ICMPV6)
		return patch_icmp(skb, l4, type, type == 128 ? 8 : 0, sum);
	if (bpf_l4_csum_replace(skb, l4 + checksum_at(next), 0, sum,
				BPF_F_PSEUDO_HDR | (next == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0)))
		return DROP_REWRITE;
	return 0;
}

#endif
