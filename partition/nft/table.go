package nft

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"saru/partition"
)

// Limits of the sets that the packet path fills. Lapsed elements count until
// the kernel's collector has run, which a busy ruleset can delay for minutes.
const (
	maxArmed      = 65535
	maxSenders    = 256
	senderLife    = time.Hour
	maxSuperseded = 65535

	// supersededLife is for how long the rest of a flow is dropped whose
	// opening packet another director took.
	supersededLife = 60 * time.Second
)

// The counters, one for every way that a packet can take. What a bucket
// decides is counted with the bucket's element of the maps open and rest.
const (
	cntAccepted    = "accepted"    // admitted as ours
	cntFragments   = "fragments"   // admitted at ingress to be judged when whole
	cntFlood       = "flood"       // dropped: more fragments than are let in
	cntPieces      = "pieces"      // dropped: not whole where it must be
	cntMalformed   = "malformed"   // dropped: ends before what decides it
	cntBroadcast   = "broadcast"   // dropped: reached every director, for none
	cntLapsed      = "lapsed"      // dropped: no live lease
	cntOwn         = "own"         // came to the interface's own MAC
	cntNeighbour   = "neighbour"   // neighbour discovery, left as it came
	cntSuperseding = "superseding" // dropped: opens a flow of a bucket that moves
	cntSuperseded  = "superseded"  // dropped: rest of such a flow
	cntSilenced    = "silenced"    // dropped by the backstop
	cntLeaks       = "leaks"       // dropped: a real server's, which nobody translated
	cntArmed       = "armed"
	cntConfirmed   = "confirmed"
)

var counterNames = [...]string{
	cntAccepted, cntFragments, cntFlood, cntPieces, cntMalformed, cntBroadcast, cntLapsed, cntOwn, cntNeighbour,
	cntSuperseding, cntSuperseded, cntSilenced, cntArmed, cntConfirmed, cntLeaks,
}

// A table is the description of ours.
type table struct {
	*nftables.Table                 // family inet: judges
	gate            *nftables.Table // family netdev: admits
	divider         *partition.Divider
	families        []served

	open, rest                      *nftables.Set // bucket -> verdict
	settling, armed, lease, senders *nftables.Set
	blocks16, blocks32              *nftables.Set // first value of a block -> bucket

	chains []chain  // of family inet
	admits []chain  // of family netdev
	maps   []filled // what never changes, with its elements
}

// A family that has a virtual address, and its sets.
type served struct {
	*family
	few        []netip.Addr  // virtual addresses
	vips       *nftables.Set // if they are not few
	superseded *nftables.Set
	inside     *nftables.Set // networks of real servers, if it has any
}

// few is up to how many virtual addresses comparing each beats a set.
const few = 3

// A filled set comes with its elements.
type filled struct {
	*nftables.Set
	elements []nftables.SetElement
}

func newTable(name string, d *partition.Divider, queued bool) *table {
	t := &table{
		Table:   &nftables.Table{Name: name, Family: nftables.TableFamilyINet},
		gate:    &nftables.Table{Name: name, Family: nftables.TableFamilyNetdev},
		divider: d,
	}
	// TypeMark is four bytes in host order, which is what the hash leaves in
	// its register; no mark is read or written.
	if !queued {
		t.open = t.fates("open", d.Buckets)
		t.rest = t.fates("rest", d.Buckets)
		t.blocks16 = t.blocks("blocks_port", nftables.TypeInetService)
		t.blocks32 = t.blocks("blocks_address", nftables.TypeIPAddr)
	}
	t.settling = t.set("settling", nftables.TypeMark)
	t.settling.HasTimeout = true
	t.armed = t.dynamic("armed", nftables.TypeMark, maxArmed)
	t.lease = t.dynamic("lease", nftables.TypeEtherAddr, maxSenders)
	t.senders = t.dynamic("senders", nftables.TypeEtherAddr, maxSenders)
	for i := range families {
		t.serve(&families[i])
	}
	return t
}

func (t *table) set(name string, key nftables.SetDatatype) *nftables.Set {
	s := &nftables.Set{Table: t.Table, Name: name, KeyType: key, KeyByteOrder: binaryutil.BigEndian}
	if key == nftables.TypeMark {
		s.KeyByteOrder = binaryutil.NativeEndian
	}
	return s
}

func (t *table) dynamic(name string, key nftables.SetDatatype, size uint32) *nftables.Set {
	s := t.set(name, key)
	s.Dynamic, s.HasTimeout, s.Size = true, true, size
	return s
}

// fates returns a map from each bucket to what becomes of its packets. Each
// element counts. The size given makes the kernel take its quickest kind of
// set (nft_hash_fast_ops in net/netfilter/nft_set_hash.c).
func (t *table) fates(name string, buckets int) *nftables.Set {
	s := t.set(name, nftables.TypeMark)
	s.IsMap, s.DataType, s.Counter, s.Size = true, nftables.TypeVerdict, true, uint32(buckets)
	return s
}

// blocks returns the map from a field's value to its block, if some division
// asks for it, else nil.
func (t *table) blocks(name string, key nftables.SetDatatype) *nftables.Set {
	const addrs = partition.SrcAddr | partition.DstAddr
	wide := key == nftables.TypeIPAddr
	if !slices.ContainsFunc(t.divider.Divisions, func(d partition.Division) bool {
		return d.Method == partition.ByBlock && (d.Sense&addrs != 0) == wide
	}) {
		return nil
	}
	s := t.set(name, key)
	s.IsMap, s.DataType, s.Interval, s.Constant = true, nftables.TypeMark, true, true
	var elements []nftables.SetElement
	for b := range t.divider.Buckets {
		start := binary.BigEndian.AppendUint32(nil, uint32(t.divider.BlockStart(b, int(key.Bytes)*8)))[4-key.Bytes:]
		if b > 0 {
			elements = append(elements, nftables.SetElement{Key: start, IntervalEnd: true})
		}
		elements = append(elements, nftables.SetElement{Key: start, Val: host32(uint32(b))})
	}
	t.maps = append(t.maps, filled{s, elements})
	return s
}

