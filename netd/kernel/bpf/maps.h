/* The maps that programs and netd share. A change of this file is a change of the schema: build.rs derives the schema's
 * version from its text, and netd then fills new maps before it swaps the programs. No map is LRU: evicting a live entry
 * would cut a flow; netd owns expiry. */
#ifndef WEFT_MAPS_H
#define WEFT_MAPS_H

struct addr {
	__u32 w[4]; /* network byte order */
};

struct config {
	struct addr node;	/* <node>::1 */
	struct addr proxy;	/* <node>::2 */
	struct addr dns;	/* <ULA>::53 */
	struct addr prefix;	/* the node's prefix and its mask */
	struct addr mask;
	__u32 tunnel;		/* ifindex of weft0 */
	__u32 translator;	/* ifindex of weft64; 0: no NAT64 here */
	__u32 nat64;		/* the translator's IPv4 address, network byte order; 0: none */
	__u16 port_first;	/* and its ports, host byte order */
	__u16 port_last;
	__u32 flow_limit;	/* most flows of one workspace */
	__u32 pad;
};

struct link {
	struct addr address;
	struct addr twin;
	__u64 group[8];		/* the group's label, zero-padded; all zero: none */
	__u8 mac[6];		/* of the workspace's eth0 */
	__u8 id[10];		/* the workspace's id, for who reads the map */
};

struct local {
	__u32 ifindex;
	__u32 twin;		/* 1: the key is a workspace's twin */
};

struct member_key {
	__u64 group[8];
	struct addr address;
};

struct port_key {
	struct addr address;
	__u16 port;		/* host byte order */
	__u16 pad;
};

/* Ports in network byte order; an echo has its identifier at the asking side and 0 at the other. */
struct flow_key {
	struct addr address;
	struct addr remote;
	__u16 port;
	__u16 remote_port;
	__u8 proto;
	__u8 pad[3];
};

struct flow {
	__u64 seen;		/* CLOCK_MONOTONIC_COARSE, ns */
	__u8 kind;		/* what permitted it: FLOW_* */
	__u8 replied;
	__u8 closing;
	__u8 pad[5];
};

struct fragment_key {
	struct addr to;
	struct addr from;
	__u32 id;
};

struct traffic {
	__u64 sent_packets, sent_bytes, received_packets, received_bytes, drops;
};

struct lpm6 {
	__u32 length;
	struct addr address;
};

struct lpm4 {
	__u32 length;
	__u32 address;
};

#define FLOW_EGRESS 1
#define FLOW_PROXY 2
#define MAX_REASONS 64

#define HASH_MAP(name, entries, k, v)                                                                                  \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_HASH);                                                                       \
		__uint(max_entries, entries);                                                                          \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                                                                   \
		__type(key, k);                                                                                        \
		__type(value, v);                                                                                      \
	} name SEC(".maps")

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct config);
} weft_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_REASONS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 32768);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32); /* ifindex */
	__type(value, struct traffic);
} traffics SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct lpm6);
	__type(value, __u32); /* ZONE6_* */
} zones6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, struct lpm4);
	__type(value, __u32); /* ZONE4_* */
} zones4 SEC(".maps");

HASH_MAP(links, 32768, __u32, struct link);		/* ifindex -> whose link it is */
HASH_MAP(locals, 65536, struct addr, struct local);	/* addresses and twins of this node's workspaces */
HASH_MAP(members, 262144, struct member_key, __u32);	/* members of groups on other nodes */
HASH_MAP(proxies, 32768, struct addr, __u32);		/* ::2 of nodes with a proxy */
HASH_MAP(ports, 65536, struct port_key, __u32);		/* what proxies may open */
HASH_MAP(flows, 524288, struct flow_key, struct flow);
HASH_MAP(usages, 32768, __u32, __u64);			/* ifindex -> its number of flows */
HASH_MAP(fragments, 16384, struct fragment_key, __u64);	/* permitted first fragments -> when */

#endif
