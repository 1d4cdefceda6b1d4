package nft

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"saru/partition"
)

// LVS-NAT: what real servers send, from the inside interface to the forward
// hook. It is admitted like what clients send, by the same maps, and judged as
// partition.Divider.Decide says.
//
//	ingress_inside, on the inside interface       forward, priority -10
//	  to a VIP? ─► vip, as from outside             with a pass: take it, accept
//	  from a real server? ─► inside                 from a real server, to the shared MAC?
//	                │                                 │ still a fragment: drop
//	    fragment ───┼─► fragment                      │
//	                ▼                                 │
//	      judged_inside: judge_inside ◄───────────────┘
//	                │ source port a service's? ─► tcp_in_0, udp_in_0, … mirrored
//	                │ an error about such ──────► quote_in0_0, …
//	                │ else ─────────────────────► by the remote address
//
// IPVS has the forward hook at 99 and 100. What is still a real server's behind
// it is no reply to a connection that it knows: a reply is dropped there
// (leaks), since the client would reset the real server's socket for it. The
// real servers' own flows leave from the first virtual address, with the port
// that they have if it is free.

// An Inside is the real servers' side of a share, under LVS-NAT. The networks
// are those of the plan.
type Inside struct {
	Interface string
	MAC       net.HardwareAddr // what the real servers' packets are sent to; not Config.MAC
	From      netip.Addr       // virtual: the real servers' own flows leave with it
}

const (
	forwardPriority = inputPriority
	leaksPriority   = backstopPriority
	natPriority     = 100 // srcnat
)

// The states of connection tracking (enum ip_conntrack_info in
// linux/netfilter/nf_conntrack_common.h; NF_CT_STATE_BIT).
const ctInvalid, ctUntracked = 1, 1 << 6

// mirror returns the layout of the same packet for which the sender is the
// service.
func (l layout) mirror() layout {
	l.client, l.vip = l.vip, l.client
	l.clientPort, l.port = l.port, l.clientPort
	return l
}

// insideOf returns the sets of the real servers' networks and reply ports of a
// family, or nil where it has no network.
func (t *table) insideOf(f *served) {
	if t.divider.Inside == nil {
		return
	}
	var networks []netip.Prefix
	for _, n := range t.divider.Inside.Networks {
		if f.has(n.Addr()) {
			networks = append(networks, n)
		}
	}
	if len(networks) == 0 {
		return
	}
	f.inside = t.addresses("inside_"+f.name, f.family, networks, true)
}

// fromInside loads the sender, and matches if it is a real server.
func (f *served) fromInside() phrase {
	return rule(f.isPacket(), phrase{load(networkHeader, keyReg, f.packet.client, f.packet.addrLen), in(f.inside, keyReg)})
}

// toInside matches what goes to a real server.
func (f *served) toInside() phrase {
	return phrase{load(networkHeader, keyReg, f.packet.vip, f.packet.addrLen), in(f.inside, keyReg)}
}

// inside returns the chains of LVS-NAT. base is the ingress chain of the LAN
// interface, which may be the real servers', too.
func (t *table) inside(cfg *Config, s secrets, base *chain) []chain {
	hook := inetIngress
	ingress := chain{name: "ingress_inside", hook: &hook, priority: ingressPriority, device: cfg.Inside.Interface}
	same := cfg.Inside.Interface == cfg.Interface
	into := &ingress
	if same {
		into = base
	}
	forward := chain{name: "forward", hook: nftables.ChainHookForward, priority: forwardPriority, rules: []phrase{
		rule(meta(expr.MetaKeyPRIORITY, s.pass[:]...), setPriorityBy(unix.NFT_REG_1, [4]byte{}), accept()),
	}}
	leaks := chain{name: "leaks", hook: nftables.ChainHookForward, priority: leaksPriority}
	nat := chain{name: "masquerade", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: natPriority}
	var chains []chain
	for i := range t.families {
		f := &t.families[i]
		if !same {
			into.rules = append(into.rules, f.toVIP(goTo("vip_"+f.name))...)
		}
		if f.inside == nil {
			continue
		}
		into.rules = append(into.rules, rule(f.fromInside(), goTo("inside_"+f.name)))
		forward.rules = append(forward.rules,
			rule(f.fromInside(), toMAC(cfg.Inside.MAC, expr.CmpOpEq), goTo("forward_"+f.name)),
			rule(f.fromInside(), toAll(), count(cntBroadcast), drop()))
		leaks.rules = append(leaks.rules, t.leaks(f)...)
		if f.has(cfg.Inside.From) {
			nat.rules = append(nat.rules, rule(f.fromInside(), t.elsewhere(f), snat(f, cfg.Inside.From)))
		}
		chains = append(chains, t.judgeInside(f)...)
	}
	chains = append(chains, forward, leaks, nat)
	if !same {
		chains = append(chains, ingress)
	}
	return chains
}

