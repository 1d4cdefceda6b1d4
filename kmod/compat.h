/* SPDX-License-Identifier: GPL-2.0-only */
/* What differs between kernel versions, all in one place. */
#ifndef _USYNC_COMPAT_H
#define _USYNC_COMPAT_H

#include <linux/ftrace.h>
#include <linux/hrtimer.h>
#include <linux/version.h>
#include <net/genetlink.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#error "ip_vs_user_sync needs Linux 6.1 or newer"
#endif

/*
 * Events are appended with interrupts off and a spinlock held, which sleeps in
 * a real-time kernel; and timers expire in threads there.
 */
#ifdef CONFIG_PREEMPT_RT
#error "ip_vs_user_sync does not work on a PREEMPT_RT kernel"
#endif

#ifndef CONFIG_KPROBES
#error "ip_vs_user_sync needs a kernel with CONFIG_KPROBES"
#endif

#if !defined(CONFIG_DYNAMIC_FTRACE_WITH_ARGS) && !defined(CONFIG_DYNAMIC_FTRACE_WITH_REGS)
#error "ip_vs_user_sync needs a kernel with CONFIG_DYNAMIC_FTRACE_WITH_ARGS or _REGS"
#endif

/* With arguments the instruction pointer is always there to be set. */
#ifdef CONFIG_DYNAMIC_FTRACE_WITH_ARGS
#define USYNC_FTRACE_FLAGS 0
#else
#define USYNC_FTRACE_FLAGS FTRACE_OPS_FL_SAVE_REGS
#endif

static __always_inline void usync_set_ip(struct ftrace_regs *fregs, unsigned long ip)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	ftrace_regs_set_instruction_pointer(fregs, ip);
#else
	ftrace_instruction_pointer_set(fregs, ip);
#endif
}

/* Who may join a multicast group; the old name served both purposes. */
#ifdef GENL_MCAST_CAP_NET_ADMIN
#define USYNC_GROUP_PERM GENL_MCAST_CAP_NET_ADMIN
#else
#define USYNC_GROUP_PERM GENL_UNS_ADMIN_PERM
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
