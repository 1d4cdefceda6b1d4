package syncd

import (
	"testing"
	"testing/synctest"
	"time"

	"saru/internal/seal"
	"saru/syncproto/peer/peertest"
)

const (
	oldKey = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	newKey = "/wECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
)

// rotation is the procedure of docs/operating.md: what the key file holds
// before, and after each of its steps on all nodes.
var rotation = []string{
	oldKey,
	oldKey + "\n" + newKey + "\nseed " + oldKey,
	newKey + "\n" + oldKey + "\nseed " + oldKey,
	newKey + "\nseed " + oldKey,
}

func ring(t *testing.T, text string) *seal.Keyring {
	t.Helper()
	kr, err := seal.ParseKeyring([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return kr
}

// While keys rotate, node after node, everybody hears everybody all the time,
// whether the nodes read their files anew or are restarted.
func TestKeysRotateWithoutAGap(t *testing.T) {
	for _, c := range []struct {
		name string
		step func(t *testing.T, network *peertest.Network, n *node, i int, keys *seal.Keyring) *node
	}{
		{"read anew", func(_ *testing.T, _ *peertest.Network, n *node, _ int, keys *seal.Keyring) *node {
			n.SetKeys(keys)
			return n
		}},
		{"restarted", func(t *testing.T, network *peertest.Network, n *node, i int, keys *seal.Keyring) *node {
			n.stop()
			return startWith(t, network, i+1, newFakeKernel(), keys)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := peertest.New(21)
				var nodes []*node
				for i := range 3 {
					nodes = append(nodes, startWith(t, network, i+1, newFakeKernel(), ring(t, rotation[0])))
				}
				time.Sleep(3 * time.Second)
				conns := 0
				// each tells one connection, which the others' kernels must
				// get at once.
				tell := func(when string) {
					t.Helper()
					for i, n := range nodes {
						conn := tcp(conns, established, 900*time.Second)
						conns++
						n.capture(conn)
						time.Sleep(10 * time.Millisecond)
						for j, to := range nodes {
							if _, ok := to.kernel.get(conn.Key); i != j && !ok {
								t.Fatalf("%s: %s did not get %s's news in 10 ms", when, to.node, n.node)
							}
						}
					}
				}
				for _, text := range rotation[1:] {
					for i := range nodes {
						nodes[i] = c.step(t, network, nodes[i], i, ring(t, text))
						time.Sleep(100 * time.Millisecond)
						tell("after " + nodes[i].node)
						time.Sleep(8 * time.Second)
						if !nodes[i].Synced() {
							t.Fatalf("%s is not synced again", nodes[i].node)
						}
						tell("later, after " + nodes[i].node)
					}
				}
				for _, n := range nodes {
					st := n.Status()
					if st.Drops["unknown_key"]+st.Drops["forged"] > 0 || st.Connections.Mirror != conns {
						t.Errorf("%s: %d of %d connections, drops %v", n.node, st.Connections.Mirror, conns, st.Drops)
					}
				}
			})
		})
	}
}

// The seed stays what it is through all of the rotation.
func TestSeedStaysWhileKeysRotate(t *testing.T) {
	want := string(ring(t, rotation[0]).DeriveSeed("hash seed", 4))
	for _, text := range rotation {
		if got := string(ring(t, text).DeriveSeed("hash seed", 4)); got != want {
			t.Errorf("another seed with\n%s", text)
		}
	}
	if got := string(ring(t, newKey).DeriveSeed("hash seed", 4)); got == want {
		t.Error("the same seed from another key")
	}
}
