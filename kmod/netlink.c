// SPDX-License-Identifier: GPL-2.0-only
/*
 * The generic netlink family: the dump and the commands. ipvs_sync.yaml and
 * ip_vs_user_sync.h say what goes in and out.
 *
 * All attributes are validated strictly by the policy before anything is done:
 * an unknown one, one too many bytes, or a number out of range is an error and
 * nothing has changed.
 *
 * Reading takes CAP_NET_ADMIN over the network namespace. CREATE and DELETE
 * take it over the machine, as the family of ip_vs itself does: the entries
 * are kernel memory that no control group pays for.
 */
#include <linux/module.h>
#include <linux/rculist.h>
#include <linux/ktime.h>
#include <net/netns/generic.h>

#include "usync.h"
#include "compat.h"

static const struct nla_policy conns_policy[IPVS_SYNC_A_MAX + 1] = {
	[IPVS_SYNC_A_CONN] = NLA_POLICY_NESTED(usync_conn_policy),
};

static int get_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct netns_ipvs *ipvs = net_ipvs(genl_info_net(info));
	struct ip_vs_conn *cp;
	struct usync_conn c;
	struct sk_buff *msg;
	void *hdr;
	u64 now;
	int err;

	if (!info->attrs[IPVS_SYNC_A_CONN])
		return -EINVAL;
	err = usync_conn_parse(ipvs, info->attrs[IPVS_SYNC_A_CONN], &c, info->extack) ?:
	      usync_conn_key(&c, info->extack);
	if (err)
		return err;
	msg = genlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	if (!msg)
		return -ENOMEM;
	hdr = genlmsg_put_reply(msg, info, &usync_family, 0, IPVS_SYNC_CMD_GET);
	cp = usync_conn_find(&c);
	if (IS_ERR(cp)) {
		nlmsg_free(msg);
		/* ENOENT is what a family that is gone answers. */
		return cp == ERR_PTR(-ENOENT) ? -ESRCH : PTR_ERR(cp);
	}
	now = ktime_get_mono_fast_ns();
	err = usync_conn_put(msg, cp, IPVS_SYNC_KIND_UNSPEC, now, false);
	/* Not ip_vs_conn_put: to look is no reason to live longer. */
	__ip_vs_conn_put(cp);
	if (err) {
		nlmsg_free(msg);
		return err;
	}
	genlmsg_end(msg, hdr);
	return genlmsg_reply(msg, info);
}

/*
 * The dump: cb->args are the bucket to go on with, how many of its entries
 * were told, and the filter.
 *
 * It is no snapshot, but an entry that is in the table all the time is told:
 * a bucket is told in one message, under one rcu_read_lock, and begun anew in
 * the next message if it does not fit. Only a bucket larger than a message
 * (hundreds of entries, the table is far too small then) goes on by counting,
 * and may miss one when others leave it. Entries are told with the time they
 * were read, so that events and the dump can be put in order.
 */
static int dump_start(struct netlink_callback *cb)
{
	struct netns_ipvs *ipvs = net_ipvs(sock_net(cb->skb->sk));
	struct nlattr *conn = usync_dump_attrs(cb)[IPVS_SYNC_A_CONN];
	struct usync_conn *filter;
	u32 can;
	int err;

	if (!conn)
		return 0;
	filter = kmalloc(sizeof(*filter), GFP_KERNEL);
	if (!filter)
		return -ENOMEM;
	err = usync_conn_parse(ipvs, conn, filter, cb->extack);
	can = BIT(IPVS_SYNC_CONN_PROTOCOL) |
	      BIT(IPVS_SYNC_CONN_VADDR) | BIT(IPVS_SYNC_CONN_VPORT) |
	      BIT(IPVS_SYNC_CONN_DADDR) | BIT(IPVS_SYNC_CONN_DPORT);
	if (!err && filter->has & ~can) {
		NL_SET_ERR_MSG_ATTR(cb->extack, conn,
				    "filter by protocol, virtual and real server's address and port only");
		err = -EINVAL;
	}
	if (err) {
		kfree(filter);
		return err;
	}
	/* These point into the request. */
	filter->pe_name = NULL;
	filter->pe_data = NULL;
	cb->args[2] = (long)filter;
	return 0;
}

static int dump_done(struct netlink_callback *cb)
{
	kfree((void *)cb->args[2]);
	return 0;
}

