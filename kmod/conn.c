// SPDX-License-Identifier: GPL-2.0-only
/*
 * A connection as netlink attributes, and made, changed and deleted from them.
 *
 * Making and changing follows ip_vs's own backup thread (ip_vs_proc_conn in
 * ip_vs_sync.c) and the checks of its receiver, with these differences: the
 * caller hears what came of it; an entry is changed only if the caller's
 * picture of it is right (EXPECT_PKTS); one with another real server is gone
 * before the new one comes, templates too; and the first packet that comes to
 * an entry here is told.
 *
 * For that the entry's old_state is set to a value that no state has. ip_vs
 * uses old_state in its master thread alone, to see a change that was not sent
 * yet; should a master run too, it sends the entry at that first packet,
 * which is right.
 */
#include <linux/math64.h>
#include <linux/random.h>
#include <linux/siphash.h>
#include <linux/ktime.h>

#include "usync.h"
#include "compat.h"

static siphash_aligned_key_t cookie_key __ro_after_init;

void __init usync_conn_init(void)
{
	get_random_bytes(&cookie_key, sizeof(cookie_key));
}

/*
 * Entries of one key are told apart by their address, which nobody shall
 * learn. It is used again only after an RCU grace period.
 */
static u64 cookie(const struct ip_vs_conn *cp)
{
	return siphash_1u64((unsigned long)cp, &cookie_key);
}

static int put_addr(struct sk_buff *skb, int attr, int af, const union nf_inet_addr *a)
{
	return nla_put(skb, attr, af == AF_INET6 ? sizeof(a->in6) : sizeof(a->ip), a);
}

static int put_seq(struct sk_buff *skb, const struct ip_vs_conn *cp)
{
	struct ipvs_sync_seq s = {
		.in_init	= cp->in_seq.init_seq,
		.in_delta	= cp->in_seq.delta,
		.in_prev	= cp->in_seq.previous_delta,
		.out_init	= cp->out_seq.init_seq,
		.out_delta	= cp->out_seq.delta,
		.out_prev	= cp->out_seq.previous_delta,
	};

	return nla_put(skb, IPVS_SYNC_CONN_SEQ, sizeof(s), &s);
}

static int put_pe(struct sk_buff *skb, const struct ip_vs_conn *cp)
{
	return nla_put_string(skb, IPVS_SYNC_CONN_PE_NAME, cp->pe->name) ||
	       nla_put(skb, IPVS_SYNC_CONN_PE_DATA, cp->pe_data_len, cp->pe_data);
}

/*
 * Times go as 32 bits of ms, 49 days. The kernel's own functions would wrap what
 * is longer, and take what is over 24 days for ever; ipvsadm allows 31.
 */
static u32 to_ms(unsigned long j)
{
	return j > (u64)U32_MAX * HZ / MSEC_PER_SEC ? U32_MAX : jiffies_to_msecs(j);
}

static unsigned long from_ms(u32 ms)
{
	return div_u64((u64)ms * HZ + MSEC_PER_SEC - 1, MSEC_PER_SEC);
}

/* How long until the entry expires if nothing comes, in ms */
static u32 remaining(const struct ip_vs_conn *cp, enum ipvs_sync_kind kind)
{
	long left;

	if (kind == IPVS_SYNC_KIND_EXPIRED)
		return 0;
	/*
	 * A packet starts the timer anew when it has been handled, after it
	 * was told; not that of a template, which only controls its entry.
	 */
	if ((kind && !(cp->flags & IP_VS_CONN_F_TEMPLATE)) ||
	    !timer_pending(&cp->timer))
		return to_ms(cp->timeout);
	left = READ_ONCE(cp->timer.expires) - jiffies;
	return left > 0 ? to_ms(left) : 0;
}

/*
 * Appends cp as a CONN. The caller keeps cp's memory from being freed, by a
 * reference or by RCU. The fields are read without cp->lock: each is one word
 * and valid by itself, and who changes several of them tells so afterwards.
 * Returns 0, or -EMSGSIZE with skb as it was.
 */
