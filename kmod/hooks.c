// SPDX-License-Identifier: GPL-2.0-only
/*
 * Seeing what ip_vs does with its connections.
 *
 * Two places are enough, and no text is patched but by the kernel's own probes.
 *
 * 1. state_transition of struct ip_vs_protocol, the function that ip_vs calls
 *    for each packet of a connection in either direction, before the packet
 *    goes on. The protocols' structs are found by the exported
 *    ip_vs_proto_get() and their pointer is put around the original. That is
 *    checked by the compiler, costs one more call on a packet, and shows the
 *    state before and after it. A kretprobe on the functions behind the
 *    pointer would cost two trampolines and a piece of a shared pool on each
 *    packet.
 *
 *    A new entry is one whose timer was never started: it starts when the
 *    first packet puts its reference back (ip_vs_conn_put). That the entry
 *    lives on is told once in a period, without remembering anything: the
 *    timer's expiry less the timeout is the time of the packet before, and
 *    this packet tells if it is the first one of a period. Periods begin at
 *    another time for each entry, so tellings are spread.
 *
 * 2. ip_vs_conn_expire, through which each entry leaves, with its timer,
 *    flushed or dropped. ftrace leads its callers to a function of ours, as
 *    live patching does, which calls it: only when it returns is it known
 *    whether the entry left (its reference count is 0, which nothing undoes)
 *    or stays for a minute, because someone holds a reference.
 *
 *    A kretprobe would do the same, and is built on ftrace too. But while
 *    ftrace exchanges the instruction at the function's entry there is a
 *    breakpoint, and a CPU that comes upon it when the exchange is taken for
 *    finished (seen in an emulator) is sent to address 0 by the kprobes, which
 *    take the breakpoint for their own; without a kprobe there the kernel
 *    tries the instruction again.
 *
 * References: ip_vs calls state_transition with a reference to the entry held
 * and within rcu_read_lock (netfilter hooks); an entry keeps its controlling
 * one (n_control). When ip_vs_conn_expire returns the entry may be given to
 * call_rcu, but all its callers are in a softirq or in rcu_read_lock since
 * before, so its memory and that of its persistence engine's data stays valid
 * until our function returns. For the same reason no CPU is in our functions
 * any more when an RCU grace period has passed after their removal. One-packet
 * entries are freed at once and never told, as in the kernel's own
 * synchronisation.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/ftrace.h>
#include <linux/module.h>
#include <linux/ktime.h>

#include "usync.h"
#include "compat.h"

static unsigned int refresh = 10;
module_param(refresh, uint, 0444);
MODULE_PARM_DESC(refresh,
		 "Seconds between two tellings of a connection that talks, rounded down to a power of two of ticks; 0: none (default 10)");

/* log2 of the period in jiffies */
static unsigned int refresh_shift __read_mostly;

/* Whether a packet now is the first since the entry's period began. */
static bool refresh_due(const struct ip_vs_conn *cp, unsigned long timeout,
			unsigned long expires)
{
	unsigned long phase = (unsigned long)cp >> 6;
	unsigned long now = jiffies + phase;
	unsigned long before = expires - timeout + phase;
	unsigned int shift = refresh_shift;

	if (!refresh)
		return false;
	/* Short-lived entries are told while peers still have them. */
	if (timeout >> 2 < 1UL << shift)
		shift = timeout >= 8 ? ilog2(timeout) - 2 : 0;
	return (now ^ before) >> shift;
}

/*
 * The entries that control this one live as long as it, and their own timers
 * are not told by packets: persistence templates, and control connections.
 */
static void tell_control(const struct ip_vs_conn *cp, bool fresh)
{
	const struct ip_vs_conn *ct = cp->control;
	enum ipvs_sync_kind kind;
	int depth;

	/* DATA -> CTL -> TPL is the longest chain that ip_vs makes. */
	for (depth = 0; ct && depth < 2; depth++, ct = ct->control) {
		kind = fresh && atomic_read(&ct->n_control) == 1 &&
		       ct->flags & IP_VS_CONN_F_TEMPLATE ?
			IPVS_SYNC_KIND_NEW : IPVS_SYNC_KIND_UPDATE;
		usync_tell(ct, kind, ktime_get_mono_fast_ns(), false);
	}
}

typedef void (*transition_fn)(struct ip_vs_conn *cp, int direction,
			      const struct sk_buff *skb,
			      struct ip_vs_proto_data *pd,
			      unsigned int iph_len);

static __always_inline void transition(transition_fn orig, struct ip_vs_conn *cp,
				       int direction, const struct sk_buff *skb,
				       struct ip_vs_proto_data *pd,
				       unsigned int iph_len)
{
	const struct ip_vs_conn *ct = cp->control;
	u16 ct_state = ct ? ct->state : 0;
	u16 state = cp->state;
	bool injected = cp->old_state == USYNC_INJECTED;
	bool fresh = !timer_pending(&cp->timer);
	bool due = refresh_due(cp, cp->timeout, READ_ONCE(cp->timer.expires));
	enum ipvs_sync_kind kind;

	if (orig)
		orig(cp, direction, skb, pd, iph_len);

	if (likely(cp->state == state && !fresh && !due && !injected &&
		   (!ct || ct->state == ct_state)))
		return;
	if (cp->flags & IP_VS_CONN_F_ONE_PACKET)
		return;
	if (injected)
		cp->old_state = state;
	if (!usync_listened(cp->ipvs->net))
		return;

	if (injected)
		kind = IPVS_SYNC_KIND_ADOPTED;
	else if (fresh)
		kind = IPVS_SYNC_KIND_NEW;
	else if (cp->state != state)
		kind = IPVS_SYNC_KIND_STATE;
	else
		kind = IPVS_SYNC_KIND_UPDATE;
	/*
	 * The stamp is taken before the entry is read: then of two tellings
	 * the one with the later stamp has all that the other one has.
	 */
	if (cp->state != state || fresh || due || injected)
		usync_tell(cp, kind, ktime_get_mono_fast_ns(), false);
	if (ct && (fresh || due || injected || ct->state != ct_state))
		tell_control(cp, fresh);
}

