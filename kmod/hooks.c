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
 *    state before and after it. A probe that returns (kretprobe) on the
 *    functions behind the pointer would cost an exception or a trampoline and
 *    a piece of a shared pool on each packet.
 *
 *    A new entry is one whose timer was never started: it starts when the
 *    first packet puts its reference back (ip_vs_conn_put). That the entry
 *    lives on is told once in a period, without remembering anything: the
 *    timer's expiry less the timeout is the time of the packet before, and
 *    this packet tells if it is the first one of a period. Periods begin at
 *    another time for each entry, so tellings are spread.
 *
 * 2. A kretprobe on ip_vs_conn_expire, through which each entry leaves, with
 *    its timer, flushed or dropped. At the entry it is not known whether the
 *    entry leaves, for someone may hold a reference; at the return its
 *    reference count is 0, which nothing undoes, or it stays for a minute.
 *
 * References: ip_vs calls state_transition with a reference to the entry held
 * and within rcu_read_lock (netfilter hooks); an entry keeps its controlling
 * one (n_control). When ip_vs_conn_expire returns the entry may be given to
 * call_rcu, but all its callers are in a softirq or in rcu_read_lock since
 * before, so its memory and that of its persistence engine's data stays valid
 * in the return handler. One-packet entries are freed at once and never told,
 * as in the kernel's own synchronisation.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kprobes.h>
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

DEFINE_PER_CPU(bool, usync_commanded);

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
		usync_tell(ct, kind, ktime_get_mono_fast_ns());
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
		usync_tell(cp, kind, ktime_get_mono_fast_ns());
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

struct expiring {
	const struct ip_vs_conn *cp;
	u64 stamp;
};

/* Runs with preemption off. A return value other than 0 ends the matter. */
static int expire_entry(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	struct timer_list *t = (void *)regs_get_kernel_argument(regs, 0);
	const struct ip_vs_conn *cp = container_of(t, struct ip_vs_conn, timer);
	struct expiring *e = (void *)ri->data;

	if (cp->flags & IP_VS_CONN_F_ONE_PACKET ||
	    !usync_listened(cp->ipvs->net))
		return 1;
	e->cp = cp;
	/*
	 * From before the entry left the table: the next one of the same key
	 * comes after it, and is told with a later stamp.
	 */
	e->stamp = ktime_get_mono_fast_ns();
	return 0;
}
NOKPROBE_SYMBOL(expire_entry);

static int expire_return(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	struct expiring *e = (void *)ri->data;

	if (!refcount_read(&e->cp->refcnt))
		usync_tell(e->cp, IPVS_SYNC_KIND_EXPIRED, e->stamp);
	else
		usync_tell(e->cp, IPVS_SYNC_KIND_UPDATE, ktime_get_mono_fast_ns());
	return 0;
}
NOKPROBE_SYMBOL(expire_return);

static struct kretprobe expire_probe = {
	.entry_handler	= expire_entry,
	.handler	= expire_return,
	.data_size	= sizeof(struct expiring),
};

u64 usync_hooks_missed(void)
{
	return (u64)READ_ONCE(expire_probe.nmissed) + expire_probe.kp.nmissed;
}

int usync_hooks_install(void)
{
	unsigned int i;
	int err;

	if (refresh)
		refresh_shift = ilog2(min(refresh, 86400U) * HZ);

	expire_probe.kp.addr = (kprobe_opcode_t *)usync_sym.conn_expire;
	/* An expiry may expire its template: two for each CPU, and air. */
	expire_probe.maxactive = 16 + 4 * num_possible_cpus();
	err = register_kretprobe(&expire_probe);
	if (err) {
		pr_err("cannot probe ip_vs_conn_expire: error %d (are kprobes disabled, /sys/kernel/debug/kprobes/enabled?)\n",
		       err);
		return err;
	}
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
	unregister_kretprobe(&expire_probe);
	/* state_transition is called within rcu_read_lock. */
	synchronize_rcu();
}
