package nft

import (
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The way of a packet through the hooks. What decides it is in judge.go.

// Priorities. The lease chain is before connection tracking (-200) and its
// defragmentation (-400), and before any usual operator's chain. Input is
// before IPVS (98, 99) and the usual filter chains (0); the backstop is after
// IPVS, so it sees what IPVS did not take.
const (
	leasePriority    = -1000
	ingressPriority  = 0
	inputPriority    = -10
	backstopPriority = 110
)

// inetIngress is NF_INET_INGRESS of linux/netfilter.h: the ingress hook of the
// inet family, since Linux 5.10. (The library's constant is that of the
// netdev family.)
const inetIngress nftables.ChainHook = 5

// build makes the chains. With defragment, the kernel is told to reassemble
// IPv6 before the input hook.
func (t *table) build(cfg *Config, s secrets, defragment bool) {
	defragment = defragment && slices.ContainsFunc(t.families, func(f served) bool { return !f.is4 })
	t.admits = []chain{gate("gate", cfg.Interface, s)}
	if cfg.Inside != nil && cfg.Inside.Interface != cfg.Interface {
		t.admits = append(t.admits, gate("gate_inside", cfg.Inside.Interface, s))
	}
	if cfg.Queues != nil {
		t.queued(cfg, s, canQueue())
		if defragment {
			t.chains = append(t.chains, defrag())
		}
		return
	}
	t.chains = append(t.ingress(cfg, s), t.input(cfg, s)...)
	for i := range t.families {
		t.chains = append(t.chains, t.judge(&t.families[i])...)
	}
	t.chains = append(append(t.chains, t.moves(), t.ours()), t.renewal(cfg, s)...)
	if cfg.Backstop {
		t.chains = append(t.chains, t.backstop()...)
	}
	if defragment {
		t.chains = append(t.chains, defrag())
	}
}

// ingress returns the chains of the LAN interface's ingress hook.
func (t *table) ingress(cfg *Config, s secrets) []chain {
	hook := inetIngress
	base := chain{name: "ingress", hook: &hook, priority: ingressPriority, device: cfg.Interface}
	chains := append(t.otherMACs(cfg, s), chain{name: "admit", rules: []phrase{
		rule(t.leased(), count(cntAccepted), setPriorityBy(keyReg, s.pass), accept()),
		rule(cfg.foreignMAC(), accept()),
		rule(count(cntLapsed), drop()),
	}})
	for _, f := range t.families {
		base.rules = append(base.rules, f.toVIP(goTo("vip_"+f.name))...)
		rules := append([]phrase{notShared(cfg)}, f.whole(goTo("judged_"+f.name))...)
		chains = append(chains, chain{name: "vip_" + f.name, rules: append(rules,
			rule(f.fragment, goTo("fragment")),
			jump("judge_"+f.name), // as judged does, with a chain less: most packets come this way
			goTo(moving),
		)})
	}
	if cfg.Inside != nil {
		chains = append(chains, t.inside(cfg, s, &base)...)
	}
	return append(chains, base)
}

// otherMACs returns the chains for what is not to the shared MAC, and for
// fragments.
func (t *table) otherMACs(cfg *Config, s secrets) []chain {
	return []chain{
		// Not the shared MAC. A broadcast reached every director, and UDP would
		// take it on each, so nobody does. The interface's own MAC is that of
		// a router with an old ARP entry, or one that divides by itself: nobody
		// else got the packet, so it is served; the sender is remembered. The
		// update is last: it ends the rule when the set is full.
		{name: "own", rules: []phrase{
			rule(toAll(), count(cntBroadcast), drop()),
			rule(meta(expr.MetaKeyPKTTYPE, unix.PACKET_HOST), count(cntOwn),
				phrase{load(linkHeader, keyReg, 6, 6), update(t.senders, keyReg, senderLife)}),
			accept(),
		}},
		// The MAC is looked at last: of what a packet can be asked it costs most,
		// and what is refused need not be asked. A frame to somebody else's
		// stays as it came.
		{name: "fragment", rules: []phrase{
			rule(cfg.foreignMAC(), accept()),
			t.unleased(),
			rule(faster(cfg.fragments()), count(cntFlood), drop()),
			rule(count(cntFragments), setPriority(s.piece), accept()),
		}},
	}
}

// ours is where a packet goes whose bucket is ours, from either hook: only at
// ingress it is still another host's.
func (t *table) ours() chain {
	return chain{name: ours, rules: []phrase{
		rule(meta(expr.MetaKeyPKTTYPE, unix.PACKET_OTHERHOST), goTo("admit")),
		t.unleased(),
		rule(count(cntAccepted), accept()),
	}}
}

// notShared sends on what is not to the shared MAC. Where that is the
// interface's own, only what is for all is not.
func notShared(cfg *Config) phrase {
	if cfg.Own {
		return rule(toAll(), goTo("own"))
	}
	return rule(notOtherHost(), goTo("own"))
}

// notOtherHost matches frames to the own MAC, and to all.
func notOtherHost() phrase {
	return phrase{&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: unix.NFT_REG_1}, compare(expr.CmpOpNeq, unix.PACKET_OTHERHOST)}
}

