package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"saru/test/lab"
)

// inside is the real servers' gateway under LVS-NAT.
var inside = netip.MustParseAddr("10.9.0.1")

const (
	fileSize  = 1600 << 10
	rate      = "32k" // of a download: some 50 s
	downloads = 4     // of each forwarding method
)

// Downloads over HTTP by every forwarding method of IPVS, through three
// directors of which two lose their power one after the other: all arrive,
// byte by byte. Under LVS-NAT the real servers are on the clients' own LAN.
func TestEveryForwardingMethod(t *testing.T) {
	methods := []struct {
		port    uint16
		forward lab.Forward
	}{{8001, lab.Gate}, {8002, lab.Masq}, {8003, lab.IPIP}, {8004, lab.GUE}, {8005, lab.GRE}}
	topology := lab.Topology{Name: "methods", Directors: 3, RealServers: 2, Clients: 1}
	topology.Gateway = inside
	var ports []uint16
	for _, m := range methods {
		ports = append(ports, m.port)
		topology.Services = append(topology.Services, lab.Service{Proto: "tcp", Port: m.port, Forward: m.forward})
	}
	s := newSite(t, topology, 2*time.Second, fmt.Sprintf("[share.inside]\ninterface = \"eth0\"\naddress = %q\nnetworks = [\"10.9.0.20/30\"]", inside), nil)
	content := make([]byte, fileSize)
	rand.NewChaCha8([32]byte{1}).Read(content)
	s.serveFiles(func(server, folder string) error {
		return errors.Join(
			os.WriteFile(filepath.Join(folder, "file"), content, 0o644),
			os.WriteFile(filepath.Join(folder, "name"), []byte(server), 0o644))
	}, ports...)
	s.whole()

	// A request that is larger than what fits into a tunnel's packet.
	ask := func(when string) {
		t.Helper()
		for _, m := range methods {
			script := fmt.Sprintf("for i in 1 2 3 4; do curl -sS -m 20 -H 'X-Long: %s' http://%v:%d/name || exit 1; echo; done",
				strings.Repeat("x", 3000), s.lab.Topology.VIP, m.port)
			out, err := s.lab.Clients[0].Run(t.Context(), "sh", "-c", script)
			if err != nil || !strings.Contains(out, "r1") || !strings.Contains(out, "r2") {
				t.Errorf("%s, by %s: answered by %q: %v", when, m.forward, out, err)
			}
		}
	}
	ask("three directors")

	type download struct {
		*lab.Process
		by    lab.Forward
		owner string
	}
	d1, d2 := s.lab.Directors[0], s.lab.Directors[1]
	var all []download
	next := uint16(30000)
	for _, m := range methods {
		of := map[string]int{}
		for n := 0; n < downloads; next++ {
			// Two of each method are of the first that loses its power.
			owner := s.explain(next, m.port).Owner
			if of[owner] == downloads/2 || owner != d1.Name && n-of[d1.Name] == downloads/2 {
				continue
			}
			of[owner]++
			n++
			script := fmt.Sprintf("curl -sS --local-port %d --limit-rate %s -m 180 http://%v:%d/file | sha256sum", next, rate, s.lab.Topology.VIP, m.port)
			p, err := s.lab.Clients[0].Start(t.Context(), fmt.Sprintf("download-%d", next), []string{"sh", "-c", script}, lab.Options{})
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, download{p, m.forward, owner})
		}
	}
	time.Sleep(5 * time.Second) // into the midst of them
	s.powerCut(d1)
	open := func() (n int) {
		for _, d := range all {
			select {
			case <-d.Done():
			default:
				n++
			}
		}
		return n
	}
	first := open()
	ask("two directors")
	s.powerCut(d2)
	if second := open(); first < len(all)/2 {
		t.Errorf("only %d of %d downloads were still under way after the first failover", first, len(all))
	} else {
		t.Logf("of %d downloads %d were under way after the first failover, and %d after the second", len(all), first, second)
	}
	ask("one director")
	want := fmt.Sprintf("%x", sha256.Sum256(content))
	for _, d := range all {
		err := d.Wait()
		out, rerr := os.ReadFile(d.Log)
		if err != nil || rerr != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("%s by %s, which %s had: %v: %s", d.Name, d.by, d.owner, errors.Join(err, rerr), out)
		}
	}
	st := s.status(s.lab.Directors[2])
	t.Logf("%d packets without their state were dropped on their way out", st.Filter.Leaks)
}
