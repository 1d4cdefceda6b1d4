package director

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"saru/internal/task"
	"saru/membership"
	"saru/partition/lan"
)

// Directors that are not the master ask for the virtual addresses, as clients
// do. What the master does not answer has not reached it: a switch that snoops
// MLD and hears of no members passes no solicitations on.
const (
	askEvery    = 5 * time.Second
	askWithin   = 600 * time.Millisecond
	unansweredN = 2 // questions in a row that make trouble
)

// A questioner asks for one address after the other.
type questioner struct {
	addrs  []netip.Addr
	next   int
	missed map[netip.Addr]int
}

func newQuestioner(vips []netip.Prefix) *questioner {
	q := &questioner{missed: map[netip.Addr]int{}}
	for _, v := range vips {
		if v.IsSingleIP() {
			q.addrs = append(q.addrs, v.Addr())
		}
	}
	return q
}

// turn returns whom to ask for now: an address of each family, the next ones at
// the next turn.
func (q *questioner) turn() (ask []netip.Addr) {
	for i := range q.addrs {
		a := q.addrs[(q.next+i)%len(q.addrs)]
		if !slices.ContainsFunc(ask, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			ask = append(ask, a)
		}
	}
	q.next++
	return ask
}

// answered notes whether one was.
func (q *questioner) answered(a netip.Addr, was bool) {
	if was {
		delete(q.missed, a)
	} else {
		q.missed[a]++
	}
}

// says is what is wrong, or "".
func (q *questioner) says(master string) string {
	for _, a := range q.addrs {
		switch {
		case q.missed[a] < unansweredN:
		case a.Is6():
			return fmt.Sprintf("nobody answers solicitations of %v from here, but %s is the master and should: "+
				"does a switch snoop MLD, with no querier on the LAN?", a, master)
		default:
			return fmt.Sprintf("nobody answers ARP requests for %v from here, but %s is the master and should", a, master)
		}
	}
	return ""
}

// watchAnswers asks until ctx ends.
func (d *daemon) watchAnswers(ctx context.Context) error {
	q := newQuestioner(d.settings.VIPs)
	if len(q.addrs) == 0 {
		return nil
	}
	for task.Pause(ctx, askEvery) {
		var snap membership.Snapshot
		if d.engine.ask(ctx, func(now time.Duration) { snap = d.engine.core.Snapshot(now) }) != nil {
			return nil // only when ctx ended
		}
		// A member that is heard, and not this node.
		if i := slices.IndexFunc(snap.Members, func(m membership.MemberInfo) bool { return m.Name == snap.Master }); i <= 0 || snap.Members[i].Open == 0 {
			clear(q.missed)
			d.lanTrouble("answers", "")
			continue
		}
		ask := q.turn()
		found, err := lan.Probe(ctx, d.settings.Interface, ask, askWithin)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			continue // no link, and that is known
		}
		for _, a := range ask {
			q.answered(a, found[a] != nil)
		}
		d.lanTrouble("answers", q.says(snap.Master))
	}
	return nil
}