static bool matches(const struct ip_vs_conn *cp, const struct usync_conn *f)
{
	if (!f)
		return true;
	if (USYNC_HAS(f, PROTOCOL) && cp->protocol != f->param.protocol)
		return false;
	if (USYNC_HAS(f, VADDR) &&
	    (cp->af != f->param.af || !ip_vs_addr_equal(cp->af, &cp->vaddr, &f->vaddr)))
		return false;
	if (USYNC_HAS(f, VPORT) && cp->vport != f->param.vport)
		return false;
	if (USYNC_HAS(f, DADDR) &&
	    (cp->daf != f->daf || !ip_vs_addr_equal(cp->daf, &cp->daddr, &f->daddr)))
		return false;
	return !USYNC_HAS(f, DPORT) || cp->dport == f->dport;
}

static int dump_conn(struct sk_buff *skb, struct netlink_callback *cb,
		     const struct ip_vs_conn *cp)
{
	void *hdr = genlmsg_put(skb, NETLINK_CB(cb->skb).portid, cb->nlh->nlmsg_seq,
				&usync_family, NLM_F_MULTI, IPVS_SYNC_CMD_GET);

	if (!hdr)
		return -EMSGSIZE;
	if (usync_conn_put(skb, cp, IPVS_SYNC_KIND_UNSPEC, ktime_get_mono_fast_ns(), false)) {
		genlmsg_cancel(skb, hdr);
		return -EMSGSIZE;
	}
	genlmsg_end(skb, hdr);
	return 0;
}

/* Tells one bucket from its entry skip on. Returns 0, or 1 if skb is full. */
static int dump_bucket(struct sk_buff *skb, struct netlink_callback *cb,
		       struct hlist_head *bucket, long *skip)
{
	struct netns_ipvs *ipvs = net_ipvs(sock_net(cb->skb->sk));
	const struct usync_conn *filter = (void *)cb->args[2];
	unsigned int begin = skb->len;
	struct ip_vs_conn *cp;
	long n = 0;

	hlist_for_each_entry_rcu(cp, bucket, c_list) {
		if (cp->ipvs != ipvs || !matches(cp, filter) || n++ < *skip)
			continue;
		if (!dump_conn(skb, cb, cp))
			continue;
		if (begin)
			skb_trim(skb, begin);
		else
			*skip = n - 1;
		return 1;
	}
	*skip = 0;
	return 0;
}

static int get_dumpit(struct sk_buff *skb, struct netlink_callback *cb)
{
	struct hlist_head *tab = *usync_sym.conn_tab;
	long size = *usync_sym.conn_tab_size;
	long bucket = cb->args[0], skip = cb->args[1];

	rcu_read_lock();
	for (; bucket < size; bucket++) {
		if (dump_bucket(skb, cb, &tab[bucket], &skip))
			break;
		if (need_resched()) {
			rcu_read_unlock();
			cond_resched();
			rcu_read_lock();
		}
	}
	rcu_read_unlock();
	cb->args[0] = bucket;
	cb->args[1] = skip;
	return skb->len;
}

/* Calls fn for each CONN of the request and answers with what it returned. */
static int change_conns(struct genl_info *info, u8 cmd,
			int (*fn)(struct usync_net *un, struct usync_conn *c))
{
	struct net *net = genl_info_net(info);
	struct usync_net *un = net_generic(net, usync_net_id);
	struct netns_ipvs *ipvs = net_ipvs(net);
	struct nlattr *attr, *results;
	struct usync_conn c;
	struct sk_buff *msg;
	int rem, n = 0;
	s32 result;
	void *hdr;

	nlmsg_for_each_attr(attr, info->nlhdr, GENL_HDRLEN, rem)
		n += nla_type(attr) == IPVS_SYNC_A_CONN;
	if (!n || n > IPVS_SYNC_MAX_CONNS) {
		NL_SET_ERR_MSG(info->extack, "1 to 256 connections in one message");
		return n ? -E2BIG : -EINVAL;
	}
	/* All that can fail for the message fails before the first is done. */
	msg = genlmsg_new(nla_total_size(n * sizeof(s32)), GFP_KERNEL);
	if (!msg)
		return -ENOMEM;
	hdr = genlmsg_put_reply(msg, info, &usync_family, 0, cmd);
	results = nla_reserve(msg, IPVS_SYNC_A_RESULTS, n * sizeof(s32));
	if (!hdr || !results) {
		nlmsg_free(msg);
		return -EMSGSIZE;
	}
	n = 0;
	nlmsg_for_each_attr(attr, info->nlhdr, GENL_HDRLEN, rem) {
		if (nla_type(attr) != IPVS_SYNC_A_CONN)
			continue;
		result = usync_conn_parse(ipvs, attr, &c, info->extack) ?:
			 usync_conn_key(&c, info->extack) ?:
			 fn(un, &c);
		if (result < 0)
			atomic64_inc(&un->refused);
		memcpy(nla_data(results) + n++ * sizeof(s32), &result, sizeof(s32));
		cond_resched();
	}
	genlmsg_end(msg, hdr);
	return genlmsg_reply(msg, info);
}

