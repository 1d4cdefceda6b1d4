package nft

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"saru/partition"
)

// A Forwarder hands frames for a virtual address to the directors that serve
// their buckets: it writes the other's MAC into them and sends them out of the
// interface that they came in on. It stands before a Filter, which judges what
// stays. It admits nothing, so whatever it does wrong, a Filter makes good.
//
//	ingress ─► VIP, own MAC ─► from a director? leave it ─► bucket ─► map open or rest
//	                                                          │
//	       found: write MACs, send a copy ─► none of it ours? drop
//	                                    else leave it to the Filter
//
// Frames that a director handed on are not handed on again, so none goes round.
// Of a fragment every director gets a copy, as where switches flood.
type Forwarder struct {
	cfg     Config
	ifindex uint32
	t       *table

	open, rest, foreign, peers, directors *nftables.Set

	mu    sync.Mutex
	conn  *nftables.Conn
	read  *nftables.Conn
	now   Routes
	known bool // what is in the kernel is now
}

// MaxPeers is how many other directors a Forwarder can know.
const MaxPeers = 31

// A MAC is an Ethernet address.
type MAC [6]byte

// Routes say where frames go that are not this director's.
type Routes struct {
	Open map[int]MAC   // per bucket, who takes what opens flows
	Rest map[int]MAC   // and who takes the rest
	Held partition.Set // buckets whose frames the own Filter gets too
	All  []MAC         // of the other directors, sorted; at most MaxPeers
}

func (r *Routes) equal(s *Routes) bool {
	same := func(a, b map[int]MAC) bool {
		if len(a) != len(b) {
			return false
		}
		for k, v := range a {
			if w, ok := b[k]; !ok || v != w {
				return false
			}
		}
		return true
	}
	return same(r.Open, s.Open) && same(r.Rest, s.Rest) && r.Held == s.Held && slices.Equal(r.All, s.All)
}

const (
	macReg = unix.NFT_REG32_14 // two of them

	// handPriority is before the Filter's.
	handPriority = ingressPriority - 1

	cntForwarded = "forwarded"
	cntCopied    = "copied" // fragments
)

// OpenForwarder puts a table in place that hands nothing on yet, replacing one
// that a crash left. Of cfg it takes Name, Interface, MAC, Plan and Fragments.
func OpenForwarder(cfg Config) (_ *Forwarder, err error) {
	cfg.Own = true
	divider, err := cfg.check()
	if err != nil {
		return nil, err
	}
	ifi, err := net.InterfaceByName(cfg.Interface)
	if err != nil {
		return nil, fmt.Errorf("nft: interface %q: %w", cfg.Interface, err)
	}
	f := &Forwarder{cfg: cfg, ifindex: uint32(ifi.Index)}
	f.build(divider)
	for _, c := range []**nftables.Conn{&f.conn, &f.read} {
		if *c, err = nftables.New(nftables.AsLasting()); err != nil {
			return nil, errors.Join(fmt.Errorf("nft: open a netlink socket: %w", err), f.Close())
		}
	}
	if err := f.Set(Routes{}); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Replan divides flows in another way, and hands them on as before.
func (f *Forwarder) Replan(p partition.Plan) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	cfg := f.cfg
	cfg.Plan = p
	divider, err := cfg.check()
	if err != nil {
		return err
	}
	f.cfg = cfg
	f.build(divider)
	f.known = false
	return f.set(f.now)
}

func (f *Forwarder) build(d *partition.Divider) {
	cfg := &f.cfg
	t := &table{
		Table:   &nftables.Table{Name: cfg.Name + "_forward", Family: nftables.TableFamilyNetdev},
		divider: d,
	}
	f.t = t
	t.blocks16 = t.blocks("blocks_port", nftables.TypeInetService)
	t.blocks32 = t.blocks("blocks_address", nftables.TypeIPAddr)
	for i := range families {
		t.serve(&families[i])
	}
	f.open, f.rest = f.macs("open", nftables.TypeMark), f.macs("rest", nftables.TypeMark)
	f.peers = f.macs("peers", nftables.TypeMark)
	f.foreign, f.directors = t.set("foreign", nftables.TypeMark), t.set("directors", nftables.TypeEtherAddr)
	send := phrase{
		write(macReg, 0), immediate(keyReg, cfg.MAC...), write(keyReg, 6),
		immediate(unix.NFT_REG_1, host32(f.ifindex)...), &expr.Dup{RegDev: unix.NFT_REG_1, IsRegDevSet: true},
	}
	for i := range t.families {
		t.chains = append(t.chains, f.hand(&t.families[i], cfg, send)...)
	}
	base := chain{name: "ingress", hook: nftables.ChainHookIngress, priority: handPriority, device: cfg.Interface}
	for i := range t.families {
		base.rules = append(base.rules, t.families[i].toVIP(goTo("vip_"+t.families[i].name))...)
	}
	pieces := chain{name: "pieces", rules: []phrase{rule(faster(cfg.fragments()), accept())}}
	for i := range MaxPeers {
		pieces.rules = append(pieces.rules, rule(
			phrase{immediate(bucketReg, host32(uint32(i))...), valueIn(f.peers, bucketReg, macReg)}, count(cntCopied), send))
	}
	pieces.rules = append(pieces.rules, f.restore()...)
	t.chains = append(t.chains, pieces, base)
}

