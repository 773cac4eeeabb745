/* Weft's data path: one program a hook. weft_plan::policy holds the same decisions as a pure function. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* linux/bpf.h has these since 6.6 */
#define TCX_NEXT (-1)
#define TCX_DROP 2

#include "weft_codes.h" /* DROP_*, ZONE6_*, ZONE4_*: made by build.rs from weft_plan::policy */
#include "maps.h"
#include "packet.h"
#include "policy.h"
#include "clat.h"

/* 02:57:00:00:00:01, the host's end of every link */
#define HOST_MAC {0x02, 0x57, 0, 0, 0, 1}

/* Where a workspace's packet goes: on to the stack, or to another workspace's link. */
AI int up(struct __sk_buff *skb)
{
	count_sent(skb->ifindex, skb->len);
	return TCX_NEXT;
}

AI int deliver(struct __sk_buff *skb, __u32 ifindex, const struct link *to)
{
	__u8 macs[12] = {0, 0, 0, 0, 0, 0, 0x02, 0x57, 0, 0, 0, 1};

	__builtin_memcpy(macs, to->mac, 6);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof macs, 0))
		return drop(DROP_REWRITE, skb->ifindex);
	count_sent(skb->ifindex, skb->len);
	count_received(ifindex, skb->len);
	return bpf_redirect_peer(ifindex, 0);
}

/* Who-has 192.0.0.2 is answered here: the stack has no such address, and no other address may be asked for. */
NI int from_arp(struct __sk_buff *skb, const struct link *l)
{
	struct {
		__u16 hardware, protocol;
		__u8 hardware_length, protocol_length;
		__u16 operation;
		__u8 sender_mac[6];
		__u8 sender[4];
		__u8 target_mac[6];
		__u8 target[4];
	} __attribute__((packed)) arp;
	struct ethhdr eth = {.h_source = HOST_MAC, .h_proto = bpf_htons(ETH_P_ARP)};
	__u8 host[6] = HOST_MAC;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof arp))
		return drop(DROP_TRUNCATED, skb->ifindex);
	if (arp.operation != bpf_htons(1 /* request */) || arp.hardware != bpf_htons(1) ||
	    arp.protocol != bpf_htons(ETH_P_IP) || arp.hardware_length != 6 || arp.protocol_length != 4)
		return drop(DROP_ARP, skb->ifindex);
	if (*(__u32 *)arp.target != CLAT_GATEWAY || *(__u32 *)arp.sender != CLAT_WORKSPACE)
		return drop(DROP_ARP, skb->ifindex);
	arp.operation = bpf_htons(2);
	__builtin_memcpy(arp.target_mac, arp.sender_mac, 10);
	__builtin_memcpy(arp.sender_mac, host, 6);
	*(__u32 *)arp.sender = CLAT_GATEWAY;
	__builtin_memcpy(eth.h_dest, l->mac, 6);
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof eth, 0) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &arp, sizeof arp, 0))
		return drop(DROP_REWRITE, skb->ifindex);
	return bpf_redirect_peer(skb->ifindex, 0);
}

/* IPv4 from a workspace: to its twin's IPv6, if the destination may be reached. */
NI int from4(struct __sk_buff *skb, const struct link *l, const struct config *c)
{
	struct iphdr ip;
	struct addr dst = {};
	__u8 h[8];
	__u32 length, zone;
	int reason;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof ip) || ip.version != 4)
		return drop(DROP_TRUNCATED, skb->ifindex);
	if (ip.saddr != CLAT_WORKSPACE)
		return drop(DROP_BAD_SOURCE, skb->ifindex);
	if ((ip.daddr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || ip.daddr == 0xffffffff)
		return drop(DROP_MULTICAST, skb->ifindex);
	if (ip.ihl != 5 || ip.frag_off & bpf_htons(0x3fff))
		return drop(DROP_CLAT_SLOW_PATH, skb->ifindex);
	length = bpf_ntohs(ip.tot_len);
	if (length < sizeof ip || length + ETH_HLEN > skb->len)
		return drop(DROP_TRUNCATED, skb->ifindex);
	if (ip.protocol != IPPROTO_TCP && ip.protocol != IPPROTO_UDP && ip.protocol != IPPROTO_ICMP)
		return drop(DROP_CLAT_SLOW_PATH, skb->ifindex);
	if (length < sizeof ip + (ip.protocol == IPPROTO_TCP ? 20 : 8) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof ip, h, 8))
		return drop(DROP_TRUNCATED, skb->ifindex);
	if (ip.protocol == IPPROTO_ICMP && ((h[0] != 8 && h[0] != 0) || h[1] != 0))
		return drop(DROP_CLAT_SLOW_PATH, skb->ifindex);
	if (ip.protocol == IPPROTO_UDP && !*(__u16 *)(h + 6))
		return drop(DROP_CLAT_SLOW_PATH, skb->ifindex);
	if (ip.ttl <= 1)
		return drop(DROP_HOP_LIMIT, skb->ifindex);
	if (ip.daddr == CLAT_GATEWAY) {
		if (ip.protocol == IPPROTO_ICMP || *(__u16 *)(h + 2) != bpf_htons(53))
			return drop(DROP_SERVICE, skb->ifindex);
		dst = c->dns;
	} else {
		zone = zone4(ip.daddr);
		if (zone == ZONE4_DENIED)
			return drop(DROP_DENIED, skb->ifindex);
		if (zone != ZONE4_GLOBAL && zone != ZONE4_PRIVATE)
			return drop(DROP_NOT_GLOBAL, skb->ifindex);
		dst.w[0] = bpf_htonl(0x0064ff9b);
		dst.w[1] = zone == ZONE4_PRIVATE ? bpf_htonl(0x00010000) : 0;
		dst.w[3] = ip.daddr;
	}
	reason = clat_4to6(skb, &ip, h[0], &l->twin, &dst);
	return reason ? drop(reason, skb->ifindex) : up(skb);
}

