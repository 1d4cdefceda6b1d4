package syncd

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"saru/conntable"
	"saru/internal/task"
)

// A fakeKernel takes all it is told, like the real one without a check, and
// forgets it in time.
type fakeKernel struct {
	mu       sync.Mutex
	conns    map[conntable.Key]conntable.Connection // as it was told last
	table    map[conntable.Key]*fakeEntry
	deleted  int
	injected int
	found    []conntable.Connection // put into the table when it is first read
	synced   map[conntable.Key]bool // of found
	targets  map[Target]struct{}
	fail     error
	onInject func(*conntable.Connection)
	lose     int           // so many injections to come vanish without a word
	lostSome atomic.Uint64 // datagrams, as it tells
	keep     int           // so many deletions to come do
	slow     time.Duration // of a read of the table
	lag      time.Duration // of Settle
	stuck    int           // so many calls of Settle to come fail
	finds    uint64        // lost datagrams that the next Settle notices
	during   func()        // is called after a slice was read, before it is told
	torn     bool          // all entries of a read are
	stats    func() KernelStats
}

type fakeEntry struct {
	conntable.Connection
	until  time.Time
	synced bool
}

// newFakeKernel has the real servers of the tests' connections.
func newFakeKernel() *fakeKernel {
	k := &fakeKernel{conns: map[conntable.Key]conntable.Connection{}, table: map[conntable.Key]*fakeEntry{}, targets: map[Target]struct{}{}}
	for _, dest := range []netip.AddrPort{realA, realB} {
		k.targets[Target{Virtual: vip, Protocol: 6, Dest: dest}] = struct{}{}
	}
	return k
}

// troubles are how a kernel may be that is told something.
var troubles = map[string]struct{ begin, end func(k *fakeKernel) }{
	"lost":      {func(k *fakeKernel) { k.lose = 1000 }, func(k *fakeKernel) { k.lose = 0; k.lostSome.Add(1) }},
	"not taken": {func(k *fakeKernel) { k.fail = errors.New("stuck") }, func(k *fakeKernel) { k.fail = nil }},
}

// with changes how k is.
func (k *fakeKernel) with(change func(k *fakeKernel)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(k)
}

func (k *fakeKernel) Inject(conns []conntable.Connection) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return k.fail
	}
	for _, c := range conns {
		if k.onInject != nil {
			k.onInject(&c)
		}
		k.injected++
		if k.lose > 0 {
			k.lose--
			continue
		}
		k.conns[c.Key] = c
		e := k.table[c.Key]
		if e != nil && time.Until(e.until) > 0 && !c.Template && e.Dest != c.Dest && c.Flags&conntable.FlagInactive != 0 {
			continue // ip_vs_proc_conn: taken for the end of what was replaced
		}
		if e == nil {
			e = &fakeEntry{Connection: c, synced: true}
			k.table[c.Key] = e
		}
		dest := e.Dest
		e.Connection, e.until = c, time.Now().Add(c.Timeout)
		if c.Template {
			e.Dest = dest
		}
	}
	return nil
}

func (k *fakeKernel) Delete(c conntable.Connection) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return k.fail
	}
	k.deleted++
	if k.keep > 0 {
		k.keep--
		return nil
	}
	delete(k.conns, c.Key)
	delete(k.table, c.Key)
	return nil
}

// Settle takes as long as lag says, and then fails as often as stuck says.
func (k *fakeKernel) Settle(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if lag := k.lag; lag > 0 {
		k.mu.Unlock()
		goesOn := task.Pause(ctx, lag)
		k.mu.Lock()
		if !goesOn {
			return ctx.Err()
		}
	}
	k.lostSome.Add(k.finds)
	k.finds = 0
	if k.stuck > 0 {
		k.stuck--
		return errors.New("the backup thread leaves it unread")
	}
	return nil
}

func (k *fakeKernel) Lost() uint64 { return k.lostSome.Load() }

func (k *fakeKernel) lagBy(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lag = d
}

// serve is a packet of a client's, or of a server's, on c.
func (k *fakeKernel) serve(c conntable.Connection) {
	k.mu.Lock()
	defer k.mu.Unlock()
	synced := k.table[c.Key] != nil && k.table[c.Key].synced
	k.table[c.Key] = &fakeEntry{c, time.Now().Add(c.Timeout), synced}
}

// lost makes an entry go without a word.
func (k *fakeKernel) lost(key conntable.Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.table, key)
}

func (k *fakeKernel) entry(key conntable.Key) (fakeEntry, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.table[key]; e != nil && time.Until(e.until) > 0 {
		return *e, true
	}
	return fakeEntry{}, false
}

func (k *fakeKernel) Entries(pace func() error, fn func(*Entry)) error {
	if err := pace(); err != nil {
		return err
	}
	k.mu.Lock()
	for _, c := range k.found {
		k.table[c.Key] = &fakeEntry{c, time.Now().Add(c.Timeout), k.synced[c.Key]}
	}
	k.found = nil
	during, slow := k.during, k.slow
	all := make([]Entry, 0, len(k.table))
	for key, e := range k.table {
		left := time.Until(e.until).Truncate(time.Second)
		if left <= 0 {
			delete(k.table, key)
			continue
		}
		all = append(all, Entry{e.Connection, left, e.synced, k.torn})
	}
	k.mu.Unlock()
	if during != nil {
		during()
	}
	for i := range all {
		if i > 0 && i%slice == 0 {
			time.Sleep(slow)
			if err := pace(); err != nil {
				return err
			}
		}
		fn(&all[i])
	}
	return nil
}

const slice = 60 // entries that the kernel tells in one read

func (k *fakeKernel) Services() (Services, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := map[Target]struct{}{}
	for x := range k.targets {
		t[x] = struct{}{}
	}
	return Services{Targets: t, Connections: len(k.conns)}, nil
}

// Real servers are added to the kernel's services, and taken from them.
func (k *fakeKernel) learn(targets ...Target) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range targets {
		k.targets[t] = struct{}{}
	}
}

func (k *fakeKernel) forget(targets ...Target) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range targets {
		delete(k.targets, t)
	}
}

func (k *fakeKernel) Stats() KernelStats {
	if k.stats != nil {
		return k.stats()
	}
	return KernelStats{Source: "fake"}
}

func (k *fakeKernel) get(key conntable.Key) (conntable.Connection, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, ok := k.conns[key]
	return c, ok
}

func (k *fakeKernel) len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.conns)
}

func (k *fakeKernel) injections() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.injected
}
