package firstpacket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the table's; there is one syncd in a network namespace.
const (
	tableName = "syncd_defer"
	chainName = "held"
)

// priority is behind all filters: what they drop is not held before.
const priority = 200

// Registers of nf_tables: 16 bytes each, or 4 from 8 on.
const (
	regAddr  = 1
	regPort4 = 9  // behind 4 bytes of an address
	regPort6 = 12 // behind 16
)

func table() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

func set(t *nftables.Table, six bool) *nftables.Set {
	name, addr := "targets4", nftables.TypeIPAddr
	if six {
		name, addr = "targets6", nftables.TypeIP6Addr
	}
	return &nftables.Set{
		Table: t, Name: name, Concatenation: true,
		KeyType: nftables.MustConcatSetType(addr, nftables.TypeInetService),
	}
}

// install replaces the table by one whose sets are empty.
func install(queue uint16) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("defer: %w", err)
	}
	t := c.AddTable(table())
	c.DelTable(t)
	t = c.AddTable(table())
	prio := nftables.ChainPriority(priority)
	chain := c.AddChain(&nftables.Chain{
		Name: chainName, Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPostrouting, Priority: &prio,
	})
	for _, six := range []bool{false, true} {
		s := set(t, six)
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("defer: set %s: %w", s.Name, err)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: rule(s, six, queue)})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("defer: table %s: %w", tableName, err)
	}
	return nil
}

func rule(s *nftables.Set, six bool, queue uint16) []expr.Any {
	family, offset, size, port := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4), uint32(regPort4)
	if six {
		family, offset, size, port = unix.NFPROTO_IPV6, 24, 16, regPort6
	}
	const finSynRstAck, syn = 0x17, 0x02
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: regAddr},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regAddr, Data: []byte{family}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regAddr},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regAddr, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: regAddr, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: regAddr, DestRegister: regAddr, Len: 1, Mask: []byte{finSynRstAck}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: regAddr, Data: []byte{syn}},
		&expr.Fib{Register: regAddr, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: regAddr, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
		&expr.Payload{DestRegister: regAddr, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Payload{DestRegister: port, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: regAddr, SetName: s.Name, SetID: s.ID},
		&expr.Queue{Num: queue, Total: 1, Flag: expr.QueueFlagBypass},
	}
}

// element is a target as the sets have it.
func element(target netip.AddrPort) nftables.SetElement {
	key := target.Addr().AsSlice()
	key = binary.BigEndian.AppendUint16(key, target.Port())
	return nftables.SetElement{Key: append(key, 0, 0)}
}

// change adds and removes targets.
func change(add, remove []netip.AddrPort) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("defer: %w", err)
	}
	for _, six := range []bool{false, true} {
		s := set(table(), six)
		elements := func(of []netip.AddrPort) (out []nftables.SetElement) {
			for _, t := range of {
				if t.Addr().Is6() == six {
					out = append(out, element(t))
				}
			}
			return out
		}
		if e := elements(add); len(e) > 0 {
			err = errors.Join(err, c.SetAddElements(s, e))
		}
		if e := elements(remove); len(e) > 0 {
			err = errors.Join(err, c.SetDeleteElements(s, e))
		}
	}
	if err == nil {
		err = c.Flush()
	}
	if err != nil {
		return fmt.Errorf("defer: targets of table %s: %w", tableName, err)
	}
	return nil
}

// holds returns how many targets the table has, -1 where its rules are not as they
// were made: somebody flushed the ruleset, or deleted a part of it.
func holds() (targets int, err error) {
	c, err := nftables.New()
	if err != nil {
		return 0, fmt.Errorf("defer: %w", err)
	}
	rules, err := c.GetRules(table(), &nftables.Chain{Name: chainName, Table: table()})
	if err == nil && len(rules) != 2 {
		return -1, nil
	}
	for _, six := range []bool{false, true} {
		var e []nftables.SetElement
		if err == nil {
			e, err = c.GetSetElements(set(table(), six))
		}
		targets += len(e)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return -1, nil
	case err != nil:
		return 0, fmt.Errorf("defer: read table %s: %w", tableName, err)
	}
	return targets, nil
}

// remove deletes the table if it is there.
func remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("defer: %w", err)
	}
	c.DelTable(table())
	if err := c.Flush(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("defer: table %s: %w", tableName, err)
	}
	return nil
}
