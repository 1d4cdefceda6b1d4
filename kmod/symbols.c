// SPDX-License-Identifier: GPL-2.0-only
/*
 * Finding what ip_vs does not export.
 *
 * ip_vs exports what helpers of it need (ip_vs_conn_in_get, ip_vs_conn_new,
 * ip_vs_conn_put, ip_vs_proto_get ...), and the module uses these as any other
 * does, so their types are checked when it is built. The connection table, the
 * look-up of a real server, that of a template, and the expiry of an entry are
 * not exported. The kernel knows their addresses (kallsyms), and the only way
 * to ask that works in all kernels since 5.7 is to let a kprobe find
 * kallsyms_lookup_name. The kprobe is never armed: it is registered disabled,
 * read, and removed.
 *
 * Their types are not checked by anything but the test on each kernel, so a
 * kernel without one of them is refused when the module is loaded, and
 * compat.h names the versions that were looked at.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/string.h>

#include "usync.h"

struct usync_symbols usync_sym;

typedef unsigned long (*lookup_fn)(const char *name);

/*
 * The address of a function of the kernel. A probe at a function's entry is
 * put behind the landing pad of indirect branches (ENDBR), to which a call
 * must go: sprint_symbol says how far behind.
 */
static unsigned long function_start(const char *name)
{
	struct kprobe kp = { .symbol_name = name, .flags = KPROBE_FLAG_DISABLED };
	char text[KSYM_SYMBOL_LEN], *plus;
	unsigned long at, offset;
	int err;

	err = register_kprobe(&kp);
	if (err) {
		pr_err("cannot find %s by a kprobe: error %d\n", name, err);
		return 0;
	}
	at = (unsigned long)kp.addr;
	unregister_kprobe(&kp);

	/* "name+0x4/0x123" */
	sprint_symbol(text, at);
	plus = strchr(text, '+');
	if (!plus || strncmp(text, name, plus - text) || name[plus - text])
		goto bad;
	*strchrnul(plus, '/') = '\0';
	if (kstrtoul(plus + 1, 0, &offset))
		goto bad;
	return at - offset;
bad:
	pr_err("the kprobe on %s is at %s, refusing to guess\n", name, text);
	return 0;
}

int usync_symbols_find(void)
{
	static const struct {
		const char *name;
		void *to;
	} want[] = {
		{ "ip_vs:ip_vs_conn_tab", &usync_sym.conn_tab },
		{ "ip_vs:ip_vs_conn_tab_size", &usync_sym.conn_tab_size },
		{ "ip_vs:ip_vs_find_dest", &usync_sym.find_dest },
		{ "ip_vs:ip_vs_ct_in_get", &usync_sym.ct_in_get },
		{ "ip_vs:ip_vs_try_bind_dest", &usync_sym.try_bind_dest },
		{ "ip_vs:ip_vs_conn_expire", &usync_sym.conn_expire },
		{ "ip_vs:__ip_vs_pe_getbyname", &usync_sym.pe_getbyname },
	};
	lookup_fn lookup = (lookup_fn)function_start("kallsyms_lookup_name");
	unsigned int i;
	int err = 0;

	if (!lookup)
		return -ENOENT;
	for (i = 0; i < ARRAY_SIZE(want); i++) {
		unsigned long addr = lookup(want[i].name);

		/* ip_vs may be part of the kernel. */
		if (!addr)
			addr = lookup(want[i].name + strlen("ip_vs:"));
		if (!addr) {
			pr_err("this kernel has no symbol %s, which the module needs; it knows Linux 6.1 to 6.12\n",
			       want[i].name);
			err = -ENOENT;
			continue;
		}
		memcpy(want[i].to, &addr, sizeof(addr));
	}
	return err;
}
