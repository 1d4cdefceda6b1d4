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

	"saru/internal/control"
	"saru/internal/director"
	"saru/internal/seal"
	"saru/test/demo"
	"saru/test/lab"
)

// wholeWithin is generous: a guest loads some thirty modules for the first table.
const wholeWithin = 150 * time.Second

// A site is a lab whose directors run both daemons.
type site struct {
	t     *testing.T
	lab   *lab.Lab
	bin   demo.Binaries
	dir   string
	lease time.Duration                  // long: an emulated machine stands still for seconds when the real one is busy
	share string                         // more of [share]
	ready func(st director.Status) error // what else must hold of a director at work
	cut   map[string]bool                // directors without power
}

// newSite makes the lab and starts all daemons, or skips the test.
func newSite(t *testing.T, topology lab.Topology, lease time.Duration, share string, ready func(director.Status) error) *site {
	t.Helper()
	if err := lab.Root(); err != nil {
		t.Skip(err)
	}
	if !lab.HasIPVS() {
		t.Skip(lab.ErrNoIPVS)
	}
	dir, err := os.MkdirTemp("", "e2e-"+topology.Name+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &site{t: t, bin: binaries(t), dir: dir, lease: lease, share: share, ready: ready, cut: map[string]bool{}}
	if s.lab, err = lab.New(t.Context(), topology, filepath.Join(dir, "nodes")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			s.logs()
		}
		if err := s.lab.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte(seal.NewKey()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range s.lab.Directors {
		s.start(d)
	}
	return s
}

// serveFiles has each real server serve its own folder by HTTP at some ports;
// fill puts the files there.
func (s *site) serveFiles(fill func(server, folder string) error, ports ...uint16) {
	s.t.Helper()
	for _, r := range s.lab.RealServers {
		www := filepath.Join(s.dir, "www-"+r.Name)
		if err := errors.Join(os.Mkdir(www, 0o755), fill(r.Name, www)); err != nil {
			s.t.Fatal(err)
		}
		for _, port := range ports {
			argv := []string{"busybox", "httpd", "-f", "-p", fmt.Sprint(port), "-h", www}
			if _, err := r.Start(s.t.Context(), fmt.Sprintf("httpd-%d", port), argv, lab.Options{}); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

func (s *site) socket(d *lab.Director, daemon string) string {
	return filepath.Join(s.dir, d.Name+"-"+daemon+".sock")
}

// start starts a director's daemons.
func (s *site) start(d *lab.Director) {
	s.t.Helper()
	var join []string
	for _, o := range s.lab.Directors {
		if o.Name != d.Name {
			join = append(join, fmt.Sprintf("%q", o.Addr))
		}
	}
	key := filepath.Join(s.dir, "key")
	saru, syncd := s.socket(d, "saru"), s.socket(d, "syncd")
	for _, daemon := range []struct{ name, path, conf string }{
		{"syncd", s.bin.Syncd, fmt.Sprintf("[sync]\nnode = %q\ninterface = \"eth0\"\nkey_file = %q\n[control]\nsocket = %q\nsaru = %q\nmetrics = \"\"\n",
			d.Name, key, syncd, saru)},
		{"saru", s.bin.Saru, fmt.Sprintf("[cluster]\nname = %q\nnode = %q\nbind = %q\njoin = [%s]\nkey_file = %q\n"+
			"[share]\naddresses = [%q]\ninterface = \"eth0\"\n%s\n[timing]\nlease = %q\n[control]\nsocket = %q\nsyncd = %q\nmetrics = \"\"\n",
			s.lab.Topology.Name, d.Name, d.Addr, strings.Join(join, ", "), key, s.lab.Topology.VIP, s.share, s.lease, saru, syncd)},
	} {
		path := filepath.Join(s.dir, d.Name+"-"+daemon.name+".toml")
		if err := os.WriteFile(path, []byte(daemon.conf), 0o600); err != nil {
			s.t.Fatal(err)
		}
		if _, err := d.Start(s.t.Context(), daemon.name, []string{daemon.path, "--config", path, "--log_facility", "-"}, lab.Options{}); err != nil {
			s.t.Fatal(err)
		}
	}
}

// powerCut takes a director's power, and waits until the others have its part.
func (s *site) powerCut(d *lab.Director) {
	s.t.Helper()
	if err := d.PowerCut(); err != nil {
		s.t.Fatal(err)
	}
	s.cut[d.Name] = true
	s.whole()
}

// restart boots a director that has lost its power.
func (s *site) restart() {
	s.t.Helper()
	for _, d := range s.lab.Directors {
		if !s.cut[d.Name] {
			continue
		}
		if err := d.Boot(); err != nil {
			s.t.Fatal(err)
		}
		s.start(d)
		delete(s.cut, d.Name)
		s.whole()
		return
	}
}

// living returns the directors that have power.
func (s *site) living() []*lab.Director {
	return slices.DeleteFunc(slices.Clone(s.lab.Directors), func(d *lab.Director) bool { return s.cut[d.Name] })
}

// whole waits until the living directors share all buckets.
func (s *site) whole() {
	s.t.Helper()
	why := ""
	for end := time.Now().Add(wholeWithin); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if why = s.incomplete(); why == "" {
			return
		}
	}
	s.t.Fatalf("the share is not whole: %s", why)
}

// incomplete says what keeps the share from being whole, or "".
func (s *site) incomplete() string {
	sum := 0
	for _, d := range s.living() {
		var st director.Status
		err := control.NewClient(s.socket(d, "saru")).Get(s.t.Context(), "/status", &st)
		if err == nil && s.ready != nil {
			err = s.ready(st)
		}
		if err != nil || st.State != "ready" || st.Share.Buckets == 0 {
			return fmt.Sprintf("%s: %s %s, %d buckets: %v", d.Name, st.State, st.Why, st.Share.Buckets, err)
		}
		sum += st.Share.Buckets
	}
	if sum != 256 {
		return fmt.Sprintf("%d buckets in all", sum)
	}
	return ""
}

// explain asks a living director for a flow of the client.
func (s *site) explain(from, to uint16) director.Explanation {
	s.t.Helper()
	var e director.Explanation
	query := director.ExplainQuery("tcp", fmt.Sprintf("%v:%d", s.lab.Clients[0].Addr, from), fmt.Sprintf("%v:%d", s.lab.Topology.VIP, to))
	if err := control.NewClient(s.socket(s.living()[0], "saru")).Get(s.t.Context(), query, &e); err != nil {
		s.t.Fatalf("explain: %v", err)
	}
	return e
}

// status returns what a director says of itself.
func (s *site) status(d *lab.Director) (st director.Status) {
	s.t.Helper()
	if err := control.NewClient(s.socket(d, "saru")).Get(s.t.Context(), "/status", &st); err != nil {
		s.t.Fatalf("%s: %v", d.Name, err)
	}
	return st
}

func (s *site) logs() {
	for _, d := range s.lab.Directors {
		files, _ := filepath.Glob(filepath.Join(d.Dir, "*.log"))
		for _, f := range files {
			b, _ := os.ReadFile(f)
			s.t.Logf("%s:\n%s", f, b)
		}
		if d.Running() {
			b, _ := json.MarshalIndent(s.status(d), "", " ")
			s.t.Logf("%s: %s", d.Name, b)
		}
	}
}
