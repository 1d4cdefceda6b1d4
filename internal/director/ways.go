package director

import (
	"maps"
	"net/netip"
	"time"

	"saru/membership"
)

// maxWays bounds the nodes that heartbeats are sent to.
const maxWays = 64

// A way is where a node can be reached, as its authentic messages show.
type way struct {
	addr netip.AddrPort // that its datagrams come from
	mac  [6]byte        // that its frames come from
	// frames is when the last one came, 0 while none has.
	frames time.Duration
}

// learn notes where a node takes datagrams.
func (e *Engine) learn(id membership.NodeID, at netip.AddrPort) {
	if w, room := e.way(id); room {
		w.addr = at
		e.ways[id] = w
	}
}

// learnFrames notes the MAC that a node's frames come from.
func (e *Engine) learnFrames(id membership.NodeID, mac []byte) {
	if w, room := e.way(id); room {
		w.frames = e.now()
		copy(w.mac[:], mac)
		e.ways[id] = w
	}
}

// way returns what is known of a node, and whether there is room for it. Where
// there are too many, those that are not heard make room: hosts that are replaced
// take new names.
func (e *Engine) way(id membership.NodeID) (w way, room bool) {
	w, known := e.ways[id]
	if !known && len(e.ways) >= maxWays {
		heard := map[membership.NodeID]bool{}
		for _, m := range e.core.Snapshot(e.now()).Members {
			heard[m.Node] = m.Heard
		}
		maps.DeleteFunc(e.ways, func(id membership.NodeID, _ way) bool { return !heard[id] })
	}
	return w, known || len(e.ways) < maxWays
}

func (e *Engine) send(to membership.NodeID, m membership.Message) {
	e.out = m.Append(e.out[:0])
	if to != 0 {
		e.sendOne(to, e.out)
		return
	}
	at := append(e.to[:0], e.seeds...)
	for _, w := range e.ways {
		if w.addr.IsValid() {
			at = append(at, w.addr)
		}
	}
	at = dedupe(at)
	e.to = at
	for _, p := range e.paths {
		p.send(e.out, at)
	}
}

// sendOne sends what concerns one node alone: to its address, and in a frame to
// its own MAC. To the shared MAC and to the group it goes only while no frames
// come from that node: there it is opened by everybody, and each node answers
// each other one at every heartbeat.
func (e *Engine) sendOne(to membership.NodeID, plain []byte) {
	w := e.ways[to]
	at := e.to[:0]
	if w.addr.IsValid() {
		at = append(at, w.addr)
	}
	e.to = at
	framed := w.frames != 0 && e.now()-w.frames < e.config.Lease
	for _, p := range e.paths {
		switch {
		case framed && p.frame != nil:
			p.sendFrame(plain, w.mac)
		case framed && p.group:
		default:
			p.send(plain, at)
		}
	}
}

func dedupe(all []netip.AddrPort) []netip.AddrPort {
	out := all[:0]
next:
	for _, a := range all {
		for _, o := range out {
			if o == a {
				continue next
			}
		}
		out = append(out, a)
	}
	return out
}