/* Multicast and link-local: only the question for the gateway's MAC goes up. */
AI int from_neighbour(struct __sk_buff *skb, const struct link *l, const struct packet *p)
{
	struct addr target;

	if (p->proto != IPPROTO_ICMPV6 || p->icmp_type < 133 || p->icmp_type > 137)
		return drop(DROP_MULTICAST, skb->ifindex);
	if (p->icmp_type != 135 || p->extended || p->hop_limit != 255 || !same(&p->src, &l->address) ||
	    !(is_gateway(&p->dst) || is_gateway_group(&p->dst)) ||
	    bpf_skb_load_bytes(skb, p->l4 + 8, &target, 16) || !is_gateway(&target))
		return drop(DROP_NEIGHBOUR_DISCOVERY, skb->ifindex);
	return TCX_NEXT;
}

/* To the IPv6 internet: permitted, and remembered for the answer. */
AI int judge_internet(struct __sk_buff *skb, const struct config *c, const struct packet *p)
{
	struct flow_key key;

	if (p->fragment == FRAGMENT_LATER)
		return 0;
	if (p->proto == IPPROTO_ICMPV6 && p->icmp_type != 128)
		return DROP_NOT_PERMITTED;
	flow_key_of(&key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	return flow_open(&key, skb->ifindex, FLOW_EGRESS, p->tcp_flags, c->flow_limit);
}

/* Behind a NAT64 prefix: what the embedded address is decides. */
AI int judge_nat64(__u32 zone, const struct packet *p)
{
	__u32 inner = zone4(p->dst.w[3]);

	if (inner == ZONE4_DENIED)
		return DROP_DENIED;
	return inner == (zone == ZONE6_NAT64_GLOBAL ? ZONE4_GLOBAL : ZONE4_PRIVATE) ? 0 : DROP_NOT_GLOBAL;
}

/* To another node of the fabric: friends, and answers to what was let in. */
AI int judge_fabric(const struct link *l, const struct packet *p)
{
	struct flow_key key;

	if (is_friend(l, &p->dst))
		return 0;
	if (p->fragment == FRAGMENT_LATER)
		return DROP_FRAGMENT;
	flow_key_of(&key, &p->src, &p->dst, p->sport, p->dport, p->proto);
	return flow_alive(&key, 1, p->tcp_flags) ? 0 : DROP_NOT_PERMITTED;
}

NI int from6(struct __sk_buff *skb, const struct link *l, const struct config *c)
{
	struct packet p = {};
	struct local *here;
	__u32 zone;
	int reason = parse6(skb, ETH_HLEN, &p);

	if (reason)
		return drop(reason, skb->ifindex);
	if (is_multicast(&p.dst) || is_link_local(&p.dst))
		return from_neighbour(skb, l, &p);
	if (!same(&p.src, &l->address))
		return drop(DROP_BAD_SOURCE, skb->ifindex);
	if (same(&p.dst, &c->dns)) {
		if ((p.proto == IPPROTO_UDP || p.proto == IPPROTO_TCP) && p.dport == bpf_htons(53) && !p.fragment)
			return up(skb);
		return drop(DROP_SERVICE, skb->ifindex);
	}
	here = bpf_map_lookup_elem(&locals, &p.dst);
	if (here) {
		__u32 ifindex = here->ifindex;
		struct link *to = bpf_map_lookup_elem(&links, &ifindex);
		if (here->twin)
			return drop(DROP_TWIN, skb->ifindex);
		if (!to)
			return drop(DROP_NO_ENTRY, skb->ifindex);
		if (ifindex == skb->ifindex || !same_group(l, to))
			return drop(DROP_NOT_PERMITTED, skb->ifindex);
		return deliver(skb, ifindex, to);
	}
	zone = zone6(&p.dst);
	if (zone == ZONE6_FABRIC)
		reason = judge_fabric(l, &p);
	else if (zone == ZONE6_NAT64_GLOBAL || zone == ZONE6_NAT64_PRIVATE)
		reason = judge_nat64(zone, &p);
	else if (zone == ZONE6_INTERNET)
		reason = judge_internet(skb, c, &p);
	else
		reason = zone == ZONE6_DENIED ? DROP_DENIED : DROP_NOT_GLOBAL;
	return reason ? drop(reason, skb->ifindex) : up(skb);
}

/* Ingress of w<id>: what a workspace sends. */
SEC("classifier")
int from_workspace(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct link *l = bpf_map_lookup_elem(&links, &ifindex);
	struct config *c = configuration();

	if (!l || !c)
		return drop(DROP_NO_ENTRY, ifindex);
	if (skb->vlan_present)
		return drop(DROP_ETHERTYPE, ifindex);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return from6(skb, l, c);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return from4(skb, l, c);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return from_arp(skb, l);
	return drop(DROP_ETHERTYPE, ifindex);
}

/* To a workspace's twin: translated IPv4, from the translator or from the resolver. */
NI int to_twin(struct __sk_buff *skb, const struct config *c, const struct packet *p)
{
	struct ipv6hdr ip;
	__u32 src, zone = zone6(&p->src);
	int reason;

	if ((zone == ZONE6_NAT64_GLOBAL || zone == ZONE6_NAT64_PRIVATE) && c->translator &&
	    skb->ingress_ifindex == c->translator)
		src = p->src.w[3];
	else if (same(&p->src, &c->dns) && !skb->ingress_ifindex && p->proto != IPPROTO_ICMPV6 &&
		 p->sport == bpf_htons(53))
		src = CLAT_GATEWAY;
	else
		return drop(DROP_TWIN, skb->ifindex);
	if (p->extended || (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP && p->proto != IPPROTO_ICMPV6) ||
	    (p->proto == IPPROTO_ICMPV6 && p->icmp_type != 128 && p->icmp_type != 129))
		return drop(DROP_CLAT_SLOW_PATH, skb->ifindex);
	if (p->hop_limit <= 1)
		return drop(DROP_HOP_LIMIT, skb->ifindex);
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof ip))
		return drop(DROP_TRUNCATED, skb->ifindex);
	reason = clat_6to4(skb, &ip, p->icmp_type, src, CLAT_WORKSPACE);
	if (reason)
		return drop(reason, skb->ifindex);
	count_received(skb->ifindex, skb->len);
	return TCX_NEXT;
}

