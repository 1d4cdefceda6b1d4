package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"saru/test/lab"
)

// Files are on their way by FTP under LVS-NAT, in each mode and to several
// clients, when two directors lose their power one after the other. All
// arrive, byte by byte, and on each control connection, idle meanwhile, the
// server says so.
func TestFTPOutlivesItsDirectors(t *testing.T) {
	// The answer to PASV names the server's address, and IPVS puts the virtual
	// one there: of the same length, so that no sequence number has to be
	// changed, which connection tracking remembers on one director only.
	vip := netip.MustParseAddr("10.9.0.99")
	s := newSite(t, lab.Topology{
		Name: "ftp", Directors: 3, RealServers: 2, Clients: 3, VIP: vip, Gateway: inside,
		Services: []lab.Service{{Proto: "tcp", Port: ftpPort, Forward: lab.Masq}},
	}, setup{
		share: insideShare, modules: []string{"ip_vs_ftp"}, ready: divided(2),
		sysctls: map[string]string{"net.ipv4.vs.conntrack": "1", "net.netfilter.nf_conntrack_tcp_be_liberal": "1"},
	})
	const size = 1000 << 10
	file := make([]byte, size)
	rand.NewChaCha8([32]byte{2}).Read(file)
	s.serveFTP(file)
	s.whole()

	var all []download
	for _, client := range s.lab.Clients {
		for mode, options := range map[string]string{
			"EPSV": "", "PASV": "--disable-epsv", "EPRT": "--ftp-port -", "PORT": "--ftp-port - --disable-eprt",
		} {
			all = append(all, s.download(client, mode+" of "+client.Name, fmt.Sprintf("%s ftp://%v/file", options, vip)))
		}
	}
	s.known("all connections", 2*len(all), func(c lab.Conn) bool {
		return c.Proto == "TCP" && c.State == "ESTABLISHED" && c.Client.Port() != 0
	})
	flow := fmt.Sprintf("tcp %v:40000 %v:%d", s.lab.Clients[0].Addr, vip, ftpPort)
	for range 2 {
		owner, e := s.owner(flow)
		if e.Sense != "src-addr" {
			t.Errorf("FTP is explained as %+v", e)
		}
		if open := underWay(all); open != len(all) {
			t.Errorf("only %d of %d files were on their way when %s lost its power", open, len(all), owner.Name)
		}
		s.powerCut(owner)
		time.Sleep(5 * time.Second) // of transfer
	}
	s.arrive(all, file)
}
