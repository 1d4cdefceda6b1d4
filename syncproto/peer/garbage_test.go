package peer

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"saru/conntable"
	"saru/internal/seal"
	"saru/syncproto/peer/peertest"
)

// kinds of garbage, and what they are counted as. Each datagram that is made
// is another.
func garbage(t testing.TB, hear func(d []byte, from netip.AddrPort)) []struct {
	name string
	make func() []byte
	drop []Drop
} {
	rng := rand.New(rand.NewPCG(1, 1))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	sealer := seal.NewSealer(keys(t, keyA), purposeDatagram)
	foreign := seal.NewSealer(keys(t, keyB), purposeDatagram)
	known := seal.NewSealer(keys(t, keyA), purposeDatagram)
	hb := (&heartbeat{incarnation: 9, lowest: 1, clock: 1, port: 8849, name: "d2"}).append(nil, conntable.NodeIDOf("d2"))
	first, _ := known.Seal(nil, hb)
	hear(first, from)
	later, _ := sealer.Seal(nil, appendHead(nil, 99, conntable.NodeIDOf("d4")))
	hear(later, netip.MustParseAddrPort("10.0.0.8:8849"))
	return []struct {
		name string
		make func() []byte
		drop []Drop
	}{
		{"too short", func() []byte { return noise(20) }, []Drop{DropShort}},
		{"noise", func() []byte { return noise(1400) }, []Drop{DropSeal}},
		{"another cluster's", func() []byte { d, _ := foreign.Seal(nil, noise(1000)); return d }, []Drop{DropKey}},
		{"forged, of an unknown boot", func() []byte {
			d, _ := sealer.Seal(nil, noise(1000))
			copy(d[8:16], noise(8))
			return d
		}, []Drop{DropForged, DropUnknown}},
		{"forged, of a peer's boot", func() []byte {
			d, _ := known.Seal(nil, noise(1000))
			d[len(d)-1] ^= 1
			return d
		}, []Drop{DropForged}},
		{"replayed", func() []byte { return first }, []Drop{DropReplay}},
		{"sealed noise of the later version", func() []byte {
			b := noise(1000)
			b[0] = 99
			binary.BigEndian.PutUint32(b[4:], 7)
			d, _ := sealer.Seal(nil, b)
			return d
		}, []Drop{DropVersion}},
	}
}

// A flood of whatever kind is counted by its reason, leaves nothing behind,
// and holds up nobody that is known.
func TestFloodOfGarbage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, a, b, got := pair(t)
		hear := func(d []byte, from netip.AddrPort) { network.Inject(2, d, from) }
		kinds := garbage(t, hear)
		synctest.Wait()
		for _, kind := range kinds {
			var before, after uint64
			for _, d := range kind.drop {
				before += b.drops[d].Load()
			}
			const flood = 2000
			for range flood {
				hear(kind.make(), from)
			}
			synctest.Wait()
			for _, d := range kind.drop {
				after += b.drops[d].Load()
			}
			if after-before != flood {
				t.Errorf("%s: %d of %d counted as %v", kind.name, after-before, flood, kind.drop)
			}
			n := count(got)
			a.Send([]conntable.Record{now(a)})
			time.Sleep(time.Millisecond)
			if count(got) != n+1 {
				t.Errorf("%s: a record did not come beside the flood", kind.name)
			}
		}
		if len(b.peers) > 2 {
			t.Errorf("%d peers", len(b.peers))
		}
	})
}

// A sender that starts anew in the middle of a flood from another address is
// heard at once, and from the flood's own address a second after it ends: as
// long as it goes on it takes all that its address may.
func TestNewSenderInAFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := session(t, keys(t, keyA), "d1", silent{peertest.New(1).Node(1)})
		kinds := garbage(t, func(d []byte, from netip.AddrPort) { s.receive(d, from, true) })
		hb := (&heartbeat{incarnation: 9, lowest: 1, clock: 1, port: 8849, name: "d3"}).append(nil, conntable.NodeIDOf("d3"))
		flood := func() {
			for range 1000 {
				s.receive(kinds[3].make(), from, true)
			}
		}
		flood()
		sealer := seal.NewSealer(keys(t, keyA), purposeDatagram)
		hear := func(from netip.AddrPort) int {
			d, _ := sealer.Seal(nil, hb)
			s.receive(d, from, true)
			return len(s.peers)
		}
		if hear(from) != 1 {
			t.Error("the flood did not use up what its address may")
		}
		if hear(netip.MustParseAddrPort("10.0.0.7:8849")) != 2 {
			t.Error("not heard from another address")
		}
		for range 3 {
			time.Sleep(time.Second)
			flood()
			if hear(from) != 2 {
				t.Error("the flood did not use up what came back to its address")
			}
		}
		time.Sleep(time.Second)
		sealer = seal.NewSealer(keys(t, keyA), purposeDatagram)
		hb = (&heartbeat{incarnation: 9, lowest: 1, clock: 1, port: 8849, name: "d4"}).append(nil, conntable.NodeIDOf("d4"))
		if hear(from) != 3 {
			t.Error("not heard from the flood's address a second later")
		}
	})
}

// Garbage takes nothing from the heap. Time stands still meanwhile: of unknown
// boots an address is looked at 64 times at first, and each of these takes a key
// that is thrown away.
func TestGarbageDoesNotAllocate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := session(t, keys(t, keyA), "d1", nowhere{})
		for _, kind := range garbage(t, func(d []byte, from netip.AddrPort) { s.receive(d, from, true) }) {
			const runs, size = 10, 100
			many := make([][]byte, (1+runs)*size) // a run before those that count
			for i := range many {
				many[i] = kind.make()
			}
			n := testing.AllocsPerRun(runs, func() {
				for _, d := range many[:size] {
					s.receive(d, from, true)
				}
				many = many[size:]
			})
			if n != 0 {
				t.Errorf("%s: %v allocations by %d datagrams", kind.name, n, size)
			}
		}
	})
}

func BenchmarkGarbage(b *testing.B) {
	s, _ := session(b, keys(b, keyA), "d1", nowhere{})
	for _, kind := range garbage(b, func(d []byte, from netip.AddrPort) { s.receive(d, from, true) }) {
		b.Run(kind.name, func(b *testing.B) {
			many := make([][]byte, 4096)
			for i := range many {
				many[i] = kind.make()
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				s.receive(many[i%len(many)], from, true)
				i++
			}
		})
	}
}
