package peer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"saru/conntable"
	"saru/internal/seal"
)

// Directors that balance the same services differently send the same client to
// different real servers, and refuse each other's connections. So each tells
// all a digest of its services, and gets the list of whom it differs from.
const (
	typeServices    = 4  // a datagram: the digest
	typeGetServices = 22 // a stream's first frame: a wish for the list
	typeServiceList = 23 // its frames

	servicesEvery = 5 * time.Second
	// servicesPatience is for how long two nodes may differ before they
	// compare: health checks on one are some seconds ahead of the other's.
	servicesPatience = 8 * time.Second
	servicesAgain    = 30 * time.Second // when a list could not be fetched

	maxServiceItems = 16384
	maxServiceText  = 255   // bytes of a name, and of what it is set to
	serviceFrame    = 16384 // bytes in which a frame of the list is ended
	maxDifferences  = 100
)

// A ServiceItem is a service, or one of its real servers, and how it is
// configured. Both texts are for people; two nodes that are configured alike
// have the same.
type ServiceItem struct{ Name, Value string }

// serviceList is what a node is configured for.
type serviceList struct {
	digest uint64
	items  map[string]string
}

// SetServices says what this node is configured for. What is more than the
// protocol carries is left out.
func (s *Session) SetServices(items []ServiceItem) {
	l := newServiceList(items)
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.digest != s.services.digest {
		s.services = l
		s.servicesAt = time.Time{} // tell it now
		for _, p := range s.peers {
			s.compareServicesLocked(p, time.Now())
		}
		s.wake()
	}
}

func newServiceList(items []ServiceItem) serviceList {
	l := serviceList{items: map[string]string{}}
	for _, it := range items {
		if len(l.items) < maxServiceItems {
			l.items[printable(it.Name)] = printable(it.Value)
		}
	}
	h := sha256.New()
	var b []byte
	for _, name := range slices.Sorted(maps.Keys(l.items)) {
		b = appendItem(b[:0], name, l.items[name])
		h.Write(b)
	}
	// 0 stands for a node that did not tell.
	l.digest = max(1, binary.BigEndian.Uint64(h.Sum(nil)))
	return l
}

func appendItem(b []byte, name, value string) []byte {
	b = append(append(b, byte(len(name))), name...)
	return append(append(b, byte(len(value))), value...)
}