// serve takes a family into the table if it has a virtual address.
func (t *table) serve(f *family) {
	var vips []netip.Prefix
	networks := false
	for _, v := range t.divider.VIPs {
		if f.has(v.Addr()) {
			vips, networks = append(vips, v), networks || !v.IsSingleIP()
		}
	}
	if len(vips) == 0 {
		return
	}
	s := served{family: f}
	if !networks && len(vips) <= few {
		for _, v := range vips {
			s.few = append(s.few, v.Addr())
		}
	} else {
		s.vips = t.addresses("vips_"+f.name, f, vips, networks)
	}
	s.superseded = t.dynamic("superseded_"+f.name, nftables.MustConcatSetType(
		f.address, f.address, nftables.TypeInetService, nftables.TypeInetService, nftables.TypeInetProto), maxSuperseded)
	s.superseded.Concatenation = true
	t.insideOf(&s)
	t.families = append(t.families, s)
}

// addresses returns the set of some addresses or networks of a family.
func (t *table) addresses(name string, f *family, which []netip.Prefix, networks bool) *nftables.Set {
	set := t.set(name, f.address)
	set.Constant, set.Interval = true, networks
	var elements []nftables.SetElement
	for _, v := range which {
		elements = append(elements, nftables.SetElement{Key: v.Addr().AsSlice()})
		if end := lastOf(v).Next(); networks && end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	t.maps = append(t.maps, filled{set, elements})
	return set
}

// toVIP returns rules that do something with the packets to a virtual address.
func (s *served) toVIP(what phrase) (rules []phrase) {
	for _, a := range s.few {
		rules = append(rules, rule(s.isPacket(), matchBytes(networkHeader, s.packet.vip, expr.CmpOpEq, a.AsSlice()...), what))
	}
	if s.vips != nil {
		rules = append(rules, rule(s.isPacket(),
			phrase{load(networkHeader, keyReg, s.packet.vip, s.packet.addrLen), in(s.vips, keyReg)}, what))
	}
	return rules
}

// lastOf returns the last address of a network.
func lastOf(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(a)*8; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(a)
	return last
}

// both returns the two halves.
func (t *table) both() [2]*nftables.Table { return [...]*nftables.Table{t.Table, t.gate} }

// remove queues the removal of both halves, there or not.
func (t *table) remove(c *nftables.Conn) {
	for _, half := range t.both() {
		c.AddTable(half)
		c.DelTable(half)
	}
}

// declare queues the whole table on c, closed: every bucket is foreign, and
// there is no lease.
func (t *table) declare(c *nftables.Conn) error {
	c.AddTable(t.Table)
	c.AddTable(t.gate)
	for _, name := range counterNames {
		c.AddObj(&nftables.NamedObj{Table: t.Table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	for i := range t.chains {
		t.chains[i].declare(c, t.Table)
	}
	sets := slices.Clone(t.maps)
	for _, plain := range []*nftables.Set{t.settling, t.armed, t.lease, t.senders} {
		sets = append(sets, filled{Set: plain})
	}
	for _, f := range t.families {
		sets = append(sets, filled{Set: f.superseded})
	}
	all := partition.FullSet(t.divider.Buckets)
	for _, m := range t.fateMaps() {
		sets = append(sets, filled{m, elements(all, Desired{})})
	}
	for _, s := range sets {
		if err := c.AddSet(s.Set, s.elements); err != nil {
			return err
		}
	}
	for i := range t.chains {
		t.chains[i].fill(c, t.Table)
	}
	for i := range t.admits {
		t.admits[i].declare(c, t.gate)
		t.admits[i].fill(c, t.gate)
	}
	return nil
}

// The secrets of one Open.
type secrets struct {
	datagram [renewalSecret]byte // shows that a datagram is the Filter's
	pass     [4]byte             // shows the gate, and input, that a packet was judged ours
	piece    [4]byte             // shows the gate a fragment, not judged yet
}

func newSecrets() (s secrets) {
	rand.Read(s.datagram[:])
	for s.pass == [4]byte{} || s.piece == [4]byte{} || s.pass == s.piece {
		rand.Read(s.pass[:])
		rand.Read(s.piece[:])
	}
	return s
}

// A chain is its rules, and a place in the packet's way if hook is set.
type chain struct {
	name     string
	kind     nftables.ChainType // default: filter
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	device   string
	rules    []phrase
}

// declare queues the chain without its rules, which may name other chains and
// sets.
func (ch *chain) declare(c *nftables.Conn, t *nftables.Table) {
	nc := &nftables.Chain{Name: ch.name, Table: t}
	if ch.hook != nil {
		pass := nftables.ChainPolicyAccept
		nc.Type, nc.Hooknum, nc.Priority, nc.Device, nc.Policy = cmp.Or(ch.kind, nftables.ChainTypeFilter), ch.hook, &ch.priority, ch.device, &pass
	}
	c.AddChain(nc)
}

// fill queues the chain's rules.
func (ch *chain) fill(c *nftables.Conn, t *nftables.Table) {
	nc := &nftables.Chain{Name: ch.name, Table: t}
	for _, exprs := range ch.rules {
		c.AddRule(&nftables.Rule{Table: t, Chain: nc, Exprs: exprs})
	}
}