// leased matches frames to a shared MAC under a live lease: one lookup tells
// both, since the lease is an element of that MAC.
func (t *table) leased() phrase { return phrase{load(linkHeader, keyReg, 0, 6), in(t.lease, keyReg)} }

// unleased drops frames to a shared MAC without a live lease.
func (t *table) unleased() phrase {
	return rule(phrase{load(linkHeader, keyReg, 0, 6), notIn(t.lease, keyReg)}, count(cntLapsed), drop())
}

// gate returns the one chain of the netdev half for an interface: what carries a
// pass becomes this host's. A fragment's is taken from it, so that the datagram,
// which may keep it, has none at input.
func gate(name, device string, s secrets) chain {
	return chain{name: name, hook: nftables.ChainHookIngress, priority: ingressPriority + 1, device: device, rules: []phrase{
		rule(meta(expr.MetaKeyPRIORITY, s.pass[:]...), asHost(unix.NFT_REG_1)),
		rule(meta(expr.MetaKeyPRIORITY, s.piece[:]...), setPriorityBy(unix.NFT_REG_1, [4]byte{}), asHost(unix.NFT_REG_1)),
	}}
}

// input returns the chains of the input hook. They take the pass from what was
// judged, and judge what was not: datagrams whole by now, and what something
// else admitted. They hang on no interface, so they stand when the LAN
// interface, and with it the ingress chain, is deleted.
func (t *table) input(cfg *Config, s secrets) []chain {
	base := chain{name: "input", hook: nftables.ChainHookInput, priority: inputPriority, rules: []phrase{
		rule(meta(expr.MetaKeyPRIORITY, s.pass[:]...), setPriorityBy(unix.NFT_REG_1, [4]byte{}), accept()),
		rule(fromLoopback(), accept()),
	}}
	var chains []chain
	for _, f := range t.families {
		for _, mac := range cfg.sharedMACs() {
			base.rules = append(base.rules, f.toVIP(rule(toMAC(mac, expr.CmpOpEq), goTo("input_"+f.name)))...)
		}
		base.rules = append(base.rules, f.toVIP(rule(toAll(), count(cntBroadcast), drop()))...)
		chains = append(chains, chain{name: "input_" + f.name, rules: []phrase{
			rule(f.fragment, count(cntPieces), drop()),
			goTo("judged_" + f.name),
		}})
	}
	return append(chains, base)
}

func fromLoopback() phrase { return meta(expr.MetaKeyIIFTYPE, host16(unix.ARPHRD_LOOPBACK)...) }

// defrag returns a chain that nothing comes to. That it could hand packets to a
// transparent proxy makes the kernel reassemble IPv6 datagrams before the input
// hook, not behind it (nft_tproxy_init in net/netfilter/nft_tproxy.c), as it
// always does with IPv4.
func defrag() chain { return chain{name: "defrag", rules: []phrase{defragRule()}} }

func defragRule() phrase {
	const noDevice = 0xfffe // ARPHRD_NONE: lo and Ethernet are none
	return rule(
		meta(expr.MetaKeyIIFTYPE, host16(noDevice)...),
		meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6), l4(unix.IPPROTO_TCP),
		phrase{
			immediate(unix.NFT_REG_1, 0, 1),
			&expr.TProxy{Family: unix.NFPROTO_IPV6, TableFamily: unix.NFPROTO_INET, RegPort: unix.NFT_REG_1},
		},
	)
}
