/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the module's files share. The chain:
 *
 *   hooks.c    sees what ip_vs does with its connections
 *   events.c   gathers that for each CPU and sends it to the listeners
 *   netlink.c  the family: dump and commands
 *   conn.c     a connection as attributes, and made from attributes
 *   symbols.c  finds what ip_vs does not export
 *   compat.h   what differs between kernel versions
 */
#ifndef _USYNC_H
#define _USYNC_H

#include <linux/hrtimer.h>
#include <linux/skbuff.h>
#include <net/genetlink.h>
#include <net/net_namespace.h>
#include <net/ip_vs.h>

#include "ip_vs_user_sync.h"

/* An entry's old_state between CREATE and its first packet here, see conn.c */
#define USYNC_INJECTED	0xffff

/* Counted for each CPU and namespace; in the order of ipvs_sync_stats_attr. */
enum usync_counter {
	USYNC_C_NEW,
	USYNC_C_STATE,
	USYNC_C_UPDATE,
	USYNC_C_ADOPTED,
	USYNC_C_EXPIRED,
	USYNC_C_COALESCED,
	USYNC_C_BATCHES,
	USYNC_C_OVERRUNS,
	USYNC_C_DROPPED,
	__USYNC_C_MAX,
};

/* The last event of a batch, to tell the next of the same entry with it. */
struct usync_last {
	const struct ip_vs_conn	*cp;
	union nf_inet_addr	caddr;
	__be16			cport;
	u8			kind;
	unsigned int		at;	/* length of the batch before it */
};

/*
 * One CPU's events of one namespace. The lock is taken by the CPU that the
 * buffer belongs to, and by the timer, which only after the CPU went away runs
 * elsewhere: so it is never contended and keeps the order of lock and cache.
 * It is taken with interrupts off, which ends with no softirq to be run: the
 * hooks are entered in whatever state ip_vs is in.
 */
struct usync_cpu {
	spinlock_t		lock;	/* of all below, but for the timer's own */
	struct sk_buff		*batch;	/* being filled, or NULL */
	struct sk_buff_head	full;	/* filled, at most USYNC_MAX_FULL */
	struct usync_last	last;
	struct hrtimer		timer;
	struct net		*net;
	unsigned int		cpu;
	u64			seq;		/* of the timer alone */
	u64			dropped_told;	/* of the timer alone */
	u64			count[__USYNC_C_MAX];
};

/* A namespace's part. Lives until ip_vs's own part of the namespace is gone. */
struct usync_net {
	struct usync_cpu __percpu *cpus;	/* RCU: NULL while it goes away */
	struct usync_cpu __percpu *memory;	/* what cpus was, to be freed */
	atomic64_t		created, updated, deleted, refused;
};

/* main.c */
extern unsigned int usync_net_id;

/* symbols.c: functions and data of ip_vs that it does not export */
struct usync_symbols {
	struct hlist_head	**conn_tab;
	int			*conn_tab_size;
	struct ip_vs_dest *(*find_dest)(struct netns_ipvs *ipvs, int svc_af,
					int dest_af,
					const union nf_inet_addr *daddr,
					__be16 dport,
					const union nf_inet_addr *vaddr,
					__be16 vport, __u16 protocol,
					__u32 fwmark, __u32 flags);
	struct ip_vs_conn *(*ct_in_get)(const struct ip_vs_conn_param *p);
	void (*try_bind_dest)(struct ip_vs_conn *cp);
	void (*conn_expire)(struct timer_list *t);
	struct ip_vs_pe *(*pe_getbyname)(const char *pe_name);
};

extern struct usync_symbols usync_sym;

int usync_symbols_find(void);

/* hooks.c */
int usync_hooks_install(void);
void usync_hooks_remove(void);
void usync_conn_expire(struct timer_list *t);

/* events.c */
void usync_events_init(void);
void usync_events_stop(void);
int usync_events_net_init(struct net *net);
void usync_events_net_close(struct net *net);
void usync_events_net_free(struct net *net);
bool usync_listened(struct net *net);
void usync_tell(const struct ip_vs_conn *cp, enum ipvs_sync_kind kind, u64 stamp,
		bool commanded);
u64 usync_count(struct usync_net *un, enum usync_counter c);

/* conn.c */
struct usync_conn {
	struct ip_vs_conn_param	param;
	union nf_inet_addr	caddr, vaddr, daddr;
	struct ipvs_sync_seq	seq;
	u32	has;		/* bit for each attribute that was given */
	u32	flags, fwmark, timeout, remaining, pkts, expect_pkts;
	u16	state, daf;
	__be16	dport;
	const struct nlattr *pe_name, *pe_data;
};

#define USYNC_HAS(c, attr) ((c)->has & BIT(IPVS_SYNC_CONN_##attr))

extern const struct nla_policy usync_conn_policy[IPVS_SYNC_CONN_MAX + 1];

void usync_conn_init(void);
int usync_conn_put(struct sk_buff *skb, const struct ip_vs_conn *cp,
		   enum ipvs_sync_kind kind, u64 stamp, bool commanded);
int usync_conn_parse(struct netns_ipvs *ipvs, const struct nlattr *nest,
		     struct usync_conn *c, struct netlink_ext_ack *extack);
int usync_conn_key(struct usync_conn *c, struct netlink_ext_ack *extack);
int usync_conn_create(struct usync_conn *c);
int usync_conn_delete(struct usync_conn *c);
struct ip_vs_conn *usync_conn_find(struct usync_conn *c);

/* netlink.c */
extern struct genl_family usync_family;

#endif