int usync_conn_put(struct sk_buff *skb, const struct ip_vs_conn *cp,
		   enum ipvs_sync_kind kind, u64 stamp, bool commanded)
{
	struct nlattr *nest = nla_nest_start(skb, IPVS_SYNC_A_CONN);
	u32 flags = cp->flags & ~IP_VS_CONN_F_HASHED;

	if (!nest)
		return -EMSGSIZE;
	if ((kind && nla_put_u8(skb, IPVS_SYNC_CONN_KIND, kind)) ||
	    nla_put_u64_64bit(skb, IPVS_SYNC_CONN_STAMP, stamp, IPVS_SYNC_CONN_PAD) ||
	    nla_put_u64_64bit(skb, IPVS_SYNC_CONN_COOKIE, cookie(cp), IPVS_SYNC_CONN_PAD) ||
	    nla_put_u8(skb, IPVS_SYNC_CONN_PROTOCOL, cp->protocol) ||
	    put_addr(skb, IPVS_SYNC_CONN_CADDR, cp->af, &cp->caddr) ||
	    nla_put_be16(skb, IPVS_SYNC_CONN_CPORT, cp->cport) ||
	    put_addr(skb, IPVS_SYNC_CONN_VADDR, cp->af, &cp->vaddr) ||
	    nla_put_be16(skb, IPVS_SYNC_CONN_VPORT, cp->vport) ||
	    put_addr(skb, IPVS_SYNC_CONN_DADDR, cp->daf, &cp->daddr) ||
	    nla_put_be16(skb, IPVS_SYNC_CONN_DPORT, cp->dport) ||
	    nla_put_u32(skb, IPVS_SYNC_CONN_FLAGS, flags) ||
	    nla_put_u16(skb, IPVS_SYNC_CONN_STATE, cp->state) ||
	    (cp->fwmark && nla_put_u32(skb, IPVS_SYNC_CONN_FWMARK, cp->fwmark)) ||
	    nla_put_u32(skb, IPVS_SYNC_CONN_TIMEOUT, to_ms(cp->timeout)) ||
	    nla_put_u32(skb, IPVS_SYNC_CONN_REMAINING, remaining(cp, kind)) ||
	    nla_put_u32(skb, IPVS_SYNC_CONN_PKTS, atomic_read(&cp->in_pkts)) ||
	    (flags & IP_VS_CONN_F_SEQ_MASK && put_seq(skb, cp)) ||
	    (cp->pe && cp->pe_data_len && put_pe(skb, cp)) ||
	    (READ_ONCE(cp->dest) && nla_put_flag(skb, IPVS_SYNC_CONN_BOUND)) ||
	    (commanded && nla_put_flag(skb, IPVS_SYNC_CONN_COMMANDED))) {
		nla_nest_cancel(skb, nest);
		return -EMSGSIZE;
	}
	nla_nest_end(skb, nest);
	return 0;
}

const struct nla_policy usync_conn_policy[IPVS_SYNC_CONN_MAX + 1] = {
	[IPVS_SYNC_CONN_PROTOCOL]	= { .type = NLA_U8 },
	[IPVS_SYNC_CONN_CADDR]		= NLA_POLICY_RANGE(NLA_BINARY, 4, 16),
	[IPVS_SYNC_CONN_CPORT]		= { .type = NLA_U16 },
	[IPVS_SYNC_CONN_VADDR]		= NLA_POLICY_RANGE(NLA_BINARY, 4, 16),
	[IPVS_SYNC_CONN_VPORT]		= { .type = NLA_U16 },
	[IPVS_SYNC_CONN_FLAGS]		= { .type = NLA_U32 },
	[IPVS_SYNC_CONN_DADDR]		= NLA_POLICY_RANGE(NLA_BINARY, 4, 16),
	[IPVS_SYNC_CONN_DPORT]		= { .type = NLA_U16 },
	[IPVS_SYNC_CONN_STATE]		= { .type = NLA_U16 },
	[IPVS_SYNC_CONN_FWMARK]		= { .type = NLA_U32 },
	[IPVS_SYNC_CONN_TIMEOUT]	= { .type = NLA_U32 },
	[IPVS_SYNC_CONN_REMAINING]	= { .type = NLA_U32 },
	[IPVS_SYNC_CONN_PKTS]		= { .type = NLA_U32 },
	[IPVS_SYNC_CONN_SEQ]		= NLA_POLICY_EXACT_LEN(sizeof(struct ipvs_sync_seq)),
	[IPVS_SYNC_CONN_PE_NAME]	= { .type = NLA_NUL_STRING, .len = IP_VS_PENAME_MAXLEN },
	[IPVS_SYNC_CONN_PE_DATA]	= NLA_POLICY_RANGE(NLA_BINARY, 1, IP_VS_PEDATA_MAXLEN),
	[IPVS_SYNC_CONN_EXPECT_PKTS]	= { .type = NLA_U32 },
};

