package nft

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"saru/partition"
)

// What decides a packet: partition.Divider.Decide, as rules.
//
// A chain that judges ends in a drop. Before that the maps open and rest say
// what the bucket of the packet is: ours, and it goes to the chain ours;
// foreign, and it is dropped; or in motion, and it returns to the chain judged,
// which sends it to the chain moving.

// judge returns the chains that judge the packets of a family.
func (t *table) judge(f *served) []chain {
	chains := []chain{
		{name: "other_" + f.name, rules: []phrase{
			rule(t.addrBucketOf(f.family), t.fate(t.open)),
			drop(),
		}},
	}
	for k, d := range t.divider.Divisions {
		chains = append(chains, t.flows(f, k, d)...)
	}
	chains = append(chains, t.icmp(f, rule(count(cntNeighbour), accept()), func(l *layout, d partition.Division) []phrase {
		return []phrase{rule(t.bucketOf(f.family, l, d), t.fate(t.open)), goTo("other_" + f.name)}
	})...)
	services := t.services(f, &f.packet, partition.Ported, func(proto uint8, k int) string {
		return flowChain(partition.ProtoName(proto), k, f.family)
	})
	return append(chains,
		chain{name: "judge_" + f.name, rules: append(services,
			rule(l4(f.family.icmp), goTo("icmp_"+f.name)),
			goTo("other_"+f.name),
		)},
		chain{name: "judged_" + f.name, rules: []phrase{jump("judge_" + f.name), goTo(moving)}},
	)
}

// flowChain names the chain for flows of division k.
func flowChain(what string, k int, f *family) string { return fmt.Sprintf("%s_%d_%s", what, k, f.name) }

// fate does what a map says of the bucket in its register. It is the end of a
// rule: a verdict that continues comes to ours.
func (t *table) fate(m *nftables.Set) phrase {
	return rule(phrase{fateIn(m, bucketReg)}, goTo(ours))
}

// flows returns the chains that judge the packets of one division.
func (t *table) flows(f *served, k int, d partition.Division) []chain {
	return t.flowChains(f, fmt.Sprint(k), t.bucketOf(f.family, &f.packet, d), bothPorts(d))
}

// flowChains returns the chains that judge the packets whose bucket a phrase
// computes, one per protocol; whole matches what does not end before the ports,
// if the phrase does not read them anyway.
func (t *table) flowChains(f *served, which string, bucket, whole phrase) []chain {
	malformed := rule(count(cntMalformed), drop())
	return []chain{
		{name: fmt.Sprintf("tcp_%s_%s", which, f.name), rules: []phrase{
			rule(tcpOpens(false), bucket, t.fate(t.rest)),
			rule(tcpOpens(true), bucket, t.fate(t.open)),
			malformed,
		}},
		{name: fmt.Sprintf("udp_%s_%s", which, f.name), rules: []phrase{
			rule(whole, bucket, t.fate(t.open)),
			malformed,
		}},
		{name: fmt.Sprintf("sctp_%s_%s", which, f.name), rules: []phrase{
			rule(sctpOpens(false), bucket, t.fate(t.rest)),
			rule(sctpOpens(true), bucket, t.fate(t.open)),
			malformed,
		}},
	}
}

// bothPorts matches what does not end before the ports, if the division does
// not read the second of them anyway.
func bothPorts(d partition.Division) phrase {
	if d.Sense&partition.DstPort != 0 {
		return nil
	}
	return phrase{load(transportHeader, unix.NFT_REG_1, 2, 2)}
}

// icmp returns the chains that judge ICMP: errors by the flow that they quote,
// all else by its source. by returns the rules that decide a quoted flow of a
// division; neighbour is what becomes of neighbour discovery.
func (t *table) icmp(f *served, neighbour phrase, by func(l *layout, d partition.Division) []phrase) []chain {
	var chains []chain
	icmp := chain{name: "icmp_" + f.name}
	if !f.is4 {
		icmp.rules = append(icmp.rules, rule(neighbourDiscovery(), neighbour))
	}
	for i := range f.quotes {
		l := &f.quotes[i]
		what := fmt.Sprintf("quote%d", i)
		for _, kind := range partition.ICMPErrors(f.is4) {
			icmp.rules = append(icmp.rules, rule(
				transport(0, kind), l.readable,
				phrase{load(transportHeader, unix.NFT_REG_1, l.port, 4)}, // both ports are there
				goTo(what+"_"+f.name)))
		}
		for k, d := range t.divider.Divisions {
			chains = append(chains, chain{name: flowChain(what, k, f.family), rules: by(l, d)})
		}
		services := t.services(f, l, partition.Ported, func(_ uint8, k int) string { return flowChain(what, k, f.family) })
		chains = append(chains, chain{name: what + "_" + f.name, rules: append(services, goTo("other_"+f.name))})
	}
	icmp.rules = append(icmp.rules, goTo("other_"+f.name))
	return append(chains, icmp)
}

// neighbourDiscovery matches the messages of RFC 4861.
func neighbourDiscovery() phrase {
	return phrase{
		load(transportHeader, unix.NFT_REG_1, 0, 1),
		&expr.Range{
			Op: expr.CmpOpEq, Register: unix.NFT_REG_1,
			FromData: []byte{partition.Neighbours[0]}, ToData: []byte{partition.Neighbours[1]},
		},
	}
}

