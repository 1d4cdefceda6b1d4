package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
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

// lease is long: an emulated machine stands still for seconds when the real
// one is busy.
const lease = 6 * time.Second

// A setup is what one site has and another has not.
type setup struct {
	share   string                         // more of [share]
	modules []string                       // that the services need
	sysctls map[string]string              // of the directors
	ready   func(st director.Status) error // what else must hold of a director at work
	stopped bool                           // the test starts the daemons
}

// A site is a lab whose directors run both daemons.
type site struct {
	setup
	t   *testing.T
	lab *lab.Lab
	bin demo.Binaries
	dir string
	off map[string]bool // directors that do not serve
}

// newSite makes the lab and starts all daemons, or skips the test.
func newSite(t *testing.T, topology lab.Topology, how setup) *site {
	t.Helper()
	if err := lab.Root(); err != nil {
		t.Skip(err)
	}
	if !lab.HasIPVS() {
		t.Skip(lab.ErrNoIPVS)
	}
	for _, m := range how.modules {
		if out, err := exec.Command("modprobe", m).CombinedOutput(); err != nil {
			t.Skipf("this kernel has no %s: %v: %s", m, err, out)
		}
	}
	dir, err := os.MkdirTemp("", "e2e-"+topology.Name+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &site{setup: how, t: t, bin: binaries(t), dir: dir, off: map[string]bool{}}
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
		if !s.stopped {
			s.start(d)
		}
	}
	return s
}

// slowRate is the rate of /file, bytes/s. The server holds it: curl only pauses
// between reads, and a small file is there before the first.
const slowRate = 12 << 10

// serveFiles has each real server serve its own folder by HTTP at some ports,
// /file slowly; fill puts the files there.
func (s *site) serveFiles(fill func(server, folder string) error, ports ...uint16) {
	s.t.Helper()
	for _, r := range s.lab.RealServers {
		www, run := filepath.Join(s.dir, "www-"+r.Name), filepath.Join(s.dir, "nginx-"+r.Name)
		if err := errors.Join(os.Mkdir(www, 0o755), os.Mkdir(run, 0o755), fill(r.Name, www)); err != nil {
			s.t.Fatal(err)
		}
		var listen strings.Builder
		for _, port := range ports {
			fmt.Fprintf(&listen, "listen %d; ", port)
		}
		conf := filepath.Join(run, "nginx.conf")
		if err := os.WriteFile(conf, []byte(strings.NewReplacer(
			"RUN", run, "WWW", www, "LISTEN", listen.String(), "RATE", fmt.Sprint(slowRate),
		).Replace(`
daemon off;
worker_processes 1;
user root;
pid RUN/pid;
error_log RUN/error.log;
events { }
http {
	access_log off;
	client_body_temp_path RUN/tmp; proxy_temp_path RUN/tmp; fastcgi_temp_path RUN/tmp;
	uwsgi_temp_path RUN/tmp; scgi_temp_path RUN/tmp;
	send_timeout 600s;
	server {
		LISTEN
		root WWW;
		location = /file { limit_rate RATE; sendfile_max_chunk 6k; }
	}
}
`)), 0o644); err != nil {
			s.t.Fatal(err)
		}
		if _, err := r.Start(s.t.Context(), "nginx", []string{"/usr/sbin/nginx", "-c", conf}, lab.Options{}); err != nil {
			s.t.Fatal(err)
		}
	}
}

// serveUDP has each real server answer datagrams to a port of the virtual
// addresses.
func (s *site) serveUDP(port uint16, answer func(server string, datagram []byte) []byte) {
	s.t.Helper()
	vips := []netip.Addr{s.lab.Topology.VIP}
	if s.lab.Topology.IPv6 {
		vips = append(vips, lab.VIP6)
	}
	for _, r := range s.lab.RealServers {
		for _, vip := range vips {
			var pc *net.UDPConn
			if err := r.Do(func() (err error) {
				pc, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(vip, port)))
				return err
			}); err != nil {
				s.t.Fatal(err)
			}
			s.beside(func() { pc.Close() }, func() {
				buf := make([]byte, 1<<16)
				for {
					n, from, err := pc.ReadFromUDPAddrPort(buf)
					if err != nil {
						return
					}
					// What is lost is asked for again.
					_, _ = pc.WriteToUDPAddrPort(answer(r.Name, buf[:n]), from)
				}
			})
		}
	}
}

