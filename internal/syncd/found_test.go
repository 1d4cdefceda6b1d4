package syncd

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/syncproto/peer/peertest"
)

// A director whose kernel's table takes long to read mirrors meanwhile. It is
// synced when it has read it all; until then the kernel is told nothing that an
// earlier life said, which it may know better.
func TestLongTableIsReadMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := peertest.New(6)
		a, b := start(t, network, 1, newFakeKernel()), start(t, network, 2, newFakeKernel())
		time.Sleep(3 * time.Second)
		const n, reads = 60 * 20, 19
		var kept [n]conntable.Connection
		for i := range kept {
			kept[i] = tcp(i, established, 900*time.Second)
			a.capture(kept[i])
		}
		lost := tcp(2*n, established, 900*time.Second)
		a.capture(lost)
		time.Sleep(time.Second)
		a.stop()

		// While a's syncd is away, every other one of its connections closes.
		k := newFakeKernel()
		k.slow = 2 * time.Second
		for i, c := range kept {
			if i%2 == 0 {
				c.State, c.Timeout = finWait, 300*time.Second
			}
			k.found = append(k.found, c)
		}
		only := tcp(2*n+2, established, 900*time.Second)
		k.found = append(k.found, only)
		a2 := start(t, network, 1, k)
		time.Sleep(6 * time.Second)
		mine, theirs := tcp(3*n, established, 900*time.Second), tcp(3*n+2, established, 900*time.Second)
		a2.capture(mine)
		b.capture(theirs)
		time.Sleep(100 * time.Millisecond)
		if _, told := b.kernel.get(mine.Key); !told {
			t.Error("the peer is not told what happens while the table is read")
		}
		if _, told := k.get(theirs.Key); !told {
			t.Error("the kernel is not told of a peer's connection while the table is read")
		}
		if st := a2.Status(); st.Synced || len(st.Warnings) == 0 || !strings.Contains(st.Warnings[0], "still being read") {
			t.Errorf("synced %v before the table was read; warnings %q", st.Synced, st.Warnings)
		}
		time.Sleep((reads + 3) * k.slow)
		if !a2.Synced() || len(a2.Status().Warnings) != 0 {
			t.Fatalf("synced %v after the table was read; warnings %q", a2.Synced(), a2.Status().Warnings)
		}
		time.Sleep(5 * time.Second)
		for i := range kept {
			want := uint16(established)
			if i%2 == 0 {
				want = finWait
			}
			if e, there := k.entry(kept[i].Key); !there || e.State != want {
				t.Fatalf("the kernel has %+v, %v of connection %d; it had state %d, and knew it best", e.Connection, there, i, want)
			}
			if got, _ := b.kernel.get(kept[i].Key); got.State != want {
				t.Fatalf("the peer's kernel has state %d of connection %d, want %d", got.State, i, want)
			}
		}
		if _, told := k.get(lost.Key); !told {
			t.Error("the kernel is not told of what it lost")
		}
		if _, told := b.kernel.get(only.Key); !told {
			t.Error("the peer is not told of what only this kernel had")
		}
	})
}

// A long table does not hold up the end.
func TestEndWhileALongTableIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		k.slow = time.Second
		for i := range 60 * 1000 {
			k.found = append(k.found, tcp(i, established, 900*time.Second))
		}
		n := start(t, peertest.New(6), 1, k)
		for _, wait := range []time.Duration{time.Second, 9 * time.Second} {
			time.Sleep(wait)
		}
		end := time.Now()
		n.stop()
		if took := time.Since(end); took > 2*time.Second {
			t.Errorf("it ended after %v", took)
		}
	})
}
