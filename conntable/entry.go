package conntable

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// An entry is one connection, or what remains of it, in 48 bytes. The rest of
// it is in the tables of its shard that client, service, dest and mode name.
type entry struct {
	clock    uint64 // of its version
	client   uint32 // IPv4 address; id in shard.clients for IPv6
	service  uint32 // id in shard.services
	dest     uint32 // id in shard.dests
	mode     uint32 // id in shard.modes
	deadline uint32 // in deadlineTick since Table.start, modulo 1<<32
	chain    uint32 // next in the index's chain or on the free list
	later    uint32 // neighbours on the wheel
	sooner   uint32
	cport    uint16
	wake     uint16 // the wheel's slot
	bits     uint8
	queues   Queue // and their marks
}

const (
	bitLive    = 1 << iota // not on the free list
	bitDeleted             // a tombstone
	bitExtra               // has an entry in shard.extras
	bitShown               // was read by a walk while on ToPeers
	bit4                   // the client's address is IPv4
	bit6                   // it is IPv6; neither: it has none
)

const (
	deadlineTick = time.Second / 128

	// maxRemaining is what a deadline can be away, 194 days.
	maxRemaining = (1<<31 - 1) * deadlineTick
)

// toTick rounds down, so that what remains is never more than what was told.
func toTick(d time.Duration) uint32 { return uint32(uint64(d / deadlineTick)) }

// until returns the deadline as a time since Table.start.
func (e *entry) until(now time.Duration) time.Duration {
	tick := int64(now / deadlineTick)
	return time.Duration(tick+int64(int32(e.deadline-uint32(tick)))) * deadlineTick
}

func (e *entry) deleted() bool { return e.bits&bitDeleted != 0 }

// An address is a netip.Addr without pointers and zone.
type address struct {
	addr   [16]byte
	family uint8
}

const (
	familyNone = iota
	family4
	family6
)

func familyOf(a netip.Addr) uint8 {
	switch {
	case a.Is4():
		return family4
	case a.IsValid():
		return family6
	}
	return familyNone
}

func (a *address) netip() netip.Addr {
	switch a.family {
	case family4:
		return netip.AddrFrom4([4]byte(a.addr[12:]))
	case family6:
		return netip.AddrFrom16(a.addr)
	}
	return netip.Addr{}
}

// An endpoint is a netip.AddrPort without pointers and zone.
type endpoint struct {
	address
	port uint16
}

func endpointOf(ap netip.AddrPort) endpoint {
	a := ap.Addr()
	return endpoint{address{a.As16(), familyOf(a)}, ap.Port()}
}

func (e endpoint) hash(seed uint64) uint64 {
	h := mix(seed^(uint64(e.port)<<8|uint64(e.family)), binary.BigEndian.Uint64(e.addr[8:]))
	if e.family == family6 {
		h = mix(h, binary.BigEndian.Uint64(e.addr[:]))
	}
	return h
}

func (e *endpoint) netip() netip.AddrPort { return netip.AddrPortFrom(e.address.netip(), e.port) }

// A service is what connections to one virtual service have in common in their
// keys.
type service struct {
	virtual  endpoint
	protocol uint8
	template bool
}

func (s service) hash(seed uint64) uint64 { return s.virtual.hash(seed + uint64(s.protocol)) }

// A mode is all of a telling that few values stand for.
type mode struct {
	timeout time.Duration
	flags   uint32
	fwmark  uint32
	node    NodeID // of the version
	state   uint16
	deleted bool // so that Owned need not look at entries
}

func (m mode) hash(seed uint64) uint64 {
	return mix(mix(seed^(uint64(m.flags)<<32|uint64(m.fwmark)), uint64(m.node)<<16|uint64(m.state)), uint64(m.timeout))
}

func modeOf(r *Record, v Version) mode {
	return mode{r.Timeout, r.Flags, r.FWMark, v.Node, r.State, r.Deleted}
}

// A probe is a key as the index knows it.
type probe struct {
	addr    [16]byte
	client  uint32 // the last 4 bytes of addr, for IPv4
	service uint32 // 0: the shard knows no such service, so no such key
	port    uint16
	bits    uint8 // bit4, bit6
}

func (s *shard) probe(k *Key) probe {
	a := k.Client.Addr()
	p := probe{addr: a.As16(), port: k.Client.Port()}
	switch familyOf(a) {
	case family4:
		p.bits, p.client = bit4, binary.BigEndian.Uint32(p.addr[12:])
	case family6:
		p.bits = bit6
	}
	sv := serviceOf(k)
	p.service = s.services.find(&sv)
	return p
}

