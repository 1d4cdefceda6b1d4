/* SPDX-License-Identifier: GPL-2.0-only */
/* What differs between kernel versions, all in one place. */
#ifndef _USYNC_COMPAT_H
#define _USYNC_COMPAT_H

#include <linux/hrtimer.h>
#include <linux/version.h>
#include <net/genetlink.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#error "ip_vs_user_sync needs Linux 6.1 or newer"
#endif

/*
 * The probes run with preemption off and take a spinlock, which sleeps in a
 * real-time kernel.
 */
#ifdef CONFIG_PREEMPT_RT
#error "ip_vs_user_sync does not work on a PREEMPT_RT kernel"
#endif

#ifndef CONFIG_KRETPROBES
#error "ip_vs_user_sync needs a kernel with CONFIG_KRETPROBES"
#endif

static inline void usync_hrtimer_setup(struct hrtimer *t,
				       enum hrtimer_restart (*fn)(struct hrtimer *))
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(t, fn, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_SOFT);
#else
	hrtimer_init(t, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_SOFT);
	t->function = fn;
#endif
}

/* The attributes of a dump's request */
static inline struct nlattr **usync_dump_attrs(struct netlink_callback *cb)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
	return genl_info_dump(cb)->attrs;
#else
	return genl_dumpit_info(cb)->attrs;
#endif
}

#endif
