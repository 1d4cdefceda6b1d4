package syncd

import (
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"saru/internal/config"
	"saru/internal/seal"
	"saru/syncproto/legacy"
	"saru/syncproto/peer"
)

// DefaultConfigPath is where the configuration is unless told otherwise.
const DefaultConfigPath = "/etc/saru/syncd.toml"

// A File is syncd.toml as it is written. The reference file of the package
// explains the keys.
type File struct {
	Sync struct {
		Node      string   `toml:"node"`
		Interface string   `toml:"interface"`
		Group     string   `toml:"group"`
		Peers     []string `toml:"peers"`
		KeyFile   string   `toml:"key_file"`
	} `toml:"sync"`
	Kernel struct {
		Source string          `toml:"source"`
		Limit  int             `toml:"limit"`
		Defer  config.Duration `toml:"defer"`
	} `toml:"kernel"`
	Filter struct {
		Services []string `toml:"services"`
		Except   []string `toml:"except"`
	} `toml:"filter"`
	Legacy struct {
		Interface string          `toml:"interface"`
		Group     string          `toml:"group"`
		Ports     int             `toml:"ports"`
		SyncID    int             `toml:"syncid"`
		Version   int             `toml:"version"`
		Resend    config.Duration `toml:"resend"`
	} `toml:"legacy"`
	Control struct {
		Socket  string `toml:"socket"`
		Saru    string `toml:"saru"`
		Metrics string `toml:"metrics"`
		Debug   bool   `toml:"debug"`
	} `toml:"control"`
}

// DefaultFile is what holds for keys that the file does not have.
func DefaultFile() File {
	var f File
	f.Sync.Group = peer.DefaultGroup.String()
	f.Sync.KeyFile = "/etc/saru/cluster.key"
	f.Kernel.Source = "auto"
	f.Kernel.Limit = DefaultLimit
	f.Legacy.Group = legacy.DefaultGroup.String()
	f.Legacy.Ports = 1
	f.Legacy.Version = 1
	f.Legacy.Resend = config.Duration(time.Minute)
	f.Control.Socket = "/run/saru/syncd.sock"
	f.Control.Saru = "/run/saru/saru.sock"
	f.Control.Metrics = "127.0.0.1:9647"
	return f
}

// Settings are a File that was found good.
type Settings struct {
	Node    string
	UDP     peer.UDPConfig
	MTU     int // of the interface, 0 if none is named
	Keys    *seal.Keyring
	Source  string        // SourceAuto and so on
	Defer   time.Duration // 0: first packets are not held back
	Limit   int
	Filter  *ServiceFilter  // nil: all
	Legacy  *LegacySettings // nil: off
	Socket  string
	Saru    string     // saru's control socket; empty: it is not asked
	Metrics string     // empty: none
	Level   slog.Level // info or debug
}

// maxDefer is what a client's first packet may be late: far below the second
// after which it is sent again.
const maxDefer = 200 * time.Millisecond

// maxLimit is what the table's references can name.
const maxLimit = 1 << 30

// Load reads and checks the configuration at path. It touches nothing.
func Load(path string) (*Settings, error) { return load(path, (*Settings).findInterfaces) }

// loadAgain is Load for a syncd that runs. Its interfaces may be down or gone
// meanwhile, and are not looked at: UDP.Interface has only the name.
func loadAgain(path string) (*Settings, error) {
	return load(path, func(*Settings) error { return nil })
}

func load(path string, find func(*Settings) error) (*Settings, error) {
	f := DefaultFile()
	if err := config.Load(path, &f); err != nil {
		return nil, err
	}
	return f.check(find)
}

func (f *File) check(find func(*Settings) error) (*Settings, error) {
	s := &Settings{Node: f.Sync.Node, Limit: f.Kernel.Limit, Socket: f.Control.Socket, Saru: f.Control.Saru, Metrics: f.Control.Metrics}
	for _, step := range []func(*Settings) error{f.checkNode, f.checkPeers, f.checkInterface, f.checkKernel, f.checkFilter, f.checkLegacy, f.checkControl, find, f.checkKeys} {
		if err := step(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (f *File) checkNode(s *Settings) error {
	if s.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			return config.Bad("sync.node: no host name to use: %v; set it", err)
		}
		s.Node = name
	}
	return config.Name("sync.node", s.Node, peer.MaxName)
}

func (f *File) checkPeers(s *Settings) error {
	group, err := netip.ParseAddrPort(f.Sync.Group)
	if err != nil || !isGroup(group) {
		return config.Bad("sync.group = %q: must be a multicast address with a port, such as %q or %q", f.Sync.Group, peer.DefaultGroup, peer.DefaultGroup6)
	}
	s.UDP.Group = group
	for _, p := range f.Sync.Peers {
		ap, err := parsePeer(p, group.Port())
		if err != nil {
			return err
		}
		if len(s.UDP.Peers) > 0 && ap.Addr().Is4() != s.UDP.Peers[0].Addr().Is4() {
			return config.Bad("sync.peers: %v and %v: must all be of one address family", s.UDP.Peers[0].Addr(), ap.Addr())
		}
		if slices.Contains(s.UDP.Peers, ap) {
			return config.Bad("sync.peers names %q twice; remove one", p)
		}
		s.UDP.Peers = append(s.UDP.Peers, ap)
	}
	return nil
}

// isGroup reports whether a can be a group's address, and port.
func isGroup(a netip.AddrPort) bool {
	return a.Addr().IsMulticast() && !a.Addr().Is4In6() && a.Addr().Zone() == "" && a.Port() != 0
}

func parsePeer(p string, port uint16) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(p)
	if err != nil {
		var a netip.Addr
		a, err = netip.ParseAddr(p)
		ap = netip.AddrPortFrom(a, port)
	}
	if err != nil || ap.Addr().Is4In6() || ap.Addr().IsMulticast() || ap.Port() == 0 {
		return ap, config.Bad("sync.peers: %q: must be the address of another director, such as \"10.9.0.3\"", p)
	}
	return ap, nil
}

