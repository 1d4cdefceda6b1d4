package partition

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

// Values of lookup3's hashlittle for these keys and seeds, from Bob Jenkins'
// own driver; jhash is the same function with the length added to the seed.
func TestJhash(t *testing.T) {
	for _, c := range []struct {
		key  string
		seed uint32
		want uint32
	}{
		{"", 0, 0xdeadbeef},
		{"", 0xdeadbeef, 0xbd5b7dde},
		{"Four score and seven years ago", 0, 0x17770551},
		{"Four score and seven years ago", 1, 0xcd628161},
	} {
		if got := jhash([]byte(c.key), c.seed); got != c.want {
			t.Errorf("jhash(%q, %#x) = %#x, want %#x", c.key, c.seed, got, c.want)
		}
	}
}

// Every bucket is reached, and none beyond the last, by both methods; a block
// holds what BlockStart says.
func TestBucketSpread(t *testing.T) {
	for _, m := range []Method{ByHash, ByBlock} {
		p := Plan{Buckets: 256, Seed: rand.Uint32()}
		d := Division{Sense: SrcPort, Method: m}
		var seen Set
		for port := range 1 << 16 {
			src := netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port))
			b := p.Bucket(d, src, src)
			if b < 0 || b >= p.Buckets {
				t.Fatalf("bucket %d", b)
			}
			if start := p.BlockStart(b, 16); m == ByBlock && (uint64(port) < start || uint64(port) >= p.BlockStart(b+1, 16)) {
				t.Fatalf("port %d in block %d, which starts at %d", port, b, start)
			}
			seen.Add(b)
		}
		if seen.Len() != 256 {
			t.Errorf("%v: all ports fall into %d buckets", m, seen.Len())
		}
	}
}

// Clients of one network fall into one bucket where the netmask says so.
func TestNetmask(t *testing.T) {
	vip := netip.MustParseAddrPort("10.9.0.100:80")
	vip6 := netip.MustParseAddrPort("[2001:db8::100]:80")
	for _, m := range []Method{ByHash, ByBlock} {
		p := Plan{Buckets: 4096, Seed: 1}
		d := Division{Sense: SrcAddr, Method: m, Bits4: 24, Bits6: 48}
		for _, same := range [][2]string{{"192.0.2.1", "192.0.2.254"}, {"2001:db8:7:1::1", "2001:db8:7:ffff::2"}} {
			to := vip
			if strings.Contains(same[0], ":") {
				to = vip6
			}
			a := p.Bucket(d, netip.AddrPortFrom(netip.MustParseAddr(same[0]), 1), to)
			b := p.Bucket(d, netip.AddrPortFrom(netip.MustParseAddr(same[1]), 2), to)
			if a != b {
				t.Errorf("%v: %s in bucket %d, %s in %d", m, same[0], a, same[1], b)
			}
		}
	}
	p, d := Plan{Buckets: 4096, Seed: 1}, Division{Sense: SrcAddr, Bits4: 24}
	one, other := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.3.1:1")
	if p.Bucket(d, one, vip) == p.Bucket(d, other, vip) {
		t.Error("the netmask covers too much")
	}
}

func BenchmarkBucket(b *testing.B) {
	p, d := Plan{Buckets: 256, Seed: 1}, Division{Sense: SrcAddr | DstAddr | SrcPort | DstPort}
	src, dst := netip.MustParseAddrPort("[2001:db8::1]:40001"), netip.MustParseAddrPort("[2001:db8::2]:80")
	b.ReportAllocs()
	for b.Loop() {
		p.Bucket(d, src, dst)
	}
}
