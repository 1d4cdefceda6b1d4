package main

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"saru/internal/seal"
)

// claim sends an ARP announcement that addr is at mac (RFC 5227 section 2.3).
func claim(addr netip.Addr, mac net.HardwareAddr) error {
	frame := append(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
	frame = append(frame, "\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01"...)
	frame = append(frame, mac...)
	frame = append(frame, addr.AsSlice()...)
	frame = append(frame, make([]byte, 6)...)
	frame = append(frame, addr.AsSlice()...)
	return sendFrame(frame)
}

// Who claims a virtual address and is no director is named, once; a holder goes
// on, a newcomer stays out as long as it goes on.
func TestStrangerIsNamed(t *testing.T) {
	l := newLab(t, 2, "")
	d1, d2 := l.nodes[0], l.nodes[1]
	d1.start()
	l.until("one serves", l.shared(1))
	other := l.newNS()
	l.plug(other, "br0", "other", "10.9.0.9")
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0x77}
	annoy := func() {
		l.must(in(other, func() error { return claim(netip.MustParseAddr("10.9.0.100"), mac) }))
	}
	d2.start()
	for range 5 {
		annoy()
	}
	l.until("it is named", func(open map[string]int) bool {
		annoy()
		st, err := d1.status()
		return err == nil && len(st.Strangers) == 1 && st.Strangers[0].MAC == mac.String() && st.Strangers[0].Addr == "10.9.0.100" &&
			st.StrangerClaims >= 5 && open["d1"] == 256
	})
	out, err := d1.saru("events")
	l.must(err)
	if n := strings.Count(out, "02:00:00:00:00:77 says that 10.9.0.100 is its own"); n != 1 {
		t.Errorf("%d events of the stranger, want 1:\n%s", n, out)
	}
	l.until("the newcomer stays out", func(open map[string]int) bool {
		annoy()
		st, err := d2.status()
		return err == nil && st.State == "joining" && strings.Contains(st.Why, "somebody who sends no heartbeats")
	})
	l.until("two share when it has stopped", l.shared(2))
}

// A peer with another key, another cluster's name or another share is named on
// both sides in one line, and blocks nobody who holds a share.
func TestForeignPeersAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		change func(text string, l *lab) string
		says   string // on d1, of d2
	}{
		"another share": {
			func(text string, _ *lab) string {
				return strings.Replace(text, `interface = "eth0"`, "interface = \"eth0\"\nbuckets = 128", 1)
			}, "share configuration",
		},
		"another key": {
			func(text string, l *lab) string {
				l.must(os.WriteFile(l.dir+"/other.key", []byte(seal.NewKey()+"\n"), 0o600))
				return strings.Replace(text, l.dir+"/key", l.dir+"/other.key", 1)
			}, "another key",
		},
		"its own name": {
			func(text string, _ *lab) string { return strings.Replace(text, `node = "d2"`, `node = "d1"`, 1) }, "uses this node's name",
		},
		"another cluster": {
			func(text string, _ *lab) string { return strings.Replace(text, `name = "lab"`, `name = "lob"`, 1) }, "another cluster",
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, 2, "")
			d1, d2 := l.nodes[0], l.nodes[1]
			b, err := os.ReadFile(d2.conf)
			l.must(err)
			l.must(os.WriteFile(d2.conf, []byte(c.change(string(b), l)), 0o600))
			d1.start()
			l.until("one serves", l.shared(1))
			d2.start()
			both := map[string]string{}
			defer func() { t.Log(both["d1"], "\n", both["d2"]) }()
			l.until("both name the other", func(open map[string]int) bool {
				for _, n := range l.nodes {
					both[n.name], _ = n.saru("status")
				}
				return strings.Contains(both["d1"], c.says) && strings.Contains(both["d2"], c.says) && open["d1"] == 256 && open["d2"] == 0
			})
			time.Sleep(5 * pace.lease)
			l.until("who serves goes on, alone", func(open map[string]int) bool { return open["d1"] == 256 && open["d2"] == 0 })
		})
	}
}
