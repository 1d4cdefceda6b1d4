package nft

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"saru/partition"
)

// A feature is something that the filter needs of the kernel.
type feature struct {
	name  string
	chain nftables.ChainHook
	rule  func(t *table) phrase // nil: the chain alone

	judges bool // needed only where rules judge, not queues
}

var features = []feature{
	{"nf_tables with an ingress hook in family inet (Linux 5.10)", inetIngress, nil, false},
	{"meta priority (nft_meta)", inetIngress, func(*table) phrase { return setPriority([4]byte{}) }, false},
	{"sets and lookups (nft_set_hash)", inetIngress, func(t *table) phrase {
		return rule(phrase{immediate(keyReg, make([]byte, 6)...), in(t.lease, keyReg)})
	}, false},
	{"jhash (nft_hash)", inetIngress, func(t *table) phrase { return t.addrBucketOf(&families[0]) }, true},
	{"verdict maps with counters (nft_set_hash)", inetIngress, func(t *table) phrase {
		return phrase{immediate(keyReg, 0, 0, 0, 0), fateIn(t.open, keyReg)}
	}, true},
	{"IPv6 extension headers (nft_exthdr)", inetIngress, func(*table) phrase { return families[1].fragment }, false},
	{"sets renewed by packets, with timeouts (nft_dynset)", *nftables.ChainHookOutput, func(t *table) phrase {
		return phrase{immediate(keyReg, make([]byte, 6)...), update(t.lease, keyReg, senderLife)}
	}, false},
	{"meta skuid (nft_meta)", *nftables.ChainHookOutput, func(*table) phrase {
		return meta(expr.MetaKeySKUID, 0, 0, 0, 0)
	}, false},
	{"limits (nft_limit)", inetIngress, func(*table) phrase { return faster(1) }, false},
	{"named counters (nft_objref)", inetIngress, func(*table) phrase { return count(cntAccepted) }, false},
}

// Probe says whether the kernel has what a Filter needs. The error names what
// is missing and is ErrNotSupported, or unix.EPERM without CAP_NET_ADMIN. No
// state is changed: each trial is a transaction made to fail at its end.
func Probe() error {
	for _, ft := range features {
		if err := ft.probe(); err != nil {
			return err
		}
	}
	return nil
}

// canDefrag reports whether the kernel can be told to reassemble IPv6 before
// the input hook. Where it cannot, and IPVS does not, fragments of IPv6 are
// dropped there, and counted.
func canDefrag() bool {
	ft := feature{"transparent proxy (nft_tproxy)", *nftables.ChainHookPrerouting, func(*table) phrase { return defragRule() }, false}
	return ft.probe() == nil
}

func (ft *feature) probe() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nft: %w", err)
	}
	d, err := partition.NewDivider(partition.Plan{
		VIPs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}, Buckets: 1,
		Default: partition.Division{Sense: partition.SrcPort},
	})
	if err != nil {
		return fmt.Errorf("nft: %w", err)
	}
	t := newTable("saru-probe", d, false)
	c.AddTable(t.Table)
	ch := chain{name: "probe", hook: &ft.chain, rules: nil}
	if ft.chain == inetIngress {
		ch.device = "lo"
	}
	if ft.rule != nil {
		c.AddObj(&nftables.NamedObj{Table: t.Table, Name: cntAccepted, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
		sets := []*nftables.Set{t.lease}
		if ft.judges {
			sets = append(sets, t.open)
		}
		for _, s := range sets {
			if err := c.AddSet(s, nil); err != nil {
				return fmt.Errorf("nft: %w", err)
			}
		}
		ch.rules = []phrase{ft.rule(t)}
	}
	ch.declare(c, t.Table)
	ch.fill(c, t.Table)
	c.AddTable(t.gate)
	g := gate("gate", "lo", secrets{})
	g.declare(c, t.gate)
	g.fill(c, t.gate)
	// The poison: the table exists by now. All messages of a transaction are
	// tried and the errors come in their order, so this one comes last.
	c.CreateTable(t.Table)
	err = c.Flush()
	switch {
	case errors.Is(err, unix.EEXIST):
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("nft: %w", unix.EPERM)
	case err == nil:
		return fmt.Errorf("nft: the kernel created table %s twice; remove it with: nft delete table inet %s", t.Name, t.Name)
	}
	var op *netlink.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return fmt.Errorf("nft: %s: %w: %w", ft.name, ErrNotSupported, err)
}
