package director

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// strangersKept bounds the strangers that are remembered.
	strangersKept = 16
	// strangerLasts is for how long one that claimed an address is named.
	strangerLasts = 10 * time.Minute
)

// A Stranger is somebody who says that a virtual address is its own, and is no
// director of this cluster: an old keepalived, a wrong address on a server.
type Stranger struct {
	Addr string    `json:"addr"`
	MAC  string    `json:"mac"`
	Last time.Time `json:"last"`
}

// strangers remembers them. It is safe for concurrent use.
type strangers struct {
	mu     sync.Mutex
	all    []Stranger
	claims uint64
}

// saw notes a claim, and reports whether it is news.
func (s *strangers) saw(addr netip.Addr, mac net.HardwareAddr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claims++
	s.all = slices.DeleteFunc(s.all, func(o Stranger) bool { return now.Sub(o.Last) > strangerLasts })
	for i := range s.all {
		if o := &s.all[i]; o.Addr == addr.String() && o.MAC == mac.String() {
			o.Last = now
			return false
		}
	}
	if len(s.all) == strangersKept {
		return false
	}
	s.all = append(s.all, Stranger{addr.String(), mac.String(), now})
	return true
}

// now returns those of late, and how many claims there were ever.
func (s *strangers) now(now time.Time) ([]Stranger, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []Stranger{}
	for _, o := range s.all {
		if now.Sub(o.Last) <= strangerLasts {
			out = append(out, o)
		}
	}
	return out, s.claims
}

// stranger tells the protocol that somebody else claims a virtual address, and
// people once.
func (d *daemon) stranger(addr netip.Addr, mac net.HardwareAddr) {
	d.engine.postNow(func(now time.Duration) { d.engine.core.Stranger(now) })
	if d.strangers.saw(addr, mac, time.Now()) {
		d.log.Warn("somebody else answers for a virtual address", "address", addr, "mac", mac)
		d.engine.events.note(eventStranger, "%v says that %v is its own, and is no director of this cluster: take the address off it", mac, addr)
	}
}
