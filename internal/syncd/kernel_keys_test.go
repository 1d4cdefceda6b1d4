package syncd

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"saru/internal/testnet"
)

// The procedure of docs/operating.md on two directors with real kernels: in
// each round one after the other is relieved, gets the file, and is restarted.
// No connection is lost, and everybody hears everybody.
func TestKeysRotateOnRealDirectors(t *testing.T) {
	l := newRealLAN(t)
	l.serve()
	l.via(0)
	for i := range 2 {
		l.start(i)
		l.synced(i)
	}
	var conns []net.Conn
	everyone := func(i int) bool {
		return strings.Count(l.run(i, "ipvsadm", "-Lnc"), "ESTABLISHED") == len(conns)
	}
	for round, text := range rotation[1:] {
		for i := range 2 {
			l.via(1 - i)
			for _, c := range conns {
				echo(t, c, fmt.Sprintf("round %d, by d%d", round+1, 2-i))
			}
			l.stop(i)
			must(t, os.WriteFile(filepath.Join(l.dir, "key"), []byte(text+"\n"), 0o600))
			l.start(i)
			testnet.Await(t, fmt.Sprintf("d%d synced in round %d", i+1, round+1), func() bool {
				st := l.status(i)
				return st.Synced && len(st.Peers) == 1 && st.Peers[0].State == "up"
			})
			conns = append(conns, l.dial())
			echo(t, conns[len(conns)-1], "new")
			testnet.Await(t, fmt.Sprintf("d%d's kernel has all in round %d", i+1, round+1), func() bool { return everyone(i) })
		}
	}
	for i := range 2 {
		if st := l.status(i); st.Drops["unknown_key"]+st.Drops["forged"] > 0 {
			t.Errorf("d%d: drops %v", i+1, st.Drops)
		}
		l.stop(i)
	}
}
