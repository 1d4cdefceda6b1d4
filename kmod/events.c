// SPDX-License-Identifier: GPL-2.0-only
/*
 * Events on their way to the listeners.
 *
 * An event is appended, as attributes, to the batch of the CPU that saw it and
 * of its namespace. A timer on that CPU sends the batch, as one notification,
 * a millisecond after its first event (the parameter flush_us), or at once
 * when it is full. The timer is a high-resolution one in softirq context: it
 * waits for no process, however busy the machine is.
 *
 * Memory: for each CPU and namespace with a listener at most USYNC_MAX_FULL + 1
 * batches of 8 KiB; beyond that events are dropped and counted. Each
 * notification has the count, and one is sent for it alone if nothing else is
 * to be said; and each has its number in its CPU's stream. So a listener
 * that sees DROPPED grow, a number missing, or ENOBUFS knows that it must ask
 * for the whole table. Without a listener nothing is built at all.
 */
#include <linux/module.h>
#include <linux/percpu.h>
#include <net/netns/generic.h>

#include "usync.h"
#include "compat.h"

#define USYNC_BATCH	SKB_WITH_OVERHEAD(8192)
#define USYNC_MAX_FULL	64

static unsigned int flush_us = 1000;
module_param(flush_us, uint, 0444);
MODULE_PARM_DESC(flush_us, "Microseconds that an event waits for others, 100 to 100000 (default 1000)");

static ktime_t flush_after __read_mostly;
static bool stopped;

/* Places in a batch that are filled when it is sent. */
struct batch_cb {
	void		*hdr;
	struct nlattr	*seq, *dropped;
};

#define BATCH_CB(skb) ((struct batch_cb *)(skb)->cb)

static struct sk_buff *new_batch(struct usync_cpu *pc)
{
	struct batch_cb *cb;
	struct sk_buff *skb;

	BUILD_BUG_ON(sizeof(*cb) > sizeof(skb->cb));
	skb = alloc_skb(USYNC_BATCH, GFP_ATOMIC | __GFP_NOWARN);
	if (!skb)
		return NULL;
	cb = BATCH_CB(skb);
	/* It all fits in an empty batch. */
	cb->hdr = genlmsg_put(skb, 0, 0, &usync_family, 0, IPVS_SYNC_CMD_EVENTS);
	nla_put_u32(skb, IPVS_SYNC_A_CPU, pc->cpu);
	cb->seq = nla_reserve_64bit(skb, IPVS_SYNC_A_SEQ, sizeof(u64), IPVS_SYNC_A_PAD);
	cb->dropped = nla_reserve_64bit(skb, IPVS_SYNC_A_DROPPED, sizeof(u64), IPVS_SYNC_A_PAD);
	return skb;
}

static void send_batch(struct usync_cpu *pc, struct sk_buff *skb, u64 dropped)
{
	struct batch_cb *cb = BATCH_CB(skb);
	u64 seq = ++pc->seq;
	unsigned long flags;
	int err;

	memcpy(nla_data(cb->seq), &seq, sizeof(seq));
	memcpy(nla_data(cb->dropped), &dropped, sizeof(dropped));
	genlmsg_end(skb, cb->hdr);
	err = genlmsg_multicast_netns(&usync_family, pc->net, skb, 0, 0, GFP_ATOMIC);

	spin_lock_irqsave(&pc->lock, flags);
	pc->count[USYNC_C_BATCHES]++;
	/* The kernel tells that listener by ENOBUFS too. */
	if (err && err != -ESRCH)
		pc->count[USYNC_C_OVERRUNS]++;
	spin_unlock_irqrestore(&pc->lock, flags);
}

static enum hrtimer_restart flush(struct hrtimer *t)
{
	struct usync_cpu *pc = container_of(t, struct usync_cpu, timer);
	struct sk_buff_head ready;
	struct sk_buff *skb;
	unsigned long flags;
	u64 dropped;

	__skb_queue_head_init(&ready);
	spin_lock_irqsave(&pc->lock, flags);
	skb_queue_splice_init(&pc->full, &ready);
	if (pc->batch)
		__skb_queue_tail(&ready, pc->batch);
	pc->batch = NULL;
	pc->last.cp = NULL;
	dropped = pc->count[USYNC_C_DROPPED];
	spin_unlock_irqrestore(&pc->lock, flags);

	if (skb_queue_empty(&ready) && !READ_ONCE(stopped) && dropped != pc->dropped_told) {
		skb = new_batch(pc);
		if (!skb) {
			hrtimer_forward_now(t, ms_to_ktime(10));
			return HRTIMER_RESTART;
		}
		__skb_queue_tail(&ready, skb);
	}
	while ((skb = __skb_dequeue(&ready))) {
		if (READ_ONCE(stopped)) {
			kfree_skb(skb);
			continue;
		}
		send_batch(pc, skb, dropped);
		pc->dropped_told = dropped;
	}
	return HRTIMER_NORESTART;
}

static void start_timer(struct usync_cpu *pc, ktime_t after)
{
	hrtimer_start(&pc->timer, after, HRTIMER_MODE_REL_PINNED_SOFT);
}

static void drop(struct usync_cpu *pc)
{
	pc->count[USYNC_C_DROPPED]++;
	if (!hrtimer_active(&pc->timer))
		start_timer(pc, flush_after);
}

