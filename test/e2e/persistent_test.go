package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"saru/internal/director"
	"saru/test/lab"
)

// One client opens 100 connections to a persistent service, reached by IPIP
// tunnels, while three directors lose their power one after another: all reach
// one real server, and requests larger than the tunnel's packets arrive.
func TestPersistentClientKeepsItsServer(t *testing.T) {
	p := startPersistent(t)
	p.ask("three directors")
	for i := range 3 {
		owner := p.owner()
		p.powerCut(owner)
		p.ask(fmt.Sprintf("failover %d, of %s", i+1, owner.Name))
		if i == 1 { // one is left: let one return
			p.restart()
		}
	}
	if len(p.servers) != 1 || p.asked != 100 {
		t.Errorf("%d requests reached the servers %v", p.asked, p.servers)
	}
}

// A persistent lab is its state.
type persistent struct {
	*site
	servers map[string]int
	asked   int
}

func startPersistent(t *testing.T) *persistent {
	t.Helper()
	topology := lab.Topology{
		Name: "persistent", Directors: 3, RealServers: 3, Clients: 1,
		Services: []lab.Service{{Proto: "tcp", Port: 80, Forward: lab.IPIP, Persistent: 600}},
	}
	divided := func(st director.Status) error {
		if len(st.Share.Services) != 1 {
			return fmt.Errorf("divided by %v", st.Share.Services)
		}
		return nil
	}
	p := &persistent{site: newSite(t, topology, 2*time.Second, "", divided), servers: map[string]int{}}
	p.serveFiles(func(server, folder string) error {
		return os.WriteFile(filepath.Join(folder, "index.html"), []byte(server), 0o644)
	}, 80)
	p.whole()
	return p
}

// owner returns the director that has the client.
func (p *persistent) owner() *lab.Director {
	p.t.Helper()
	e := p.explain(40000, 80)
	i := slices.IndexFunc(p.lab.Directors, func(d *lab.Director) bool { return d.Name == e.Owner })
	if i < 0 || e.Sense != "src-addr" {
		p.t.Fatalf("explained as %+v", e)
	}
	return p.lab.Directors[i]
}

// ask makes 25 requests, each by a connection of its own and larger than what
// fits into one packet of the tunnel.
func (p *persistent) ask(when string) {
	p.t.Helper()
	const requests = 25
	script := fmt.Sprintf("for i in $(seq %d); do curl -sS -m 20 -H 'X-Long: %s' http://%v/ || exit 1; echo; done",
		requests, strings.Repeat("x", 3000), p.lab.Topology.VIP)
	out, err := p.lab.Clients[0].Run(p.t.Context(), "sh", "-c", script)
	if err != nil {
		p.t.Fatalf("%s: %v: %s", when, err, out)
	}
	before := len(p.servers)
	for name := range strings.FieldsSeq(out) {
		p.servers[name]++
		p.asked++
	}
	p.t.Logf("%s: %v", when, p.servers)
	if before == 1 && len(p.servers) != 1 {
		p.t.Errorf("%s: the client reached another real server: %v", when, p.servers)
	}
}