// services returns the rules that send a packet to the chain of its protocol
// and its service's division, in the order of partition.Divider. The packets
// of other protocols pass them.
func (t *table) services(f *served, l *layout, protos []uint8, chain func(proto uint8, division int) string) []phrase {
	var rules []phrase
	words := l.addrLen / 4
	for _, level := range []struct {
		what  string
		where map[partition.Endpoint]int
		key   phrase
		types []nftables.SetDatatype
	}{
		{
			"services", t.divider.Exact,
			phrase{l.proto, load(l.addrs, protoReg+1, l.vip, l.addrLen), load(transportHeader, protoReg+1+words, l.port, 2)},
			[]nftables.SetDatatype{nftables.TypeInetProto, f.address, nftables.TypeInetService},
		},
		{
			"addresses", t.divider.AnyPort,
			phrase{l.proto, load(l.addrs, protoReg+1, l.vip, l.addrLen)},
			[]nftables.SetDatatype{nftables.TypeInetProto, f.address},
		},
	} {
		var elements []nftables.SetElement
		for e, k := range level.where {
			if f.has(e.Addr) && slices.Contains(protos, e.Proto) {
				elements = append(elements, nftables.SetElement{
					Key:         endpointKey(e),
					VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain(e.Proto, k)},
				})
			}
		}
		if len(elements) == 0 {
			continue
		}
		m := t.set(fmt.Sprintf("%s_%s_%d", level.what, f.name, len(t.maps)), nftables.MustConcatSetType(level.types...))
		m.IsMap, m.DataType, m.Concatenation, m.Constant = true, nftables.TypeVerdict, true, true
		t.maps = append(t.maps, filled{m, elements})
		rules = append(rules, rule(level.key, phrase{fateIn(m, protoReg)}))
	}
	for _, n := range t.divider.Networks {
		for _, proto := range protos {
			if f.has(n.VIP.Addr()) && (n.Proto == 0 || n.Proto == proto) {
				rules = append(rules, rule(isProto(l, proto), toNetwork(l, n.VIP.Bits(), n.VIP.Addr().AsSlice()),
					toPort(l, n.Port), goTo(chain(proto, n.Index))))
			}
		}
	}
	for _, proto := range protos {
		rules = append(rules, rule(isProto(l, proto), goTo(chain(proto, 0))))
	}
	return rules
}

// endpointKey is the key of a service: each field in words of its own.
func endpointKey(e partition.Endpoint) []byte {
	key := append([]byte{e.Proto, 0, 0, 0}, e.Addr.AsSlice()...)
	if e.Port != 0 {
		key = append(key, byte(e.Port>>8), byte(e.Port), 0, 0)
	}
	return key
}

func isProto(l *layout, proto uint8) phrase {
	return phrase{l.proto, &expr.Cmp{Op: expr.CmpOpEq, Register: protoReg, Data: []byte{proto}}}
}

func toNetwork(l *layout, bits int, network []byte) phrase {
	return phrase{
		load(l.addrs, unix.NFT_REG_1, l.vip, l.addrLen), and(unix.NFT_REG_1, mask(bits, int(l.addrLen))),
		compare(expr.CmpOpEq, network...),
	}
}

func toPort(l *layout, port uint16) phrase {
	if port == 0 {
		return nil
	}
	return matchBytes(transportHeader, l.port, expr.CmpOpEq, byte(port>>8), byte(port))
}

// Where packets go that the maps open and rest do not drop.
const (
	ours   = "ours"
	moving = "moving"
)

// moves returns the chain for packets of buckets whose rest is ours and whose
// open is another's. A packet that opens a flow is another director's to take,
// and from then on so is the rest of that flow, even if it had been ours: what
// looks like a retransmission was scheduled anew there.
func (t *table) moves() chain {
	c := chain{name: moving}
	for _, f := range t.families {
		for _, p := range []struct {
			proto byte
			opens func(bool) phrase
		}{{unix.IPPROTO_TCP, tcpOpens}, {unix.IPPROTO_SCTP, sctpOpens}} {
			flow := rule(f.isPacket(), l4(p.proto), p.opens(true), f.flowKey())
			c.rules = append(c.rules,
				rule(flow, phrase{update(f.superseded, keyReg, supersededLife)}, count(cntSuperseding), drop()))
			flow = rule(f.isPacket(), l4(p.proto), p.opens(false), f.flowKey())
			c.rules = append(c.rules,
				rule(flow, phrase{in(f.superseded, keyReg)}, count(cntSuperseded), drop()),
				rule(flow, goTo(ours)))
		}
	}
	c.rules = append(c.rules, drop())
	return c
}

// backstop returns the chains that keep the local stack from answering an
// unknown connection with a reset while its state may still come.
func (t *table) backstop() []chain {
	base := chain{name: "backstop", hook: nftables.ChainHookInput, priority: backstopPriority, rules: []phrase{
		rule(fromLoopback(), accept()),
	}}
	var chains []chain
	for i := range t.families {
		f := &t.families[i]
		for k, d := range t.divider.Divisions {
			chains = append(chains, chain{name: flowChain("settle", k, f.family), rules: []phrase{
				rule(t.bucketOf(f.family, &f.packet, d), phrase{in(t.settling, bucketReg)}, count(cntSilenced), drop()),
			}})
		}
		base.rules = append(base.rules, f.toVIP(goTo("settle_"+f.name))...)
		chains = append(chains, chain{name: "settle_" + f.name, rules: append(
			[]phrase{
				rule(l4(unix.IPPROTO_TCP), tcpOpens(true), accept()),
				rule(l4(unix.IPPROTO_SCTP), sctpOpens(true), accept()),
			},
			t.services(f, &f.packet, []uint8{partition.TCP, partition.SCTP},
				func(_ uint8, k int) string { return flowChain("settle", k, f.family) })...,
		)})
	}
	return append(chains, base)
}
