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
	for start := time.Now(); time.Since(start) < ownership.Settle+time.Second; time.Sleep(250 * time.Millisecond) {
		for i, n := range l.nodes {
			var told ownership.Told
			l.must(control.NewClient(l.dir+"/"+n.name+".sock").Get(t.Context(), "/ownership", &told))
			l.must(feeds[i].Update(time.Now(), &told))
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
		k := conntable.Key{Client: netip.MustParseAddrPort(from), Virtual: netip.MustParseAddrPort("10.9.0.100:80"), Protocol: partition.TCP}
		for i, n := range l.nodes {
			want := ownership.Elsewhere
			if n.name == by {
				want = ownership.Here
			}
			// The answers must be fresh.
			var told ownership.Told
			l.must(control.NewClient(l.dir+"/"+n.name+".sock").Get(t.Context(), "/ownership", &told))
			l.must(feeds[i].Update(time.Now(), &told))
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