// hand returns the chains for a family's frames.
func (f *Forwarder) hand(v *served, cfg *Config, send phrase) []chain {
	t := f.t
	// The copy that was sent shares its bytes with the frame, and what is
	// written then costs a copy of them: so what nobody needs is dropped first.
	to := func(m *nftables.Set, bucket phrase) phrase {
		return rule(bucket, phrase{valueIn(m, bucketReg, macReg)}, count(cntForwarded), send,
			phrase{in(f.foreign, bucketReg)}, drop())
	}
	other := chain{name: "other_" + v.name, rules: append([]phrase{to(f.open, t.addrBucketOf(v.family))}, f.restore()...)}
	chains := []chain{other}
	for k, d := range t.divider.Divisions {
		bucket := t.bucketOf(v.family, &v.packet, d)
		for _, c := range []chain{
			{name: flowChain("tcp", k, v.family), rules: []phrase{to(f.rest, rule(tcpOpens(false), bucket)), to(f.open, rule(tcpOpens(true), bucket))}},
			{name: flowChain("udp", k, v.family), rules: []phrase{to(f.open, rule(bothPorts(d), bucket))}},
			{name: flowChain("sctp", k, v.family), rules: []phrase{to(f.rest, rule(sctpOpens(false), bucket)), to(f.open, rule(sctpOpens(true), bucket))}},
		} {
			c.rules = append(c.rules, f.restore()...)
			chains = append(chains, c)
		}
	}
	chains = append(chains, t.icmp(v, accept(), func(l *layout, d partition.Division) []phrase {
		return append([]phrase{to(f.open, t.bucketOf(v.family, l, d))}, f.restore()...)
	})...)
	services := t.services(v, &v.packet, partition.Ported, func(proto uint8, k int) string {
		return flowChain(partition.ProtoName(proto), k, v.family)
	})
	rules := []phrase{
		rule(toMAC(cfg.MAC, expr.CmpOpNeq), accept()),
		rule(phrase{load(linkHeader, keyReg, 6, 6), in(f.directors, keyReg)}, accept()),
	}
	rules = append(rules, v.whole(goTo("flow_"+v.name))...)
	rules = append(rules, rule(v.fragment, goTo("pieces")), goTo("flow_"+v.name))
	return append(chains,
		chain{name: "flow_" + v.name, rules: append(services, rule(l4(v.icmp), goTo("icmp_"+v.name)), goTo("other_"+v.name))},
		chain{name: "vip_" + v.name, rules: rules})
}

// restore returns the rule that gives a frame its address back which goes on to
// the Filter.
func (f *Forwarder) restore() []phrase {
	return []phrase{rule(
		matchBytes(linkHeader, 6, expr.CmpOpEq, f.cfg.MAC...), phrase{immediate(keyReg, f.cfg.MAC...), write(keyReg, 0)},
	)}
}

// write writes an Ethernet address from a register.
func write(reg, offset uint32) expr.Any {
	return &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg, Base: linkHeader, Offset: offset, Len: 6}
}

func (f *Forwarder) macs(name string, key nftables.SetDatatype) *nftables.Set {
	s := f.t.set(name, key)
	s.IsMap, s.DataType = true, nftables.TypeEtherAddr
	return s
}

// Set makes the kernel hand frames on as r says, in one transaction. The first
// time, and when the table is not as it was left, it replaces the table.
func (f *Forwarder) Set(r Routes) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.set(r)
}