/* One function for each protocol: which original it calls needs no look-up. */
#define PROTOCOL(name)								\
static transition_fn orig_##name __read_mostly;					\
static void name##_transition(struct ip_vs_conn *cp, int direction,		\
			      const struct sk_buff *skb,			\
			      struct ip_vs_proto_data *pd,			\
			      unsigned int iph_len)				\
{										\
	transition(orig_##name, cp, direction, skb, pd, iph_len);		\
}

PROTOCOL(tcp)
PROTOCOL(udp)
PROTOCOL(sctp)
PROTOCOL(ah)
PROTOCOL(esp)

static const struct {
	u16 protocol;
	transition_fn *orig;
	transition_fn ours;
} protocols[] = {
	{ IPPROTO_TCP, &orig_tcp, tcp_transition },
	{ IPPROTO_UDP, &orig_udp, udp_transition },
	{ IPPROTO_SCTP, &orig_sctp, sctp_transition },
	{ IPPROTO_AH, &orig_ah, ah_transition },
	{ IPPROTO_ESP, &orig_esp, esp_transition },
};

/* Expires the entry and tells of it; as ip_vs_conn_expire to its callers. */
static void expire(struct timer_list *t, bool commanded)
{
	struct ip_vs_conn *cp = container_of(t, struct ip_vs_conn, timer);
	u64 stamp;

	if (cp->flags & IP_VS_CONN_F_ONE_PACKET ||
	    !usync_listened(cp->ipvs->net)) {
		usync_sym.conn_expire(t);
		/* Not by a jump: see redirect. */
		barrier();
		return;
	}
	/*
	 * From before the entry left the table: the next one of the same key
	 * comes after it, and is told with a later stamp.
	 */
	stamp = ktime_get_mono_fast_ns();
	usync_sym.conn_expire(t);
	if (!refcount_read(&cp->refcnt))
		usync_tell(cp, IPVS_SYNC_KIND_EXPIRED, stamp, commanded);
	else if (!commanded && cp->old_state != USYNC_INJECTED)
		/* What no packet has touched is nobody's here: not told. */
		usync_tell(cp, IPVS_SYNC_KIND_UPDATE, ktime_get_mono_fast_ns(), false);
}

static void hooked_expire(struct timer_list *t)
{
	expire(t, false);
}

/*
 * For DELETE, which undoes what an entry that stays has suffered. The caller
 * is in rcu_read_lock, as all are.
 */
void usync_conn_expire(struct timer_list *t)
{
	expire(t, true);
}

/*
 * Called by ftrace at the entry of ip_vs_conn_expire: the function goes on in
 * ours, unless that is its caller.
 */
static void notrace redirect(unsigned long ip, unsigned long parent_ip,
			     struct ftrace_ops *op, struct ftrace_regs *fregs)
{
	if (!within_module(parent_ip, THIS_MODULE))
		usync_set_ip(fregs, (unsigned long)hooked_expire);
}

static struct ftrace_ops expire_hook = {
	.func	= redirect,
	/* Permanent: not switched off by kernel.ftrace_enabled. */
	.flags	= USYNC_FTRACE_FLAGS | FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_PERMANENT,
};

static int hook_expire(void)
{
	int err;

	err = ftrace_set_filter_ip(&expire_hook, (unsigned long)usync_sym.conn_expire, 0, 0);
	if (err) {
		pr_err("ftrace cannot hook ip_vs_conn_expire: error %d\n", err);
		return err;
	}
	err = register_ftrace_function(&expire_hook);
	if (err) {
		pr_err("ftrace did not hook ip_vs_conn_expire: error %d (EBUSY -16: a live patch has it, or kernel.ftrace_enabled is 0)\n",
		       err);
		ftrace_free_filter(&expire_hook);
	}
	return err;
}

static void unhook_expire(void)
{
	int err = unregister_ftrace_function(&expire_hook);

	if (err)
		pr_crit("ftrace did not let go of ip_vs_conn_expire: error %d\n", err);
	/* To take the address out instead would need memory, and could fail. */
	ftrace_free_filter(&expire_hook);
}

int usync_hooks_install(void)
{
	unsigned int i;
	int err;

	if (refresh)
		refresh_shift = ilog2(min(refresh, 86400U) * HZ);

	err = hook_expire();
	if (err)
		return err;
	for (i = 0; i < ARRAY_SIZE(protocols); i++) {
		struct ip_vs_protocol *pp = ip_vs_proto_get(protocols[i].protocol);

		/* The kernel may be built without it. */
		if (!pp)
			continue;
		*protocols[i].orig = pp->state_transition;
		/* The original must be seen with the pointer that calls it. */
		smp_store_release(&pp->state_transition, protocols[i].ours);
	}
	return 0;
}

/* When it returns no CPU is in a hook, nor will be. */
void usync_hooks_remove(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(protocols); i++) {
		struct ip_vs_protocol *pp = ip_vs_proto_get(protocols[i].protocol);

		if (!pp)
			continue;
		/*
		 * Nobody else in the kernel writes here. If a module does that
		 * was loaded after us, it must be unloaded before us.
		 */
		if (cmpxchg(&pp->state_transition, protocols[i].ours,
			    *protocols[i].orig) != protocols[i].ours)
			pr_crit("state_transition of %s was changed by somebody else, who calls into a module that is gone now\n",
				pp->name);
	}
	unhook_expire();
	synchronize_rcu();
}
