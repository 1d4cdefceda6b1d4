package syncd

import (
	"net/netip"

	"saru/conntable"
)

// A servers is the real servers that there are, by their address.
type servers map[netip.Addr][]Target

func serversOf(targets map[Target]struct{}) servers {
	s := servers{}
	for t := range targets {
		s[t.Dest.Addr()] = append(s[t.Dest.Addr()], t)
	}
	return s
}

// has reports whether the kernel would find r's real server
// (net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_find_dest): one of the service of r's
// mark, else of its virtual address. Templates, FTP's data connections and
// services on all ports do not name the service's port, nor do real servers
// that are not masqueraded, so ports are not compared.
func (s servers) has(r *conntable.Record) bool {
	for _, t := range s[r.Dest.Addr()] {
		if t.FWMark != 0 && t.FWMark == r.FWMark {
			return true
		}
		if t.FWMark == 0 && t.Virtual.Addr() == r.Virtual.Addr() && t.Protocol == r.Protocol {
			return true
		}
	}
	return false
}

// neverHere reports whether r, though of our own name, is held: told by an
// earlier life, and given back by the peers. That the kernel has it not says
// nothing of the connection.
func (e *Engine) neverHere(r *conntable.Record) bool { return !e.isOurs(r.Version) && e.held(r) }

// held reports whether the kernel does not know r's real server. It would make
// an entry that belongs to no real server, is in nobody's counts, drops what
// it should tunnel, and is not bound when the server appears. So such a
// connection is held in the mirror, and injected when its server is there.
func (e *Engine) held(r *conntable.Record) bool {
	s := e.servers.Load()
	return s != nil && !s.has(r)
}
