package director

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/testnet"
	"saru/membership"
)

// What is for one node reaches it in a frame and nobody else, so long as frames
// come from it; then it goes to all, on every path.
func TestWhatIsForOneNode(t *testing.T) {
	l := testnet.NewLAN(t, 3)
	keys := newKeys(t)
	shared := net.HardwareAddr{2, 0, 0x5e, 0, 1, 0xc9}
	var frames, groups []*path
	var macs []net.HardwareAddr
	for i, ns := range l.Nodes {
		frames = append(frames, pathIn(t, ns, func() (*path, error) {
			ifi, err := net.InterfaceByName("eth0")
			if err != nil {
				return nil, err
			}
			macs = append(macs, ifi.HardwareAddr)
			return openFrames(ifi, shared, keys)
		}))
		groups = append(groups, groupIn(t, ns, i, 1, keys))
	}
	const peer = membership.NodeID(7)
	e := &Engine{start: time.Now(), ways: map[membership.NodeID]way{}, paths: []*path{groups[0], frames[0]}}
	e.config.Lease = time.Hour
	e.learnFrames(peer, macs[1])

	buf := make([]byte, maxDgram)
	came := func(p *path) bool { b, _ := p.receive(buf); return b != nil }
	until := func(p *path) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !came(p); {
			if time.Now().After(deadline) {
				t.Fatalf("nothing came by %s", p.name)
			}
			e.sendOne(peer, []byte("for one"))
			// A pause for what is under way, not for what is to happen.
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 100)
		}
	}
	until(frames[1])
	for i, others := range [][]*path{{groups[1]}, {frames[2], groups[2]}} {
		for _, p := range others {
			if came(p) {
				t.Errorf("node %d heard what is for another by %s", i+1, p.name)
			}
		}
	}
	e.config.Lease = 0 // its frames are too long ago
	until(frames[2])
	until(groups[2])
	until(frames[1])
}