func serviceOf(k *Key) service {
	return service{endpointOf(k.Virtual), k.Protocol, k.Template}
}

// hash is seeded, so that nobody outside can choose keys of one chain.
func (p *probe) hash(seed uint64) uint64 {
	h := seed
	if p.bits&bit6 != 0 {
		h = mix(h, binary.BigEndian.Uint64(p.addr[:8]))
		h = mix(h, binary.BigEndian.Uint64(p.addr[8:]))
	} else {
		h = mix(h, uint64(p.client))
	}
	return mix(h, uint64(p.service)<<24|uint64(p.port)<<8|uint64(p.bits))
}

// hash is that of the probe that finds e.
func (s *shard) hash(e *entry) uint64 {
	p := probe{client: e.client, service: e.service, port: e.cport, bits: e.bits & (bit4 | bit6)}
	if p.bits == bit6 {
		p.addr = *s.clients.arena.at(e.client)
	}
	return p.hash(s.seed)
}

// find returns the entry of p, or 0.
func (s *shard) find(p *probe) uint32 {
	if p.service == 0 {
		return 0
	}
	id := *s.index.head(p.hash(s.seed))
	for id != 0 {
		e := s.entries.at(id)
		if e.cport == p.port && e.service == p.service && e.bits&(bit4|bit6) == p.bits && s.isClient(e, p) {
			break
		}
		id = e.chain
	}
	return id
}

func (s *shard) isClient(e *entry, p *probe) bool {
	if p.bits == bit6 {
		return *s.clients.arena.at(e.client) == p.addr
	}
	return e.client == p.client
}

// create makes an entry of the key k, which p did not find, in the index. Its
// telling and its place on the wheel are still to come.
func (s *shard) create(k *Key, p *probe) (uint32, *entry) {
	id := s.free
	if id == 0 {
		id = s.entries.grow()
	} else {
		s.free = s.entries.at(id).chain
	}
	if sv := &s.services.values[p.service]; sv.holds > 0 {
		sv.holds++ // so it was not dropped to make room, either
	} else {
		sv := serviceOf(k)
		p.service = s.services.hold(&sv)
	}
	e := s.entries.at(id)
	*e = entry{client: p.client, service: p.service, cport: p.port, bits: p.bits | bitLive}
	if p.bits == bit6 {
		e.client = s.clients.add(p.addr)
	}
	s.insert(id, p.hash(s.seed))
	return id, e
}

// destroy frees entry id and all that it holds.
func (s *shard) destroy(id uint32) {
	e := s.entries.at(id)
	s.wheel.remove(&s.entries, id)
	s.remove(id, s.hash(e))
	s.services.release(e.service)
	s.dests.release(e.dest)
	s.modes.release(e.mode)
	if e.bits&bit6 != 0 {
		s.clients.remove(e.client)
	}
	if e.bits&bitExtra != 0 {
		delete(s.extras, id)
	}
	*e = entry{chain: s.free}
	s.free = id
}

func (s *shard) key(e *entry) Key {
	sv := s.services.at(e.service)
	a := address{family: familyNone}
	switch e.bits & (bit4 | bit6) {
	case bit4:
		a.family = family4
		binary.BigEndian.PutUint32(a.addr[12:], e.client)
	case bit6:
		a = address{*s.clients.arena.at(e.client), family6}
	}
	return Key{
		Client: netip.AddrPortFrom(a.netip(), e.cport), Virtual: sv.virtual.netip(),
		Protocol: sv.protocol, Template: sv.template,
	}
}

// read copies entry id to r, and reports whether it is alive.
func (s *shard) read(id uint32, r *Record, now time.Duration) bool {
	e := s.entries.at(id)
	if e.bits&bitLive == 0 {
		return false
	}
	until := e.until(now)
	if until <= now {
		return false
	}
	m := s.modes.at(e.mode)
	r.Key = s.key(e)
	r.Dest = s.dests.at(e.dest).netip()
	r.State, r.Flags, r.FWMark, r.Timeout = m.state, m.flags, m.fwmark, m.timeout
	r.Version = Version{e.clock, m.node}
	r.Remaining, r.Deleted = until-now, e.deleted()
	r.Seq, r.PEName, r.PEData = nil, "", nil
	if e.bits&bitExtra != 0 {
		x := s.extras[id]
		r.Seq, r.PEName, r.PEData = x.seq, x.peName, x.peData
	}
	return true
}