// beside runs f until the test ends; its end calls stop and waits for f.
func (s *site) beside(stop, f func()) {
	done := make(chan struct{})
	s.t.Cleanup(func() {
		stop()
		<-done
	})
	go func() {
		defer close(done)
		f()
	}()
}

// closeAtEnd closes a connection when the test ends, if that comes before stop
// is called.
func (s *site) closeAtEnd(c io.Closer) (stop func() bool) {
	return context.AfterFunc(s.t.Context(), func() { c.Close() })
}

func (s *site) socket(d *lab.Director, daemon string) string {
	return filepath.Join(s.dir, d.Name+"-"+daemon+".sock")
}

// start configures and starts a director's daemons.
func (s *site) start(d *lab.Director) {
	s.t.Helper()
	for name, value := range s.sysctls {
		if err := d.Sysctl(name, value); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, daemon := range []string{"syncd", "saru"} {
		s.startDaemon(d, daemon, "")
	}
}

// config returns the file of a daemon's configuration.
func (s *site) config(d *lab.Director, daemon string) string {
	return filepath.Join(s.dir, d.Name+"-"+daemon+".toml")
}

// startDaemon starts one daemon, with more of a configuration.
func (s *site) startDaemon(d *lab.Director, daemon, more string) *lab.Process {
	s.t.Helper()
	key, path, conf := filepath.Join(s.dir, "key"), s.bin.Syncd, ""
	saru, syncd := s.socket(d, "saru"), s.socket(d, "syncd")
	switch daemon {
	case "syncd":
		conf = fmt.Sprintf("[sync]\nnode = %q\ninterface = \"eth0\"\nkey_file = %q\n[control]\nsocket = %q\nsaru = %q\nmetrics = \"\"\n%s",
			d.Name, key, syncd, saru, more)
	case "saru":
		path = s.bin.Saru
		var join []string
		for _, o := range s.lab.Directors {
			if o.Name != d.Name {
				join = append(join, fmt.Sprintf("%q", o.Addr))
			}
		}
		vips := fmt.Sprintf("%q", s.lab.Topology.VIP)
		if s.lab.Topology.IPv6 {
			vips += fmt.Sprintf(", %q", lab.VIP6)
		}
		conf = fmt.Sprintf("[cluster]\nname = %q\nnode = %q\nbind = %q\njoin = [%s]\nkey_file = %q\n"+
			"[share]\naddresses = [%s]\ninterface = \"eth0\"\n%s\n[timing]\nlease = %q\n[control]\nsocket = %q\nsyncd = %q\nmetrics = \"\"\n%s",
			s.lab.Topology.Name, d.Name, d.Addr, strings.Join(join, ", "), key, vips, s.share, lease, saru, syncd, more)
	}
	if err := os.WriteFile(s.config(d, daemon), []byte(conf), 0o600); err != nil {
		s.t.Fatal(err)
	}
	p, err := d.Start(s.t.Context(), daemon, []string{path, "--config", s.config(d, daemon), "--log_facility", "-"}, lab.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// drain has a director give its share away, as before planned work.
func (s *site) drain(d *lab.Director) {
	s.t.Helper()
	if out, err := d.Run(s.t.Context(), s.bin.Saru, "drain", "--config", s.config(d, "saru")); err != nil {
		s.t.Fatalf("drain %s: %v: %s", d.Name, err, out)
	}
	s.off[d.Name] = true
	s.whole()
}

// undrain takes a drained director back.
func (s *site) undrain(d *lab.Director) {
	s.t.Helper()
	if out, err := d.Run(s.t.Context(), s.bin.Saru, "undrain", "--config", s.config(d, "saru")); err != nil {
		s.t.Fatalf("undrain %s: %v: %s", d.Name, err, out)
	}
	delete(s.off, d.Name)
	s.whole()
}

// powerCut takes a director's power, and waits until the others have its part.
func (s *site) powerCut(d *lab.Director) {
	s.t.Helper()
	if err := d.PowerCut(); err != nil {
		s.t.Fatal(err)
	}
	s.off[d.Name] = true
	s.whole()
}

// restart boots a director that has lost its power.
func (s *site) restart() {
	s.t.Helper()
	for _, d := range s.lab.Directors {
		if !s.off[d.Name] {
			continue
		}
		if err := d.Boot(); err != nil {
			s.t.Fatal(err)
		}
		s.start(d)
		delete(s.off, d.Name)
		s.whole()
		return
	}
}

// serving returns the directors that have power and a share.
func (s *site) serving() []*lab.Director {
	return slices.DeleteFunc(slices.Clone(s.lab.Directors), func(d *lab.Director) bool { return s.off[d.Name] })
}

// whole waits until the serving directors share all buckets.
func (s *site) whole() {
	s.t.Helper()
	began := time.Now()
	s.eventually("the share is whole", s.incomplete)
	s.t.Logf("%d directors share all buckets, after %v", len(s.serving()), time.Since(began).Round(time.Second))
}

// incomplete says what keeps the share from being whole.
func (s *site) incomplete() error {
	sum := 0
	for _, d := range s.serving() {
		var st director.Status
		err := control.NewClient(s.socket(d, "saru")).Get(s.t.Context(), "/status", &st)
		if err == nil && s.ready != nil {
			err = s.ready(st)
		}
		if err != nil || st.State != "ready" || st.Share.Buckets == 0 {
			return fmt.Errorf("%s: %s %s, %d buckets: %v", d.Name, st.State, st.Why, st.Share.Buckets, err)
		}
		sum += st.Share.Buckets
	}
	if sum != 256 {
		return fmt.Errorf("%d buckets in all", sum)
	}
	return nil
}

// owner returns the director that has a flow, "tcp 10.9.0.11:40000
// 10.9.0.100:80", and how that is known.
func (s *site) owner(flow string) (*lab.Director, director.Explanation) {
	s.t.Helper()
	var e director.Explanation
	f := strings.Fields(flow)
	if err := control.NewClient(s.socket(s.serving()[0], "saru")).Get(s.t.Context(), director.ExplainQuery(f[0], f[1], f[2]), &e); err != nil {
		s.t.Fatalf("explain %s: %v", flow, err)
	}
	i := slices.IndexFunc(s.lab.Directors, func(d *lab.Director) bool { return d.Name == e.Owner })
	if i < 0 {
		s.t.Fatalf("%s is explained as %+v", flow, e)
	}
	return s.lab.Directors[i], e
}

// known waits until every serving director's kernel has n connections that
// count.
func (s *site) known(what string, n int, counts func(lab.Conn) bool) {
	s.t.Helper()
	s.eventually("all directors know "+what, func() error {
		for _, d := range s.serving() {
			table, err := d.ConnTable()
			if err != nil {
				return err
			}
			if got := slices.DeleteFunc(table, func(c lab.Conn) bool { return !counts(c) }); len(got) != n {
				return fmt.Errorf("%s knows %d of %d: %v", d.Name, len(got), n, got)
			}
		}
		return nil
	})
}

// eventually waits until f has nothing to complain of.
func (s *site) eventually(what string, f func() error) {
	s.t.Helper()
	var err error
	for end := time.Now().Add(wholeWithin); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	s.t.Fatalf("not in %v: %s: %v", wholeWithin, what, err)
}

// status returns what a director says of itself.
func (s *site) status(d *lab.Director) (st director.Status) {
	s.t.Helper()
	if err := control.NewClient(s.socket(d, "saru")).Get(s.t.Context(), "/status", &st); err != nil {
		s.t.Fatalf("%s: %v", d.Name, err)
	}
	return st
}

// logs shows what helps to understand a failure.
func (s *site) logs() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the test's own is over
	defer cancel()
	for _, d := range s.lab.Directors {
		files, _ := filepath.Glob(filepath.Join(d.Dir, "*.log"))
		for _, f := range files {
			b, _ := os.ReadFile(f)
			s.t.Logf("%s:\n%s", f, b)
		}
		if !d.Running() {
			continue
		}
		var st director.Status
		err := control.NewClient(s.socket(d, "saru")).Get(ctx, "/status", &st)
		text, _ := json.MarshalIndent(st, "", " ")
		s.t.Logf("%s: %v %s", d.Name, err, text)
		for _, argv := range [][]string{{"cat", "/proc/net/ip_vs_conn"}, {"ipvsadm", "-Ln", "--stats"}, {s.bin.Syncd, "status", "--config", s.config(d, "syncd")}} {
			out, err := d.Run(ctx, argv...)
			s.t.Logf("%s: %v: %v\n%s", d.Name, argv, err, out)
		}
	}
}