/* Reads an address of 4 or 16 bytes; returns its family, or 0. */
static u16 get_addr(const struct nlattr *a, union nf_inet_addr *to)
{
	memset(to, 0, sizeof(*to));
	switch (nla_len(a)) {
	case sizeof(to->ip):
		memcpy(&to->ip, nla_data(a), sizeof(to->ip));
		return AF_INET;
#ifdef CONFIG_IP_VS_IPV6
	case sizeof(to->in6):
		memcpy(&to->in6, nla_data(a), sizeof(to->in6));
		return AF_INET6;
#endif
	}
	return 0;
}

static int bad(struct netlink_ext_ack *extack, const struct nlattr *at, const char *why)
{
	if (extack && !extack->_msg)
		NL_SET_ERR_MSG_ATTR(extack, at, "malformed connection");
	if (extack)
		extack->_msg = why;
	return -EINVAL;
}

/*
 * Reads a nest that the family's policy has accepted. All attributes are
 * optional here; usync_conn_key and usync_conn_create say what they need.
 */
int usync_conn_parse(struct netns_ipvs *ipvs, const struct nlattr *nest,
		     struct usync_conn *c, struct netlink_ext_ack *extack)
{
	struct nlattr *tb[IPVS_SYNC_CONN_MAX + 1];
	struct ip_vs_conn_param *p = &c->param;
	u16 vaf = 0;
	int i, err;

	BUILD_BUG_ON(IPVS_SYNC_CONN_MAX >= 32);
	err = nla_parse_nested(tb, IPVS_SYNC_CONN_MAX, nest, usync_conn_policy, extack);
	if (err)
		return err;
	memset(c, 0, sizeof(*c));
	for (i = 1; i <= IPVS_SYNC_CONN_MAX; i++)
		if (tb[i])
			c->has |= BIT(i);

	p->ipvs = ipvs;
	p->caddr = &c->caddr;
	p->vaddr = &c->vaddr;
	if (USYNC_HAS(c, PROTOCOL))
		p->protocol = nla_get_u8(tb[IPVS_SYNC_CONN_PROTOCOL]);
	if (USYNC_HAS(c, VADDR)) {
		vaf = get_addr(tb[IPVS_SYNC_CONN_VADDR], &c->vaddr);
		if (!vaf)
			return bad(extack, tb[IPVS_SYNC_CONN_VADDR],
				   "virtual address is neither IPv4 nor IPv6");
		p->af = vaf;
	}
	if (USYNC_HAS(c, CADDR)) {
		p->af = get_addr(tb[IPVS_SYNC_CONN_CADDR], &c->caddr);
		if (!p->af || (vaf && vaf != p->af))
			return bad(extack, tb[IPVS_SYNC_CONN_CADDR],
				   "client's address is not of the virtual address's family");
	}
	if (USYNC_HAS(c, DADDR)) {
		c->daf = get_addr(tb[IPVS_SYNC_CONN_DADDR], &c->daddr);
		if (!c->daf)
			return bad(extack, tb[IPVS_SYNC_CONN_DADDR],
				   "real server's address is neither IPv4 nor IPv6");
	}
	if (USYNC_HAS(c, CPORT))
		p->cport = nla_get_be16(tb[IPVS_SYNC_CONN_CPORT]);
	if (USYNC_HAS(c, VPORT))
		p->vport = nla_get_be16(tb[IPVS_SYNC_CONN_VPORT]);
	if (USYNC_HAS(c, DPORT))
		c->dport = nla_get_be16(tb[IPVS_SYNC_CONN_DPORT]);
	if (USYNC_HAS(c, FLAGS))
		c->flags = nla_get_u32(tb[IPVS_SYNC_CONN_FLAGS]);
	if (USYNC_HAS(c, STATE))
		c->state = nla_get_u16(tb[IPVS_SYNC_CONN_STATE]);
	if (USYNC_HAS(c, FWMARK))
		c->fwmark = nla_get_u32(tb[IPVS_SYNC_CONN_FWMARK]);
	if (USYNC_HAS(c, TIMEOUT))
		c->timeout = nla_get_u32(tb[IPVS_SYNC_CONN_TIMEOUT]);
	if (USYNC_HAS(c, REMAINING))
		c->remaining = nla_get_u32(tb[IPVS_SYNC_CONN_REMAINING]);
	if (USYNC_HAS(c, PKTS))
		c->pkts = nla_get_u32(tb[IPVS_SYNC_CONN_PKTS]);
	if (USYNC_HAS(c, EXPECT_PKTS))
		c->expect_pkts = nla_get_u32(tb[IPVS_SYNC_CONN_EXPECT_PKTS]);
	if (USYNC_HAS(c, SEQ))
		memcpy(&c->seq, nla_data(tb[IPVS_SYNC_CONN_SEQ]), sizeof(c->seq));
	c->pe_name = tb[IPVS_SYNC_CONN_PE_NAME];
	c->pe_data = tb[IPVS_SYNC_CONN_PE_DATA];
	return 0;
}

