package director

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/seal"
	"saru/internal/testnet"
	"saru/membership"
)

func newKeys(t testing.TB) *seal.Keyring {
	t.Helper()
	keys, err := seal.ParseKeyring([]byte(seal.NewKey()))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// pathIn opens a path in a namespace, until the test ends.
func pathIn(t *testing.T, ns testnet.Namespace, open func() (*path, error)) (p *path) {
	t.Helper()
	if err := testnet.Within(ns, func() (err error) {
		p, err = open()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.close() })
	return p
}

// groupIn opens the path to a cluster's group at node i of a LAN.
func groupIn(t *testing.T, ns testnet.Namespace, i int, cluster uint32, keys *seal.Keyring) *path {
	t.Helper()
	return pathIn(t, ns, func() (*path, error) {
		return openGroup(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 97, 0, byte(i + 1)}), 7946), groupOf(cluster), keys)
	})
}

// What a node tells the group reaches the others of its cluster, known or not,
// with the address at which it takes datagrams; not itself, nor another cluster.
func TestGroupReachesTheCluster(t *testing.T) {
	l := testnet.NewLAN(t, 3)
	keys := newKeys(t)
	clusters := []string{"web", "web", "mail"}
	var paths []*path
	for i, ns := range l.Nodes {
		paths = append(paths, groupIn(t, ns, i, membership.ClusterID(clusters[i]), keys))
	}
	const text = "from the first"
	buf := make([]byte, maxDgram)
	var got []byte
	var from netip.AddrPort
	for deadline := time.Now().Add(10 * time.Second); got == nil && time.Now().Before(deadline); {
		paths[0].send([]byte(text), nil)
		// A pause for what is under way, not for what is to happen.
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(paths[1].fd), Events: unix.POLLIN}}, 100)
		got, from = paths[1].receive(buf)
	}
	if paths[0].unsent > 0 {
		t.Errorf("%d could not be sent", paths[0].unsent)
	}
	if want := netip.MustParseAddrPort("10.97.0.1:7947"); from != want {
		t.Errorf("it came from %v, want %v", from, want)
	}
	if plain, _, _, err := seal.NewOpener(keys, purpose).Open(nil, got); err != nil || string(plain) != text {
		t.Errorf("came %q, %v", plain, err)
	}
	for i, who := range map[int]string{0: "the sender", 2: "another cluster's node"} {
		if b, _ := paths[i].receive(buf); b != nil {
			t.Errorf("%s heard it", who)
		}
	}
}