/* Whether a fabric source came by a way that only the fabric has. */
AI int is_forged(struct __sk_buff *skb, const struct config *c, const struct packet *p)
{
	__u32 from = skb->ingress_ifindex;

	if (!from)
		return !(same(&p->src, &c->node) || same(&p->src, &c->proxy) || same(&p->src, &c->dns));
	return from != c->tunnel && !bpf_map_lookup_elem(&links, &from);
}

/* Answers to flows, with and without state of fragments; 0 or a reason. */
AI int judge_answer(struct __sk_buff *skb, const struct link *l, const struct config *c, const struct packet *p)
{
	struct fragment_key first = {.to = p->dst, .from = p->src, .id = p->fragment_id};
	struct flow_key key;
	int local = !skb->ingress_ifindex && (same(&p->src, &c->node) || same(&p->src, &c->dns));

	if (p->fragment == FRAGMENT_LATER)
		return bpf_map_lookup_elem(&fragments, &first) ? 0 : DROP_FRAGMENT;
	if (is_icmp_error(p))
		return judge_error(skb, l, p->l4, local);
	flow_key_of(&key, &p->dst, &p->src, p->dport, p->sport, p->proto);
	return flow_alive(&key, 1, p->tcp_flags) ? 0 : DROP_NOT_PERMITTED;
}

