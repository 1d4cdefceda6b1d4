package logs

import (
	"fmt"
	"sync"
	"time"
)

const (
	// maxWaiting is how many bytes of log may wait for whoever takes them.
	maxWaiting = 1 << 20
	// closeWithin is how long the end of a program waits for them.
	closeWithin = time.Second
)

// A queue takes lines without ever waiting and hands them on by a goroutine of
// its own. Whoever reads a log may stand still: a terminal that is scrolled, a
// pipe, a syslog daemon on a full disk. A director's lease must not.
//
// What finds the queue full is dropped, and counted in a line of its own.
type queue struct {
	mu      sync.Mutex
	more    *sync.Cond
	lines   []line
	bytes   int
	dropped int
	last    func(string) error // where a dropped one was to go
	closed  bool
	empty   chan struct{} // closed when all was handed on after close
}

// A line goes to where it is to be written. Errors are for nobody: there is no
// log to tell them to.
type line struct {
	to   func(string) error
	text string
}

func newQueue() *queue {
	q := &queue{empty: make(chan struct{})}
	q.more = sync.NewCond(&q.mu)
	go q.run()
	return q
}

func (q *queue) put(l line) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return
	case q.bytes+len(l.text) > maxWaiting:
		q.dropped++
		q.last = l.to
	default:
		q.lines = append(q.lines, l)
		q.bytes += len(l.text)
	}
	q.more.Signal()
}

// run hands lines on until the queue is closed and empty. What is being written
// still counts as waiting.
func (q *queue) run() {
	defer close(q.empty)
	var batch []line
	for {
		var dropped int
		var to func(string) error
		batch, dropped, to = q.take(batch)
		if len(batch) == 0 && dropped == 0 {
			return
		}
		for i := range batch {
			_ = batch[i].to(batch[i].text)
			q.wrote(len(batch[i].text))
		}
		clear(batch)
		if dropped > 0 {
			_ = to(fmt.Sprintf("level=WARN msg=\"the log was not taken in time\" lines_dropped=%d\n", dropped))
		}
	}
}

// take waits for what is to be handed on, and returns it, how many lines were
// dropped, and where to say so; nothing at the end. It keeps the room of old.
func (q *queue) take(old []line) (batch []line, dropped int, to func(string) error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.lines) == 0 && q.dropped == 0 && !q.closed {
		q.more.Wait()
	}
	batch, q.lines = q.lines, old[:0]
	dropped, q.dropped = q.dropped, 0
	return batch, dropped, q.last
}

func (q *queue) wrote(bytes int) {
	q.mu.Lock()
	q.bytes -= bytes
	q.mu.Unlock()
}

// close waits until all was handed on, or for closeWithin.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.more.Signal()
	q.mu.Unlock()
	timer := time.NewTimer(closeWithin)
	defer timer.Stop()
	select {
	case <-q.empty:
	case <-timer.C:
	}
}

// A queueWriter is a way into the queue for what writes a line at a time.
type queueWriter struct {
	q  *queue
	to func(string) error
}

func (w queueWriter) Write(p []byte) (int, error) {
	w.q.put(line{w.to, string(p)})
	return len(p), nil
}
