package main

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"saru/conntable"
	"saru/internal/control"
	"saru/internal/ownership"
	"saru/partition"
)

// What a director tells the syncd beside it is what it serves: of each flow
// that one says "here" that took it, and all others "elsewhere".
func TestOwnershipIsWhatIsServed(t *testing.T) {
	l := newLab(t, 2, "")
	l.start()
	servers := l.greet("tcp4", "10.9.0.100:80")
	defer servers.close()
	client := l.newNS()
	l.plug(client, "br0", "client", "10.9.0.1")
	feeds := make([]ownership.Feed, len(l.nodes))
	update := func(i int, n *node) {
		var told ownership.Told
		l.must(control.NewClient(l.dir+"/"+n.name+".sock").Get(t.Context(), "/ownership", &told))
		l.must(feeds[i].Update(time.Now(), &told))
	}
	flow := func(port int) conntable.Key {
		from := netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), uint16(port))
		return conntable.Key{Client: from, Virtual: netip.MustParseAddrPort("10.9.0.100:80"), Protocol: partition.TCP}
	}
	// What came or went is nobody's for a while, and who joined first lingers.
	known := func() bool {
		for i, n := range l.nodes {
			update(i, n)
			for port := range 256 {
				k := flow(31000 + port)
				if whose, _ := feeds[i].Of(time.Now(), &k); whose == ownership.Unknown {
					return false
				}
			}
		}
		return true
	}
	for start := time.Now(); !known(); time.Sleep(250 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatal("a minute after the start a director does not know of some flows whose they are")
		}
	}
	seen := map[ownership.Whose]int{}
	for port := 31000; port < 31012; port++ {
		from := fmt.Sprintf("10.9.0.1:%d", port)
		var by string
		l.must(in(client, func() (err error) {
			by, err = greeting("tcp4", from, "10.9.0.100:80")
			return err
		}))
		k := flow(port)
		for i, n := range l.nodes {
			want := ownership.Elsewhere
			if n.name == by {
				want = ownership.Here
			}
			update(i, n) // the answers must be fresh
			got, _ := feeds[i].Of(time.Now(), &k)
			if got != want {
				t.Errorf("%s took %s; %s says %v, want %v", by, from, n.name, got, want)
			}
			seen[got]++
		}
	}
	if len(seen) != 2 {
		t.Errorf("all flows went to one director, so this test shows little: %v", seen)
	}
}