/* What is let in for what it is: friends, the resolver, and proxies at exposed ports. 0: yes, <0: ask further. */
AI int judge_visitor(struct __sk_buff *skb, const struct link *l, const struct config *c, const struct packet *p)
{
	struct port_key port = {.address = p->dst, .port = bpf_ntohs(p->dport)};
	struct flow_key key;

	if (is_friend(l, &p->src))
		return 0;
	if (p->fragment == FRAGMENT_LATER)
		return -1;
	if (same(&p->src, &c->dns) && p->sport == bpf_htons(53) &&
	    (p->proto == IPPROTO_UDP || p->proto == IPPROTO_TCP))
		return 0;
	if (p->proto != IPPROTO_TCP || !bpf_map_lookup_elem(&proxies, &p->src) || !bpf_map_lookup_elem(&ports, &port))
		return -1;
	flow_key_of(&key, &p->dst, &p->src, p->dport, p->sport, p->proto);
	return flow_open(&key, skb->ifindex, FLOW_PROXY, p->tcp_flags, c->flow_limit);
}

NI int judge_in(struct __sk_buff *skb, const struct link *l, const struct config *c, const struct packet *p)
{
	__u32 zone = zone6(&p->src);
	int reason = -1;

	if (zone == ZONE6_NAT64_GLOBAL || zone == ZONE6_NAT64_PRIVATE) {
		if (!c->translator || skb->ingress_ifindex != c->translator)
			return DROP_FORGED_SOURCE;
		return is_icmp_error(p) && p->fragment != FRAGMENT_LATER ? judge_error(skb, l, p->l4, 1) : 0;
	}
	if (zone == ZONE6_FABRIC) {
		if (is_forged(skb, c, p))
			return DROP_FORGED_SOURCE;
		reason = judge_visitor(skb, l, c, p);
	}
	if (reason < 0)
		reason = judge_answer(skb, l, c, p);
	return reason;
}

/* Egress of w<id>: what reaches a workspace through the stack. */
SEC("classifier")
int to_workspace(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct link *l = bpf_map_lookup_elem(&links, &ifindex);
	struct config *c = configuration();
	struct packet p = {};
	int reason;

	if (!l || !c)
		return drop(DROP_NO_ENTRY, ifindex);
	if (skb->protocol != bpf_htons(ETH_P_IPV6))
		return drop(DROP_ETHERTYPE, ifindex);
	reason = parse6(skb, ETH_HLEN, &p);
	if (reason)
		return drop(reason, ifindex);
	/* the stack's own answers about fe80::1 */
	if (!skb->ingress_ifindex && p.proto == IPPROTO_ICMPV6 && !p.extended && p.hop_limit == 255 &&
	    (p.icmp_type == 135 || p.icmp_type == 136) && is_gateway(&p.src))
		return TCX_NEXT;
	if (is_multicast(&p.dst) || is_link_local(&p.dst) || is_link_local(&p.src))
		return drop(DROP_MULTICAST, ifindex);
	if (same(&p.dst, &l->twin))
		return to_twin(skb, c, &p);
	if (!same(&p.dst, &l->address))
		return drop(DROP_NOT_PERMITTED, ifindex);
	reason = judge_in(skb, l, c, &p);
	if (reason)
		return drop(reason, ifindex);
	if (p.fragment == FRAGMENT_FIRST) {
		struct fragment_key first = {.to = p.dst, .from = p.src, .id = p.fragment_id};
		__u64 now = bpf_ktime_get_coarse_ns();
		bpf_map_update_elem(&fragments, &first, &now, BPF_ANY);
	}
	count_received(ifindex, skb->len);
	return TCX_NEXT;
}

AI int is_reserved(const struct config *c, __u16 port)
{
	port = bpf_ntohs(port);
	return c->port_first && port >= c->port_first && port <= c->port_last;
}

/* Whether an IPv4 packet to the node's own address belongs to the translator: by port, by the identifier of an echo's
 * answer, or by the packet that an error quotes. */
