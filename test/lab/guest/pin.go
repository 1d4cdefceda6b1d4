package guest

import (
	"fmt"

	"github.com/google/nftables"
)

// pinHooks puts empty chains into every netfilter hook of the guest's first
// namespace, where no traffic passes. The kernel rewrites its own code when a
// hook gets its first user anywhere and when it loses its last; an emulated
// processor that runs through that code just then now and then meets the
// breakpoint of the rewriting when it is over, and the kernel panics (seen
// with QEMU 7.2 and 6.12: "Oops: int3" in __netif_receive_skb_core). A hook
// that always has a user is never rewritten under traffic.
func pinHooks() error {
	if out, err := modprobe("nf_tables"); err != nil {
		return fmt.Errorf("modprobe nf_tables: %w: %s", err, out)
	}
	c := &nftables.Conn{}
	inet := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "pin"})
	for name, hook := range map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput, "forward": nftables.ChainHookForward,
		"output": nftables.ChainHookOutput, "postrouting": nftables.ChainHookPostrouting,
	} {
		c.AddChain(&nftables.Chain{Table: inet, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
	}
	netdev := c.AddTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: "pin"})
	c.AddChain(&nftables.Chain{
		Table: netdev, Name: "ingress", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityFilter, Device: "lo",
	})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("pin the netfilter hooks: %w", err)
	}
	return nil
}
