/* Lookups and judgements that several programs share. */
#ifndef WEFT_POLICY_H
#define WEFT_POLICY_H

AI struct config *configuration(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&weft_config, &zero);
}

/* Counts a drop, for the reason and for the link. */
AI int drop(__u32 reason, __u32 ifindex)
{
	__u64 *count = bpf_map_lookup_elem(&drops, &reason);
	struct traffic *t = bpf_map_lookup_elem(&traffics, &ifindex);
	if (count)
		*count += 1;
	if (t)
		t->drops += 1;
	return TCX_DROP;
}

AI void count_sent(__u32 ifindex, __u32 bytes)
{
	struct traffic *t = bpf_map_lookup_elem(&traffics, &ifindex);
	if (t) {
		t->sent_packets += 1;
		t->sent_bytes += bytes;
	}
}

AI void count_received(__u32 ifindex, __u32 bytes)
{
	struct traffic *t = bpf_map_lookup_elem(&traffics, &ifindex);
	if (t) {
		t->received_packets += 1;
		t->received_bytes += bytes;
	}
}

/* 0 where nothing is known: denied, but for another reason */
NI __u32 zone6(const struct addr *address)
{
	struct lpm6 key = {.length = 128, .address = *address};
	__u32 *zone = bpf_map_lookup_elem(&zones6, &key);
	return zone ? *zone : 0;
}

NI __u32 zone4(__u32 address)
{
	struct lpm4 key = {.length = 32, .address = address};
	__u32 *zone = bpf_map_lookup_elem(&zones4, &key);
	return zone ? *zone : ZONE4_GLOBAL;
}

AI int is_inside(__u32 zone)
{
	return zone == ZONE6_FABRIC || zone == ZONE6_NAT64_GLOBAL || zone == ZONE6_NAT64_PRIVATE;
}

AI int same_group(const struct link *a, const struct link *b)
{
	__u64 difference = 0;
#pragma unroll
	for (int i = 0; i < 8; i++)
		difference |= a->group[i] ^ b->group[i];
	return a->group[0] && !difference;
}

/* Whether a remote address, on this node or another, is in the link's group. */
NI int is_friend(const struct link *l, const struct addr *remote)
{
	struct local *here = bpf_map_lookup_elem(&locals, remote);
	struct member_key key;

	if (here) {
		if (here->twin)
			return 0;
		struct link *other = bpf_map_lookup_elem(&links, &here->ifindex);
		return other && same_group(l, other);
	}
	if (!l->group[0])
		return 0;
	__builtin_memcpy(key.group, l->group, sizeof key.group);
	key.address = *remote;
	return bpf_map_lookup_elem(&members, &key) != 0;
}

/* Whether the flow is known; notes what the packet says of it. */
NI int flow_alive(const struct flow_key *key, int reply, __u32 tcp_flags)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, key);
	__u64 now;

	if (!flow)
		return 0;
	now = bpf_ktime_get_coarse_ns();
	if (now - flow->seen > 1000000000ULL)
		flow->seen = now;
	if (reply && !flow->replied)
		flow->replied = 1;
	if (tcp_flags & (TCP_FIN | TCP_RST)) {
		if (!flow->closing)
			flow->closing = 1;
	} else if ((tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN && flow->closing) {
		flow->closing = 0;
	}
	return 1;
}

/* Finds or opens a flow that is permitted; 0, or the reason why it cannot be. */
AI int flow_open(const struct flow_key *key, __u32 ifindex, __u8 kind, __u32 tcp_flags, __u32 limit)
{
	struct flow flow = {.kind = kind};
	__u64 *usage;
	long error;

	if (flow_alive(key, 0, tcp_flags))
		return 0;
	usage = bpf_map_lookup_elem(&usages, &ifindex);
	if (!usage)
		return DROP_NO_ENTRY;
	if (*usage >= limit)
		return DROP_FLOW_LIMIT;
	flow.seen = bpf_ktime_get_coarse_ns();
	error = bpf_map_update_elem(&flows, key, &flow, BPF_NOEXIST);
	if (error == -17 /* EEXIST: another CPU was first */)
		return 0;
	if (error)
		return DROP_FLOW_TABLE_FULL;
	__sync_fetch_and_add(usage, 1);
	return 0;
}

AI void flow_key_of(struct flow_key *key, const struct addr *own, const struct addr *remote, __u16 port,
		    __u16 remote_port, __u8 proto)
{
	__builtin_memset(key, 0, sizeof *key);
	key->address = *own;
	key->remote = *remote;
	key->port = port;
	key->remote_port = remote_port;
	key->proto = proto;
}

/* An ICMPv6 error is for the link's owner only if it quotes a packet that the owner sent, to somebody it may talk to.
 * local: the node itself says so. */
NI int judge_error(struct __sk_buff *skb, const struct link *l, __u32 offset, int local)
{
	struct ipv6hdr ip;
	struct flow_key key;
	struct addr remote;
	__u8 h[8];
	__u8 next;

	if (bpf_skb_load_bytes(skb, offset + 8, &ip, sizeof ip))
		return DROP_ICMP_ERROR;
	__builtin_memcpy(&remote, &ip.saddr, 16);
	if (!same(&remote, &l->address))
		return DROP_ICMP_ERROR;
	if (local)
		return 0;
	__builtin_memcpy(&remote, &ip.daddr, 16);
	if (is_friend(l, &remote))
		return 0;
	next = ip.nexthdr;
	offset += 48;
	if (next == IPPROTO_FRAGMENT) {
		if (bpf_skb_load_bytes(skb, offset, h, 8) || (*(__u16 *)(h + 2) & bpf_htons(0xfff8)))
			return DROP_ICMP_ERROR;
		next = h[0];
		offset += 8;
	}
	if (bpf_skb_load_bytes(skb, offset, h, 8))
		return DROP_ICMP_ERROR;
	if (next == IPPROTO_TCP || next == IPPROTO_UDP)
		flow_key_of(&key, &l->address, &remote, *(__u16 *)h, *(__u16 *)(h + 2), next);
	else if (next == IPPROTO_ICMPV6)
		flow_key_of(&key, &l->address, &remote, h[0] == 128 ? *(__u16 *)(h + 4) : 0, 0, next);
	else
		flow_key_of(&key, &l->address, &remote, 0, 0, next);
	return bpf_map_lookup_elem(&flows, &key) ? 0 : DROP_ICMP_ERROR;
}

#endif