func (f *Forwarder) set(r Routes) error {
	if len(r.All) > MaxPeers {
		return fmt.Errorf("nft: %d other directors: at most %d", len(r.All), MaxPeers)
	}
	if f.known && r.equal(&f.now) {
		return nil
	}
	all := partition.FullSet(f.t.divider.Buckets)
	elements := map[*nftables.Set][]nftables.SetElement{}
	for b := range all.All() {
		for m, route := range map[*nftables.Set]map[int]MAC{f.open: r.Open, f.rest: r.Rest} {
			if mac, ok := route[b]; ok {
				elements[m] = append(elements[m], nftables.SetElement{Key: host32(uint32(b)), Val: bytes.Clone(mac[:])})
			}
		}
		if !r.Held.Has(b) {
			elements[f.foreign] = append(elements[f.foreign], nftables.SetElement{Key: host32(uint32(b))})
		}
	}
	for i, mac := range r.All {
		elements[f.peers] = append(elements[f.peers], nftables.SetElement{Key: host32(uint32(i)), Val: bytes.Clone(mac[:])})
		elements[f.directors] = append(elements[f.directors], nftables.SetElement{Key: bytes.Clone(mac[:])})
	}
	sets := []*nftables.Set{f.open, f.rest, f.foreign, f.peers, f.directors}
	if f.known {
		for _, s := range sets {
			f.conn.FlushSet(s)
			if err := f.conn.SetAddElements(s, elements[s]); err != nil {
				return fmt.Errorf("nft: %w", err)
			}
		}
	} else if err := f.declare(sets, elements); err != nil {
		return err
	}
	err := f.conn.Flush()
	if err != nil {
		f.known = false
		return fmt.Errorf("nft: table %s: %w", f.t.Name, err)
	}
	f.now, f.known = r, true
	return nil
}

// declare queues the whole table in place of what is there.
func (f *Forwarder) declare(sets []*nftables.Set, elements map[*nftables.Set][]nftables.SetElement) error {
	c := f.conn
	c.AddTable(f.t.Table)
	c.DelTable(f.t.Table)
	c.AddTable(f.t.Table)
	for _, name := range []string{cntForwarded, cntCopied} {
		c.AddObj(&nftables.NamedObj{Table: f.t.Table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	for i := range f.t.chains {
		f.t.chains[i].declare(c, f.t.Table)
	}
	for _, m := range f.t.maps {
		if err := c.AddSet(m.Set, m.elements); err != nil {
			return fmt.Errorf("nft: %w", err)
		}
	}
	for _, s := range sets {
		if err := c.AddSet(s, elements[s]); err != nil {
			return fmt.Errorf("nft: %w", err)
		}
	}
	for i := range f.t.chains {
		f.t.chains[i].fill(c, f.t.Table)
	}
	return nil
}

// ForwarderStats is what the kernel counted since the table was put in place,
// in packets.
type ForwarderStats struct {
	Forwarded uint64 // handed to the director of their bucket
	Copied    uint64 // copies of fragments
}

// Stats reads the kernel. If the table is gone the error is ErrGone, and the
// next Set puts it in place again.
func (f *Forwarder) Stats() (s ForwarderStats, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	objs, err := f.read.GetNamedObjects(f.t.Table)
	if errors.Is(err, unix.ENOENT) || err == nil && len(objs) == 0 {
		f.known = false
		return s, fmt.Errorf("nft: table %s: %w", f.t.Name, ErrGone)
	}
	if err != nil {
		return s, fmt.Errorf("nft: read table %s: %w", f.t.Name, err)
	}
	for _, o := range objs {
		named, _ := o.(*nftables.NamedObj)
		if named == nil {
			continue
		}
		if counter, ok := named.Obj.(*expr.Counter); ok && named.Name == cntForwarded {
			s.Forwarded = counter.Packets
		} else if ok && named.Name == cntCopied {
			s.Copied = counter.Packets
		}
	}
	return s, nil
}

// Close removes the table. It may be called twice.
func (f *Forwarder) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	if f.conn != nil {
		f.conn.AddTable(f.t.Table)
		f.conn.DelTable(f.t.Table)
		if ferr := f.conn.Flush(); ferr != nil {
			err = fmt.Errorf("nft: remove table %s: %w", f.t.Name, ferr)
		}
		err = errors.Join(err, f.conn.CloseLasting())
		f.conn = nil
	}
	if f.read != nil {
		err = errors.Join(err, f.read.CloseLasting())
		f.read = nil
	}
	return err
}
