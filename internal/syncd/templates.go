package syncd

import (
	"sync"
	"time"

	"saru/conntable"
)

const (
	// templatesEvery is how often the templates being replaced are looked at.
	templatesEvery = time.Second
	// templateGone is for how long to wait until a deleted template is gone,
	// and as long again until the audit may say that it is not. Both double
	// with every try, up to templateSlow.
	templateGone = 3 * time.Second
	templateSlow = 30 * time.Second
	// templateDone is how long a replacement is remembered. The kernel keeps a
	// template with a connection for 60 s whatever it is told, and then tells
	// of it anew (ip_vs_conn.c, ip_vs_conn_expire).
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
	if !r.told.IsZero() && now.Sub(r.told) >= r.patience() {
		*r = replacement{old: old, tries: r.tries + 1}
	}
}

// patience is how long the kernel is given.
func (r *replacement) patience() time.Duration {
	return min(templateGone<<min(r.tries, 8), templateSlow)
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
		case r.told.IsZero() && now.Sub(r.deleted) >= r.patience():
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
