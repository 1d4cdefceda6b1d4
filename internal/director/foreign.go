package director

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"time"

	"saru/internal/seal"
	"saru/membership"
)

const (
	// foreignersKept bounds the foreigners that are remembered.
	foreignersKept = 16
	// foreignerLasts is for how long one is named after its last message.
	foreignerLasts = 10 * time.Second
)

// A Foreigner is somebody whose heartbeats come here and are not acted on.
type Foreigner struct {
	From string  `json:"from"` // an address, or a MAC where only frames come
	Name string  `json:"name,omitempty"`
	Why  string  `json:"why"`
	AgoS float64 `json:"ago_s"`
}

const (
	whyKey     = "seals its heartbeats with another key; give all directors the same cluster.key_file"
	whyClone   = "uses this node's name; change cluster.node on one of the two"
	whyCluster = "belongs to another cluster, or another share of it; compare cluster.name and share.id, and give each share its own MAC"
)

type foreigner struct {
	Foreigner
	frame bool
	at    time.Duration
}

// foreigners remembers them. It is the engine's.
type foreigners struct{ all []foreigner }

// saw notes a foreigner, and returns it if it is news.
func (f *foreigners) saw(now time.Duration, frame bool, from, name, why string) *Foreigner {
	f.all = slices.DeleteFunc(f.all, func(o foreigner) bool { return now-o.at > foreignerLasts })
	for i := range f.all {
		if o := &f.all[i]; o.From == from && o.Why == why {
			o.at, o.Name = now, orElse(name, o.Name)
			return nil
		}
	}
	// The same one's frames say no more than its datagrams do.
	if frame && len(f.all) > 0 || len(f.all) == foreignersKept {
		return nil
	}
	if !frame {
		f.all = slices.DeleteFunc(f.all, func(o foreigner) bool { return o.frame && o.Why == why })
	}
	f.all = append(f.all, foreigner{Foreigner: Foreigner{From: from, Name: name, Why: why}, frame: frame, at: now})
	return &f.all[len(f.all)-1].Foreigner
}

// now returns those of late.
func (f *foreigners) now(now time.Duration) []Foreigner {
	out := []Foreigner{}
	for _, o := range f.all {
		if o.AgoS = (now - o.at).Seconds(); now-o.at <= foreignerLasts {
			out = append(out, o.Foreigner)
		}
	}
	return out
}

// foreign acts on a message that is not for us: its sender is named, and where
// it came as a frame to the shared MAC it serves the same addresses, which is
// what keeps newcomers out. Which of two with one name goes on is the protocol's.
func (e *Engine) foreign(p *path, from netip.AddrPort, name, why string) {
	now := e.now()
	where := from.Addr().String()
	frame := p != nil && p.frame != nil
	if frame {
		if !bytes.Equal(e.in[:6], p.frame[:6]) {
			return // to the MAC of another share on this LAN
		}
		if why != whyClone {
			e.core.Stranger(now)
		}
		where = net.HardwareAddr(e.in[6:12]).String()
	}
	if f := e.foreigners.saw(now, frame, where, name, why); f != nil {
		e.log.Warn("heartbeats of a foreigner", "from", where, "name", name, "why", why)
		e.events.note(eventStranger, "%s", f.text())
	}
}

func (f *Foreigner) text() string {
	who := f.From
	if f.Name != "" {
		who = f.Name + " at " + f.From
	}
	return who + " " + f.Why
}

// ofOurs reports whether m is of our cluster and share; if not, its sender's
// name where it tells one.
func (e *Engine) ofOurs(m membership.Message) (ours bool, name string) {
	hb, is := m.(*membership.Heartbeat)
	if !is || hb.Cluster == e.cluster && hb.Share == e.share {
		return true, ""
	}
	return false, hb.Name
}

// ofSibling reports whether m is of another share of ours. Where there is no
// shared MAC the frames of all shares go to everybody.
func (e *Engine) ofSibling(m membership.Message) bool {
	hb, is := m.(*membership.Heartbeat)
	return is && hb.Cluster == e.cluster && hb.Share != e.share && slices.Contains(e.shares, hb.Share)
}

// cloned reports whether m is of another machine that has this node's name.
func (e *Engine) cloned(m membership.Message) bool {
	hb, is := m.(*membership.Heartbeat)
	return is && hb.From == e.id && hb.Host != e.host
}

func isForeignKey(err error) bool { return err == seal.ErrKey }