static int create(struct usync_net *un, struct usync_conn *c)
{
	int result = usync_conn_create(c);

	if (result >= 0)
		atomic64_inc(result & IPVS_SYNC_R_CREATED ? &un->created : &un->updated);
	return result;
}

static int delete(struct usync_net *un, struct usync_conn *c)
{
	int result = usync_conn_delete(c);

	if (!result)
		atomic64_inc(&un->deleted);
	return result;
}

static int create_doit(struct sk_buff *skb, struct genl_info *info)
{
	return change_conns(info, IPVS_SYNC_CMD_CREATE, create);
}

static int delete_doit(struct sk_buff *skb, struct genl_info *info)
{
	return change_conns(info, IPVS_SYNC_CMD_DELETE, delete);
}

static int put_stats(struct sk_buff *msg, struct net *net)
{
	struct usync_net *un = net_generic(net, usync_net_id);
	struct nlattr *nest = nla_nest_start(msg, IPVS_SYNC_A_STATS);
	const u64 rest[] = {
		atomic64_read(&un->created),
		atomic64_read(&un->updated),
		atomic64_read(&un->deleted),
		atomic64_read(&un->refused),
		atomic_read(&net_ipvs(net)->conn_count),
		*usync_sym.conn_tab_size,
	};
	int attr = IPVS_SYNC_STATS_NEW;
	unsigned int i;

	BUILD_BUG_ON(IPVS_SYNC_STATS_NEW + __USYNC_C_MAX != IPVS_SYNC_STATS_CREATED);
	BUILD_BUG_ON(IPVS_SYNC_STATS_CREATED + ARRAY_SIZE(rest) != __IPVS_SYNC_STATS_MAX);
	if (!nest)
		return -EMSGSIZE;
	for (i = 0; i < __USYNC_C_MAX; i++)
		if (nla_put_u64_64bit(msg, attr++, usync_count(un, i), IPVS_SYNC_STATS_PAD))
			return -EMSGSIZE;
	for (i = 0; i < ARRAY_SIZE(rest); i++)
		if (nla_put_u64_64bit(msg, attr++, rest[i], IPVS_SYNC_STATS_PAD))
			return -EMSGSIZE;
	nla_nest_end(msg, nest);
	return 0;
}

static int stats_doit(struct sk_buff *skb, struct genl_info *info)
{
	struct sk_buff *msg;
	void *hdr;

	msg = genlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	if (!msg)
		return -ENOMEM;
	hdr = genlmsg_put_reply(msg, info, &usync_family, 0, IPVS_SYNC_CMD_STATS);
	if (!hdr || put_stats(msg, genl_info_net(info))) {
		nlmsg_free(msg);
		return -EMSGSIZE;
	}
	genlmsg_end(msg, hdr);
	return genlmsg_reply(msg, info);
}

static const struct genl_ops ops[] = {
	{
		.cmd	= IPVS_SYNC_CMD_GET,
		.flags	= GENL_UNS_ADMIN_PERM,
		.doit	= get_doit,
		.start	= dump_start,
		.dumpit	= get_dumpit,
		.done	= dump_done,
	},
	{
		.cmd	= IPVS_SYNC_CMD_CREATE,
		.flags	= GENL_ADMIN_PERM,
		.doit	= create_doit,
	},
	{
		.cmd	= IPVS_SYNC_CMD_DELETE,
		.flags	= GENL_ADMIN_PERM,
		.doit	= delete_doit,
	},
	{
		.cmd	= IPVS_SYNC_CMD_STATS,
		.flags	= GENL_UNS_ADMIN_PERM,
		.doit	= stats_doit,
	},
};

static const struct genl_multicast_group groups[] = {
	{ .name = IPVS_SYNC_GROUP_EVENTS, .flags = USYNC_GROUP_PERM },
};

struct genl_family usync_family __ro_after_init = {
	.name		= IPVS_SYNC_NAME,
	.version	= IPVS_SYNC_VERSION,
	.maxattr	= IPVS_SYNC_A_MAX,
	.policy		= conns_policy,
	.netnsok	= true,
	.module		= THIS_MODULE,
	.ops		= ops,
	.n_ops		= ARRAY_SIZE(ops),
	.mcgrps		= groups,
	.n_mcgrps	= ARRAY_SIZE(groups),
};
