package peer

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"saru/conntable"
	"saru/internal/seal"
)

// What a connection may take on the wire, all included, in bytes of UDP
// payload: IPv4, ten services, in flushes of 50 records or more.
const (
	newBytes     = 12
	refreshBytes = 10
)

// A mix is news as a director tells it: ten services, each with as many real
// servers, of which one in four has another port than its service.
type mix struct {
	rng   *rand.Rand
	dests int
	clock *conntable.Clock
}

func (m *mix) established() conntable.Record {
	service := m.rng.IntN(10)
	vip := netip.AddrFrom4([4]byte{203, 0, 113, 100 + byte(service/2)})
	port := uint16(80 + service%2*363)
	dport := port
	if service%4 == 0 {
		dport += 8000
	}
	dest := netip.AddrFrom4([4]byte{192, 168, byte(service / 4), 10 + byte(service*20+m.rng.IntN(m.dests))})
	client := netip.AddrFrom4([4]byte{byte(1 + m.rng.IntN(222)), byte(m.rng.Uint32()), byte(m.rng.Uint32()), byte(m.rng.Uint32())})
	return conntable.Record{
		Connection: conntable.Connection{
			Key: conntable.Key{
				Client: netip.AddrPortFrom(client, uint16(1024+m.rng.IntN(64512))), Virtual: netip.AddrPortFrom(vip, port), Protocol: 6,
			},
			Dest: netip.AddrPortFrom(dest, dport), State: 1, Flags: conntable.FlagFwdGate, Timeout: 900 * time.Second,
		},
		Version: m.clock.Shared(), Remaining: 900 * time.Second,
	}
}

// lively is as established, with a third of the connections on their way out
// and some that were told of twice since the last flush.
func (m *mix) lively() conntable.Record {
	r := m.established()
	switch m.rng.IntN(6) {
	case 0: // FIN_WAIT
		r.State, r.Timeout, r.Flags = 4, 120*time.Second, r.Flags|conntable.FlagInactive
	case 1: // CLOSE
		r.State, r.Timeout, r.Flags = 6, 10*time.Second, r.Flags|conntable.FlagInactive
	}
	r.Remaining = r.Timeout
	if m.rng.IntN(20) == 0 {
		r.Version = m.clock.Next()
	}
	return r
}

// perRecord sends flushes of so many records, and returns the bytes that each
// record took in datagrams of the size that an MTU of 1,500 leaves.
func perRecord(t testing.TB, flush int, next func() conntable.Record, turn func()) float64 {
	var b batch
	var d drops
	bytes, records := 0, 0
	for records < 20_000 {
		recs := make([]conntable.Record, flush)
		for i := range recs {
			recs[i] = next()
		}
		turn()
		clock := b.load(recs, protocolVersion, self, &d)
		for {
			head := recordsHead{version: protocolVersion, sequence: 10_000_000, clock: clock}
			message, n := b.next(head.append(nil, self), DefaultDatagram-seal.Overhead)
			if n == 0 {
				break
			}
			bytes += len(message) + seal.Overhead
			records += n
		}
	}
	if n := d[DropUnsayable].Load(); n > 0 {
		t.Fatalf("%d records cannot be said", n)
	}
	return float64(bytes) / float64(records)
}

func TestBytesPerRecord(t *testing.T) {
	for _, dests := range []int{1, 4, 20} {
		for _, flush := range []int{50, 150, 2000} {
			t.Run(fmt.Sprintf("%d real servers, flushes of %d", dests, flush), func(t *testing.T) {
				m := &mix{rand.New(rand.NewPCG(1, 2)), dests, conntable.NewClock(self)}
				refresh := perRecord(t, flush, m.established, m.clock.Turn)
				lively := perRecord(t, flush, m.lively, m.clock.Turn)
				t.Logf("%.1f bytes for a refresh, %.1f in a mix with closing connections", refresh, lively)
				if dests <= 4 && refresh > refreshBytes {
					t.Errorf("%.2f bytes for a refresh, want %d at most", refresh, refreshBytes)
				}
				if lively > newBytes {
					t.Errorf("%.2f bytes in a mix, want %d at most", lively, newBytes)
				}
			})
		}
	}
}