// elsewhere matches what does not go to a real server.
func (t *table) elsewhere(f *served) phrase {
	return phrase{load(networkHeader, keyReg, f.packet.vip, f.packet.addrLen), notIn(f.inside, keyReg)}
}

// snat gives a packet another source, and its port if that is free.
func snat(f *served, from netip.Addr) phrase {
	proto := uint32(unix.NFPROTO_IPV6)
	if f.is4 {
		proto = unix.NFPROTO_IPV4
	}
	return phrase{
		immediate(unix.NFT_REG_1, from.AsSlice()...),
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: proto, RegAddrMin: unix.NFT_REG_1},
	}
}

// leaks returns the rules that drop what must not leave with a real server's
// address: replies that IPVS did not know, and what connection tracking cannot
// translate.
func (t *table) leaks(f *served) []phrase {
	l := f.packet.mirror()
	rules := []phrase{rule(f.fromInside(), f.toInside(), accept())}
	if ports := t.replyPorts(f); ports != nil {
		rules = append(rules, rule(f.fromInside(),
			phrase{l.proto, load(transportHeader, protoReg+1, l.port, 2), in(ports, protoReg)}, count(cntLeaks), drop()))
	}
	untranslatable := phrase{
		&expr.Ct{Register: unix.NFT_REG_1, Key: expr.CtKeySTATE}, and(unix.NFT_REG_1, host32(ctInvalid|ctUntracked)),
		compare(expr.CmpOpNeq, 0, 0, 0, 0),
	}
	return append(rules, rule(f.fromInside(), untranslatable, count(cntLeaks), drop()))
}

func portKey(proto uint8, port uint16) []byte {
	return []byte{proto, 0, 0, 0, byte(port >> 8), byte(port), 0, 0}
}

var portType = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)

// replyPorts returns the set of what real servers send replies from, or nil.
func (t *table) replyPorts(f *served) *nftables.Set {
	var elements []nftables.SetElement
	for r := range t.divider.Replies {
		elements = append(elements, nftables.SetElement{Key: portKey(r.Proto, r.Port)})
	}
	if len(elements) == 0 {
		return nil
	}
	s := t.set("reply_ports_"+f.name, portType)
	s.Concatenation, s.Constant = true, true
	t.maps = append(t.maps, filled{s, elements})
	return s
}

// replyChains returns a rule that sends what comes from a reply port to the
// chain of its protocol and division, or nil.
func (t *table) replyChains(name string, l *layout, chain func(proto uint8, division int) string) phrase {
	var elements []nftables.SetElement
	for r, k := range t.divider.Replies {
		elements = append(elements, nftables.SetElement{
			Key: portKey(r.Proto, r.Port), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain(r.Proto, k)},
		})
	}
	if len(elements) == 0 {
		return nil
	}
	m := t.set(fmt.Sprintf("%s_%d", name, len(t.maps)), portType)
	m.IsMap, m.DataType, m.Concatenation, m.Constant = true, nftables.TypeVerdict, true, true
	t.maps = append(t.maps, filled{m, elements})
	return phrase{l.proto, load(transportHeader, protoReg+1, l.port, 2), fateIn(m, protoReg)}
}