/* Whether c has a key; cf. ip_vs_sync_validate_flags. */
int usync_conn_key(struct usync_conn *c, struct netlink_ext_ack *extack)
{
	if (!USYNC_HAS(c, PROTOCOL) || !USYNC_HAS(c, CADDR) || !USYNC_HAS(c, CPORT) ||
	    !USYNC_HAS(c, VADDR) || !USYNC_HAS(c, VPORT))
		return bad(extack, NULL,
			   "key incomplete: protocol, client and virtual address and ports");
	if (c->flags & IP_VS_CONN_F_ONE_PACKET)
		return bad(extack, NULL, "one-packet entries are in no table");
	if (c->flags & IP_VS_CONN_F_TEMPLATE && c->flags & IP_VS_CONN_F_NO_CPORT)
		return bad(extack, NULL, "a template has no client port to wait for");
	if (!(c->flags & IP_VS_CONN_F_TEMPLATE) && !ip_vs_proto_get(c->param.protocol))
		return bad(extack, NULL, "protocol is not one that IPVS balances");
	if (!c->pe_name != !c->pe_data)
		return bad(extack, NULL, "a persistence engine's name and data go together");
	return 0;
}

/*
 * Persistence data is part of a template's key. The engine is referenced until
 * release_pe.
 */
static int take_pe(struct usync_conn *c)
{
	struct ip_vs_conn_param *p = &c->param;

	if (!c->pe_data)
		return 0;
	p->pe = usync_sym.pe_getbyname(nla_data(c->pe_name));
	if (!p->pe)
		return -ENOPROTOOPT;
	p->pe_data = kmemdup(nla_data(c->pe_data), nla_len(c->pe_data), GFP_KERNEL_ACCOUNT);
	if (!p->pe_data) {
		ip_vs_pe_put(p->pe);
		return -ENOMEM;
	}
	p->pe_data_len = nla_len(c->pe_data);
	return 0;
}

static void release_pe(struct usync_conn *c)
{
	kfree(c->param.pe_data);
	ip_vs_pe_put(c->param.pe);
}

/* The entry of exactly this key, referenced, or NULL. */
static struct ip_vs_conn *find(struct usync_conn *c)
{
	struct ip_vs_conn *cp;

	if (c->flags & IP_VS_CONN_F_TEMPLATE)
		return usync_sym.ct_in_get(&c->param);
	cp = ip_vs_conn_in_get(&c->param);
	/* It also finds an entry that waits for its client's port. */
	if (cp && (cp->cport != c->param.cport || cp->flags & IP_VS_CONN_F_TEMPLATE)) {
		__ip_vs_conn_put(cp);
		return NULL;
	}
	return cp;
}

