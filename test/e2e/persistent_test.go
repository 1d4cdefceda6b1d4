package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"saru/internal/director"
	"saru/internal/seal"
	"saru/test/demo"
	"saru/test/lab"
)

// One client opens 100 connections to a persistent service, reached by IPIP
// tunnels, while three directors lose their power one after another: all reach
// one real server, and requests larger than the tunnel's packets arrive.
func TestPersistentClientKeepsItsServer(t *testing.T) {
	if err := lab.Root(); err != nil {
		t.Skip(err)
	}
	if !lab.HasIPVS() {
		t.Skip(lab.ErrNoIPVS)
	}
	p := startPersistent(t)
	p.ask("three directors")
	for i := range 3 {
		owner := p.owner()
		if err := owner.PowerCut(); err != nil {
			t.Fatal(err)
		}
		p.cut[owner.Name] = true
		p.whole()
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
	t       *testing.T
	lab     *lab.Lab
	bin     demo.Binaries
	dir     string
	cut     map[string]bool
	servers map[string]int
	asked   int
}

func startPersistent(t *testing.T) *persistent {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-persistent-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &persistent{t: t, bin: binaries(t), dir: dir, cut: map[string]bool{}, servers: map[string]int{}}
	p.lab, err = lab.New(t.Context(), lab.Topology{
		Name: "persistent", Directors: 3, RealServers: 3, Clients: 1,
		Services: []lab.Service{{Proto: "tcp", Port: 80, Forward: lab.IPIP, Persistent: 600}},
	}, filepath.Join(dir, "nodes"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			p.logs()
		}
		if err := p.lab.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte(seal.NewKey()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, s := range p.lab.RealServers {
		www := filepath.Join(dir, "www-"+s.Name)
		if err := errors.Join(os.Mkdir(www, 0o755), os.WriteFile(filepath.Join(www, "index.html"), []byte(s.Name), 0o644)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Start(t.Context(), "httpd", []string{"busybox", "httpd", "-f", "-p", "80", "-h", www}, lab.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range p.lab.Directors {
		p.start(d)
	}
	p.whole()
	return p
}

func (p *persistent) config(d *lab.Director, daemon string) string {
	return filepath.Join(p.dir, d.Name+"-"+daemon+".toml")
}

// start starts a director's daemons.
func (p *persistent) start(d *lab.Director) {
	p.t.Helper()
	var join []string
	for _, o := range p.lab.Directors {
		if o.Name != d.Name {
			join = append(join, fmt.Sprintf("%q", o.Addr))
		}
	}
	key := filepath.Join(p.dir, "key")
	socket := filepath.Join(p.dir, d.Name+"-syncd.sock")
	for _, daemon := range []struct{ name, path, conf string }{
		{"syncd", p.bin.Syncd, fmt.Sprintf("[sync]\nnode = %q\ninterface = \"eth0\"\nkey_file = %q\n[control]\nsocket = %q\nsaru = %q\nmetrics = \"\"\n",
			d.Name, key, socket, filepath.Join(p.dir, d.Name+"-saru.sock"))},
		{"saru", p.bin.Saru, fmt.Sprintf("[cluster]\nname = \"persistent\"\nnode = %q\nbind = %q\njoin = [%s]\nkey_file = %q\n"+
			"[share]\naddresses = [%q]\ninterface = \"eth0\"\n[timing]\nlease = \"2s\"\n[control]\nsocket = %q\nsyncd = %q\nmetrics = \"\"\n",
			d.Name, d.Addr, strings.Join(join, ", "), key, p.lab.Topology.VIP, filepath.Join(p.dir, d.Name+"-saru.sock"), socket)},
	} {
		if err := os.WriteFile(p.config(d, daemon.name), []byte(daemon.conf), 0o600); err != nil {
			p.t.Fatal(err)
		}
		if _, err := d.Start(p.t.Context(), daemon.name, []string{daemon.path, "--config", p.config(d, daemon.name), "--log_facility", "-"}, lab.Options{}); err != nil {
			p.t.Fatal(err)
		}
	}
}

// restart boots the director that lost its power first.
func (p *persistent) restart() {
	p.t.Helper()
	for _, d := range p.lab.Directors {
		if !p.cut[d.Name] {
			continue
		}
		if err := d.Boot(); err != nil {
			p.t.Fatal(err)
		}
		p.start(d)
		delete(p.cut, d.Name)
		p.whole()
		return
	}
}

// living returns the directors that have power.
func (p *persistent) living() (all []*lab.Director) {
	return slices.DeleteFunc(slices.Clone(p.lab.Directors), func(d *lab.Director) bool { return p.cut[d.Name] })
}

// whole waits until the living directors share all buckets, by the division
// that a persistent service needs.
func (p *persistent) whole() {
	p.t.Helper()
	why := ""
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		sum := 0
		why = ""
		for _, d := range p.living() {
			out, err := d.Run(p.t.Context(), p.bin.Saru, "status", "--json", "--config", p.config(d, "saru"))
			var st director.Status
			if err != nil || json.Unmarshal([]byte(out), &st) != nil || st.State != "ready" || st.Share.Buckets == 0 || len(st.Share.Services) != 1 {
				why = fmt.Sprintf("%s: %s %s, %d buckets, %+v (%v)", d.Name, st.State, st.Why, st.Share.Buckets, st.Share.Services, err)
				break
			}
			sum += st.Share.Buckets
		}
		if why == "" && sum == 256 {
			return
		}
	}
	p.t.Fatalf("the share is not whole: %s", why)
}

// owner returns the director that has the client.
func (p *persistent) owner() *lab.Director {
	p.t.Helper()
	d := p.living()[0]
	out, err := d.Run(p.t.Context(), p.bin.Saru, "explain", "--json", "--config", p.config(d, "saru"),
		"tcp", fmt.Sprintf("%v:40000", p.lab.Clients[0].Addr), fmt.Sprintf("%v:80", p.lab.Topology.VIP))
	var e director.Explanation
	if err != nil || json.Unmarshal([]byte(out), &e) != nil {
		p.t.Fatalf("explain: %v: %s", err, out)
	}
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

func (p *persistent) logs() {
	for _, d := range p.lab.Directors {
		files, _ := filepath.Glob(filepath.Join(d.Dir, "*.log"))
		for _, f := range files {
			b, _ := os.ReadFile(f)
			p.t.Logf("%s:\n%s", f, b)
		}
	}
}
