package main

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"saru/internal/seal"
	"saru/membership"
)

// Whatever comes to the heartbeats' port and as frames to the shared MAC, as
// fast as a host can send it, changes nothing and is counted by its reason.
func TestGarbage(t *testing.T) {
	l := newLab(t, 3, "")
	l.start()
	stop := l.traffic()
	defer stop()
	recorded := l.nodes[1].capture().record(100)
	bad := l.newNS()
	l.plug(bad, "br0", "bad", "10.9.0.66")
	salvo := l.garbage(recorded)

	type facts struct {
		epoch                     uint64
		buckets                   int
		fences, mutes, lostGrants uint64
	}
	look := func(n *node) (facts, map[string]uint64) {
		st, err := n.status()
		l.must(err)
		p := &st.Protocol
		return facts{st.Epoch, st.Share.Buckets, p.Fences, p.Mutes, p.LostGrants}, st.Engine.Drops
	}
	var before []facts
	var counted []map[string]uint64
	for _, n := range l.nodes {
		f, drops := look(n)
		before, counted = append(before, f), append(counted, drops)
	}
	mark, sent := time.Now(), 0
	l.must(in(bad, func() (err error) { sent, err = l.shoot(salvo, 3*time.Second); return err }))
	t.Logf("%d messages in %v", sent, time.Since(mark).Round(time.Millisecond))
	l.seamless("garbage", mark)
	for i, n := range l.nodes {
		after, drops := look(n)
		if after != before[i] {
			t.Errorf("%s was %+v, and is %+v", n.name, before[i], after)
		}
		for _, why := range []error{
			seal.ErrShort, seal.ErrVersion, seal.ErrKey, seal.ErrForged, seal.ErrReplay,
			membership.ErrTruncated, membership.ErrMalformed, membership.ErrVersion,
		} {
			if drops[why.Error()] == counted[i][why.Error()] {
				t.Errorf("%s has counted nothing as %q: %v", n.name, why, drops)
			}
		}
	}
	stop()
	l.neverTwice()
}

// garbage returns messages of every kind that is no good, made of some that
// were.
func (l *lab) garbage(good [][]byte) (all [][]byte) {
	r := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	keys, err := seal.LoadKeyring(l.dir + "/key")
	l.must(err)
	foreign, err := seal.ParseKeyring([]byte(seal.NewKey()))
	l.must(err)
	ours, theirs := seal.NewSealer(keys, "heartbeat"), seal.NewSealer(foreign, "heartbeat")
	sealed := func(by *seal.Sealer, plain []byte) []byte {
		b, _ := by.Seal(nil, plain)
		return b
	}
	fetch := membership.Fetch{Header: membership.Header{Share: 1, Cluster: membership.ClusterID("lab"), From: membership.ID("d9"), Inc: 9}}
	old := fetch.Append(nil)
	old[1] = 1
	lies := fetch.Append(nil)
	lies[0] = 99 // of no type that there is
	for _, g := range good {
		forged := append([]byte(nil), g...)
		forged[20] ^= 1 // of its sequence: not one that was seen
		all = append(all, g, g[:len(g)/2], g[:r.IntN(20)], forged, noise(r.IntN(1400)),
			sealed(theirs, fetch.Append(nil)), sealed(ours, noise(r.IntN(20))), sealed(ours, old), sealed(ours, lies), sealed(ours, fetch.Append(nil)[:26]))
	}
	return all
}

// shoot sends all to each director and to the shared MAC, over and over for so
// long, and returns how many it sent.
func (l *lab) shoot(all [][]byte, long time.Duration) (sent int, err error) {
	ifi, err := net.InterfaceByName("eth0")
	if err != nil {
		return 0, err
	}
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(udp)
	raw, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(raw)
	link := &unix.SockaddrLinklayer{Ifindex: ifi.Index, Halen: 6}
	head := append(append([]byte(nil), sharedMAC...), ifi.HardwareAddr...)
	head = binary.BigEndian.AppendUint16(head, heartbeatType)
	for end := time.Now().Add(long); time.Now().Before(end); {
		for _, b := range all {
			for i := range l.nodes {
				// What finds no room is lost, as anything may be.
				_ = unix.Sendto(udp, b, 0, &unix.SockaddrInet4{Port: heartbeatPort, Addr: [4]byte{10, 9, 0, byte(2 + i)}})
			}
			_ = unix.Sendto(raw, append(head, b...), 0, link)
			sent += 1 + len(l.nodes)
		}
	}
	return sent, nil
}