struct ip_vs_conn *usync_conn_find(struct usync_conn *c)
{
	struct ip_vs_conn *cp;
	int err = take_pe(c);

	if (err)
		return ERR_PTR(err);
	cp = find(c);
	release_pe(c);
	return cp ?: ERR_PTR(-ENOENT);
}

static bool same_dest(const struct ip_vs_conn *cp, const struct usync_conn *c)
{
	return cp->dport == c->dport && cp->daf == c->daf &&
	       ip_vs_addr_equal(cp->daf, &cp->daddr, &c->daddr);
}

static bool expected(const struct ip_vs_conn *cp, const struct usync_conn *c)
{
	return !USYNC_HAS(c, EXPECT_PKTS) ||
	       (u32)atomic_read(&cp->in_pkts) == c->expect_pkts;
}

/*
 * Takes the entry off the table, as ip_vs_conn_del_put does; the caller's
 * reference is gone in any case. Returns 0 if the entry is gone, -EBUSY if it
 * stays: it controls others, or a packet is using it just now.
 */
static int expire_put(struct ip_vs_conn *cp)
{
	unsigned long timeout = cp->timeout;
	int err = -EBUSY;

	if (atomic_read(&cp->n_control)) {
		__ip_vs_conn_put(cp);
		return err;
	}
	/* So that its memory can be looked at afterwards. */
	rcu_read_lock();
	/* If the timer is not pending, the entry is expiring by itself. */
	if (!timer_delete(&cp->timer)) {
		__ip_vs_conn_put(cp);
		goto out;
	}
	__ip_vs_conn_put(cp);
	usync_conn_expire(&cp->timer);
	if (!refcount_read(&cp->refcnt)) {
		err = 0;
	} else if (__ip_vs_conn_get(cp)) {
		/* ip_vs has set it to a minute. */
		cp->timeout = timeout;
		ip_vs_conn_put(cp);
	}
out:
	rcu_read_unlock();
	return err;
}

/* What CREATE needs and is allowed, cf. ip_vs_proc_sync_conn. */
static int check_create(struct usync_conn *c)
{
	struct ip_vs_protocol *pp;

	if (!USYNC_HAS(c, DADDR) || !USYNC_HAS(c, DPORT) || !USYNC_HAS(c, FLAGS) ||
	    !USYNC_HAS(c, STATE) || !USYNC_HAS(c, TIMEOUT))
		return -EINVAL;
	if (!c->timeout)
		return -ERANGE;
	if (c->flags & IP_VS_CONN_F_SEQ_MASK && !USYNC_HAS(c, SEQ))
		return -EINVAL;
	if ((c->flags & IP_VS_CONN_F_FWD_MASK) > IP_VS_CONN_F_BYPASS)
		return -EINVAL;
	/* ip_vs translates addresses within one family only. */
	if (c->daf != c->param.af &&
	    (c->flags & IP_VS_CONN_F_FWD_MASK) != IP_VS_CONN_F_TUNNEL)
		return -EAFNOSUPPORT;
	if (c->flags & IP_VS_CONN_F_TEMPLATE)
		return c->state < IP_VS_CTPL_S_LAST ? 0 : -ERANGE;
	pp = ip_vs_proto_get(c->param.protocol);
	if (!pp)
		return -EPROTONOSUPPORT;
	return c->state < pp->num_states ? 0 : -ERANGE;
}

/* Changes an entry's flags, and its real server's counts with them. */
static void update_flags(struct ip_vs_conn *cp, u32 flags)
{
	struct ip_vs_dest *dest = cp->dest;

	spin_lock_bh(&cp->lock);
	if ((cp->flags ^ flags) & IP_VS_CONN_F_INACTIVE &&
	    !(flags & IP_VS_CONN_F_TEMPLATE) && dest) {
		if (flags & IP_VS_CONN_F_INACTIVE)
			atomic_dec(&dest->activeconns);
		else
			atomic_inc(&dest->activeconns);
	}
	cp->flags = (flags & IP_VS_CONN_F_BACKUP_UPD_MASK) |
		    (cp->flags & ~IP_VS_CONN_F_BACKUP_UPD_MASK);
	spin_unlock_bh(&cp->lock);
}

