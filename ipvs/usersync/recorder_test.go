package usersync_test

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"saru/ipvs/usersync"
)

// A recorder keeps what a Listener hears.
type recorder struct {
	mu     sync.Mutex
	events []usersync.Record
	delays []time.Duration
	lost   []error
}

func now() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return uint64(ts.Nano())
}

func (r *recorder) handler() usersync.Handler {
	return usersync.Handler{
		Event: func(e *usersync.Record) {
			r.mu.Lock()
			defer r.mu.Unlock()
			c := *e
			c.PEData, c.Seq = nil, nil
			r.events = append(r.events, c)
			r.delays = append(r.delays, time.Duration(now()-e.Stamp))
		},
		Lost: func(err error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.lost = append(r.lost, err)
		},
	}
}

// of returns the events of the client's port and the virtual one so far.
func (r *recorder) of(cport, vport uint16) []usersync.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	var got []usersync.Record
	for _, e := range r.events {
		if e.Client.Port() == cport && e.Virtual.Port() == vport {
			got = append(got, e)
		}
	}
	return got
}

// listen records until the test ends.
func listen(t testing.TB) *recorder {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	r := &recorder{}
	l, err := usersync.Listen(r.handler())
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("listener: %v", err)
		}
		must(t, l.Close())
		goleak.VerifyNone(t, leaks)
		for _, err := range r.lost {
			t.Errorf("lost: %v", err)
		}
	})
	return r
}

func dialModule(t testing.TB) *usersync.Client {
	t.Helper()
	c, err := usersync.Dial()
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	limit := patience(30 * time.Second)
	for end := time.Now().Add(limit); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

// await returns the first event of the connection that the condition holds
// for.
func (r *recorder) await(t testing.TB, what string, cport, vport uint16, cond func(*usersync.Record) bool) usersync.Record {
	t.Helper()
	var found usersync.Record
	defer func() {
		if t.Failed() {
			for _, e := range r.of(cport, vport) {
				t.Logf("%+v", e)
			}
		}
	}()
	eventually(t, what, func() bool {
		for _, e := range r.of(cport, vport) {
			if cond(&e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

func kind(k usersync.Kind) func(*usersync.Record) bool {
	return func(e *usersync.Record) bool { return e.Kind == k }
}

func state(s uint16) func(*usersync.Record) bool {
	return func(e *usersync.Record) bool { return e.State == s && e.Kind != usersync.KindExpired }
}

func port(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }
