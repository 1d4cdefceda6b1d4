package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"saru/test/lab"
)

// inside is the real servers' gateway under LVS-NAT, on the clients' own LAN.
var (
	inside      = netip.MustParseAddr("10.9.0.1")
	insideShare = fmt.Sprintf("[share.inside]\ninterface = \"eth0\"\naddress = %q\nnetworks = [\"10.9.0.20/30\"]", inside)
)

const (
	fileSize  = 130 * slowRate // twenty take up to a minute to start
	downloads = 4              // of each forwarding method
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
	s := newSite(t, topology, setup{share: insideShare})
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
			argv := []string{"curl", "-sS", "-m", "60", "-w", "\\n", "-H", "Connection: close", "-H", "X-Long: " + strings.Repeat("x", 3000)}
			for range 4 {
				argv = append(argv, fmt.Sprintf("http://%v:%d/name", s.lab.Topology.VIP, m.port))
			}
			out, err := s.lab.Clients[0].Run(t.Context(), argv...)
			if err != nil || !strings.Contains(out, "r1") || !strings.Contains(out, "r2") {
				t.Errorf("%s, by %s: answered by %q: %v", when, m.forward, out, errors.Unwrap(err))
			}
		}
	}
	ask("three directors")

	d1, d2 := s.lab.Directors[0], s.lab.Directors[1]
	var all []download
	next := uint16(30000)
	for _, m := range methods {
		of := map[string]int{}
		for n := 0; n < downloads; next++ {
			// Two of each method are of the first that loses its power.
			owner, _ := s.owner(fmt.Sprintf("tcp %v:%d %v:%d", s.lab.Clients[0].Addr, next, s.lab.Topology.VIP, m.port))
			if of[owner.Name] == downloads/2 || owner != d1 && n-of[d1.Name] == downloads/2 {
				continue
			}
			of[owner.Name]++
			n++
			all = append(all, s.download(s.lab.Clients[0], fmt.Sprintf("%s %d, which %s had", m.forward, next, owner.Name),
				fmt.Sprintf("--local-port %d http://%v:%d/file", next, s.lab.Topology.VIP, m.port)))
		}
	}
	s.known("all downloads", len(all), func(c lab.Conn) bool {
		return c.State == "ESTABLISHED" && c.Client.Port() >= 30000 && c.Client.Port() < next
	})
	s.powerCut(d1)
	first := underWay(all)
	ask("two directors")
	s.powerCut(d2)
	second := underWay(all)
	if first < len(all) || second < len(all)/2 {
		t.Errorf("of %d downloads only %d were under way at the first failover, and %d at the second", len(all), first, second)
	}
	ask("one director")
	s.arrive(all, content)
	st := s.status(s.lab.Directors[2])
	t.Logf("%d packets without their state were dropped on their way out", st.Filter.Leaks)
}