static struct ip_vs_conn *make(struct usync_conn *c, u32 flags)
{
	struct ip_vs_conn_param *p = &c->param;
	struct ip_vs_dest *dest;
	struct ip_vs_conn *cp;

	/* The real server's entry is found and bound within one RCU section. */
	rcu_read_lock();
	dest = usync_sym.find_dest(p->ipvs, p->af, c->daf, &c->daddr, c->dport,
				   p->vaddr, p->vport, p->protocol, c->fwmark, flags);
	cp = ip_vs_conn_new(p, c->daf, &c->daddr, c->dport, flags, dest, c->fwmark);
	rcu_read_unlock();
	/* A template has taken the persistence data. */
	if (cp && cp->pe_data == p->pe_data)
		p->pe_data = NULL;
	return cp;
}

static void set_fields(struct ip_vs_conn *cp, const struct usync_conn *c)
{
	if (USYNC_HAS(c, SEQ)) {
		cp->in_seq = (struct ip_vs_seq){ c->seq.in_init, c->seq.in_delta,
						 c->seq.in_prev };
		cp->out_seq = (struct ip_vs_seq){ c->seq.out_init, c->seq.out_delta,
						  c->seq.out_prev };
	}
	if (USYNC_HAS(c, PKTS))
		atomic_set(&cp->in_pkts, c->pkts);
	cp->state = c->state;
	cp->old_state = USYNC_INJECTED;
	cp->timeout = from_ms(c->timeout);
}

/*
 * Makes the entry or updates it. An entry of the same key with another real
 * server is replaced, unless the news are that it is inactive: then they are
 * old (ip_vs_proc_conn), ESTALE. Returns IPVS_SYNC_R_... or a negative error.
 *
 * Between the look-up and the making a packet may make an entry of the same
 * key, as with ip_vs's own thread: both are in the table then, the newer one
 * is found, the other one expires.
 */
int usync_conn_create(struct usync_conn *c)
{
	u32 flags = (c->flags & IP_VS_CONN_F_BACKUP_MASK) | IP_VS_CONN_F_SYNC;
	int result = 0, err;
	struct ip_vs_conn *cp;

	err = check_create(c);
	if (err)
		return err;
	err = take_pe(c);
	if (err)
		return err;
	cp = find(c);
	if (cp && !expected(cp, c)) {
		__ip_vs_conn_put(cp);
		err = -EBUSY;
		goto out;
	}
	if (cp && !same_dest(cp, c)) {
		if (flags & IP_VS_CONN_F_INACTIVE) {
			__ip_vs_conn_put(cp);
			err = -ESTALE;
			goto out;
		}
		err = expire_put(cp);
		if (err)
			goto out;
		cp = NULL;
	}
	if (cp) {
		update_flags(cp, flags);
		if (!cp->dest)
			usync_sym.try_bind_dest(cp);
	} else {
		cp = make(c, flags);
		if (!cp) {
			err = -ENOMEM;
			goto out;
		}
		result |= IPVS_SYNC_R_CREATED;
	}
	if (cp->dest)
		result |= IPVS_SYNC_R_BOUND;
	set_fields(cp, c);
	/* The entry outlives its reference below within this section. */
	rcu_read_lock();
	ip_vs_conn_put(cp);
	if (USYNC_HAS(c, REMAINING) && c->remaining < c->timeout)
		mod_timer_pending(&cp->timer, jiffies + from_ms(c->remaining));
	rcu_read_unlock();
out:
	release_pe(c);
	return err ?: result;
}

/*
 * Deletes the entry. If the caller gave DADDR and DPORT it is deleted only with
 * this real server. Returns 0, -ENOENT, or -EBUSY if it must stay.
 */
int usync_conn_delete(struct usync_conn *c)
{
	struct ip_vs_conn *cp = usync_conn_find(c);

	if (IS_ERR(cp))
		return PTR_ERR(cp);
	if (USYNC_HAS(c, DADDR) && USYNC_HAS(c, DPORT) && !same_dest(cp, c)) {
		__ip_vs_conn_put(cp);
		return -ENOENT;
	}
	if (!expected(cp, c)) {
		__ip_vs_conn_put(cp);
		return -EBUSY;
	}
	return expire_put(cp);
}
