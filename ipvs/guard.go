package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A guard is a table of nftables that keeps other local processes off the
// tap's paths.
//
//	table ip <interface> {
//	  chain guard {
//	    type filter hook output priority -400; policy accept;
//	    oifname <interface> meta skuid >= 0 drop
//	    oifname "lo" ip daddr <group> udp dport <inject port> meta skuid != <ours> drop
//	  }
//	}
//
// The kernel's own sockets have no user: "meta skuid" then matches nothing,
// so the master thread passes the first rule.
type guard struct {
	iface string
	port  uint16
}

const (
	guardChain = "guard"
	guardRules = 2
)

func (g guard) table() *nftables.Table {
	return &nftables.Table{Name: g.iface, Family: nftables.TableFamilyIPv4}
}

// install replaces the table, in one transaction.
func (g guard) install() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	t := c.AddTable(g.table())
	c.DelTable(t)
	t = c.AddTable(g.table())
	priority := nftables.ChainPriority(-400)
	chain := c.AddChain(&nftables.Chain{
		Name: guardChain, Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: &priority,
	})
	uid := binaryutil.NativeEndian.PutUint32(uint32(os.Geteuid()))
	drop := &expr.Verdict{Kind: expr.VerdictDrop}
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(g.iface)},
		&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{0, 0, 0, 0}},
		drop,
	}})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname("lo")},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: syncGroup.AsSlice()},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, g.port)},
		&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: uid},
		drop,
	}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	return nil
}

// present says whether the table is still there, with its rules.
func (g guard) present() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("guard: %w", err)
	}
	t := g.table()
	rules, err := c.GetRules(t, &nftables.Chain{Name: guardChain, Table: t})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("guard: %w", err)
	}
	return len(rules) == guardRules, nil
}

// remove deletes the table if it is there.
func (g guard) remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("guard: %w", err)
	}
	c.DelTable(g.table())
	if err := c.Flush(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("guard: %w", err)
	}
	return nil
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}