// judgeInside returns the chains that judge what real servers of a family
// send.
func (t *table) judgeInside(f *served) []chain {
	l := f.packet.mirror()
	remote := phrase{load(networkHeader, keyReg, l.client, l.addrLen), t.jenkins(l.addrLen)} // partition.Plan.AddrBucket
	chains := t.flowChains(f, "in_out", remote, phrase{load(transportHeader, unix.NFT_REG_1, 0, 4)})
	for k, d := range t.divider.Divisions {
		if d.Sense&(partition.DstAddr|partition.DstPort) == 0 {
			chains = append(chains, t.flowChains(f, fmt.Sprintf("in_%d", k), t.bucketOf(f.family, &l, d), bothPorts(d))...)
		}
	}
	other := chain{name: "other_in_" + f.name, rules: []phrase{rule(remote, t.fate(t.open)), drop()}}
	icmp := chain{name: "icmp_in_" + f.name}
	for i := range f.quotes {
		q := f.quotes[i].mirror()
		what := fmt.Sprintf("quote_in%d", i)
		to := t.replyChains("quoted_"+f.name, &q, func(_ uint8, k int) string { return flowChain(what, k, f.family) })
		if to == nil {
			continue
		}
		for _, kind := range partition.ICMPErrors(f.is4) {
			icmp.rules = append(icmp.rules, rule(transport(0, kind), q.readable,
				phrase{load(transportHeader, unix.NFT_REG_1, min(q.port, q.clientPort), 4)}, // both ports are there
				to))
		}
		for k, d := range t.divider.Divisions {
			chains = append(chains, chain{name: flowChain(what, k, f.family), rules: []phrase{
				rule(t.bucketOf(f.family, &q, d), t.fate(t.open)), goTo(other.name),
			}})
		}
	}
	icmp.rules = append(icmp.rules, goTo(other.name))
	judge := chain{name: "judge_inside_" + f.name}
	if to := t.replyChains("replies_"+f.name, &l, func(proto uint8, k int) string {
		return fmt.Sprintf("%s_in_%d_%s", partition.ProtoName(proto), k, f.name)
	}); to != nil {
		judge.rules = append(judge.rules, to)
	}
	for _, proto := range partition.Ported {
		judge.rules = append(judge.rules, rule(isProto(&l, proto), goTo(fmt.Sprintf("%s_in_out_%s", partition.ProtoName(proto), f.name))))
	}
	judge.rules = append(judge.rules, rule(l4(f.family.icmp), goTo(icmp.name)), goTo(other.name))
	return append(chains, other, icmp, judge,
		chain{name: "judged_inside_" + f.name, rules: []phrase{jump(judge.name), goTo(moving)}},
		chain{name: "inside_" + f.name, rules: []phrase{
			rule(notOtherHost(), accept()),
			rule(f.fragment, goTo("fragment")),
			goTo("judged_inside_" + f.name),
		}},
		chain{name: "forward_" + f.name, rules: []phrase{
			rule(f.fragment, count(cntPieces), drop()),
			goTo("judged_inside_" + f.name),
		}})
}

// ProbeInside is Probe for what LVS-NAT needs besides.
func ProbeInside() error {
	ft := feature{"connection tracking (nft_ct)", *nftables.ChainHookForward, func(*table) phrase {
		return phrase{&expr.Ct{Register: unix.NFT_REG_1, Key: expr.CtKeySTATE}, compare(expr.CmpOpEq, host32(ctInvalid)...)}
	}, false}
	return ft.probe()
}

// check returns what is wrong with the inside of c.
func (in *Inside) check(c *Config, d *partition.Divider) error {
	switch {
	case in == nil && c.Plan.Inside == nil:
		return nil
	case in == nil || c.Plan.Inside == nil:
		return errors.New("nft: inside: both the interface and the plan must have it")
	case c.Queues != nil:
		return errors.New("nft: inside: LVS-NAT is judged by rules, not by queues")
	case len(in.MAC) != 6 || in.MAC[0]&1 != 0 || bytes.Equal(in.MAC, make([]byte, 6)):
		return fmt.Errorf("nft: inside: shared MAC %q: use a unicast Ethernet address such as 02:00:5e:00:01:ca", in.MAC)
	case bytes.Equal(in.MAC, c.MAC):
		return fmt.Errorf("nft: inside: shared MAC %v is that of the virtual addresses: use another", in.MAC)
	case !d.IsVIP(in.From):
		return fmt.Errorf("nft: inside: %v is no virtual address", in.From)
	}
	ifi, err := net.InterfaceByName(in.Interface)
	if err != nil {
		return fmt.Errorf("nft: inside: interface %q: %w", in.Interface, err)
	}
	if bytes.Equal(ifi.HardwareAddr, in.MAC) {
		return fmt.Errorf("nft: inside: shared MAC %v is the own one of %s: it must belong to no interface", in.MAC, in.Interface)
	}
	return nil
}
