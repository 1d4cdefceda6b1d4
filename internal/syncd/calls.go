package syncd

import (
	"hash/fnv"
	"math"
	"net/netip"

	"saru/conntable"
)

// A persistence engine makes many templates for one client and service: SIP
// one for each call id. The kernel tells them apart by the engine's data
// (net/netfilter/ipvs/ip_vs_pe_sip.c, ip_vs_sip_ct_match). In the mirror they
// differ by the client's port, which a template has no other use for: it is a
// hash of the data. Of two calls of one client with one hash, in 65,535, the
// mirror has the later one.

// keyCall gives a template of a persistence engine the key that it has in the
// mirror.
func keyCall(c *conntable.Connection) {
	if !c.Template || len(c.PEData) == 0 {
		return
	}
	h := fnv.New32a()
	h.Write(c.PEData)
	c.Client = netip.AddrPortFrom(c.Client.Addr(), uint16(1+h.Sum32()%math.MaxUint16))
}

// keyOf returns the key in the mirror of what the kernel is told.
func keyOf(c *conntable.Connection) conntable.Key {
	k := *c
	keyCall(&k)
	return k.Key
}

// isCall reports whether k is the key of a persistence engine's template.
func isCall(k *conntable.Key) bool { return k.Template && k.Client.Port() != 0 }

// clientOf returns the client as the kernel shows it.
func clientOf(k *conntable.Key) netip.AddrPort {
	if k.Template {
		return netip.AddrPortFrom(k.Client.Addr(), 0)
	}
	return k.Client
}

// delete makes an entry go from the kernel. A template of a persistence
// engine dies by itself unless its data is still known.
func (e *Engine) delete(c conntable.Connection) error {
	if isCall(&c.Key) && len(c.PEData) == 0 {
		return nil
	}
	c.Client = clientOf(&c.Key)
	return e.kernel.Delete(c)
}
