package compare

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"saru/conntable"
	"saru/internal/control"
	"saru/internal/seal"
	"saru/ipvs/usersync"
	"saru/test/lab"
)

// The ways.
const (
	KernelDefault = "kernel"       // the kernel's sync threads as they are
	KernelTuned   = "kernel-tuned" // set up to tell as soon as they can
	Tap           = "syncd-tap"    // syncd on the sync threads
	Module        = "syncd-module" // syncd with the module
	None          = "none"         // nothing: what the load itself costs
)

// Ways lists all of them.
var Ways = []string{KernelDefault, KernelTuned, Tap, Module}

const (
	openPort   = 80 // is answered
	silentPort = 81 // SYNs vanish: handshakes stay half open
	timeLimit  = 60 * time.Second
)

// A site is two directors, a real server and a client. All packets go through
// the first director; the second one is looked at.
type site struct {
	lab    *lab.Lab
	began  time.Time
	way    string
	client *lab.Node
	active *lab.Director
	peer   *lab.Director
	eye    *usersync.Client // in the peer's kernel
	server net.Listener
	syncds []*lab.Process
	served served
	mu     sync.Mutex
	port   uint16 // the client's last
}

func newSite(ctx context.Context, way, syncd, module, dir string) (_ *site, err error) {
	s := &site{way: way, began: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	service := func(port uint16) lab.Service {
		return lab.Service{Proto: "tcp", Port: port, Scheduler: "rr", Forward: lab.Gate}
	}
	s.lab, err = lab.New(ctx, lab.Topology{
		Name: "compare", Directors: 2, RealServers: 1, Clients: 1, VIPOnDirectors: true,
		Services: []lab.Service{service(openPort), service(silentPort)},
	}, filepath.Join(dir, "nodes"))
	if err != nil {
		return s, err
	}
	s.active, s.peer, s.client = s.lab.Directors[0], s.lab.Directors[1], s.lab.Clients[0]
	vip := s.lab.Topology.VIP.String()
	real := s.lab.RealServers[0]
	for _, step := range []struct {
		on   *lab.Node
		argv []string
	}{
		{s.client, []string{"ip", "route", "add", vip, "via", s.active.Addr.String()}},
		{real, []string{"nft", "add table ip silent; add chain ip silent in { type filter hook input priority 0; }; add rule ip silent in tcp dport 81 drop"}},
	} {
		if _, err := step.on.Run(ctx, step.argv...); err != nil {
			return s, err
		}
	}
	for _, d := range s.lab.Directors {
		if err := d.Sysctl("net.ipv4.conf.all.send_redirects", "0"); err != nil {
			return s, err
		}
		if err := d.Sysctl("net.ipv4.conf."+lab.Interface+".send_redirects", "0"); err != nil {
			return s, err
		}
	}
	if out, err := exec.CommandContext(ctx, "insmod", module).CombinedOutput(); err != nil {
		return s, fmt.Errorf("load %s: %w: %s", module, err, out)
	}
	if err := s.peer.Do(func() (err error) { s.eye, err = usersync.Dial(); return err }); err != nil {
		return s, err
	}
	if err := real.Do(func() (err error) {
		s.server, err = net.Listen("tcp4", fmt.Sprintf("%s:%d", vip, openPort))
		return err
	}); err != nil {
		return s, err
	}
	go s.served.answer(s.server)
	return s, s.synchronise(ctx, syncd, dir)
}

// served are the server's connections. Those that a power cut left would keep
// its namespace alive.
type served struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (s *served) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
}

// answer takes connections and answers what each says.
func (s *served) answer(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, c)
		s.mu.Unlock()
		go func() {
			defer c.Close()
			b := make([]byte, 64)
			for {
				n, err := c.Read(b)
				if err != nil {
					return
				}
				if _, err := c.Write(b[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// synchronise starts the way's synchronisation on both directors.
func (s *site) synchronise(ctx context.Context, syncd, dir string) error {
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(seal.NewKey()+"\n"), 0o600); err != nil {
		return err
	}
	for _, d := range s.lab.Directors {
		var err error
		switch s.way {
		case None:
		case KernelDefault, KernelTuned:
			err = startKernel(ctx, d, s.way == KernelTuned)
		default:
			err = s.startSyncd(ctx, d, syncd, key)
		}
		if err != nil {
			return err
		}
	}
	for i := range s.syncds {
		if err := awaitSynced(ctx, filepath.Join(s.lab.Directors[i].Dir, "s.sock")); err != nil {
			return err
		}
	}
	return nil
}

func startKernel(ctx context.Context, d *lab.Director, tuned bool) error {
	if tuned {
		for name, value := range map[string]string{"sync_threshold": "0 0", "sync_refresh_period": "10", "sync_retries": "1"} {
			if err := d.Sysctl("net.ipv4.vs."+name, value); err != nil {
				return err
			}
		}
	}
	for _, role := range []string{"master", "backup"} {
		if _, err := d.Run(ctx, "ipvsadm", "--start-daemon", role, "--mcast-interface", lab.Interface, "--syncid", "1"); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) startSyncd(ctx context.Context, d *lab.Director, syncd, key string) error {
	source := map[string]string{Tap: "daemon", Module: "module"}[s.way]
	conf := fmt.Sprintf("[sync]\nnode = %q\ninterface = %q\nkey_file = %q\n[kernel]\nsource = %q\n[control]\nsocket = %q\nmetrics = \"\"\n",
		d.Name, lab.Interface, key, source, filepath.Join(d.Dir, "s.sock"))
	path := filepath.Join(d.Dir, "syncd.toml")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		return err
	}
	p, err := d.Start(ctx, "syncd", []string{syncd, "run", "--config", path, "--log_facility", "-"}, lab.Options{})
	if err == nil {
		s.syncds = append(s.syncds, p)
	}
	return err
}

func awaitSynced(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	for {
		var st struct {
			Synced bool       `json:"synced"`
			Peers  []struct{} `json:"peers"`
		}
		if control.NewClient(socket).Get(ctx, "/status", &st) == nil && st.Synced && len(st.Peers) > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not synced with a peer after %v", socket, timeLimit)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// key is that of the client's next connection.
func (s *site) key(vport uint16) conntable.Key {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.port < 20000 || s.port >= 60000 {
		s.port = 20000
	}
	s.port++
	return conntable.Key{
		Client:   netip.AddrPortFrom(s.client.Addr, s.port),
		Virtual:  netip.AddrPortFrom(s.lab.Topology.VIP, vport),
		Protocol: 6,
	}
}

// has reports whether the peer's kernel has the connection.
func (s *site) has(k conntable.Key) (bool, error) {
	_, there, err := s.eye.Get(k)
	return there, err
}

func (s *site) close() error {
	var errs []error
	for _, p := range s.syncds {
		errs = append(errs, p.Term(20*time.Second))
	}
	if s.server != nil {
		errs = append(errs, s.server.Close())
	}
	s.served.close()
	if s.eye != nil {
		errs = append(errs, s.eye.Close())
	}
	if s.lab != nil {
		errs = append(errs, s.lab.Close())
	}
	return errors.Join(errs...)
}