AI int is_translators(struct __sk_buff *skb, const struct config *c, const struct iphdr *ip, __u32 l4)
{
	struct iphdr quoted;
	__u8 h[8];

	if (bpf_skb_load_bytes(skb, l4, h, 8))
		return 0;
	if (ip->protocol == IPPROTO_TCP || ip->protocol == IPPROTO_UDP)
		return is_reserved(c, *(__u16 *)(h + 2));
	if (ip->protocol != IPPROTO_ICMP)
		return 0;
	if (h[0] == 0)
		return is_reserved(c, *(__u16 *)(h + 4));
	if (h[0] != 3 && h[0] != 11 && h[0] != 12)
		return 0;
	if (bpf_skb_load_bytes(skb, l4 + 8, &quoted, sizeof quoted) || quoted.saddr != c->nat64)
		return 0;
	if (bpf_skb_load_bytes(skb, l4 + 8 + quoted.ihl * 4, h, 8))
		return 0;
	if (quoted.protocol == IPPROTO_TCP || quoted.protocol == IPPROTO_UDP)
		return is_reserved(c, *(__u16 *)h);
	return quoted.protocol == IPPROTO_ICMP && h[0] == 8 && is_reserved(c, *(__u16 *)(h + 4));
}

NI int uplink4(struct __sk_buff *skb, const struct config *c)
{
	struct fragment_key first = {};
	struct iphdr ip;
	__u16 where;

	if (!c->nat64 || !c->translator || bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof ip) || ip.daddr != c->nat64)
		return TCX_NEXT;
	where = bpf_ntohs(ip.frag_off);
	first.to.w[3] = ip.daddr;
	first.from.w[3] = ip.saddr;
	first.from.w[0] = ip.protocol;
	first.id = ip.id;
	if (where & 0x1fff) {
		if (!bpf_map_lookup_elem(&fragments, &first))
			return TCX_NEXT;
		return bpf_redirect(c->translator, 0);
	}
	if (!is_translators(skb, c, &ip, ETH_HLEN + ip.ihl * 4))
		return TCX_NEXT;
	if (where & 0x2000) {
		__u64 now = bpf_ktime_get_coarse_ns();
		bpf_map_update_elem(&fragments, &first, &now, BPF_ANY);
	}
	return bpf_redirect(c->translator, 0);
}

/* Ingress of the uplink: nothing of the fabric comes from the underlay; the translator's ports are taken here. */
SEC("classifier")
int from_uplink(struct __sk_buff *skb)
{
	struct config *c = configuration();
	struct ipv6hdr ip;

	if (!c)
		return TCX_NEXT;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return uplink4(skb, c);
	if (skb->protocol != bpf_htons(ETH_P_IPV6) || bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof ip))
		return TCX_NEXT;
	if (is_inside(zone6((struct addr *)&ip.saddr)))
		return drop(DROP_FORGED_SOURCE, skb->ifindex);
	if (is_inside(zone6((struct addr *)&ip.daddr)))
		return drop(DROP_UPLINK_DESTINATION, skb->ifindex);
	return TCX_NEXT;
}

AI int is_own_prefix(const struct config *c, const struct addr *a)
{
	return !(((a->w[0] ^ c->prefix.w[0]) & c->mask.w[0]) | ((a->w[1] ^ c->prefix.w[1]) & c->mask.w[1]) |
		 ((a->w[2] ^ c->prefix.w[2]) & c->mask.w[2]) | ((a->w[3] ^ c->prefix.w[3]) & c->mask.w[3]));
}

/* Ingress of weft0, which has no Ethernet header: only for what is on this node, only from other nodes. */
SEC("classifier")
int from_tunnel(struct __sk_buff *skb)
{
	struct config *c = configuration();
	struct local *here;
	struct addr src, dst;
	struct ipv6hdr ip;

	if (!c)
		return drop(DROP_NO_ENTRY, skb->ifindex);
	if (skb->protocol != bpf_htons(ETH_P_IPV6))
		return drop(DROP_ETHERTYPE, skb->ifindex);
	if (bpf_skb_load_bytes(skb, 0, &ip, sizeof ip))
		return drop(DROP_TRUNCATED, skb->ifindex);
	__builtin_memcpy(&src, &ip.saddr, 16);
	__builtin_memcpy(&dst, &ip.daddr, 16);
	if (zone6(&src) != ZONE6_FABRIC || is_own_prefix(c, &src))
		return drop(DROP_FORGED_SOURCE, skb->ifindex);
	if (same(&dst, &c->node) || same(&dst, &c->proxy))
		return TCX_NEXT;
	here = bpf_map_lookup_elem(&locals, &dst);
	if (!here)
		return drop(DROP_TRANSIT, skb->ifindex);
	if (here->twin)
		return drop(DROP_TWIN, skb->ifindex);
	return TCX_NEXT;
}

/* No helper that is used here is reserved for GPL programs. */
char _license[] SEC("license") = "Apache-2.0";
