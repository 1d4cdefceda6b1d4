// SPDX-License-Identifier: GPL-2.0-only
/*
 * ip_vs_user_sync: tells user space of IPVS connections as they come, change
 * and go, and makes and deletes them as it is told. usync.h has the map.
 *
 * Order: the namespaces' part comes first, since the hooks and the commands use
 * it. The hooks come before the family, which they find without listeners until
 * it is there: so whoever sees the family, listens and dumps the table misses
 * nothing. At the end the hooks go first.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <net/netns/generic.h>

#include "usync.h"

unsigned int usync_net_id __read_mostly;

static int __net_init net_init(struct net *net)
{
	return usync_events_net_init(net);
}

static void __net_exit net_pre_exit(struct net *net)
{
	usync_events_net_close(net);
}

static void __net_exit net_exit(struct net *net)
{
	usync_events_net_free(net);
}

/*
 * Registered after ip_vs's own, so a namespace's end comes here first, while
 * the memory of struct usync_net stays until ip_vs is through.
 */
static struct pernet_operations net_ops = {
	.init		= net_init,
	.pre_exit	= net_pre_exit,
	.exit		= net_exit,
	.id		= &usync_net_id,
	.size		= sizeof(struct usync_net),
};

static int __init usync_init(void)
{
	int err;

	err = usync_symbols_find();
	if (err)
		return err;
	usync_events_init();
	usync_conn_init();
	err = register_pernet_subsys(&net_ops);
	if (err)
		return err;
	err = usync_hooks_install();
	if (err)
		goto err_net;
	err = genl_register_family(&usync_family);
	if (err)
		goto err_hooks;
	pr_info("loaded, family %s version %d\n", IPVS_SYNC_NAME, IPVS_SYNC_VERSION);
	return 0;

err_hooks:
	usync_hooks_remove();
err_net:
	unregister_pernet_subsys(&net_ops);
	return err;
}

static void __exit usync_exit(void)
{
	usync_hooks_remove();
	/*
	 * Batches may still wait for their timers. None may be sent once the
	 * family's group can be another family's; and no command may find the
	 * namespaces' part gone.
	 */
	usync_events_stop();
	genl_unregister_family(&usync_family);
	unregister_pernet_subsys(&net_ops);
}

module_init(usync_init);
module_exit(usync_exit);

MODULE_LICENSE("GPL");
MODULE_AUTHOR("the saru authors");
MODULE_DESCRIPTION("IPVS connections to and from user space over generic netlink");
MODULE_VERSION("1");
MODULE_ALIAS_GENL_FAMILY(IPVS_SYNC_NAME);
