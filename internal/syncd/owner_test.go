package syncd

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/internal/control"
	"saru/internal/ownership"
	"saru/internal/task"
	"saru/internal/testnet"
	"saru/partition"
	"saru/syncproto/peer/peertest"
)

var sharePlan = partition.Plan{VIPs: partition.Hosts(vip.Addr()), Buckets: 256, Default: partition.Division{Sense: partition.SrcPort}}

// serves makes saru tell n, until stop, that it serves all buckets or none.
func (n *node) serves(t *testing.T, all bool) (stop func()) {
	t.Helper()
	return n.servesOf(t, sharePlan, all)
}

func (n *node) servesOf(t *testing.T, plan partition.Plan, all bool) (stop func()) {
	t.Helper()
	var set partition.Set
	if all {
		set = partition.FullSet(plan.Buckets)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := n.owner.Update(time.Now(), ownership.NewTold(plan, set)); err != nil {
				t.Error(err)
			}
			task.Pause(ctx, ownerEvery)
		}
	}()
	return func() { cancel(); <-done }
}

// Whoever serves a connection knows it best, whatever versions say.
func TestTheOwnerIsRight(t *testing.T) {
	c := tcp(1, established, 900*time.Second)
	for name, run := range map[string]func(t *testing.T, a, b *node){
		// b deletes, with a newer version, what a serves.
		"a peer deletes": func(t *testing.T, a, b *node) {
			res := b.table.Delete(c.Key, b.clock.Next(), conntable.ToPeers)
			b.toPeers.push(res.Ref)
			time.Sleep(2 * time.Second)
			if e, ok := a.kernel.entry(c.Key); !ok || e.synced {
				t.Errorf("the owner's kernel has %+v, %v", e, ok)
			}
			if got := a.Status().Ownership; !got.Known || got.Contested != 1 {
				t.Errorf("%+v", got)
			}
			var r conntable.Record
			if !b.table.Lookup(c.Key, &r) || r.Deleted || r.Version.Node != a.self {
				t.Errorf("the peer has %+v", r)
			}
		},
		// b tells another state, with a newer version, of what a serves.
		"a peer tells otherwise": func(t *testing.T, a, b *node) {
			closed := c
			closed.State, closed.Timeout = tcpClose, closedLife
			before := a.kernel.injections()
			b.Captured(&closed)
			time.Sleep(2 * time.Second)
			if a.kernel.injections() != before {
				t.Error("the owner's kernel was told a state of a connection that it serves")
			}
			if e, ok := b.kernel.entry(c.Key); !ok || e.State != established {
				t.Errorf("the peer's kernel has %+v, %v", e, ok)
			}
		},
		// b told of it last, but a serves it and its kernel went on silently.
		"the owner's kernel went on": func(t *testing.T, a, b *node) {
			b.capture(c)
			time.Sleep(settle + time.Second)
			closed := c
			closed.State, closed.Timeout = tcpClose, closedLife
			a.kernel.serve(closed)
			time.Sleep(auditEvery + time.Second)
			if e, ok := b.kernel.entry(c.Key); !ok || e.State != tcpClose {
				t.Errorf("the peer's kernel has %+v, %v; want it closed", e, ok)
			}
		},
		// a's own connection is b's by now: that a's kernel lost it is no news.
		"the other's kernel lost it": func(t *testing.T, a, b *node) {
			b.capture(c)
			time.Sleep(time.Second)
			b.kernel.lost(c.Key)
			time.Sleep(5 * auditEvery)
			var r conntable.Record
			if !a.table.Lookup(c.Key, &r) || r.Deleted {
				t.Errorf("the owner's mirror lost it: %+v", r)
			}
			if got := b.Status().Audit; got.Gone != 0 {
				t.Errorf("%+v", got)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := pair(t, 41)
				defer a.serves(t, true)()
				defer b.serves(t, false)()
				time.Sleep(ownership.Settle + time.Second)
				a.capture(c)
				time.Sleep(2*ownership.Settle + settle)
				run(t, a, b)
			})
		})
	}
}

// syncd asks the saru beside it.
func TestAskingSaru(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "saru.sock")
	srv, err := control.Listen("saru", socket, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ownership" {
			told, second := ownership.NewTold(sharePlan, partition.FullSet(256)), sharePlan
			second.VIPs = partition.Hosts(netip.MustParseAddr("10.9.0.101"))
			told.Others = []ownership.Told{*ownership.NewTold(second, partition.Set{})}
			control.JSON(w, told)
		}
	}))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- srv.Run(ctx) }()
	e := New(Config{Node: "d1", Keys: testKeys, Transport: peertest.New(1).Node(1), Log: slog.New(slog.DiscardHandler), Saru: socket})
	go func() { done <- e.followOwner(ctx) }()
	testnet.Await(t, "saru was heard", func() bool { return e.owner.Shares(time.Now()) == 2 })
	cancel()
	for range 2 {
		must(t, <-done)
	}
}
