package nft

import (
	"crypto/rand"
	"os"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

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

// Limits of the sets that the packet path fills. Lapsed elements count until
// the kernel's collector has run, which a busy ruleset can delay for minutes.
const (
	maxArmed   = 65535
	maxSenders = 256
	senderLife = time.Hour
)

// leaseKey is the key of the one element of the set lease.
const leaseKey = 1

// The counters, one for every way that a packet can take.
const (
	cntAccepted  = "accepted"  // admitted at ingress as ours
	cntFragments = "fragments" // admitted at ingress to be judged when whole
	cntForeign   = "foreign"   // another director's: bucket not in our share
	cntLapsed    = "lapsed"    // no live lease
	cntOwn       = "own"       // came to the interface's own MAC
	cntSilenced  = "silenced"  // by the backstop
	cntArmed     = "armed"
	cntConfirmed = "confirmed"
)

var counterNames = []string{
	cntAccepted, cntFragments, cntForeign, cntLapsed, cntOwn, cntSilenced, cntArmed, cntConfirmed,
}

// A table is the description of ours: everything but the buckets.
type table struct {
	*nftables.Table                                                   // family inet: judges
	gate                                              *nftables.Table // family netdev: admits
	vips, open, rest, settling, armed, lease, senders *nftables.Set
}

func newTable(name string) *table {
	t := &table{
		Table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet},
		gate:  &nftables.Table{Name: name, Family: nftables.TableFamilyNetdev},
	}
	set := func(name string, key nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t.Table, Name: name, KeyType: key, KeyByteOrder: binaryutil.NativeEndian}
	}
	dynamic := func(name string, key nftables.SetDatatype, size uint32) *nftables.Set {
		s := set(name, key)
		s.Dynamic, s.HasTimeout, s.Size = true, true, size
		return s
	}
	// TypeMark is four bytes in host order, which is what the hash leaves in
	// its register; no mark is read or written.
	t.vips = set("vips", nftables.TypeIPAddr)
	t.vips.KeyByteOrder = binaryutil.BigEndian
	t.open = set("open", nftables.TypeMark)
	t.rest = set("rest", nftables.TypeMark)
	t.settling = set("settling", nftables.TypeMark)
	t.settling.HasTimeout = true
	t.armed = dynamic("armed", nftables.TypeMark, maxArmed)
	t.lease = dynamic("lease", nftables.TypeMark, maxArmed)
	t.senders = dynamic("senders", nftables.TypeEtherAddr, maxSenders)
	t.senders.KeyByteOrder = binaryutil.BigEndian
	return t
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

// declare queues the whole table on c, closed: no bucket, no lease.
func (t *table) declare(c *nftables.Conn, cfg *Config, port uint16, s secrets) error {
	c.AddTable(t.Table)
	c.AddTable(t.gate)
	for _, name := range counterNames {
		c.AddObj(&nftables.NamedObj{Table: t.Table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	for _, s := range []*nftables.Set{t.open, t.rest, t.settling, t.armed, t.lease, t.senders} {
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	var vips []nftables.SetElement
	for _, a := range cfg.VIPs {
		vips = append(vips, nftables.SetElement{Key: a.Unmap().AsSlice()})
	}
	if err := c.AddSet(t.vips, vips); err != nil {
		return err
	}
	for _, ch := range t.chains(cfg, port, s) {
		ch.declare(c, t.Table)
	}
	g := gate(cfg, s)
	g.declare(c, t.gate)
	return nil
}

// The secrets of one Open.
type secrets struct {
	datagram [renewalSecret]byte // shows that a datagram is the Filter's
	pass     [4]byte             // shows the gate that a frame was judged ours
}

func newSecrets() (s secrets) {
	rand.Read(s.datagram[:])
	for s.pass == [4]byte{} {
		rand.Read(s.pass[:])
	}
	return s
}

// A chain is its rules, and a place in the packet's way if hook is set.
type chain struct {
	name     string
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	device   string
	rules    []phrase
}

func (ch *chain) declare(c *nftables.Conn, t *nftables.Table) {
	nc := &nftables.Chain{Name: ch.name, Table: t}
	if ch.hook != nil {
		accept := nftables.ChainPolicyAccept
		nc.Type, nc.Hooknum, nc.Priority, nc.Device, nc.Policy = nftables.ChainTypeFilter, ch.hook, &ch.priority, ch.device, &accept
	}
	c.AddChain(nc)
	for _, exprs := range ch.rules {
		c.AddRule(&nftables.Rule{Table: t, Chain: nc, Exprs: exprs})
	}
}

// chains returns all chains, each after those that it jumps to.
func (t *table) chains(cfg *Config, port uint16, s secrets) []chain {
	chains := t.judge(cfg)
	chains = append(chains, t.ingress(cfg, s)...)
	chains = append(chains, t.input(cfg), t.renewal(cfg, port, s))
	if cfg.Backstop {
		chains = append(chains, t.backstop(cfg))
	}
	return chains
}

// judge returns the chain that ends in a drop unless the packet is ours, in
// which case it returns to its caller. Only positive matches return: a packet
// too short to be read is dropped.
func (t *table) judge(cfg *Config) []chain {
	h := cfg.hash()
	ours, foreign := verdict(expr.VerdictReturn), rule(count(cntForeign), verdict(expr.VerdictDrop))
	open, rest := phrase{in(t.open, bucketReg)}, phrase{in(t.rest, bucketReg)}
	const (
		echo         = 8 // ICMP types (RFC 792)
		unreachable  = 3
		timeExceeded = 11
		parameter    = 12
		initChunk    = 1 // SCTP INIT (RFC 9260 section 3.2), always alone
	)
	icmpError := func(kind byte) phrase { return rule(transport(0, kind), ours) }
	return []chain{
		{name: "judge_tcp", rules: []phrase{
			rule(tcpOpens(false), bucketOf(h), rest, ours),
			rule(tcpOpens(true), bucketOf(h), open, ours),
			foreign,
		}},
		{name: "judge_udp", rules: []phrase{
			rule(bucketOf(h), open, ours),
			foreign,
		}},
		{name: "judge_sctp", rules: []phrase{
			rule(transportNot(12, initChunk), bucketOf(h), rest, ours),
			rule(transport(12, initChunk), bucketOf(h), open, ours),
			foreign,
		}},
		{name: "judge_icmp", rules: []phrase{
			rule(transport(0, echo), addrBucketOf(h), open, ours),
			// An error quotes a packet of ours, or of another director's. Each
			// gets it; the one that knows the connection acts on it.
			icmpError(unreachable),
			icmpError(timeExceeded),
			icmpError(parameter),
			foreign,
		}},
		{name: "judge", rules: []phrase{
			rule(phrase{immediate(keyReg, host32(leaseKey)...), notIn(t.lease, keyReg)}, count(cntLapsed), verdict(expr.VerdictDrop)),
			rule(l4(unix.IPPROTO_TCP), verdict(expr.VerdictGoto, "judge_tcp")),
			rule(l4(unix.IPPROTO_UDP), verdict(expr.VerdictGoto, "judge_udp")),
			rule(l4(unix.IPPROTO_ICMP), verdict(expr.VerdictGoto, "judge_icmp")),
			rule(l4(unix.IPPROTO_SCTP), verdict(expr.VerdictGoto, "judge_sctp")),
			rule(addrBucketOf(h), open, ours),
			foreign,
		}},
	}
}

// ingress returns the chains of the LAN interface's ingress hook.
func (t *table) ingress(cfg *Config, s secrets) []chain {
	hook := inetIngress
	return []chain{
		// Not the shared MAC. A broadcast reached every director, and UDP would
		// take it on each, so nobody does. The interface's own MAC is that of
		// a router with an old ARP entry, or one that divides by itself: nobody
		// else got the packet, so it is served; the sender is remembered. The
		// update is last: it ends the rule when the set is full.
		{name: "own", rules: []phrase{
			rule(toAll(), count(cntForeign), verdict(expr.VerdictDrop)),
			rule(meta(expr.MetaKeyPKTTYPE, unix.PACKET_HOST), count(cntOwn),
				phrase{load(expr.PayloadBaseLLHeader, keyReg, 6, 6), update(t.senders, keyReg, senderLife)}),
			verdict(expr.VerdictAccept),
		}},
		{name: "fragment", rules: []phrase{
			rule(phrase{immediate(keyReg, host32(leaseKey)...), notIn(t.lease, keyReg)}, count(cntLapsed), verdict(expr.VerdictDrop)),
			rule(count(cntFragments), pass(s), verdict(expr.VerdictAccept)),
		}},
		{name: "vip", rules: []phrase{
			rule(matchBytes(expr.PayloadBaseLLHeader, 0, cfg.MAC, expr.CmpOpNeq), verdict(expr.VerdictGoto, "own")),
			rule(fragment(), verdict(expr.VerdictGoto, "fragment")),
			verdict(expr.VerdictJump, "judge"),
			rule(count(cntAccepted), pass(s), verdict(expr.VerdictAccept)),
		}},
		{name: "ingress", hook: &hook, priority: ingressPriority, device: cfg.Interface, rules: []phrase{
			rule(ipv4(), toVIP(t.vips), verdict(expr.VerdictGoto, "vip")),
		}},
	}
}

// gate returns the one chain of the netdev half: what carries the pass becomes
// this host's, and the pass is taken from it.
func gate(cfg *Config, s secrets) chain {
	return chain{name: "gate", hook: nftables.ChainHookIngress, priority: ingressPriority + 1, device: cfg.Interface, rules: []phrase{
		rule(meta(expr.MetaKeyPRIORITY, s.pass[:]...), link(0, cfg.MAC), setPriority([4]byte{}), asHost()),
	}}
}

// input returns the second judgement. It hangs on no interface, so it stands
// when the LAN interface, and with it the ingress chain, is deleted.
func (t *table) input(cfg *Config) chain {
	return chain{name: "input", hook: nftables.ChainHookInput, priority: inputPriority, rules: []phrase{
		rule(meta(expr.MetaKeyIIFTYPE, host16(unix.ARPHRD_LOOPBACK)...), verdict(expr.VerdictAccept)),
		rule(ipv4(), toVIP(t.vips), link(0, cfg.MAC), verdict(expr.VerdictJump, "judge")),
		rule(ipv4(), toVIP(t.vips), toAll(), count(cntForeign), verdict(expr.VerdictDrop)),
	}}
}

// backstop returns the chain that keeps the local stack from answering an
// unknown connection with a reset while its state may still come.
func (t *table) backstop(cfg *Config) chain {
	return chain{name: "backstop", hook: nftables.ChainHookInput, priority: backstopPriority, rules: []phrase{
		rule(meta(expr.MetaKeyIIFTYPE, host16(unix.ARPHRD_LOOPBACK)...), verdict(expr.VerdictAccept)),
		rule(ipv4(), toVIP(t.vips), l4(unix.IPPROTO_TCP), tcpOpens(false), bucketOf(cfg.hash()),
			phrase{in(t.settling, bucketReg)}, count(cntSilenced), verdict(expr.VerdictDrop)),
	}}
}

// renewal returns the chain that consumes the datagrams of package comment's
// "The lease". Their layout is with type renewer.
func (t *table) renewal(cfg *Config, port uint16, s secrets) chain {
	authentic := rule(
		ipv4(), l4(unix.IPPROTO_UDP),
		meta(expr.MetaKeySKUID, host32(uint32(os.Geteuid()))...),
		transport(2, byte(port>>8), byte(port)),
		transport(udpHeader, s.datagram[:]...),
	)
	heartbeat := load(expr.PayloadBaseTransportHeader, keyReg, udpHeader+renewalHeartbeat, 4)
	return chain{name: "lease", hook: nftables.ChainHookOutput, priority: leasePriority, rules: []phrase{
		rule(authentic, transport(udpHeader+renewalOp, opArm),
			phrase{heartbeat, update(t.armed, keyReg, cfg.armedFor())},
			count(cntArmed), verdict(expr.VerdictDrop)),
		rule(authentic, transport(udpHeader+renewalOp, opConfirm),
			phrase{
				heartbeat, in(t.armed, keyReg),
				immediate(keyReg, host32(leaseKey)...), update(t.lease, keyReg, cfg.leaseFor()),
			},
			count(cntConfirmed), verdict(expr.VerdictDrop)),
	}}
}