func (f *File) checkInterface(s *Settings) error {
	if f.Sync.Interface == "" {
		if len(s.UDP.Peers) == 0 {
			return config.Bad("sync.interface is not set; name the interface on the directors' common LAN, or list the other directors in sync.peers")
		}
		return nil
	}
	s.UDP.Interface = &net.Interface{Name: f.Sync.Interface}
	return nil
}

// findInterfaces looks for those that are named.
func (s *Settings) findInterfaces() error {
	if s.UDP.Interface != nil {
		ifi, err := config.Interface("sync.interface", s.UDP.Interface.Name)
		if err != nil {
			return err
		}
		if ifi.Flags&net.FlagUp == 0 {
			return config.Bad("sync.interface = %q: is down; bring it up first ('ip link set %s up')", ifi.Name, ifi.Name)
		}
		s.UDP.Interface, s.MTU = ifi, ifi.MTU
	}
	if s.Legacy != nil {
		if _, err := config.Interface("legacy.interface", s.Legacy.Interface); err != nil {
			return err
		}
	}
	return nil
}

func (f *File) checkKernel(s *Settings) error {
	switch f.Kernel.Source {
	case SourceAuto, SourceModule, SourceDaemon:
		s.Source = f.Kernel.Source
	default:
		return config.Bad("kernel.source = %q: must be \"auto\", \"module\" or \"daemon\"", f.Kernel.Source)
	}
	if d := f.Kernel.Defer.Std(); d != 0 && (d < time.Millisecond || d > maxDefer || f.Kernel.Source == SourceDaemon) {
		return config.Bad("kernel.defer = %q: must be 1ms to %v, or \"0s\" for off, and needs kernel.source \"auto\" or \"module\"", d, maxDefer)
	}
	s.Defer = f.Kernel.Defer.Std()
	if f.Kernel.Limit < 1 || f.Kernel.Limit > maxLimit {
		return config.Bad("kernel.limit = %d: must be 1 to %d connections", f.Kernel.Limit, maxLimit)
	}
	return nil
}

// LegacySettings say where legacy directors are.
type LegacySettings struct {
	Interface string
	Group     netip.AddrPort
	Ports     int
	SyncID    uint8
	Version   int
	Resend    time.Duration
}

// leastResend keeps the network of legacy directors from being flooded.
const leastResend = 10 * time.Second

func (f *File) checkLegacy(s *Settings) error {
	l := &f.Legacy
	group, err := netip.ParseAddrPort(l.Group)
	switch {
	case err != nil || !isGroup(group):
		return config.Bad("legacy.group = %q: must be a multicast address with a port, as the other directors' sync daemons have it: %q unless they were told otherwise, or such as %q", l.Group, legacy.DefaultGroup, legacy.ExampleGroup6)
	case l.Ports < 1 || l.Ports > legacy.MaxPorts || int(group.Port())+l.Ports > 1<<16:
		return config.Bad("legacy.ports = %d: must be 1 to %d, net.ipv4.vs.sync_ports of the other directors", l.Ports, legacy.MaxPorts)
	case l.SyncID < 0 || l.SyncID > 255:
		return config.Bad("legacy.syncid = %d: must be 0 to 255, that of the other directors' sync daemons", l.SyncID)
	case l.Version != 0 && l.Version != 1:
		return config.Bad("legacy.version = %d: must be 1, or 0 for directors with net.ipv4.vs.sync_version=0 or a kernel before 2.6.39", l.Version)
	case l.Resend.Std() < leastResend:
		return config.Bad("legacy.resend = %q: must be at least %q", l.Resend.Std(), leastResend)
	case l.Interface == "":
		return nil
	case group.Addr() == s.UDP.Group.Addr() && uint(s.UDP.Group.Port()-group.Port()) < uint(l.Ports):
		return config.Bad("legacy.group = %q: is sync.group too; use another group or port for one of them", l.Group)
	}
	s.Legacy = &LegacySettings{l.Interface, group, l.Ports, uint8(l.SyncID), l.Version, l.Resend.Std()}
	return nil
}

func (f *File) checkFilter(s *Settings) (err error) {
	s.Filter, err = ParseServiceFilter(f.Filter.Services, f.Filter.Except)
	return err
}

func (f *File) checkControl(s *Settings) error {
	if f.Control.Debug {
		s.Level = slog.LevelDebug
	}
	if err := config.SocketPath("control.socket", f.Control.Socket); err != nil {
		return err
	}
	if f.Control.Saru != "" {
		if err := config.SocketPath("control.saru", f.Control.Saru); err != nil {
			return err
		}
	}
	if f.Control.Metrics == "" {
		return nil
	}
	ap, err := netip.ParseAddrPort(f.Control.Metrics)
	if err != nil || !ap.Addr().IsLoopback() {
		return config.Bad("control.metrics = %q: must be a loopback address with a port, such as %q, or \"\" for none", f.Control.Metrics, DefaultFile().Control.Metrics)
	}
	return nil
}

func (f *File) checkKeys(s *Settings) (err error) {
	s.Keys, err = seal.LoadKeyring(f.Sync.KeyFile)
	return err
}
