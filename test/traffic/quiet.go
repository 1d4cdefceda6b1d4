package traffic

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// Quieter keeps one connection open to a server that speaks Redis's protocol,
// and has it echo a line now and then.
type Quieter struct {
	Log     *Log
	ID      int
	To      string
	Every   time.Duration
	Silence time.Duration // an echo that takes longer loses the flow
}

// Run exchanges lines until ctx ends or stop is closed, over a new connection
// after each loss.
func (q *Quieter) Run(ctx context.Context, stop <-chan struct{}) {
	// Spread the first lines over the interval: a crowd that speaks in step
	// would be a different test.
	wait(ctx, stop, time.Duration(q.ID%100)*q.Every/100/4)
	for ctx.Err() == nil {
		select {
		case <-stop:
			return
		default:
		}
		q.one(ctx, stop)
		wait(ctx, stop, time.Second)
	}
}

func (q *Quieter) one(ctx context.Context, stop <-chan struct{}) {
	c, err := dial(ctx, q.To, q.Silence)
	if err != nil {
		return
	}
	defer abort(c)
	defer closeOn(ctx, c)()
	f := q.Log.open(&Flow{Kind: Quiet, ID: q.ID, Every: q.Every, Local: c.LocalAddr().String()})
	br := bufio.NewReader(c)
	for n := 0; ; n++ {
		q.Log.await(f)
		err := q.exchange(c, br, fmt.Sprintf("flow-%d-line-%d", q.ID, n))
		if ctx.Err() != nil {
			q.Log.end(f, nil)
			return
		}
		if err != nil {
			q.Log.end(f, err)
			return
		}
		q.Log.got(f, 0, true)
		wait(ctx, stop, q.Every)
		select {
		case <-stop:
			q.Log.end(f, nil)
			return
		default:
		}
	}
}

func (q *Quieter) exchange(c deadlineConn, br *bufio.Reader, line string) error {
	if err := c.SetReadDeadline(time.Now().Add(q.Silence)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "ECHO %s\r\n", line); err != nil {
		return err
	}
	want := fmt.Sprintf("$%d\r\n%s\r\n", len(line), line)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(br, got); err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("%w: sent %q, got %q", errWrongBytes, line, strings.TrimSpace(string(got)))
	}
	return nil
}
