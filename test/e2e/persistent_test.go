package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"saru/internal/director"
	"saru/test/lab"
)

// One client opens 100 connections to a persistent service, reached by IPIP
// tunnels, while three directors lose their power one after another and its
// real server is quiesced: all reach that server, by one template that is the
// same everywhere, and requests larger than the tunnel's packets arrive.
func TestPersistentClientKeepsItsServer(t *testing.T) {
	p := startPersistent(t, lab.Service{Proto: "tcp", Port: persistentPort, Forward: lab.IPIP, Persistent: 600})
	client := p.lab.Clients[0]
	p.ask("three directors", client, 25, persistentPort)
	p.quiesce()
	p.oneTemplate()
	for i := range 3 {
		owner := p.ownerOf()
		p.powerCut(owner)
		p.ask(fmt.Sprintf("failover %d, of %s", i+1, owner.Name), client, 25, persistentPort)
		if i == 1 { // one is left: let one return
			p.restart()
			p.quiesce()
			p.oneTemplate()
		}
	}
	if len(p.servers) != 1 || p.servers[p.first] != 100 {
		t.Errorf("requests reached %v", p.servers)
	}
}

// A client of a group of ports that a firewall mark gathers keeps its real
// server, whichever port it asks, and two clients of one network are one to a
// service that has a netmask, while two directors lose their power.
func TestPersistentGroupsKeepTheirServer(t *testing.T) {
	for _, c := range []struct {
		name     string
		services []lab.Service
		ports    []int
	}{
		{"mark", []lab.Service{
			{Proto: "tcp", Port: 81, Persistent: 600, Mark: 7}, {Proto: "tcp", Port: 82, Persistent: 600, Mark: 7},
		}, []int{81, 82}},
		{"netmask", []lab.Service{{Proto: "tcp", Port: 83, Persistent: 600, Netmask: "255.255.255.0"}}, []int{83}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := startPersistent(t, c.services...)
			clients := p.lab.Clients
			if c.name == "mark" {
				clients = clients[:1]
			}
			for i := range 3 {
				for _, client := range clients {
					p.ask(fmt.Sprintf("%s, failover %d", client.Name, i), client, 6, c.ports...)
				}
				if i < 2 {
					time.Sleep(time.Second) // a record's way to the peers' kernels
					d, _ := p.owner(fmt.Sprintf("tcp %v:40000 %v:%d", clients[0].Addr, p.lab.Topology.VIP, c.ports[0]))
					p.powerCut(d)
				}
			}
		})
	}
}

const persistentPort = 80

// A persistent lab is its state.
type persistent struct {
	*site
	servers map[string]int // requests, by real server
	first   string         // that was reached first
}

// divided asks a director for at least so many services with a division of
// their own.
func divided(services int) func(director.Status) error {
	return func(st director.Status) error {
		if len(st.Share.Services) < services {
			return fmt.Errorf("divided by %v", st.Share.Services)
		}
		return nil
	}
}

func startPersistent(t *testing.T, services ...lab.Service) *persistent {
	t.Helper()
	topology := lab.Topology{Name: "persistent", Directors: 3, RealServers: 3, Clients: 2, Services: services}
	p := &persistent{site: newSite(t, topology, setup{ready: divided(1)}), servers: map[string]int{}}
	var ports []uint16
	for _, s := range services {
		ports = append(ports, s.Port)
	}
	p.serveFiles(func(server, folder string) error {
		return os.WriteFile(filepath.Join(folder, "index.html"), []byte(server), 0o644)
	}, ports...)
	p.whole()
	return p
}

// ownerOf returns the director that has the client.
func (p *persistent) ownerOf() *lab.Director {
	p.t.Helper()
	d, e := p.owner(fmt.Sprintf("tcp %v:40000 %v:%d", p.lab.Clients[0].Addr, p.lab.Topology.VIP, persistentPort))
	if e.Sense != "src-addr" {
		p.t.Fatalf("explained as %+v", e)
	}
	return d
}

// quiesce gives the client's real server no new clients: those that it has
// stay.
func (p *persistent) quiesce() {
	p.t.Helper()
	for _, d := range p.serving() {
		for _, r := range p.lab.RealServers {
			if r.Name != p.first {
				continue
			}
			out, err := d.Run(p.t.Context(), "ipvsadm", "-e", "-t", fmt.Sprintf("%v:%d", p.lab.Topology.VIP, persistentPort),
				"-r", fmt.Sprintf("%v:%d", r.Addr, persistentPort), "-i", "-w", "0")
			if err != nil {
				p.t.Fatalf("quiesce %s: %v: %s", r.Name, err, out)
			}
		}
	}
}

// oneTemplate waits until each director has one template of the client, all the
// same.
func (p *persistent) oneTemplate() {
	p.t.Helper()
	p.eventually("one template everywhere", func() error {
		all := map[string]bool{}
		for _, d := range p.serving() {
			table, err := d.ConnTable()
			if err != nil {
				return err
			}
			n := 0
			for _, c := range table {
				if c.Client.Port() == 0 && c.Client.Addr() == p.lab.Clients[0].Addr && c.Virtual.Port() == persistentPort {
					n++
					all[c.Dest.String()] = true
				}
			}
			if n != 1 {
				return fmt.Errorf("%s has %d", d.Name, n)
			}
		}
		if len(all) != 1 {
			return fmt.Errorf("they name %v", all)
		}
		return nil
	})
}

// ask makes requests, each by a connection of its own and larger than what
// fits into one packet of a tunnel, to some ports in turn.
func (p *persistent) ask(when string, client *lab.Node, n int, ports ...int) {
	p.t.Helper()
	began := time.Now()
	argv := []string{"curl", "-sS", "-m", "60", "-w", "\\n", "-H", "Connection: close", "-H", "X-Long: " + strings.Repeat("x", 3000)}
	for i := range n {
		argv = append(argv, fmt.Sprintf("http://%v:%d/", p.lab.Topology.VIP, ports[i%len(ports)]))
	}
	out, err := client.Run(p.t.Context(), argv...)
	if err != nil {
		p.t.Fatalf("%s: curl: %v: %s", when, errors.Unwrap(err), out)
	}
	for name := range strings.FieldsSeq(out) {
		p.servers[name]++
		if p.first == "" {
			p.first = name
		}
	}
	p.t.Logf("%s: %v, in %v", when, p.servers, time.Since(began).Round(time.Second))
	if len(p.servers) != 1 {
		p.t.Errorf("%s: another real server was reached: %v", when, p.servers)
	}
}
