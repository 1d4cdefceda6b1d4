package syncd

import (
	"sync"
	"time"

	"saru/conntable"
)

const (
	// templatesEvery is how often the templates being replaced are looked at.
	templatesEvery = time.Second
	// templateGone is for how long to wait until a deleted template is gone;
	// twice that when it was not in time, but no longer, for meanwhile the
	// client has no template.
	templateGone = 3 * time.Second
	// templateTries is how often to try, with pauses that double from
	// templateGone on.
	templateTries = 5
	// templateDone is how long a replacement is remembered. The kernel keeps a
	// template with a connection for 60 s whatever it is told, and tells of it
	// anew when it should have died (ip_vs_conn.c, ip_vs_conn_expire).
	templateDone = time.Minute
	// maxTemplates bounds the templates being replaced.
	maxTemplates = 4096
)

// templates are those that the kernel holds with another real server than the
// mirror, since two directors chose for one client. The kernel ignores the
// real server of a record for a template that it has, so the old one has to go
// first: delete, wait, inject. Whether that worked is for the audit to see,
// which begins anew.
type templates struct {
	mu        sync.Mutex
	replaced  map[conntable.Key]*replacement
	conflicts uint64
	left      uint64 // conflicts left alone since too many were being mended
}

type replacement struct {
	old     conntable.Connection
	deleted time.Time // zero: not yet
	told    time.Time // when the new one was injected; zero: not yet
	tries   int       // that came to nothing
}

// replaceTemplate begins to replace old, a template of the kernel, by what the
// mirror has.
func (e *Engine) replaceTemplate(old conntable.Connection) {
	t := &e.templates
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.replaced[old.Key]; r != nil {
		r.again(old, time.Now())
		return
	}
	t.conflicts++
	if len(t.replaced) >= maxTemplates {
		t.left++
		return
	}
	if t.replaced == nil {
		t.replaced = map[conntable.Key]*replacement{}
	}
	t.replaced[old.Key] = &replacement{old: old}
}

// again begins anew if the kernel still has the old one long after it was told
// of the new one: a record was lost, or a slow kernel took the new one before
// the old one had died.
func (r *replacement) again(old conntable.Connection, now time.Time) {
	if !r.told.IsZero() && r.tries+1 < templateTries && now.Sub(r.told) >= templateGone<<r.tries {
		*r = replacement{old: old, tries: r.tries + 1}
	}
}

// replacingTemplate reports whether k is a template that is to go before it is
// injected.
func (e *Engine) replacingTemplate(k *conntable.Key) bool {
	if !k.Template {
		return false
	}
	t := &e.templates
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.replaced[*k]
	return r != nil && r.told.IsZero()
}

// replaceTemplates goes on with what replaceTemplate began.
func (e *Engine) replaceTemplates() {
	doomed, due := e.templates.turn(time.Now())
	for i := range doomed {
		if !e.outdated(&doomed[i]) {
			e.templates.forget(doomed[i].Key)
			continue
		}
		if err := e.delete(doomed[i]); err != nil {
			e.refused.Add(1)
		}
	}
	for i := range due {
		if ref, queued := e.table.Queue(due[i], conntable.ToKernel); queued != 0 {
			e.toKernel.push(ref)
		}
	}
}

// outdated reports whether the mirror still has another real server for the
// template c of the kernel's, told by a peer: a packet may have come meanwhile,
// or the template is served here now.
func (e *Engine) outdated(c *conntable.Connection) bool {
	var r conntable.Record
	return e.table.Lookup(c.Key, &r) && !r.Deleted && !e.isOurs(r.Version) && !e.servedHere(&r) && r.Dest != c.Dest
}

// forget ends a replacement.
func (t *templates) forget(k conntable.Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.replaced, k)
}

// turn returns which templates are now to be deleted, and which to be
// injected.
func (t *templates) turn(now time.Time) (doomed []conntable.Connection, due []conntable.Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, r := range t.replaced {
		switch {
		case r.deleted.IsZero():
			r.deleted = now
			doomed = append(doomed, r.old)
		case r.told.IsZero() && now.Sub(r.deleted) >= min(templateGone<<r.tries, 2*templateGone):
			r.told = now
			due = append(due, k)
		case !r.told.IsZero() && now.Sub(r.told) >= templateDone:
			delete(t.replaced, k)
		}
	}
	return doomed, due
}

// counts returns how many templates disagreed, and how many of these were left
// alone.
func (t *templates) counts() (conflicts, left uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.conflicts, t.left
}
