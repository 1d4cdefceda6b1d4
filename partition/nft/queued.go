package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Queues are the queues of nfnetlink_queue that judge instead of the maps open
// and rest. The kernel still holds the lease, on both sides of them: a packet
// reaches a queue only while the lease lives, and when user space has accepted
// it, it passes the chain behind the queues only if the lease lives then.
//
//	ingress ─► VIP, shared MAC? lease? pass ─► gate ─► input ─► whole? lease? queue
//	                                                                  │ accept
//	                          IPVS, local stack ◄─ lease? ◄─ judged ◄─┘
//
// Nobody reads a queue: the kernel drops what comes. User space must drop what
// is not to be taken; package partition/queue does.
type Queues struct {
	First uint16 // number of the first
	N     uint16 // so many, one after the other; a CPU's packets go to one of them
}

// backstop is the queue of what neither IPVS nor a local connection may have:
// the one behind the others.
func (q *Queues) backstop() uint16 { return q.First + q.N }

// judgedPriority is behind the queues, and before all others.
const judgedPriority = inputPriority + 1

// queued makes the chains that let user space judge.
func (t *table) queued(cfg *Config, s secrets, native bool) {
	hook := inetIngress
	ingress := chain{name: "ingress", hook: &hook, priority: ingressPriority, device: cfg.Interface}
	all := t.otherMACs(cfg, s)
	all = append(all, chain{name: "queued", rules: []phrase{
		rule(toMAC(cfg.MAC, expr.CmpOpNeq), accept()),
		t.unleased(),
		rule(setPriority(s.pass), accept()),
	}})
	// The pass goes no further than here: what follows is judged whether it
	// had one or not.
	input := chain{name: "input", hook: nftables.ChainHookInput, priority: inputPriority, rules: []phrase{
		rule(meta(expr.MetaKeyPRIORITY, s.pass[:]...), setPriorityBy(unix.NFT_REG_1, [4]byte{})),
		rule(fromLoopback(), accept()),
	}}
	judged := chain{name: "judged", hook: nftables.ChainHookInput, priority: judgedPriority, rules: []phrase{rule(fromLoopback(), accept())}}
	backstop := chain{name: "backstop", hook: nftables.ChainHookInput, priority: backstopPriority, rules: []phrase{rule(fromLoopback(), accept())}}
	last := toQueue(cfg.Queues.backstop(), 1, native)
	for i := range t.families {
		f := &t.families[i]
		ingress.rules = append(ingress.rules, f.toVIP(goTo("vip_"+f.name))...)
		vip := chain{name: "vip_" + f.name, rules: []phrase{notShared(cfg)}}
		if !f.is4 {
			vip.rules = append(vip.rules, rule(l4(f.family.icmp), neighbourDiscovery(), count(cntNeighbour), accept()))
		}
		vip.rules = append(vip.rules, f.whole(goTo("queued"))...)
		vip.rules = append(vip.rules, rule(f.fragment, goTo("fragment")), goTo("queued"))
		input.rules = append(input.rules, f.toVIP(rule(toMAC(cfg.MAC, expr.CmpOpEq), goTo("input_"+f.name)))...)
		input.rules = append(input.rules, f.toVIP(rule(toAll(), count(cntBroadcast), drop()))...)
		judged.rules = append(judged.rules, f.toVIP(rule(toMAC(cfg.MAC, expr.CmpOpEq), goTo("judged_"+f.name)))...)
		backstop.rules = append(backstop.rules, f.toVIP(rule(l4(unix.IPPROTO_TCP), tcpOpens(false), last))...)
		backstop.rules = append(backstop.rules, f.toVIP(rule(l4(unix.IPPROTO_SCTP), sctpOpens(false), last))...)
		all = append(all, vip, chain{name: "input_" + f.name, rules: []phrase{
			rule(f.fragment, count(cntPieces), drop()),
			t.unleased(),
			toQueue(cfg.Queues.First, cfg.Queues.N, native),
		}}, chain{name: "judged_" + f.name, rules: []phrase{
			t.unleased(),
			rule(count(cntAccepted), accept()),
		}})
	}
	t.chains = append(append(all, ingress, input, judged), t.renewal(cfg, s)...)
	if cfg.Backstop {
		t.chains = append(t.chains, backstop)
	}
}

// toQueue hands a packet to the queue of its CPU: by the statement of nf_tables
// if the kernel has that, else by the target of iptables (linux/netfilter/
// xt_NFQUEUE.h, revision 3). Without the flag "bypass" the kernel drops what
// nobody reads.
func toQueue(first, n uint16, native bool) phrase {
	flags := uint16(0)
	if n > 1 {
		flags = uint16(expr.QueueFlagFanout)
	}
	if native {
		return phrase{&expr.Queue{Num: first, Total: n, Flag: expr.QueueFlag(flags)}}
	}
	info := make([]byte, 8) // three numbers, and what aligns them
	for i, v := range []uint16{first, n, flags} {
		binary.NativeEndian.PutUint16(info[2*i:], v)
	}
	return phrase{&expr.Target{Name: "NFQUEUE", Rev: 3, Info: (*xt.Unknown)(&info)}}
}

// canQueue reports whether nf_tables itself can hand packets to a queue.
func canQueue() bool {
	ft := feature{"", *nftables.ChainHookInput, func(*table) phrase { return toQueue(1, 1, true) }, false}
	return ft.probe() == nil
}

// ProbeQueues is Probe for a Filter with Queues, which needs no hash and no
// maps of verdicts.
func ProbeQueues() error {
	for _, ft := range features {
		if ft.judges {
			continue
		}
		if err := ft.probe(); err != nil {
			return err
		}
	}
	if canQueue() {
		return nil
	}
	ft := feature{
		"queues (nft_queue, or nft_compat with xt_NFQUEUE)", *nftables.ChainHookInput,
		func(*table) phrase { return toQueue(1, 1, false) }, false,
	}
	return ft.probe()
}

func (q *Queues) check() error {
	switch {
	case q == nil:
		return nil
	case q.N < 1 || q.N > 255:
		return fmt.Errorf("nft: %d queues: use 1 to 255", q.N)
	case int(q.First)+int(q.N) > 0xffff:
		return errors.New("nft: a queue has a number beyond 65535")
	}
	return nil
}
