package nft_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"saru/partition"
	"saru/partition/nft"
	"saru/partition/queue"
)

// A filter is what the tests ask of both backends.
type filter interface {
	Arm(n uint64) error
	Confirm(n uint64) error
	Apply(d nft.Desired) error
	Settle(b *partition.Set, d time.Duration) error
	Verify() (bool, error)
	Reset() error
	Replan(partition.Plan) error
	Stats() (nft.Stats, error)
	Buckets() ([]nft.BucketStats, error)
	Close() error
}

// openFilter opens the backend that is tested.
var openFilter = func(cfg nft.Config) (filter, error) { return nft.Open(cfg) }

// A judged filter is one whose queues are read.
type judged struct {
	*queue.Filter
	cancel context.CancelFunc
	done   chan error
}

func openQueues(cfg nft.Config) (filter, error) {
	f, err := queue.Open(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	j := &judged{f, cancel, make(chan error, 1)}
	go func() { j.done <- f.Run(ctx) }()
	<-f.Ready()
	return j, nil
}

func byQueues(d *director) bool {
	_, is := d.filter.(*judged)
	return is
}

// Stats waits for the verdicts on what has come.
func (j *judged) Stats() (s nft.Stats, err error) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if s, err = j.Filter.Stats(); err != nil || s.Waiting == 0 {
			break
		}
	}
	return s, err
}

// awaitVerdicts waits until what has come is judged, if queues do that.
func (d *director) awaitVerdicts() {
	if j, ok := d.filter.(*judged); ok {
		time.Sleep(time.Millisecond) // a frame is counted just before it is queued
		if _, err := j.Stats(); err != nil {
			d.t.Fatal(err)
		}
	}
}

func (j *judged) Close() error {
	j.cancel()
	err := <-j.done
	j.done <- nil
	return errors.Join(err, j.Filter.Close())
}

// What holds where rules judge holds where queues do.
func TestQueues(t *testing.T) {
	if err := nft.ProbeQueues(); errors.Is(err, nft.ErrNotSupported) {
		t.Skip(err)
	}
	was := openFilter
	openFilter = openQueues
	defer func() { openFilter = was }()
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Packets", TestPackets},
		{"PacketsThroughIPVS", TestPacketsThroughIPVS},
		{"PacketsOfTwoShares", TestPacketsOfTwoShares},
		{"Forward", TestForward},
		{"Divide", TestDivide},
		{"Fragments", TestFragments},
		{"FragmentFlood", TestFragmentFlood},
		{"Ping", TestPing},
		{"OwnMAC", TestOwnMAC},
		{"BroadcastFrame", TestBroadcastFrame},
		{"ForeignMAC", TestForeignMAC},
		{"Backstop", TestBackstop},
		{"DatagramSizes", TestDatagramSizes},
		{"PathMTU", TestPathMTU},
		{"Classes", TestClasses},
		{"Superseded", TestSuperseded},
		{"Buckets", TestBuckets},
		{"LeaseLapses", TestLeaseLapses},
		{"ConfirmLate", TestConfirmLate},
		{"HalfTable", TestHalfTable},
		{"DefaultDeny", TestDefaultDeny},
		{"FlushRuleset", TestFlushRuleset},
	} {
		t.Run(test.name, test.run)
	}
}