// printable returns s as it may go to a terminal, and no longer than it can
// travel.
func printable(s string) string {
	b := []byte(s[:min(len(s), maxServiceText)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

// A peerServices is what we know of a peer's services. It is guarded by
// Session.mu.
type peerServices struct {
	digest   uint64 // 0: not told
	list     serviceList
	since    time.Time // since when we differ; zero: we do not
	fetchAt  time.Time // not before
	fetching bool
	drift    []string
}

// tellServices sends the digest if it is due, and returns when it is next.
func (s *Session) tellServices(now time.Time) time.Time {
	s.mu.Lock()
	due, digest := s.servicesAt.Add(servicesEvery), s.services.digest
	if digest == 0 {
		due = time.Time{}
	}
	if digest == 0 || due.After(now) {
		s.mu.Unlock()
		return due
	}
	s.servicesAt = now
	s.mu.Unlock()
	d, _ := s.sealer.Seal(nil, appendServices(nil, s.self, digest))
	s.broadcast([][]byte{d}, true)
	return now.Add(servicesEvery)
}

func appendServices(b []byte, self conntable.NodeID, digest uint64) []byte {
	return binary.BigEndian.AppendUint64(appendHead(b, typeServices, self), digest)
}

// onServices takes a peer's digest.
func (s *Session) onServices(node conntable.NodeID, boot seal.Boot, c *cursor) {
	digest := c.u64()
	if c.bad || digest == 0 {
		s.drops.count(DropMalformed)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[node]; p != nil && p.boot == boot {
		p.services.digest = digest
		s.compareServicesLocked(p, time.Now())
	}
}

// compareServicesLocked brings what is told of p's services up to date.
func (s *Session) compareServicesLocked(p *peerState, now time.Time) {
	v := &p.services
	switch {
	case v.digest == 0 || s.services.digest == 0 || v.digest == s.services.digest:
		v.since, v.drift = time.Time{}, nil
		return
	case v.since.IsZero():
		v.since = now
	case v.list.digest == v.digest:
		v.drift = differences(s.services.items, v.list.items, p.name)
	}
	s.wake()
}

// differences says how ours and theirs differ, in order, and for people.
func differences(ours, theirs map[string]string, peer string) (out []string) {
	names := slices.AppendSeq(slices.Collect(maps.Keys(ours)), maps.Keys(theirs))
	slices.Sort(names)
	more := 0
	for _, name := range slices.Compact(names) {
		a, here := ours[name]
		b, there := theirs[name]
		var line string
		switch {
		case here && there && a == b:
			continue
		case !there:
			line = fmt.Sprintf("%s: only here", name)
		case !here:
			line = fmt.Sprintf("%s: only on %s", name, peer)
		default:
			line = fmt.Sprintf("%s: %s here, %s on %s", name, a, b, peer)
		}
		if len(out) == maxDifferences {
			more++
			continue
		}
		out = append(out, line)
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return out
}

// fetchServices gets the lists of those peers that differ for long enough, and
// returns when it is to be looked at again.
func (s *Session) fetchServices(ctx context.Context, now time.Time) (next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		v := &p.services
		if v.since.IsZero() || v.list.digest == v.digest || v.fetching || !p.up(now) || s.pulls >= maxPulls {
			continue
		}
		due := v.since.Add(servicesPatience)
		if v.fetchAt.After(due) {
			due = v.fetchAt
		}
		if due.After(now) {
			next = earlier(next, due)
			continue
		}
		v.fetching, v.fetchAt = true, now.Add(servicesAgain)
		s.pulls++
		t := pullTarget{peer: p, boot: p.boot, name: p.name, addr: p.addr, port: p.port}
		s.group.Go(func() error { s.runFetch(ctx, t); return nil })
	}
	return next
}

func (s *Session) runFetch(ctx context.Context, t pullTarget) {
	list, err := s.getServices(ctx, t)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	s.pulls--
	s.pullEndedLocked()
	v := &t.peer.services
	v.fetching = false
	if t.peer.boot != t.boot {
		return
	}
	if err != nil {
		if ctx.Err() == nil {
			s.log.Debug("fetch services", "peer", t.name, "addr", t.addr, "err", err)
		}
		return
	}
	v.list = list
	before := len(v.drift)
	s.compareServicesLocked(t.peer, time.Now())
	if len(v.drift) > 0 && before == 0 {
		s.log.Warn("services differ", "peer", t.name, "differences", len(v.drift), "first", v.drift[0])
	}
}

// getServices asks a peer for its list.
func (s *Session) getServices(ctx context.Context, t pullTarget) (serviceList, error) {
	conn, st, err := s.dial(ctx, t)
	if err != nil {
		return serviceList{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	b := appendHead(nil, typeGetServices, s.self)
	if err := st.Write(append(append(b, byte(len(s.cfg.Node))), s.cfg.Node...)); err != nil {
		return serviceList{}, err
	}
	var items []ServiceItem
	for {
		frame, err := st.Read()
		if errors.Is(err, io.EOF) {
			err = errEnd
		}
		if err != nil {
			return serviceList{}, err
		}
		var h head
		c, err := h.parse(frame)
		switch {
		case err != nil:
			return serviceList{}, err
		case h.typ == typeEnd:
			return newServiceList(items), nil
		case h.typ != typeServiceList:
			return serviceList{}, errMalformed
		}
		if items, err = parseItems(&c, items); err != nil {
			return serviceList{}, err
		}
	}
}

// parseItems reads a frame of the list, and appends to items.
func parseItems(c *cursor, items []ServiceItem) ([]ServiceItem, error) {
	for len(c.b) > 0 {
		name := c.take(int(c.u8()))
		value := c.take(int(c.u8()))
		if c.bad || len(items) >= maxServiceItems {
			return nil, errMalformed
		}
		items = append(items, ServiceItem{string(name), string(value)})
	}
	return items, nil
}

// sendServices answers who asked for the list.
func (s *Session) sendServices(st *seal.Stream) error {
	s.mu.Lock()
	items := s.services.items // never changed, only replaced
	s.mu.Unlock()
	b := appendHead(nil, typeServiceList, s.self)
	for name, value := range items {
		if b = appendItem(b, name, value); len(b) < serviceFrame {
			continue
		}
		if err := st.Write(b); err != nil {
			return err
		}
		b = appendHead(b[:0], typeServiceList, s.self)
	}
	if err := st.Write(b); err != nil {
		return err
	}
	return st.Write(appendHead(nil, typeEnd, s.self))
}
