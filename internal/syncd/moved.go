package syncd

import (
	"iter"
	"sync"
	"sync/atomic"

	"saru/conntable"
)

// maxMoved bounds what is remembered of those that moved. Then all is forgotten,
// also what died before it was told, and the audit finds what is left.
const maxMoved = 4096

// moved are connections that have another real server than the kernel was told
// before. If they count as inactive, as all of UDP do, the kernel takes the
// record for the last word of a connection that was replaced, and ignores it
// (net/netfilter/ipvs/ip_vs_sync.c, ip_vs_proc_conn). So it is first told of an
// active one, which replaces what it has, then of what there is.
type moved struct {
	n    atomic.Int64 // len(keys), so that the common case asks for no lock
	mu   sync.Mutex
	keys map[conntable.Key]struct{}
}

func (m *moved) note(k conntable.Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys == nil {
		m.keys = map[conntable.Key]struct{}{}
	}
	if len(m.keys) >= maxMoved {
		clear(m.keys)
	}
	m.keys[k] = struct{}{}
	m.n.Store(int64(len(m.keys)))
}

// take reports whether k was noted, and forgets it.
func (m *moved) take(k *conntable.Key) bool {
	if m.n.Load() == 0 {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.keys[*k]
	delete(m.keys, *k)
	m.n.Store(int64(len(m.keys)))
	return ok
}

// noteMove notes a peer's record if its real server is new here. One of TCP or
// SCTP may indeed be the last word of what was replaced, told late: that is for
// the audit to judge.
func (e *Engine) noteMove(r *conntable.Record, res *conntable.Result) {
	if res.Outcome == conntable.Updated && !res.Prev.SameTo && !res.Prev.Deleted && !r.Deleted && !r.Template &&
		r.Protocol != protoTCP && r.Protocol != protoSCTP {
		e.moved.note(r.Key)
	}
}

// toldOf yields of which connections conns tell the kernel, as the mirror knows
// them, and whether they moved: those are there twice.
func toldOf(conns []conntable.Connection) iter.Seq2[conntable.Key, bool] {
	return func(yield func(conntable.Key, bool) bool) {
		for i := 0; i < len(conns); i++ {
			k := keyOf(&conns[i])
			moved := i+1 < len(conns) && keyOf(&conns[i+1]) == k
			if moved {
				i++
			}
			if !yield(k, moved) {
				return
			}
		}
	}
}

// appendForKernel appends what the kernel is to be told of r.
func appendForKernel(conns []conntable.Connection, r *conntable.Record, moved bool) []conntable.Connection {
	c := forKernel(r)
	if moved && c.Flags&conntable.FlagInactive != 0 {
		first := c
		first.Flags &^= conntable.FlagInactive
		conns = append(conns, first)
	}
	return append(conns, c)
}