/* Whether an event of cp can be told in place of the batch's last one. */
static bool same_entry(const struct usync_last *last, const struct ip_vs_conn *cp,
		       enum ipvs_sync_kind kind)
{
	/* The address may be another entry's by now; its key then differs. */
	return last->cp == cp && last->cport == cp->cport &&
	       last->kind != IPVS_SYNC_KIND_EXPIRED &&
	       kind != IPVS_SYNC_KIND_EXPIRED &&
	       !memcmp(&last->caddr, &cp->caddr, sizeof(last->caddr));
}

static void append(struct usync_cpu *pc, const struct ip_vs_conn *cp,
		   enum ipvs_sync_kind kind, u64 stamp, bool commanded)
{
	unsigned int at;

	if (same_entry(&pc->last, cp, kind)) {
		/* What made the listener know it stays said. */
		if (pc->last.kind == IPVS_SYNC_KIND_NEW ||
		    pc->last.kind == IPVS_SYNC_KIND_ADOPTED)
			kind = pc->last.kind;
		skb_trim(pc->batch, pc->last.at);
		pc->count[USYNC_C_COALESCED]++;
	} else {
		pc->count[USYNC_C_NEW + kind - IPVS_SYNC_KIND_NEW]++;
	}
	pc->last.cp = NULL;

	if (!pc->batch) {
new:
		pc->batch = new_batch(pc);
		if (!pc->batch) {
			drop(pc);
			return;
		}
		start_timer(pc, flush_after);
	}
	at = pc->batch->len;
	if (usync_conn_put(pc->batch, cp, kind, stamp, commanded)) {
		if (skb_queue_len(&pc->full) >= USYNC_MAX_FULL) {
			drop(pc);
			return;
		}
		/* The largest event is far smaller than an empty batch. */
		__skb_queue_tail(&pc->full, pc->batch);
		start_timer(pc, 0);
		goto new;
	}
	pc->last.cp = cp;
	pc->last.caddr = cp->caddr;
	pc->last.cport = cp->cport;
	pc->last.kind = kind;
	pc->last.at = at;
}

/*
 * Whether anybody in the namespace wants to know. Nobody does before the family
 * is registered: until then it has no groups (those of 0 are the controller's).
 */
bool usync_listened(struct net *net)
{
	return READ_ONCE(usync_family.mcgrp_offset) &&
	       genl_has_listeners(&usync_family, net, 0);
}

/*
 * Tells of cp, in any context but a hard interrupt's. The caller holds a
 * reference to it, or is in an RCU read-side section in which it was not yet
 * freed.
 */
void usync_tell(const struct ip_vs_conn *cp, enum ipvs_sync_kind kind, u64 stamp,
		bool commanded)
{
	struct usync_net *un = net_generic(cp->ipvs->net, usync_net_id);
	struct usync_cpu __percpu *cpus;
	struct usync_cpu *pc;
	unsigned long flags;

	/*
	 * The client's port is part of the key: an entry that waits for it
	 * (FTP's data connections) is told once it is known.
	 */
	if (cp->flags & IP_VS_CONN_F_NO_CPORT)
		return;
	rcu_read_lock();
	cpus = READ_ONCE(un->cpus);
	if (cpus) {
		local_irq_save(flags);
		pc = this_cpu_ptr(cpus);
		spin_lock(&pc->lock);
		append(pc, cp, kind, stamp, commanded);
		spin_unlock(&pc->lock);
		local_irq_restore(flags);
	}
	rcu_read_unlock();
}

u64 usync_count(struct usync_net *un, enum usync_counter c)
{
	struct usync_cpu __percpu *cpus = READ_ONCE(un->cpus);
	u64 sum = 0;
	int cpu;

	if (!cpus)
		return 0;
	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu_ptr(cpus, cpu)->count[c]);
	return sum;
}

int usync_events_net_init(struct net *net)
{
	struct usync_net *un = net_generic(net, usync_net_id);
	struct usync_cpu __percpu *cpus;
	int cpu;

	cpus = alloc_percpu(struct usync_cpu);
	if (!cpus)
		return -ENOMEM;
	for_each_possible_cpu(cpu) {
		struct usync_cpu *pc = per_cpu_ptr(cpus, cpu);

		spin_lock_init(&pc->lock);
		__skb_queue_head_init(&pc->full);
		usync_hrtimer_setup(&pc->timer, flush);
		pc->net = net;
		pc->cpu = cpu;
	}
	un->memory = cpus;
	/* A hook that sees the pointer sees all behind it. */
	smp_store_release(&un->cpus, cpus);
	return 0;
}

/*
 * The namespace goes away, or the module, whose hooks are gone then: no new
 * event from here on. ip_vs empties its table after us, and its expiries come
 * too late. An RCU grace period passes before usync_events_net_free.
 */
void usync_events_net_close(struct net *net)
{
	struct usync_net *un = net_generic(net, usync_net_id);

	WRITE_ONCE(un->cpus, NULL);
}

void usync_events_net_free(struct net *net)
{
	struct usync_net *un = net_generic(net, usync_net_id);
	int cpu;

	if (!un->memory)
		return;
	for_each_possible_cpu(cpu) {
		struct usync_cpu *pc = per_cpu_ptr(un->memory, cpu);

		hrtimer_cancel(&pc->timer);
		kfree_skb(pc->batch);
		__skb_queue_purge(&pc->full);
	}
	free_percpu(un->memory);
	un->memory = NULL;
}

void usync_events_init(void)
{
	flush_after = ns_to_ktime(clamp(flush_us, 100U, 100000U) * (u64)NSEC_PER_USEC);
}

/* When it returns nothing is being sent, nor will be. */
void usync_events_stop(void)
{
	WRITE_ONCE(stopped, true);
	/* Waits for softirqs too, thus for timers that saw it unset. */
	synchronize_rcu();
}
