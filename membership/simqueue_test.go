package membership

import (
	"time"
)

type event struct {
	at  time.Duration
	seq int
	do  func()
}

// events is a heap, earliest first.
type events []event

func (e events) less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}

func (e *events) push(x event) {
	*e = append(*e, x)
	q := *e
	for i := len(q) - 1; i > 0; {
		up := (i - 1) / 2
		if !q.less(i, up) {
			break
		}
		q[i], q[up] = q[up], q[i]
		i = up
	}
}

func (e *events) pop() event {
	q := *e
	x, n := q[0], len(q)-1
	q[0], q[n] = q[n], event{}
	q = q[:n]
	for i := 0; ; {
		least := i
		for _, k := range []int{2*i + 1, 2*i + 2} {
			if k < n && q.less(k, least) {
				least = k
			}
		}
		if least == i {
			break
		}
		q[i], q[least] = q[least], q[i]
		i = least
	}
	*e = q
	return x
}
